"""How long work says how far it is."""

from collections.abc import Callable

type Progress = Callable[[int, int, str], None]
"""Called as `on_progress(done, total, phase)`: how many units of work are done, how many there are,
and what is being done or counted, such as `"patches"` or `"clips"`."""
