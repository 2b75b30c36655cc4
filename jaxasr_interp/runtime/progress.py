"""The form in which all long work reports its progress."""

from collections.abc import Callable

type Progress = Callable[[int, int, str], None]
"""Called as `on_progress(done, total, phase)` while work goes on.

`done` counts the units of work that are finished, and `total` says how many there are. `phase`
names what is counted, or what is being done: `"patches"`, `"clips"`, `"probes"`.
"""
