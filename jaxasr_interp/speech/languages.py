"""The languages that Whisper knows: their codes and names."""

import contextlib
import functools
import logging
from collections.abc import Collection, Iterator

from jaxasr_interp.errors import InputError


def language_code(language: str, known: Collection[str]) -> str:
    """Return the code of a language given by code or English name.

    Raises:
        InputError: its code is not among the known ones.
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
    """Return the lower-case English names of the languages that Whisper knows, by code."""
    with without_warnings():
        from transformers.models.whisper.tokenization_whisper import LANGUAGES

    return LANGUAGES


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence transformers, which warns when imported that torch is absent."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
