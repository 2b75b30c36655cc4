"""The clips of a data set, each with the clip of its corrupted run."""

import dataclasses
import zlib

import numpy as np
from jaxtyping import Float

from jaxasr_interp.speech.audio import log_mel_spectrogram
from jaxasr_interp.speech.batches import read_short
from jaxasr_interp.speech.clips import Clips
from jaxasr_interp.speech.noise import noise_like, silence_like

type Mel = Float[np.ndarray, "n_mels mel_frame"]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The clean clip of each row, and the clip of its corrupted run.

    Attributes:
        clips: the clean clips.
        reference: `"noise"`, `"silence"`, or clips with a row for each clean one.
        seed: seed of the noise; each clip's own seed depends on it and on the clip's path.
    """

    clips: Clips
    reference: str | Clips
    seed: int

    def noise_seed(self, number: int) -> int:
        """Return the seed of a clip's noise; the same for the same path and `seed`."""
        return zlib.crc32(f"{self.seed} {self.clips.rows[number]['path']}".encode()) % 10**9

    def read(self, number: int, n_mels: int, mel_frames: int) -> tuple[Mel, Mel]:
        """Read both clips of a row and make their spectrograms.

        Raises:
            InputError: one cannot be read or is too long, or the clean one is silent.
        """
        clean = read_short(self.clips, number, mel_frames)
        match self.reference:
            case "noise":
                other = noise_like(clean, self.noise_seed(number))
            case "silence":
                other = silence_like(clean)
            case _:
                assert isinstance(self.reference, Clips)
                other = read_short(self.reference, number, mel_frames)
        first, second = (
            np.asarray(log_mel_spectrogram(audio, n_mels, mel_frames)) for audio in (clean, other)
        )
        return first, second

    def digest_reference(self, number: int) -> str:
        """Return the hash of what a row's reference is read from; `""` if it is made."""
        return self.reference.digest(number) if isinstance(self.reference, Clips) else ""
