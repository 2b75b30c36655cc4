"""What a data-set sweep runs and asks."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxasr_interp.errors import InputError, check_least
from jaxasr_interp.patching.inputs import DIRECTIONS
from jaxasr_interp.patching.metric_names import check_metric_name
from jaxasr_interp.patching.questions import COLUMN, EACH, LAST
from jaxasr_interp.speech.texts import OWN


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """The runs of a data-set sweep, and what they are asked.

    Attributes:
        reference: audio of the corrupted runs: `"noise"` (white, as loud as the clip), `"silence"`,
            or `"column:NAME"` for the files that a column of the table names.
        word: the word whose first token is asked for: `"last"`, `"each"` (every word of a clip is a
            question of its own), or `"column:NAME"` for the word that a column names.
        text: transcript of both runs: `"own"` for the model's own, or a column of the table; where
            that is empty, the model's own transcript is taken.
        language: language of clips whose column `lang` is empty; by default detected.
        metrics: names of the metrics; see `ji.metrics`.
        direction: `"clean_to_corrupted"` patches the corrupted runs, `"corrupted_to_clean"` the
            clean ones.
        times: whether a decoder sweep also finds when the words are said, which runs each clip once
            more; an encoder sweep always does.
        seed: seed of the noise; each clip's noise depends on it and on the clip's path.
        where: values allowed in a column, by column; other clips are left out.
        limit: largest number of clips.
    """

    reference: str = "noise"
    word: str = LAST
    text: str = OWN
    language: str | None = None
    metrics: Sequence[str] = ("log_prob", "kl")
    direction: str = "clean_to_corrupted"
    times: bool = False
    seed: int = 0
    where: Mapping[str, Sequence[str]] | None = None
    limit: int | None = None

    def __post_init__(self):
        check_least(0, seed=self.seed)
        check_least(1, limit=self.limit)
        if self.reference not in ("noise", "silence") and not self.reference.startswith(COLUMN):
            raise InputError(
                f"The reference {self.reference!r} cannot be read: write noise, silence or "
                "column:NAME."
            )
        if self.word not in (LAST, EACH) and not self.word.startswith(COLUMN):
            raise InputError(
                f"The word {self.word!r} cannot be read: write last, each or column:NAME."
            )
        if self.direction not in DIRECTIONS:
            raise InputError(
                f"Unknown direction {self.direction!r}: choose one of {', '.join(DIRECTIONS)}."
            )
        if not self.metrics:
            raise InputError("There is no metric to read: give at least one.")
        for name in self.metrics:
            check_metric_name(name)
        if len(set(self.metrics)) < len(self.metrics):
            raise InputError(f"A metric is named twice in {', '.join(self.metrics)}.")
