"""Write a model of ours as the Hugging Face folder the peers read.

    python benchmarks/peers/export.py base FOLDER

Runs in our environment. `ji.save_model` writes our own format, which the peers cannot read.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import jaxasr_interp as ji
from jaxasr_interp.checkpoint import convert


def export_model(model: ji.Whisper, folder: Path) -> Path:
    """Write `config.json` and `model.safetensors` (in the model's own dtype) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # The special ids play no part in a forward pass, but their defaults may lie outside a small
    # vocabulary, which torch's embedding refuses.
    ids = dict.fromkeys(("pad", "bos", "eos", "decoder_start"), model.config.d_vocab - 1)
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "tie_word_embeddings": True,
        **model.config.to_hf(),
        **{f"{name}_token_id": value for name, value in ids.items()},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {k: np.ascontiguousarray(v) for k, v in convert.to_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="A model of ours as a Hugging Face folder.")
    parser.add_argument("model", help="anything ji.load_model takes")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    export_model(ji.load_model(options.model, options.dtype), options.folder)


if __name__ == "__main__":
    main()
