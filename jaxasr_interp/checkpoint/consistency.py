"""Checks that weights, tokenizer and settings of a checkpoint belong to one model."""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.speech.tokenizer import Tokenizer

_SPECIAL = {
    "eos_token_id": "endoftext",
    "decoder_start_token_id": "startoftranscript",
    "no_timestamps_token_id": "notimestamps",
    "prev_sot_token_id": "startofprev",
}


def check_special_tokens(
    tokenizer: Tokenizer, settings: Mapping[str, Any], config: WhisperConfig, origin: str
) -> None:
    """Raise `InputError` if special tokens have other ids in the settings than in the tokenizer.

    Args:
        tokenizer: tokenizer of the checkpoint.
        settings: parsed `generation_config.json` or `config.json` of Hugging Face, or CTranslate2's
            `config.json`.
        config: sizes; the vocabulary must hold all special tokens.
        origin: name of the settings in errors.
    """
    for name, token_ids in _stated(settings, origin):
        own = tokenizer.special(name)
        if own not in token_ids:
            stated = ", ".join(map(str, token_ids))
            raise InputError(
                f"{tokenizer.path} gives <|{name}|> the id {own} and {origin} {stated}: they are "
                "not of one model; put the tokenizer of these weights beside them."
            )
    languages = _ids(settings, "lang_ids", origin)
    if languages and tokenizer.multilingual and {*languages} != {*tokenizer.languages.values()}:
        raise InputError(
            f"{tokenizer.path} and {origin} have other ids for the languages: they are not of one "
            "model; put the tokenizer of these weights beside them."
        )
    last = tokenizer.special("notimestamps")
    if last >= config.d_vocab:
        raise InputError(
            f"{tokenizer.path} gives <|notimestamps|> the id {last} and the model has "
            f"{config.d_vocab} tokens: put the tokenizer of these weights beside them."
        )


def check_generation(settings: GenerationSettings, config: WhisperConfig, origin: str) -> None:
    """Raise `InputError` if the settings name a token or a head that the model lacks."""
    largest = max(settings.suppress + settings.suppress_first, default=0)
    if largest >= config.d_vocab:
        raise InputError(
            f"{origin} forbids the token {largest}: the model has {config.d_vocab} tokens."
        )
    for layer, head in settings.alignment_heads:
        if not (0 <= layer < config.decoder_layers and 0 <= head < config.decoder_heads):
            raise InputError(
                f"{origin} names head {head} of layer {layer} for alignment: the decoder has "
                f"{config.decoder_layers} layers of {config.decoder_heads} heads."
            )


def _stated(settings: Mapping[str, Any], origin: str) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and ids of each special token in the settings; several may end a text."""
    for key, name in _SPECIAL.items():
        if token_ids := _ids(settings, key, origin):
            yield name, token_ids
    for table in ("task_to_id", "lang_to_id"):
        ids = settings.get(table) or {}
        if not isinstance(ids, dict):
            raise InputError(f"{origin} has {table} of another form: expected ids by name.")
        for name in ids:
            yield name.removeprefix("<|").removesuffix("|>"), _ids(ids, name, f"{origin}: {table}")


def _ids(settings: Mapping[str, Any], key: str, origin: str) -> list[int]:
    """Return the token id or ids that the settings hold, if any."""
    stated = settings.get(key)
    ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(isinstance(number, int) for number in ids):
        raise InputError(f"{origin} has {key} of another form: expected token ids.")
    return ids
