"""What the runs of a data-set sweep are asked: words of each clip's transcript."""

import dataclasses
from collections.abc import Sequence

from jaxasr_interp.errors import InputError
from jaxasr_interp.patching.clip_texts import ClipText
from jaxasr_interp.patching.contrast import position_of_word
from jaxasr_interp.speech.positions import words_of
from jaxasr_interp.speech.tables import Row
from jaxasr_interp.speech.tokenizer import Tokenizer


class NoQuestionsError(InputError):
    """No clip of a data set can be swept.

    Attributes:
        problems: path of every clip, and why it cannot.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]):
        self.problems = tuple(problems)
        path, why = self.problems[0]
        super().__init__(f"None of the {len(problems)} clips can be swept; {path}: {why}")


LAST, EACH, COLUMN = "last", "each", "column:"


@dataclasses.dataclass(frozen=True)
class Question:
    """A word of a clip: the runs take the tokens before it and are asked for its first token.

    Attributes:
        clip: number of the clip.
        text: the whole text of the clip.
        asked: position of the word's first token.
        word: the word, lower case without punctuation.
    """

    clip: int
    text: ClipText
    asked: int
    word: str

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens of both runs."""
        return self.text.tokens[: self.asked]

    @property
    def target(self) -> int:
        """The token that is asked for."""
        return self.text.tokens[self.asked]

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Start and end of the word in seconds, if its time is known."""
        times = [word.seconds for word in self.text.words if word.tokens[0] == self.asked]
        return times[0] if times else None


def ask_words(
    tokenizer: Tokenizer, clip: int, row: Row, text: ClipText, which: str
) -> list[Question]:
    """Make the questions of one clip.

    Args:
        tokenizer: the model's tokenizer.
        clip: number of the clip.
        row: columns of the clip.
        text: text of the clip.
        which: `"last"` for the last word, `"each"` for every word, or `"column:NAME"` for the word
            that a column names (`word:2` for its second occurrence).

    Raises:
        InputError: the text has no words, or lacks the word that is asked for, or has it several
            times.
    """
    named = [(name, start) for name, (start, _) in words_of(tokenizer, text.tokens) if name]
    if which == EACH and named:
        return [Question(clip, text, start, name) for name, start in named]
    word = None
    if which.startswith(COLUMN):
        word = row[which.removeprefix(COLUMN)].strip()
        if not word:
            raise InputError("The table names no word for this clip.")
    start = position_of_word(tokenizer, text.tokens, word)
    return [Question(clip, text, start, next(name for name, at in named if at == start))]
