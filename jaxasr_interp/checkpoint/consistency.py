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
    for name, token_ids in _stated(settings):
        own = tokenizer.special(name)
        if own not in token_ids:
            stated = ", ".join(map(str, token_ids))
            raise InputError(
                f"{tokenizer.path} gives <|{name}|> the id {own} and {origin} {stated}: they are "
                "not of one model; put the tokenizer of these weights beside them."
            )
    languages = settings.get("lang_ids")
    if languages and tokenizer.multilingual and set(languages) != {*tokenizer.languages.values()}:
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


def check_alignment_heads(settings: GenerationSettings, config: WhisperConfig, origin: str) -> None:
    """Raise `InputError` if a cross-attention head that the settings name is not in the model."""
    for layer, head in settings.alignment_heads:
        if not (0 <= layer < config.decoder_layers and 0 <= head < config.decoder_heads):
            raise InputError(
                f"{origin} names head {head} of layer {layer} for alignment: the decoder has "
                f"{config.decoder_layers} layers of {config.decoder_heads} heads."
            )


def _stated(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and ids of each special token in the settings; several may end a text."""
    for key, name in _SPECIAL.items():
        stated = settings.get(key)
        if stated is not None and stated != []:
            yield name, stated if isinstance(stated, list) else [stated]
    for task, token_id in (settings.get("task_to_id") or {}).items():
        yield task, [token_id]
    for language, token_id in (settings.get("lang_to_id") or {}).items():
        yield language.removeprefix("<|").removesuffix("|>"), [token_id]
