"""Saved models: parameters in an Orbax checkpoint, everything else as JSON beside it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxasr_interp.checkpoint import convert
from jaxasr_interp.checkpoint.huggingface import read_json
from jaxasr_interp.checkpoint.shapes import check_sizes, sizes
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.store import check_sealed, new_folder, sealed, write_arrays, write_json
from jaxasr_interp.runtime.transforms import host_only
from jaxasr_interp.speech.tokenizer import Tokenizer

MARKER = "jaxasr_interp.json"
PARAMETERS = "parameters"
TOKENIZER = "tokenizer.json"


@host_only()
def save_model(model: Whisper, folder: str | Path) -> Path:
    """Save a model so that `load_model(folder)` gives back the same bits.

    Args:
        model: any model.
        folder: must not exist yet; appears only once everything is written.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists.
    """
    parameters = convert.parameters_by_path(model)
    with new_folder(folder) as partial:
        write_arrays(partial / PARAMETERS, parameters)
        description = {
            "config": dataclasses.asdict(model.config),
            "generation": dataclasses.asdict(model.generation),
            "dtype": str(model.dtype),
            "source": model.source,
        }
        if model.tokenizer is not None:
            (partial / TOKENIZER).write_bytes(model.tokenizer.content)
        write_json(partial / MARKER, sealed(description, _content(partial, parameters)))
    return Path(folder).absolute()


def read_config(folder: Path) -> tuple[WhisperConfig, str]:
    """Read the sizes and the dtype of what `save_model` wrote.

    Raises:
        InputError: the description is damaged, or its sizes are not those of the parameters.
    """
    import orbax.checkpoint as ocp

    description = read_json(folder / MARKER)
    try:
        config, dtype = WhisperConfig(**description["config"]), description["dtype"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / MARKER} is damaged: {error}.") from None
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata((folder / PARAMETERS).absolute()).item_metadata
        shapes = {path: tuple(stored[path].shape) for path in stored}
    except Exception as error:  # A damaged file may raise anything in its readers.
        raise _unreadable(folder, error) from None
    check_sizes(config, sizes(shapes, str(folder)), str(folder))
    return config, dtype


def restore_model(folder: Path) -> Whisper:
    """Load what `save_model` wrote, in the dtype it was saved in.

    Args:
        folder: the saved folder.

    Raises:
        InputError: a file is missing or damaged, or the parameters do not fit the config.
    """
    import orbax.checkpoint as ocp

    description = read_json(folder / MARKER)
    config, dtype = read_config(folder)
    try:
        settings, source = description["generation"], description["source"]
        heads = tuple((layer, head) for layer, head in settings["alignment_heads"])
        generation = GenerationSettings(
            tuple(settings["suppress"]),
            tuple(settings["suppress_first"]),
            heads,
            settings.get("language"),
            settings.get("task"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / MARKER} is damaged: {error}.") from None
    convert.check_dtype(dtype)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {
        path: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=device)
        for path, p in convert.abstract_parameters(config, dtype).items()
    }
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            parameters = checkpointer.restore((folder / PARAMETERS).absolute(), wanted)
    except Exception as error:  # A damaged file may raise anything in its readers.
        raise _unreadable(folder, error) from None
    check_sealed(folder, description, _content(folder, parameters))
    model = convert.with_parameters(config, parameters)
    model.generation, model.source = generation, source
    tokenizer = folder / TOKENIZER
    model.tokenizer = Tokenizer(str(tokenizer)) if tokenizer.is_file() else None
    return model


def _unreadable(folder: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return InputError(f"{folder / PARAMETERS} cannot be restored: {reason}")


def _content(folder: Path, parameters: Mapping[str, Any]) -> list[Any]:
    """Return what the checksum covers: the parameters and the tokenizer's file."""
    tokenizer = folder / TOKENIZER
    return [parameters, tokenizer.read_bytes() if tokenizer.is_file() else b""]
