"""Text to tokens and back, and the prompts that tell Whisper what to do."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxasr_interp.errors import InputError

if TYPE_CHECKING:
    from jaxasr_interp.model import Whisper

_ENGLISH_ONLY_END_OF_TEXT = 50256
SECONDS_PER_TIMESTAMP = 0.02


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Whisper's tokenizer, read from a `tokenizer.json` when first used.

    Args:
        path: the `tokenizer.json` of the checkpoint.
    """

    path: str

    @property
    def _backend(self) -> Any:
        return _load_backend(self.path)

    def special(self, name: str) -> int:
        """The id of the special token `<|name|>`.

        Raises:
            InputError: the vocabulary has no such token.
        """
        token_id = _special_ids(self.path).get(f"<|{name}|>")
        if token_id is None:
            raise InputError(f"The tokenizer {self.path} has no token <|{name}|>.")
        return token_id

    @property
    def end_of_text(self) -> int:
        """Id of the token that ends a transcript."""
        return self.special("endoftext")

    @property
    def start_of_transcript(self) -> int:
        """Id of the first token of every prompt."""
        return self.special("startoftranscript")

    @property
    def timestamp_begin(self) -> int:
        """Id of `<|0.00|>`; every later id is 20 ms more."""
        return self.special("notimestamps") + 1

    @property
    def no_speech(self) -> int:
        """Id of the token whose probability at the start says that nobody speaks."""
        return self.special("notimestamps") - 1

    @property
    def multilingual(self) -> bool:
        """Whether prompts name a language and a task."""
        return self.end_of_text != _ENGLISH_ONLY_END_OF_TEXT

    @property
    def languages(self) -> dict[str, int]:
        """Language codes and their token ids; empty for English-only models."""
        if not self.multilingual:
            return {}
        ids, names = _special_ids(self.path), language_names()
        return {code: ids[f"<|{code}|>"] for code in names if f"<|{code}|>" in ids}

    def language_code(self, language: str) -> str:
        """The code of a language given by code or English name (`"de"`, `"German"`).

        Raises:
            InputError: the model does not know the language.
        """
        return language_code(language, self.languages or {"en": 0})

    def prompt(
        self,
        language: str = "en",
        task: str = "transcribe",
        timestamps: bool = False,
        previous: Sequence[int] = (),
    ) -> list[int]:
        """The tokens that the decoder is given before it writes.

        Args:
            language: code or English name of the spoken language.
            task: `"transcribe"`, or `"translate"` into English.
            timestamps: let the model write timestamp tokens.
            previous: tokens of the preceding text, put before the prompt as context.

        Returns:
            Token ids.

        Raises:
            InputError: unknown language or task, or one that an English-only model lacks.
        """
        if task not in ("transcribe", "translate"):
            raise InputError(f"Unknown task {task!r}: choose 'transcribe' or 'translate'.")
        code = self.language_code(language)
        if task == "translate" and not self.multilingual:
            raise InputError("An English-only model cannot translate: use a multilingual one.")
        context = [self.special("startofprev"), *previous] if len(previous) else []
        choice = [self.languages[code], self.special(task)] if self.multilingual else []
        ending = [] if timestamps else [self.special("notimestamps")]
        return [*context, self.start_of_transcript, *choice, *ending]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, as written (a transcript's words start with a space)."""
        return self._backend.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of some tokens, without special tokens and timestamps."""
        text = [int(token) for token in tokens if int(token) < self.end_of_text]
        return self._backend.decode(text)

    def label(self, token: int) -> str:
        """How one token is written on an axis: its text, `<|special|>` or `<|1.24|>`."""
        if token >= self.timestamp_begin:
            return f"<|{(token - self.timestamp_begin) * SECONDS_PER_TIMESTAMP:.2f}|>"
        return self._backend.decode([token])


def require_tokenizer(model: "Whisper") -> Tokenizer:
    """The model's tokenizer; raise `InputError` if it came without one."""
    if model.tokenizer is None:
        raise InputError(
            f"The model {model.source} came without a tokenizer.json: put it beside the weights."
        )
    return model.tokenizer


def language_code(language: str, known: Collection[str]) -> str:
    """The code of a language given by code or English name.

    Raises:
        InputError: it is not among the known codes.
    """
    names = language_names()
    by_name = {names[code]: code for code in known if code in names}
    code = by_name.get(language.lower(), language.lower())
    if code not in known:
        raise InputError(
            f"Unknown language {language!r}: choose one of {', '.join(sorted(known))}."
        )
    return code


@functools.cache
def language_names() -> dict[str, str]:
    """English names, in lower case, of the languages that Whisper knows, by their codes."""
    with without_warnings():
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return LANGUAGES


@functools.cache
def _load_backend(path: str) -> Any:
    with without_warnings():
        from transformers import WhisperTokenizer

    try:
        return WhisperTokenizer(tokenizer_file=path)
    except Exception as error:
        raise InputError(f"{path} is not a Whisper tokenizer.json: {error}.") from error


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """transformers logs, when imported, that torch is absent: it is not needed here."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def _special_ids(path: str) -> dict[str, int]:
    return dict(_load_backend(path).get_added_vocab())
