"""Compile every program of the library for an accelerator that is not here, and print a table.

    python tests/accelerators/table.py --on h100-1 [--size small] [--dtype bfloat16] [--json FILE]

For TPUs it needs the extra `tpu`, for NVIDIA GPUs the extra `gpu` (no GPU). Bytes are the
compiler's own. `largest` is the largest array that a program writes; of what `hlo.problems` says,
the table has kinds and counts, the JSON the places.
"""

import argparse
import collections
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.hlo import buffers, problems
from helpers.real import real_model
from helpers.recording import Call, record
from helpers.whole_library import LARGE, SMALL, use_everything, zero_model
from jaxasr_interp.runtime.ahead_of_time import DeviceCompiler, not_cached
from jaxasr_interp.runtime.targets import TargetMachine

SIZES = {"small": SMALL, "large-v3": LARGE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--on", default="v5e-1", help="a machine, such as v5e-1 or h100-1")
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--program", default="", help="only programs whose name has this")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    given = parser.parse_args()
    machine = TargetMachine.parse(given.on)
    rows = []
    print("| program | arguments, MB | temporaries, MB | largest | compiled in, s | said |")
    for row in compiled(machine, given.size, given.dtype, given.program):
        rows.append(row)
        numbers = [f"{row[name] / 1e6:.1f}" for name in ("arguments", "temporaries")]
        cells = [row["program"], *numbers, row["largest"], f"{row['seconds']:.1f}"]
        kinds = collections.Counter(problem.split(", ")[0] for problem in row["problems"])
        said = "; ".join(f"{kind} ({count})" for kind, count in kinds.items())
        print(f"| {' | '.join([*cells, said])} |", flush=True)
        if given.json is not None:
            content = {"on": given.on, "size": given.size, "dtype": given.dtype, "rows": rows}
            given.json.write_text(json.dumps({"jax": jax.__version__, **content}, indent=2) + "\n")


def compiled(
    machine: TargetMachine, size: str, dtype: str, program: str
) -> Iterator[dict[str, Any]]:
    """Compile each call of each program."""
    compiler, config = DeviceCompiler(machine), SIZES[size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: machine.platform)
        with pytest.MonkeyPatch.context() as recording:
            calls = record(recording)
            use_everything(zero_model(config, dtype, real_model("base").tokenizer))
        for call in calls.values():
            if program in call.name:
                yield row_of(compiler, call, config.decoder_layers)


def row_of(compiler: DeviceCompiler, call: Call, n_layers: int) -> dict[str, Any]:
    """Compile one call of a program."""
    arguments, keywords = compiler.placed((call.arguments, call.keywords))
    started = time.perf_counter()
    lowered = call.program.lower(*arguments, **keywords)
    with not_cached():
        found = lowered.compile()
    memory = found.memory_analysis()
    written = max(buffers(found.as_text()), key=lambda one: one.size, default=None)
    shape = "" if written is None else f"{written.dtype}[{'×'.join(map(str, written.shape))}]"
    return {
        "program": f"{call.name} {_brief(call.keywords)}".strip(),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "largest": shape,
        "seconds": time.perf_counter() - started,
        "problems": list(dict.fromkeys(problems(lowered, found, n_layers))),
    }


def _brief(keywords: dict[str, Any]) -> str:
    said = {name: value for name, value in keywords.items() if isinstance(value, (str, int, tuple))}
    return re.sub(r"[|\s]+", " ", ", ".join(f"{k}={v}" for k, v in said.items()))[:60]


if __name__ == "__main__":
    main()
