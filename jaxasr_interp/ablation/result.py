"""The result of a sweep on text: the transcripts and their errors."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from jaxasr_interp.display import Displayed
from jaxasr_interp.evaluation.bootstrap import Interval, bootstrap_interval
from jaxasr_interp.evaluation.loops import compression_ratio, is_loop, longest_repeat
from jaxasr_interp.evaluation.text_metrics import (
    Errors,
    character_errors,
    word_errors,
    words_on_silence,
)
from jaxasr_interp.generation.options import Generated
from jaxasr_interp.interventions.intervention import Intervention
from jaxasr_interp.interventions.where import END, At, chain
from jaxasr_interp.model.edits import Edit, Identity, as_edit
from jaxasr_interp.model.sites import SITES, Stack
from jaxasr_interp.pytree import summary
from jaxasr_interp.runtime.frames import to_dataframe
from jaxasr_interp.speech.utterance import Clip

if TYPE_CHECKING:
    import pandas
    import xarray

AGAINST = ("transcript", "unedited")
UNITS = ("word", "character")
AXES_OF_ERRORS = ("against", "unit", "operation")
OPERATIONS = ("hit", "substitution", "deletion", "insertion")


@dataclasses.dataclass(frozen=True)
class TextSweep(Displayed):
    """The transcripts of clips under interventions.

    Attributes:
        interventions: the interventions; the first one is `UNEDITED`.
        clips: the clips.
        languages: code of each clip's language.
        generated: for each intervention, one transcript for each clip.
    """

    interventions: tuple[Intervention, ...]
    clips: tuple[Clip, ...]
    languages: tuple[str, ...]
    generated: tuple[tuple[Generated, ...], ...]

    __repr__ = summary

    @functools.cached_property
    def errors(self) -> Int[np.ndarray, "intervention clip against unit operation"]:
        """Counts of each operation, in the order of `AGAINST`, `UNITS` and `OPERATIONS`.

        Transcripts are compared with the reference text (-1 where that is not known) and with the
        unedited transcript.
        """
        counts = np.full((len(self.generated), len(self.clips), 2, 2, 4), -1)
        for i, texts in enumerate(self.generated):
            for j, (clip, one) in enumerate(zip(self.clips, texts, strict=True)):
                for k, right in enumerate((clip.text, self.generated[0][j].text)):
                    if right is not None:
                        words = word_errors(right, one.text, self.languages[j])
                        letters = character_errors(right, one.text, self.languages[j])
                        counts[i, j, k] = _counts(words), _counts(letters)
        return counts

    @functools.cached_property
    def loops(self) -> np.ndarray:
        """Whether each transcript loops, `[intervention, clip]`; see `loops.is_loop`."""
        return self._each(lambda one, _: is_loop(one.text))

    def rate(self, i: int, against: str = "transcript", unit: str = "word") -> float:
        """Compute the error rate of one intervention over clips with a text to compare with."""
        wrong, length = self._wrong(i, against, unit)
        return float(wrong.sum() / length.sum()) if length.sum() else float("nan")

    def interval(self, i: int) -> Interval:
        """Compute the word error rate against the reference text, with its 95% interval."""
        return bootstrap_interval(
            self._wrong(i, "transcript", "word"), lambda wrong, length: wrong.sum() / length.sum()
        )

    def to_dataset(self) -> "xarray.Dataset":
        """Return all values and texts as arrays with named axes."""
        import xarray

        both = ("intervention", "clip")
        errors = (*both, *AXES_OF_ERRORS)
        cells = [cell_of(one) for one in self.interventions]
        counts = self.errors[:, :, :, UNITS.index("word")]
        right, written = counts[..., :3].sum(-1), counts[..., [0, 1, 3]].sum(-1)
        data = {
            "text": (both, self._each(lambda one, _: one.text.strip()).astype(str)),
            "errors": (errors, self.errors),
            "loop": (both, self.loops),
            "compression_ratio": (both, self._each(lambda one, _: compression_ratio(one.text))),
            "repeats": (both, self._each(lambda one, _: longest_repeat(one.text).times)),
            "words": (both, written[..., AGAINST.index("unedited")]),
            "length_ratio": ((*both, "against"), written / np.where(right > 0, right, np.nan)),
            "any_words": (
                both,
                self._each(lambda one, language: words_on_silence(one.text, language)),
            ),
            "mean_log_prob": (both, self._each(lambda one, _: one.mean_log_prob)),
            "no_speech_prob": (both, self._each(lambda one, _: one.no_speech_prob)),
            "finished": (both, self._each(lambda one, _: one.finished)),
        }
        coordinates = {
            "intervention": [one.text for one in self.interventions],
            "clip": [clip.name for clip in self.clips],
            "against": list(AGAINST),
            "unit": list(UNITS),
            "operation": list(OPERATIONS),
            "stack": ("intervention", ["" if c is None else c.stack for c in cells]),
            "site": ("intervention", ["" if c is None else c.site for c in cells]),
            "layer": ("intervention", [-1 if c is None else c.layer for c in cells]),
            "head": ("intervention", [-1 if c is None else c.head for c in cells]),
            "reference": ("intervention", [one.reference or "" for one in self.interventions]),
            "seed": ("intervention", [one.seed for one in self.interventions]),
            "alpha": ("intervention", [np.nan if c is None else c.alpha for c in cells]),
            "audio_sha256": (
                "clip",
                [hashlib.sha256(clip.audio.tobytes()).hexdigest() for clip in self.clips],
            ),
            "transcript": ("clip", ["" if c.text is None else c.text for c in self.clips]),
        }
        dataset = xarray.Dataset(data, coordinates)
        everywhere = "-1: all of the site; where site is empty, no single component is edited"
        dataset["layer"].attrs["note"] = dataset["head"].attrs["note"] = everywhere
        return dataset

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with a row for each intervention and clip."""
        return to_dataframe(self.to_dataset(), ("intervention", "clip"), AXES_OF_ERRORS)

    def _each(self, measure) -> np.ndarray:
        return np.array([list(map(measure, texts, self.languages)) for texts in self.generated])

    def _wrong(self, i: int, against: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
        """Count errors and the length of the text to compare with, for clips that have one."""
        counts = self.errors[i, :, AGAINST.index(against), UNITS.index(unit)]
        length = counts[:, :3].sum(-1)
        known = (counts[:, 0] >= 0) & (length > 0)
        return counts[known, 1:].sum(-1), length[known]


@dataclasses.dataclass(frozen=True)
class Cell:
    """The one component that an intervention edits; layer or head -1 is all of the site."""

    stack: str
    site: str
    layer: int
    head: int
    alpha: float


def cell_of(intervention: Intervention) -> Cell | None:
    """Return the only component that an intervention edits at all positions; `None` if several."""
    edits: dict[Stack, Edit] = {
        "encoder": intervention.encoder_edit,
        "decoder": chain([as_edit(intervention.decoder), as_edit(intervention.steps)]),
    }
    edited = [(stack, edit) for stack, edit in edits.items() if not isinstance(edit, Identity)]
    if len(edited) != 1:
        return None
    ((stack, edit),) = edited
    if not isinstance(edit, At) or (edit.start, edit.stop) != (0, END):
        return None
    if SITES[stack][edit.site][0] != "layer":
        return None
    return Cell(stack, edit.site, int(edit.layer), int(edit.head), float(edit.alpha))


def _counts(errors: Errors) -> Sequence[int]:
    return errors.hits, errors.substitutions, errors.deletions, errors.insertions
