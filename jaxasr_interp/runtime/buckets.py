"""Lengths that share compiled programs."""

_SMALLEST_STEP = 2
_PARTS = 16


def bucket(length: int) -> int:
    """Round a length up to one of a few, so that runs of similar length share programs.

    Lengths below 64 become even, those below 128 multiples of 4, and so on: a run of n > 16 grows
    by less than n / 16 + 1.
    """
    power = 1 << (max(length, 1).bit_length() - 1)
    step = max(_SMALLEST_STEP, power // _PARTS)
    return -(-length // step) * step
