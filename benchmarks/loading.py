"""Loading a large checkpoint: how long, and how much memory.

    python benchmarks/loading.py [--model large-v3] [--folder FOLDER] [--json FILE]

Files with random float16 weights in the shapes of one of OpenAI's models are written first, as
safetensors and as CTranslate2 writes them; then every figure is of a process of its own. Seconds
are those of `load_model`, the library having been imported; peak memory is all that the process had
resident at most, Python, JAX and mapped files included (Linux).
"""

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = ("bfloat16", "float32")
_RENAMED = {
    ".layers.": ".layer_",
    "self_attn.out_proj": "self_attention.linear_1",
    "encoder_attn.q_proj": "attention.linear_0",
    "encoder_attn.out_proj": "attention.linear_2",
    "encoder_attn_layer_norm": "attention.layer_norm",
    "self_attn_layer_norm": "self_attention.layer_norm",
    "final_layer_norm": "ffn.layer_norm",
    "fc1": "ffn.linear_0",
    "fc2": "ffn.linear_1",
    "layer_norm.weight": "layer_norm.gamma",
    "layer_norm.bias": "layer_norm.beta",
    "embed_positions.weight": "position_encodings.encodings",
    "embed_tokens": "embeddings",
}
"""Parts of Hugging Face's names and of CTranslate2's, to be replaced in this order."""
_STACKED = {
    "self_attn.q_proj": ("self_attention.linear_0", ("q", "k", "v")),
    "encoder_attn.k_proj": ("attention.linear_1", ("k", "v")),
}
_TYPES = {"int8": 1, "float16": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading a large checkpoint.")
    parser.add_argument("--model", default="large-v3")
    parser.add_argument("--folder", type=Path, help="where the files are written and kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(child(*options.child)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folders = write(options.model, options.folder or Path(temporary))
        results = {
            f"{kind}_{dtype}": measure(folder, dtype, options.rounds)
            for kind, folder in folders.items()
            for dtype in DTYPES
        }
    print(json.dumps(results, indent=2))
    if options.json is not None:
        import harness

        content = harness.provenance() | {"model": options.model} | results
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def child(folder: str, dtype: str) -> dict[str, float]:
    """Load the model; return the seconds, the parameters' bytes and the peak."""
    import jax

    import jaxasr_interp as ji

    jax.devices()
    began, processor = time.perf_counter(), time.process_time()
    model = ji.load_model(folder, dtype)
    leaves = jax.block_until_ready(jax.tree.leaves(model))
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "parameter_bytes": sum(leaf.nbytes for leaf in leaves),
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """Return what this process had resident at most; `getrusage` counts its parent's too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


def measure(folder: Path, dtype: str, rounds: int) -> dict[str, object]:
    """Load in several processes, one after the other."""
    command = [sys.executable, __file__, "--child", str(folder), dtype]
    runs = []
    for _ in range(rounds):
        done = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        runs.append(json.loads(done.stdout))
    peak = max(run["peak_bytes"] for run in runs)
    return {
        "seconds": sorted(round(run["seconds"], 2) for run in runs),
        "processor_seconds": sorted(round(run["processor_seconds"], 2) for run in runs),
        "parameter_bytes": runs[0]["parameter_bytes"],
        "peak_bytes": peak,
        "peak_over_parameters": round(peak / runs[0]["parameter_bytes"], 3),
    }


def write(model: str, folder: Path) -> dict[str, Path]:
    """Write the files, unless they are there."""
    from jaxasr_interp.checkpoint.sizes import openai_config

    config = openai_config(model)
    assert config is not None
    folders = {kind: folder / f"{model}_{kind}" for kind in ("safetensors", "ctranslate2")}
    if not all(one.exists() for one in folders.values()):
        tensors = dict(random_tensors(config))
        for one in folders.values():
            one.mkdir(parents=True)
        hf = config.to_hf() | {"activation_function": "gelu"}
        (folders["safetensors"] / "config.json").write_text(json.dumps(hf))
        from safetensors.numpy import save_file

        save_file(tensors, folders["safetensors"] / "model.safetensors")
        write_ctranslate2(tensors, config, folders["ctranslate2"] / "model.bin")
    return folders


def random_tensors(config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a random tensor for every name of Hugging Face's."""
    from jaxasr_interp.checkpoint.convert import abstract_parameters
    from jaxasr_interp.checkpoint.table import TABLE, names_of, shape_of_one

    shapes = abstract_parameters(config, "float32")
    rng = np.random.default_rng(0)
    for rule in TABLE:
        for name in names_of(rule, config):
            shape = shape_of_one(rule, shapes[rule.path].shape)
            yield name, (rng.random(shape, np.float32) - 0.5).astype(np.float16)


def write_ctranslate2(tensors: dict[str, np.ndarray], config: Any, path: Path) -> None:
    """Write a `model.bin` of version 6."""
    variables = dict(ctranslate2_variables(tensors))
    for stack in ("encoder", "decoder"):
        variables[f"{stack}/num_heads"] = np.asarray(config.heads(stack), np.int8)
    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + text("WhisperSpec"))
        file.write(struct.pack("<2I", 3, len(variables)))
        for name, value in variables.items():
            file.write(text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape))
            file.write(struct.pack("<BI", _TYPES[str(value.dtype)], value.nbytes))
            file.write(value.data)
        file.write(struct.pack("<I", 1))
        file.write(text("decoder/projection/weight") + text("decoder/embeddings/weight"))


def ctranslate2_variables(tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the variables of CTranslate2: queries, keys and values in one matrix."""
    for name, value in tensors.items():
        first = next((part for part in _STACKED if part in name), None)
        if first is not None:
            target, letters = _STACKED[first]
            parts = [name.replace(f"{first[-6]}_proj", f"{one}_proj") for one in letters]
            # A key has no bias, which is stored as zeros.
            pieces = [tensors.get(part, np.zeros_like(value)) for part in parts]
            name, value = name.replace(first, target), np.concatenate(pieces)
            if target == "attention.linear_1" and name.endswith("weight"):
                bias = tensors[parts[1].replace("weight", "bias")]
                yield slashed(name.replace("weight", "bias")), np.concatenate([bias * 0, bias])
        elif any(f"self_attn.{one}_proj" in name for one in "kv") or "attn.v_proj" in name:
            continue
        yield slashed(name), value


def slashed(name: str) -> str:
    """Return CTranslate2's name."""
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name.removeprefix("model.").replace(".", "/")


def text(content: str) -> bytes:
    """Return a string as CTranslate2 stores it, with its length and a closing zero."""
    data = content.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


if __name__ == "__main__":
    main()
