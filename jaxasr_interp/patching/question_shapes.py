"""The shapes of a data set's questions: how many tokens and positions each of their sweeps has."""

import collections
import dataclasses
from collections.abc import Mapping

from jaxasr_interp.errors import InputError
from jaxasr_interp.patching.clip_texts import ClipText
from jaxasr_interp.patching.dataset_options import DatasetOptions
from jaxasr_interp.patching.dataset_work import Grids
from jaxasr_interp.patching.questions import EACH, ask_words
from jaxasr_interp.runtime.location import Location, read_root, within
from jaxasr_interp.runtime.slot_store import SlotStore
from jaxasr_interp.speech.clips import Clips

type Shape = tuple[int, int]

_ASSUMED = 32


@dataclasses.dataclass(frozen=True)
class QuestionShapes:
    """How many questions have which shape.

    Attributes:
        counts: number of questions by number of tokens and of positions, as in `Grids.shape`.
        origin: a sentence that says where the figures come from.
    """

    counts: Mapping[Shape, int]
    origin: str

    @property
    def total(self) -> int:
        """Number of questions."""
        return sum(self.counts.values())

    @property
    def largest(self) -> Shape:
        """The shape that takes the most memory."""
        return max(self.counts)


def find_shapes(
    grids: Grids, clips: Clips, out: Location, options: DatasetOptions, tokens: int | None
) -> QuestionShapes:
    """Find the shapes of a sweep's questions, without running anything.

    Args:
        grids: grids of patches.
        clips: the clips.
        out: the folder of the sweep, where an earlier call may have left the texts.
        options: what is asked.
        tokens: number of tokens of every question, instead of what the texts give.

    Raises:
        InputError: there is no such number of tokens, or none of the texts has a question.
    """
    config = grids.model.config
    if tokens is not None and not 1 <= tokens <= config.max_tokens:
        raise InputError(f"The number of tokens is {tokens}: choose 1 to {config.max_tokens}.")
    texts = _texts(clips, out) if tokens is None and grids.model.tokenizer is not None else None
    if texts is not None:
        return _of_texts(grids, clips, texts, options)
    length = tokens or min(_ASSUMED, config.max_tokens)
    origin = f"every question has {length} tokens, as " + (
        "--tokens says" if tokens else "the texts are not known yet"
    )
    if options.word == EACH:
        origin += "; words are not known, so each clip counts as one question"
    positions = config.max_frames if grids.sites.timed else length
    return QuestionShapes({(length, positions): len(clips.rows)}, f"{origin}.")


def _texts(clips: Clips, out: Location) -> list[str] | None:
    """Read the texts of the clips that an earlier call found; `None` if there are none."""
    location = within(out, "texts.zarr")
    if read_root(location) is None:
        return None
    store = SlotStore(location)
    if [str(path) for path in store.read("path")] != [row["path"] for row in clips.rows]:
        return None
    return [str(text) for text in store.read("text_tokens")]


def _of_texts(
    grids: Grids, clips: Clips, texts: list[str], options: DatasetOptions
) -> QuestionShapes:
    """Count the questions that are asked of known texts; clips that have none are left out."""
    assert grids.model.tokenizer is not None
    counts: collections.Counter[Shape] = collections.Counter()
    for i, (row, text) in enumerate(zip(clips.rows, texts, strict=True)):
        try:
            clip = ClipText.from_json(text) if text else None
            asked = ask_words(grids.model.tokenizer, i, row, clip, options.word) if clip else []
        except InputError:
            continue
        counts.update(grids.shape(question) for question in asked)
    if not counts:
        raise InputError("None of the texts in the sweep's folder has a question: give --tokens.")
    return QuestionShapes(counts, "The questions are those of the texts in the sweep's folder.")
