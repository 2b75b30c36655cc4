"""How long a command takes from the start of its process, beside faster-whisper's process.

    python benchmarks/commands.py --peer FASTER_WHISPER/bin/python [--json FILE]

`transcribe` of a demo clip and `patch` of the demo's pair, each a process of its own; faster-
whisper is a script that loads the same weights in float32, detects the language and prints the
text. Cold is the first process, with an empty compilation cache; the warm ones run in turns with
the peer's, and the ratio is the median of the pairs'.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
from peers.export import export_ctranslate2

DATA = harness.ROOT / "jaxasr_interp" / "data"
CLIPS = [str(DATA / "grass.flac"), str(DATA / "glass.flac")]
COMMANDS = {"transcribe": CLIPS[:1], "patch": CLIPS}
PEER = harness.ROOT / "benchmarks" / "peers" / "faster_whisper_command.py"


def process(command: Sequence[str], cache: Path) -> Callable[[], float]:
    """A call that runs a command and returns its seconds."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}

    def run() -> float:
        started = time.perf_counter()
        subprocess.run(command, env=environment, capture_output=True, check=True, cwd=cache)
        return time.perf_counter() - started

    return run


def benchmark(model: str, python: str, rounds: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_ctranslate2(model, folder / "weights")
        peer = process([python, str(PEER), str(folder / "weights"), CLIPS[0]], folder)
        peer()
        for command, clips in COMMANDS.items():
            cache = folder / command
            cache.mkdir()
            call = [sys.executable, "-m", "jaxasr_interp", command, *clips, "--model", model]
            if command == "patch":
                call += ["--out", "out", "--overwrite"]
            ours = process(call, cache)
            cold = ours()
            pair = harness.alternate(ours, peer, rounds)
            yield {
                "model": model,
                "command": command,
                "cold_seconds": cold,
                "seconds": statistics.median(pair.ours),
                "peer_seconds": statistics.median(pair.theirs),
                "ratio": 1 / pair.ratio,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="Commands from the start of their processes.")
    parser.add_argument("--peer", required=True, help="interpreter with faster-whisper")
    parser.add_argument("--model", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    rows = []
    for model in options.model:
        for row in benchmark(model, options.peer, options.rounds):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json is not None:
        content = harness.provenance() | {"rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
