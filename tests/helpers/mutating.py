"""Damages copies of checkpoint folders and loads them, in a process whose memory is limited.

Run as a script with a folder that holds a folder for each kind of checkpoint, and two seeds, the
first and the one after the last. It prints each seed before its folder is loaded, and then what
came of it.
"""

import json
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SECONDS = 20
MEMORY = 2 << 30
ODD = (None, True, -1, 0, 1, 7, 10**7, 10**9, 2**70, 0.5, float("nan"), "", "x", "<|de|>")
ODD_LISTS = ([], [[]], [[1]], [[1, "x"]], {}, {"x": [0]}, [-1], [10**9], ["x", None])


def main(folder: Path, first: int, end: int) -> None:
    """Load damaged copies of the checkpoints in `folder`."""
    import jax

    import jaxasr_interp as ji

    jax.devices()
    limit_memory()
    kinds = sorted(folder.iterdir())
    for seed in range(first, end):
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as temporary:
            damaged = Path(shutil.copytree(kinds[seed % len(kinds)], Path(temporary) / "model"))
            done = damage(damaged, rng)
            print(seed, damaged.name, kinds[seed % len(kinds)].name, done, flush=True)
            signal.alarm(SECONDS)
            try:
                result = str(ji.load_model(damaged).dtype)
            except ji.InputError as error:
                result = f"InputError: {error}"
            signal.alarm(0)
            print("  ", result, flush=True)
            assert "\n" not in result
    print("all loaded")


def limit_memory() -> None:
    """Allow this process as much memory as it has now, and `MEMORY` more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file in one way; return what was done."""
    path = rng.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    if path.suffix == ".json" and rng.random() < 0.7:
        return f"{path.name}: {damage_json(path, rng)}"
    content = bytearray(path.read_bytes())
    # Headers and indices are small, and lie at the ends.
    reach = rng.choice([64, 1024, len(content)])
    at = min(len(content), rng.randrange(reach + 1))
    at = len(content) - at if rng.random() < 0.5 else at
    size = rng.choice([1, 2, 8, 100])
    how = rng.choice(["flip", "flip", "fill", "cut", "remove", "insert", "double", "delete"])
    match how:
        case "flip":
            for i in range(at, min(at + size, len(content))):
                content[i] ^= 1 << rng.randrange(8)
        case "fill":
            content[at : at + size] = bytes([rng.choice([0, 255])]) * size
        case "cut":
            del content[at:]
        case "remove":
            del content[at : at + size]
        case "insert":
            content[at:at] = rng.randbytes(size)
        case "double":
            content += content[at:]
    if how == "delete":
        path.unlink()
    else:
        path.write_bytes(content)
    return f"{path.name}: {how} {size} at {at}"


def damage_json(path: Path, rng: random.Random) -> str:
    """Put an odd value somewhere into a JSON file, or nest it deeply."""
    if rng.random() < 0.1:
        path.write_text("[" * 100_000)
        return "nested"
    content = json.loads(path.read_text("utf-8"))
    places = list(inside(content))
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
        change = "removed"
    else:
        change = holder[key] = rng.choice([*ODD, *ODD_LISTS])
    path.write_text(json.dumps(content))
    return f"{key} is {change!r}"


def inside(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every holder in parsed JSON, and the key or index of what it holds."""
    keys = content if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from inside(content[key])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
