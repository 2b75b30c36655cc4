"""A worker's side of the pipe: one JSON object a line in, one out."""

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]

_STATUS = Path("/proc/self/status")
_CLEAR_PEAK = Path("/proc/self/clear_refs")


def serve(operations: dict[str, Callable[..., Answer]]) -> None:
    """Answer until stdin ends."""
    # Libraries print to stdout at will: the answers keep it to themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        try:
            answer = {"ok": True, **_answer(operations, json.loads(line))}
        except Exception as error:
            traceback.print_exc()
            answer = {"ok": False, "error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(operations: dict[str, Callable[..., Answer]], request: dict[str, Any]) -> Answer:
    operation = request.pop("op")
    if operation not in operations:
        raise ValueError(f"no operation {operation!r}: choose one of {', '.join(operations)}")
    return operations[operation](**request)


def reset_resident_peak() -> None:
    """Start measuring peak resident memory anew."""
    if _CLEAR_PEAK.exists():
        _CLEAR_PEAK.write_text("5")


def resident_peak() -> int:
    """The most bytes resident since `reset_resident_peak`.

    Where the system cannot forget an earlier peak, it is the process's.
    """
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
