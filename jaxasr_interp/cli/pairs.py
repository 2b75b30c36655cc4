"""The two runs that `patch` and `attribution` compare, and the question about them."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

import typer

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.patching.contrast import Contrast, ask_word, find_contrast
from jaxasr_interp.speech.audio import load_audio
from jaxasr_interp.speech.noise import check_reference, reference_audio

DEFAULT_SITES = ("decoder.resid_pre",)

CleanArgument = Annotated[str, typer.Argument(help="Audio whose activations are copied.")]
CorruptedArgument = Annotated[
    str,
    typer.Argument(
        help="Audio of the run into which they are copied: an audio file, noise (as loud as "
        "CLEAN), noise:seed=3 or silence."
    ),
]
TextOption = Annotated[
    str | None, typer.Option(help="Use this transcript in both runs, not the model's own.")
]
WordOption = Annotated[
    str | None,
    typer.Option(
        help="Use one transcript in both runs and ask for this word of it, word:2 for its second "
        "occurrence. By default it is the last word with noise, silence or --text, and the first "
        "different word with two files."
    ),
]
OutOption = Annotated[Path, typer.Option(help="Folder for sweep.zarr and pictures.")]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two runs, and the question about them.

    Attributes:
        clean: file of the clean clip.
        corrupted: audio of the corrupted run: `noise`, `silence` or a file.
        seed: seed of the noise.
        text: transcript of both runs; by default the model's own.
        word: the word that is asked for.
        language: spoken language.
    """

    clean: str
    corrupted: str
    seed: int
    text: str | None
    word: str | None
    language: str | None

    @classmethod
    def read(
        cls, clean: str, corrupted: str, text: str | None, word: str | None, language: str | None
    ) -> "Pair":
        """Read the audio of the corrupted run.

        Raises:
            InputError: `corrupted` is neither noise nor silence nor a file.
        """
        match = re.fullmatch(r"(?:noise(?::seed=(\d{1,9}))?|silence)", corrupted)
        if match is None and corrupted.startswith(("noise:", "silence:")):
            raise InputError(
                f"The corrupted run {corrupted!r} cannot be read: write noise, noise:seed=3, "
                "silence or an audio file."
            )
        reference = check_reference(corrupted if match is None else corrupted.partition(":")[0])
        seed = int(match[1] or 0) if match else 0
        return cls(clean, reference, seed, text, word, language)

    @property
    def shares_transcript(self) -> bool:
        """Whether both runs take one transcript, instead of two clips with their own."""
        made_up = self.corrupted in ("noise", "silence")
        return made_up or self.text is not None or self.word is not None

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """The default metrics of the pair."""
        if self.shares_transcript:
            return ("log_prob", "kl", "cross_entropy")
        return ("logit_diff", "log_prob", "kl")

    def ask(self, model: Whisper, sites: frozenset[str]) -> Contrast:
        """Run the model once on both clips, and find the question.

        Args:
            model: the model.
            sites: encoder activations to keep for the sweep.

        Raises:
            InputError: see `find_contrast` and `ask_word`.
        """
        clean = load_audio(self.clean)
        other = reference_audio(self.corrupted, clean, self.seed)
        if not self.shares_transcript:
            return find_contrast(model, clean, other, language=self.language, sites=sites)
        return ask_word(
            model,
            clean,
            other,
            text=self.text,
            word=self.word,
            language=self.language,
            sites=sites,
        )
