"""What the decoder is given for each clip."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.extraction.clips import Row
from jaxasr_interp.generation.generate import generate_batch
from jaxasr_interp.generation.language import detect_language_batch
from jaxasr_interp.generation.word_times import Word, align_states
from jaxasr_interp.model.whisper import Whisper, require_tokenizer

OWN = "own"


@dataclasses.dataclass(frozen=True)
class Texts:
    """Where the texts come from.

    Attributes:
        column: `"own"`, what the model itself writes; or a column of the manifest, the model's own
            text where that is empty.
        language: of clips whose column `lang` is empty; detected by default.
    """

    column: str = "own"
    language: str | None = None

    def written(self, row: Row) -> str:
        """What the manifest says is said, `""` if it does not say."""
        return "" if self.column == OWN else row.get(self.column, "").strip()


@dataclasses.dataclass(frozen=True)
class Run:
    """What the decoder is given for one clip.

    Attributes:
        tokens: `[prompt, text, <|endoftext|>]`.
        prompt: how many of them are the prompt.
        source: `"own"`, or the column that the text is from.
        words: those of the text, with their tokens and frames, where requests name words.
    """

    tokens: tuple[int, ...]
    prompt: int
    source: str
    words: tuple[Word, ...] = ()


def text_tokens(model: Whisper, text: str) -> list[int]:
    """The tokens of a transcript."""
    return require_tokenizer(model).encode(" " + text)


def longest_run(model: Whisper, rows: Sequence[Row], texts: Texts) -> int:
    """Tokens of the longest run, as long as one may be where texts are not known beforehand."""
    written = [texts.written(row) for row in rows]
    if not all(written):
        return model.config.max_tokens
    around = len(require_tokenizer(model).prompt()) + 1
    longest = max(len(text_tokens(model, text)) for text in written) + around
    return min(longest, model.config.max_tokens)


def make_runs(
    model: Whisper,
    states: Float[Array, "clip frame d_model"],
    rows: Sequence[Row],
    texts: Texts,
) -> list[Run | InputError]:
    """What the decoder is given for each clip of a batch, or why it cannot be.

    Args:
        model: a model with a tokenizer.
        states: encoder states of each clip.
        rows: columns of each clip.
        texts: where the texts come from.
    """
    tokenizer = require_tokenizer(model)
    prompts = _prompts(model, states, rows, texts)
    # A prompt for each: the program has one shape, and what is written elsewhere is left out.
    plain = tokenizer.prompt()
    own = None
    if not all(texts.written(row) for row in rows):
        given = [plain if isinstance(prompt, InputError) else prompt for prompt in prompts]
        own = generate_batch(model, states, prompts=given)
    most = model.config.max_tokens
    runs: list[Run | InputError] = []
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if isinstance(prompt, InputError):
            runs.append(prompt)
            continue
        text = texts.written(row)
        source = texts.column if text else OWN
        if text or own is None:
            said = text_tokens(model, text)
        else:
            # One that the model does not end is cut, to be followed by its end.
            said = own[i].tokens[: most - len(prompt) - 1]
        tokens = (*prompt, *said, tokenizer.end_of_text)
        runs.append(
            Run(tokens, len(prompt), source)
            if len(tokens) <= most
            else InputError(f"The text has {len(tokens)} tokens with its prompt: at most {most}.")
        )
    return runs


def _prompts(
    model: Whisper, states: Array, rows: Sequence[Row], texts: Texts
) -> list[list[int] | InputError]:
    tokenizer = require_tokenizer(model)
    named = [row.get("lang") or texts.language or "" for row in rows]
    if not all(named) and tokenizer.multilingual:
        ranked = detect_language_batch(model, states)
        named = [name or next(iter(best)) for name, best in zip(named, ranked, strict=True)]
    prompts: list[list[int] | InputError] = []
    for name in named:
        try:
            prompts.append(tokenizer.prompt(name or "en"))
        except InputError as error:
            prompts.append(error)
    return prompts


def with_words(model: Whisper, states: Float[Array, "frame d_model"], run: Run, frames: int) -> Run:
    """The run with its words and when they are said."""
    words = align_states(model, states, run.tokens[:-1], run.prompt, frames)
    return dataclasses.replace(run, words=words)
