"""Text to tokens and back, and the prompts that tell Whisper what to do.

A token is ordinary text, a word that a fine-tune has added, one of Whisper's special tokens, or a
timestamp. A transcript consists of the first two.
"""

import dataclasses
import functools
import itertools
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.languages import LANGUAGES, language_code
from jaxasr_interp.speech.merges import Merge, Merges, complete_merges
from jaxasr_interp.speech.tokenizer_files import read_tokenizer

_ENGLISH_ONLY_END_OF_TEXT = 50256
SECONDS_PER_TIMESTAMP = 0.02
N_TIMESTAMPS = 1501
"""From `<|0.00|>` to `<|30.00|>`."""
_SPECIAL = frozenset(
    f"<|{name}|>"
    for name in (
        "endoftext",
        "startoftranscript",
        "translate",
        "transcribe",
        "startoflm",
        "startofprev",
        "nospeech",
        "nocaptions",
        "notimestamps",
    )
)
_MARK = re.compile(r"<\|.*\|>")
"""The form of special tokens, including the languages and tasks that a fine-tune adds."""
_TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Whisper's tokenizer, read from its files when first used.

    Args:
        path: the `tokenizer.json` of the checkpoint, or a `vocab.json` with a `merges.txt` beside
            it.
        extra_language: code of a language that comes behind those of the file and shifts the
            special tokens that follow by one, as large-v3 has it beside the older models.
    """

    path: str
    extra_language: str | None = None

    @property
    def content(self) -> bytes:
        """The tokenizer as the content of a `tokenizer.json`."""
        return read_tokenizer(Path(self.path), self.extra_language)

    def special(self, name: str) -> int:
        """Return the id of the special token `<|name|>`.

        Raises:
            InputError: the vocabulary has no such token.
        """
        token_id = _load(self).added.get(f"<|{name}|>")
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
        """Id of the token whose probability at the start is that of a clip without speech."""
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
        ids, names = _load(self).added, LANGUAGES
        return {code: ids[f"<|{code}|>"] for code in names if f"<|{code}|>" in ids}

    def language_code(self, language: str) -> str:
        """Return the code of a language given by code or English name (`"de"`, `"German"`).

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
        """Return the tokens that the decoder is given before it generates.

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

    @property
    def added_words(self) -> dict[int, str]:
        """Words that a fine-tune has added to Whisper's vocabulary, by their ids."""
        return _load(self).words

    @property
    def merges(self) -> Merges:
        """The byte-pair merges, with those that the file lacks restored; see `merges`."""
        return _load(self).merges

    def is_text(self, token: int) -> bool:
        """Tell whether the token is text of a transcript: no special token and no timestamp."""
        return token < self.end_of_text or token in self.added_words

    def is_timestamp(self, token: int) -> bool:
        """Tell whether the token is one of `<|0.00|>` to `<|30.00|>`."""
        step = token - self.timestamp_begin
        return 0 <= step < N_TIMESTAMPS and token not in self.added_words

    def text_mask(self, d_vocab: int) -> Bool[np.ndarray, " d_vocab"]:
        """Return `is_text` of every id."""
        mask = np.arange(d_vocab) < self.end_of_text
        mask[[token for token in self.added_words if token < d_vocab]] = True
        return mask

    def timestamp_mask(self, d_vocab: int) -> Bool[np.ndarray, " d_vocab"]:
        """Return `is_timestamp` of every id."""
        steps = np.arange(d_vocab) - self.timestamp_begin
        return (steps >= 0) & (steps < N_TIMESTAMPS) & ~self.text_mask(d_vocab)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text as it is (a transcript's words start with a space)."""
        return _load(self).backend.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Return the text of some tokens, without Whisper's special tokens and timestamps."""
        text = [token for token in map(int, tokens) if self.is_text(token)]
        words = self.added_words
        return "".join(
            "".join(words[token] for token in run) if added else self._decode(list(run))
            for added, run in itertools.groupby(text, words.__contains__)
        )

    def label(self, token: int) -> str:
        """Return the label of one token on an axis: its text, `<|special|>` or `<|1.24|>`."""
        if self.is_timestamp(token):
            return f"<|{(token - self.timestamp_begin) * SECONDS_PER_TIMESTAMP:.2f}|>"
        return self.added_words.get(token) or self._decode([token])

    def _decode(self, tokens: list[int]) -> str:
        return _load(self).backend.decode(tokens, skip_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """What a `tokenizer.json` holds.

    Attributes:
        backend: encodes and decodes text.
        merges: the merges of byte pairs.
        added: ids of all added tokens, special ones and words, by their text.
        words: texts of the added words, which are no special tokens or timestamps, by id.
    """

    backend: Any
    merges: Merges
    added: dict[str, int]
    words: dict[int, str]


def _merge(pair: str | list[str]) -> Merge:
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first, second


@functools.cache
def _load(tokenizer: Tokenizer) -> _Loaded:
    import tokenizers

    path = tokenizer.path
    try:
        content = json.loads(tokenizer.content)
        added = {token["content"]: int(token["id"]) for token in content["added_tokens"]}
        vocabulary, pairs = content["model"]["vocab"], content["model"]["merges"]
        given = [_merge(pair) for pair in pairs]
        # Ordinary tokens end where special ones begin; some files list ordinary ones as added too.
        ordinary = added.get("<|endoftext|>", len(vocabulary))
        merges = complete_merges(vocabulary, given, ordinary)
        content["model"]["merges"] = [" ".join(pair) for pair in merges.pairs]
        # Settings from training, which would silently cut or pad every text.
        content["truncation"] = content["padding"] = None
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # The tokenizers library raises nothing narrower.
        raise InputError(f"{path} is not a Whisper tokenizer: {error}.") from error
    for token, number in added.items():
        if backend.token_to_id(token) != number:
            raise InputError(
                f"{path} gives {token!r} the id {number}, but it is read as "
                f"{backend.token_to_id(token)}: number the added tokens without gaps."
            )
    if merges.restored:
        lost = [" ".join(pair) for pair in sorted(set(merges.pairs) - set(given))]
        _log.info(
            "%s lacks %d of %d merges (%s), which its ids tell: they are put back.",
            path,
            merges.restored,
            len(merges.pairs),
            ", ".join(lost[:3]),
        )
    # English-only tokenizers have the old code of Hebrew.
    languages = {f"<|{code}|>" for code in (*LANGUAGES, "iw")}
    marks = {
        token["content"]
        for token in content["added_tokens"]
        if token.get("special") and _MARK.fullmatch(token["content"])
    }
    words = {
        number: token
        for token, number in added.items()
        if token and token not in _SPECIAL | languages | marks and not _TIMESTAMP.fullmatch(token)
    }
    return _Loaded(backend, merges, added, words)
