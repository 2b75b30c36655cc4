"""Word boundaries moved from where the decoder attends to where the sound has them.

A Whisper checkpoint attends to words a little early or late, by an offset of its own that differs
from clip to clip. Behind that offset, each boundary is a stretch `[stop, start)` of the sound, in
which one word has stopped and the next has not started: a run of quiet, or in running speech a
single time. The offset and all stretches are chosen together as the cheapest of all choices of a
cost: boundaries lie where it is quiet and near to where the decoder attends, and words last as long
as their letters let one expect.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

_REACH = 30
_OFFSETS = range(-_REACH, _REACH + 1, 5)
_QUIET_DB_BELOW_SPEECH = 35.0
_QUIET_SHARE_OF_RANGE = 0.3
# The closure of a plosive is quiet too, but shorter.
_SHORTEST_QUIET, _LONGEST_QUIET = 5, 30
_QUIET_GAIN = 4.0
_DISTANCE_COST, _OFFSET_COST, _LENGTH_COST = 0.12, 0.005, 100.0


def refine_boundaries(
    boundaries: Int[np.ndarray, " boundary"],
    letters: Int[np.ndarray, " word"],
    mel: Float[np.ndarray, "n_mels mel_frame"],
) -> Int[np.ndarray, "word 2"]:
    """Move the boundaries of words to where the sound has them.

    A boundary `a`, which is an attended one moved by the offset `s` (the first and the last are not
    moved), becomes a time or a run of quiet. With the words' lengths `l`, the cost is

        Σ_boundary (max(L - quiet, 0) + 0.12 d² - 4 q + 0.005 s²) + Σ_word 100 ln²(max(l, 1) / e)

    in decibels and mel frames: `d` is the distance from `a` to the time, or to the nearest end of
    the run, 0 within it; `L` is the loudness at a time, over three frames; `q` is the length of a
    run (30 count at most); and `e` is the length that is expected of a word with so many letters.
    Both `s` and `d` are at most 30, which is 0.3 s.

    Args:
        boundaries: mel frames (10 ms) in which the decoder attends to the start of each word and
            to the end of the last, in order.
        letters: number of letters and digits of each word.
        mel: log-mel spectrogram of the clip, without what lies behind its end.

    Returns:
        The first mel frame of each word, and the one after its last.
    """
    level = _loudness(mel)
    runs, over = _quiet_runs(level), _over_quiet(level)
    expected = _expected_lengths(boundaries, letters, level)

    def with_offset(offset: int) -> tuple[float, Int[np.ndarray, "boundary 2"]]:
        shifted = boundaries.copy()
        # The path of attention starts and stops with the sound, whatever the offset between.
        shifted[1:-1] += offset
        attended = np.maximum.accumulate(np.clip(shifted, 0, len(level)))
        cost, gaps = _cheapest([_gaps(int(at), runs, over) for at in attended], expected)
        return cost + _OFFSET_COST * len(boundaries) * offset**2, gaps

    _, gaps = min(map(with_offset, _OFFSETS), key=lambda found: found[0])
    return np.stack([gaps[:-1, 1], gaps[1:, 0]], 1)


def _loudness(mel: Float[np.ndarray, "n_mels mel_frame"]) -> Float[np.ndarray, " mel_frame"]:
    """Compute the short-time energy of a log-mel spectrogram, in decibels up to a constant."""
    return 10 * np.log10((10.0 ** (4 * mel.astype(np.float64))).sum(0))


def _quiet_runs(level: Float[np.ndarray, " mel_frame"]) -> list[tuple[int, int]]:
    """List the runs of at least 50 ms that are quiet, as first frame and frame after the last."""
    quiet = np.pad(level < _quiet_level(level), 1).astype(int)
    edges = np.flatnonzero(np.diff(quiet)).tolist()
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [(first, stop) for first, stop in runs if stop - first >= _SHORTEST_QUIET]


def _expected_lengths(
    boundaries: Int[np.ndarray, " boundary"],
    letters: Int[np.ndarray, " word"],
    level: Float[np.ndarray, " mel_frame"],
) -> Float[np.ndarray, " word"]:
    """Return `r (letters + 1)`, with `r` the median of it over the words where they are attended.

    What is quiet within a word does not count.
    """
    sound = np.append(0, np.cumsum(level >= _quiet_level(level)))
    of_words = np.diff(sound[np.clip(boundaries, 0, len(level))])
    return max(1.0, float(np.median(of_words / (letters + 1)))) * (letters + 1)


def _speech_level(level: Float[np.ndarray, " mel_frame"]) -> float:
    return float(np.percentile(level, 95))


def _quiet_level(level: Float[np.ndarray, " mel_frame"]) -> float:
    """Return what is quiet: 35 dB below speech, or in noise the lowest 30% of the range."""
    noise, speech = float(np.percentile(level, 5)), _speech_level(level)
    return max(speech - _QUIET_DB_BELOW_SPEECH, noise + _QUIET_SHARE_OF_RANGE * (speech - noise))


def _over_quiet(level: Float[np.ndarray, " mel_frame"]) -> Float[np.ndarray, " edge"]:
    """Return how many decibels each frame is above quiet; outside the clip it is quiet."""
    over = np.maximum(_running_mean(level, 3) - _quiet_level(level), 0)
    over[0] = 0
    return np.append(over, 0)


def _running_mean(
    values: Float[np.ndarray, " mel_frame"], width: int
) -> Float[np.ndarray, " mel_frame"]:
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _gaps(
    at: int, runs: Sequence[tuple[int, int]], over: Float[np.ndarray, " edge"]
) -> Float[np.ndarray, "gap 3"]:
    """List the places of one boundary: where one word stops, the next starts, and the cost."""
    near = range(max(0, at - _REACH), min(len(over), at + _REACH + 1))
    gaps = [
        (place, place, float(over[place]) + _DISTANCE_COST * (place - at) ** 2) for place in near
    ]
    for first, stop in runs:
        distance = max(first - at, at - stop, 0)
        if distance <= _REACH:
            gain = _QUIET_GAIN * min(stop - first, _LONGEST_QUIET)
            gaps.append((first, stop, _DISTANCE_COST * distance**2 - gain))
    return np.array(gaps, np.float64)


def _cheapest(
    boundaries: Sequence[Float[np.ndarray, "_ 3"]], expected: Float[np.ndarray, " word"]
) -> tuple[float, Int[np.ndarray, "boundary 2"]]:
    """Choose a gap for each boundary, so that words do not overlap and the costs' sum is least.

    Args:
        boundaries: stop, start and cost of each gap that a boundary may be.
        expected: mel frames that each word is expected to last.

    Returns:
        The least sum, and the gap of each boundary.
    """
    total, best = boundaries[0][:, 2], []
    for (before, here), length in zip(itertools.pairwise(boundaries), expected, strict=True):
        lengths = here[:, 0] - before[:, 1, None]
        cost = _LENGTH_COST * np.log(np.maximum(lengths, 1) / length) ** 2
        reached = total[:, None] + np.where(lengths < 0, np.inf, cost)
        best.append(reached.argmin(0))
        total = reached.min(0) + here[:, 2]
    chosen = [int(total.argmin())]
    for back in reversed(best):
        chosen.append(int(back[chosen[-1]]))
    gaps = [gap[i, :2] for gap, i in zip(boundaries, reversed(chosen), strict=True)]
    return float(total.min()), np.array(gaps).astype(int)
