"""How one pass up the decoder goes through the layers that are patched."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

_SEGMENTS = 8


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a pass goes through the layers; a program is compiled for each schedule.

    Attributes:
        together: largest number of entry layers whose rows share a matrix product.
        span: first and last entry layer, where patches enter every one between them; `None` if the
            program learns the entry layers when it runs.
        segments: number of parts of a known span within which the number of rows is fixed. More
            parts save work (a part computes the rows of all that enter within it) and take longer
            to compile. 0 if loops are as long as the rows need, for which a GPU waits in each.
        joined: whether self-attention is one dense product for all rows of an entry layer.
    """

    together: int = 1
    span: tuple[int, int] | None = None
    segments: int = 0
    joined: bool = False

    def parts(self, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield first layer, layer after the last one and number of entry layers of each part.

        Args:
            last: the decoder's last layer, which the pass treats apart.
        """
        assert self.span is not None
        first, final = self.span
        stops = np.linspace(first, min(final + 1, last), self.segments + 1).round().astype(int)
        for start, stop in itertools.pairwise(np.unique(stops).tolist()):
            yield start, stop, stop - first


def make_schedule(enters: Sequence[int], together: int, platform: str) -> Schedule:
    """Choose the schedule that suits a device.

    Args:
        enters: the layers that patches enter, in ascending order.
        together: see `Schedule`.
        platform: the device's kind: `"cpu"`, `"gpu"` or `"tpu"`.
    """
    span = (enters[0], enters[-1])
    joined = platform == "tpu"
    if len(enters) == 1 or span[1] - span[0] + 1 > len(enters):
        return Schedule(together, joined=joined)
    if platform != "gpu":
        return Schedule(together, span, joined=joined)
    return Schedule(together, span, min(_SEGMENTS, len(enters)))
