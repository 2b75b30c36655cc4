"""Where the texts of clips come from."""

import dataclasses

from jaxasr_interp.speech.tables import Row

OWN = "own"


@dataclasses.dataclass(frozen=True)
class Texts:
    """The source of the decoder's texts.

    Attributes:
        column: `"own"` for the model's own transcripts, or a column of the manifest; where that is
            empty, the model's own transcript is taken.
        language: language of clips whose column `lang` is empty; detected by default.
    """

    column: str = OWN
    language: str | None = None

    def written(self, row: Row) -> str:
        """Return the text of a clip in the manifest, `""` if it has none."""
        return "" if self.column == OWN else row.get(self.column, "").strip()

    def language_of(self, row: Row) -> str | None:
        """Return the language of a clip; `None` if it has to be detected."""
        return row.get("lang") or self.language
