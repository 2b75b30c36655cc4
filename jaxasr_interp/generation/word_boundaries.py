"""Word boundaries moved from where the decoder attends to where the sound has them.

A Whisper checkpoint attends to words a little early or late, by an offset of its own that differs
from clip to clip. It shows in the sound: with the right shift, the boundaries between words fall
where the clip is quietest. Behind that shift, each boundary is a stretch `[stop, start)` of the
sound, in which one word has stopped and the next has not started: a run of quiet, or in running
speech a single time. Those stretches are chosen together, in order, as the cheapest of all choices
of a cost: loudness, plus the squared distance from where the decoder attends, minus the length of
the quiet.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

_REACH = 30
_OFFSET_WINDOW = 13
_OFFSET_RANGE_DB = 10.0
_OFFSET_COST = 0.01
_QUIET_DB_BELOW_SPEECH = 35.0
_QUIET_SHARE_OF_RANGE = 0.3
# The closure of a plosive is quiet too, but shorter.
_SHORTEST_QUIET, _LONGEST_QUIET = 5, 30
_QUIET_GAIN = 8.0
_DISTANCE_COST = 0.18
_SHORTEST_WORD, _SHORT_WORD_COST = 5, 100.0


def refine_boundaries(
    boundaries: Int[np.ndarray, " boundary"], mel: Float[np.ndarray, "n_mels mel_frame"]
) -> Int[np.ndarray, "word 2"]:
    """Move the boundaries of words to where the sound has them.

    A boundary's cost is `max(L - quiet, 0) + 0.18 d² - 8 q`: the loudness there in decibels above
    quiet, the distance in mel frames from the attended boundary (at most 30, which is 0.3 s) and
    the length in mel frames of a run of quiet (30 count at most). Words have at least 50 ms where
    that is possible.

    Args:
        boundaries: mel frames (10 ms) in which the decoder attends to the start of each word and
            to the end of the last, in order.
        mel: log-mel spectrogram of the clip, without what lies behind its end.

    Returns:
        The first mel frame of each word, and the one after its last.
    """
    level = loudness(mel)
    # The path of attention starts and stops with the sound, whatever the offset between.
    shifted = boundaries.copy()
    shifted[1:-1] += model_offset(boundaries[1:-1], level)
    attended = np.maximum.accumulate(np.clip(shifted, 0, len(level)))
    runs, over = quiet_runs(level), _over_quiet(level)
    gaps = _cheapest([_gaps(int(at), runs, over) for at in attended])
    return np.stack([gaps[:-1, 1], gaps[1:, 0]], 1)


def loudness(mel: Float[np.ndarray, "n_mels mel_frame"]) -> Float[np.ndarray, " mel_frame"]:
    """Compute the short-time energy of a log-mel spectrogram, in decibels up to a constant."""
    return 10 * np.log10((10.0 ** (4 * mel.astype(np.float64))).sum(0))


def model_offset(
    inner: Int[np.ndarray, " boundary"], level: Float[np.ndarray, " mel_frame"]
) -> int:
    """Estimate by how many mel frames attention is before the word boundaries of the sound.

    It is the shift `s` within ±0.3 s with the least `mean L(b + s) + 100 s²` over the boundaries
    `b`, with `s` in seconds; `L` is the loudness, averaged over 130 ms, where all that is more than
    10 dB below speech counts alike. In a short running sentence several shifts may be as quiet.

    Args:
        inner: mel frames of the boundaries between words.
        level: loudness in decibels.
    """
    if not len(inner):
        return 0
    lowest = _speech_level(level) - _OFFSET_RANGE_DB
    smooth = _running_mean(np.maximum(level, lowest), _OFFSET_WINDOW)
    shifts = np.arange(-_REACH, _REACH + 1)
    at = np.clip(inner + shifts[:, None], 0, len(level) - 1)
    return int(shifts[np.argmin(smooth[at].mean(1) + _OFFSET_COST * shifts**2)])


def quiet_runs(level: Float[np.ndarray, " mel_frame"]) -> list[tuple[int, int]]:
    """List the runs of at least 50 ms that are quiet, as first frame and frame after the last."""
    quiet = np.pad(level < _quiet_level(level), 1).astype(int)
    edges = np.flatnonzero(np.diff(quiet)).tolist()
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [(first, stop) for first, stop in runs if stop - first >= _SHORTEST_QUIET]


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


def _cheapest(boundaries: Sequence[Float[np.ndarray, "_ 3"]]) -> Int[np.ndarray, "boundary 2"]:
    """Choose a gap for each boundary, so that words do not overlap and the costs' sum is least."""
    total, best = boundaries[0][:, 2], []
    for before, here in itertools.pairwise(boundaries):
        length = here[:, 0] - before[:, 1, None]
        cost = np.where(length < _SHORTEST_WORD, _SHORT_WORD_COST, 0.0)
        reached = total[:, None] + np.where(length < 0, np.inf, cost)
        best.append(reached.argmin(0))
        total = reached.min(0) + here[:, 2]
    chosen = [int(total.argmin())]
    for back in reversed(best):
        chosen.append(int(back[chosen[-1]]))
    gaps = [gap[i, :2] for gap, i in zip(boundaries, reversed(chosen), strict=True)]
    return np.array(gaps).astype(int)
