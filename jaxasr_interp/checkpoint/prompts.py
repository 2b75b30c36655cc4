"""The language and the task that a checkpoint's generation settings ask for."""

from collections.abc import Mapping
from typing import Any

from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.tokenizer import Tokenizer

TASKS = ("transcribe", "translate")


def forced_prompt(
    tokenizer: Tokenizer, settings: Mapping[str, Any], origin: str
) -> dict[str, str | None]:
    """Read the language and the task of prompts from a `generation_config.json`.

    They are named, or given as the tokens that are forced at the positions after the start.

    Args:
        tokenizer: tokenizer of the checkpoint; an English-only one has neither language nor task.
        settings: the parsed file.
        origin: its name in errors.

    Returns:
        `language` and `task`; `None` where the settings leave them open.

    Raises:
        InputError: they are unknown to the model, or of another form.
    """
    if not tokenizer.multilingual:
        return {"language": None, "task": None}
    forced = _forced(settings, origin)
    codes = {number: code for code, number in tokenizer.languages.items()}
    languages = [codes[token] for token in forced if token in codes]
    tasks = [task for task in TASKS if tokenizer.special(task) in forced]
    language, task = settings.get("language"), settings.get("task")
    for key, value in (("language", language), ("task", task)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{origin} has {key} of another form: expected a name.")
    if language is not None:
        languages = [tokenizer.language_code(language.removeprefix("<|").removesuffix("|>"))]
    if task not in (None, *TASKS):
        raise InputError(f"{origin} has the task {task!r}: expected 'transcribe' or 'translate'.")
    return {
        "language": languages[0] if languages else None,
        "task": task or (tasks[0] if tasks else None),
    }


def _forced(settings: Mapping[str, Any], origin: str) -> list[int]:
    """Return the tokens of `forced_decoder_ids`; a position whose token is open has none."""
    pairs = settings.get("forced_decoder_ids") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], int | None)
        for pair in pairs
    ):
        raise InputError(
            f"{origin} has forced_decoder_ids of another form: expected [position, token] pairs."
        )
    return [token for _, token in pairs if token is not None]
