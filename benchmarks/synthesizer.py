"""Speech whose word times are known, from espeak-ng (`pip install espeakng-loader`).

A word that is said alone has a known length, so that words placed in a row start and end at known
times; in a running sentence the library's word events say where each word starts.
"""

import ctypes
import dataclasses
from collections.abc import Sequence

import espeakng_loader  # pyright: ignore[reportMissingImports]
import numpy as np
import soxr

SAMPLE_RATE = 16_000
# Ends of a word alone are where it is 40 dB below its loudest 5 ms.
_QUIET = 10.0**-4
_BLOCK = SAMPLE_RATE // 200
_RETRIEVAL, _UTF8, _WORD_EVENT, _RATE_PARAMETER = 1, 1, 1, 1


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Speech and its words.

    Attributes:
        audio: 16 kHz samples.
        words: the words, in order.
        starts: where each starts in seconds; NaN where that is not known.
        ends: where each ends in seconds; NaN where that is not known.
    """

    audio: np.ndarray
    words: tuple[str, ...]
    starts: np.ndarray
    ends: np.ndarray


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Synthesizer:
    """One voice of espeak-ng, at a number of words a minute."""

    def __init__(self, words_per_minute: int = 150) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self._rate = self._library.espeak_Initialize(_RETRIEVAL, 0, data, 0)
        self._library.espeak_SetParameter(_RATE_PARAMETER, words_per_minute, 0)

    def say(self, text: str, voice: str) -> tuple[np.ndarray, dict[int, float]]:
        """Return 16 kHz samples, and the start of each word by its first character's position."""
        blocks: list[np.ndarray] = []
        starts: dict[int, float] = {}

        def hear(samples: object, count: int, events: object) -> int:
            if samples:
                blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())  # pyright: ignore[reportArgumentType]
            at = 0
            while events[at].type:  # pyright: ignore[reportIndexIssue]
                event = events[at]  # pyright: ignore[reportIndexIssue]
                if event.type == _WORD_EVENT:
                    starts[event.text_position - 1] = event.milliseconds / 1000
                at += 1
            return 0

        callback = _CALLBACK(hear)
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}.")
        self._library.espeak_SetSynthCallback(callback)
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        speech = np.concatenate(blocks).astype(np.float32) / 32768
        return soxr.resample(speech, self._rate, SAMPLE_RATE), starts

    def sentence(self, words: Sequence[str], voice: str) -> Spoken:
        """Say a running sentence: where words start is known, where they end is not."""
        audio, events = self.say(" ".join(words), voice)
        positions = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
        starts = np.array([events.get(int(at), np.nan) for at in positions])
        return Spoken(audio, tuple(words), starts, np.full(len(words), np.nan))

    def single_words(self, words: Sequence[str], voice: str, gaps: Sequence[float]) -> Spoken:
        """Say words one at a time and place them in a row.

        Args:
            words: the words.
            voice: the voice.
            gaps: seconds of silence before each word, and after the last.
        """
        said = [_trimmed(self.say(word, voice)[0]) for word in words]
        silences = [np.zeros(round(gap * SAMPLE_RATE), np.float32) for gap in gaps]
        pieces = [silences[0]]
        for one, silence in zip(said, silences[1:], strict=True):
            pieces += [one, silence]
        edges = np.cumsum([len(piece) for piece in pieces]) / SAMPLE_RATE
        return Spoken(np.concatenate(pieces), tuple(words), edges[:-1:2], edges[1::2])


def with_noise(audio: np.ndarray, decibels: float, seed: int) -> np.ndarray:
    """Add white noise that many decibels below the mean power of what is not silent."""
    power = np.mean(np.square(audio[audio != 0]))
    noise = np.random.default_rng(seed).normal(size=len(audio))
    return (audio + noise * np.sqrt(power) * 10 ** (-decibels / 20)).astype(np.float32)


def _trimmed(speech: np.ndarray) -> np.ndarray:
    blocks = speech[: len(speech) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    power = np.square(blocks).mean(1)
    loud = np.flatnonzero(power > power.max() * _QUIET)
    return speech[loud[0] * _BLOCK : (loud[-1] + 1) * _BLOCK]
