"""Models without their weights: sizes and tokenizer alone, to plan work beforehand."""

import mmap
from pathlib import Path

from jaxasr_interp.checkpoint import convert, ctranslate2, huggingface, saved
from jaxasr_interp.checkpoint.bundled import BUNDLES, find_parts
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.whisper import Whisper
from jaxasr_interp.speech.tokenizer import Tokenizer

_OPENAI = "openai/whisper-"
_SIZES = {
    "tiny": (384, 4, 6),
    "base": (512, 6, 8),
    "small": (768, 12, 12),
    "medium": (1024, 24, 16),
    "large": (1280, 32, 20),
}
"""Width, layers of each stack, and heads (Radford et al. 2022, table 1)."""
_LARGE = ("large-v1", "large-v2", "large-v3", "large-v3-turbo")


def model_without_weights(name: str, dtype: str | None = None) -> Whisper:
    """Make a model that has the sizes of another, and no values.

    Args:
        name: a size of OpenAI's, such as `"large-v3"` or `"openai/whisper-large-v3"`; or a local
            folder, see `load_model`.
        dtype: see `load_model`.

    Returns:
        The model, whose parameters have shapes and dtypes alone; with its tokenizer if that is on
        this machine.

    Raises:
        InputError: there is no such size or folder, its sizes cannot be read, or the dtype is
            unknown.
    """
    folder = Path(name)
    config = openai_config(name.removeprefix(_OPENAI))
    if config is not None:
        parts = find_parts(name) if name in BUNDLES else None
        tokenizer = parts[0].with_name(saved.TOKENIZER) if parts else None
    elif folder.is_dir():
        config, dtype = _read_config(folder, dtype)
        tokenizer = folder / saved.TOKENIZER
    else:
        names = ", ".join([*_SIZES, *_LARGE])
        raise InputError(
            f"The sizes of {name!r} are not known here: choose one of {names}, or a local folder."
        )
    model = convert.abstract_model(config, dtype or "float32")
    if tokenizer is not None and tokenizer.is_file():
        model.tokenizer = Tokenizer(str(tokenizer))
    model.name = name
    return model


def openai_config(name: str) -> WhisperConfig | None:
    """Return the sizes of OpenAI's model of some name, such as `base.en` or `turbo`, if any."""
    name = "large-v3-turbo" if name == "turbo" else name
    english = name.endswith(".en")
    size = "large" if name in _LARGE else name.removesuffix(".en")
    if size not in _SIZES or (english and size == "large"):
        return None
    d_model, layers, heads = _SIZES[size]
    third = name.startswith("large-v3")
    return WhisperConfig(
        n_mels=128 if third else 80,
        d_vocab=51864 if english else 51866 if third else 51865,
        d_model=d_model,
        encoder_layers=layers,
        decoder_layers=4 if name == "large-v3-turbo" else layers,
        encoder_heads=heads,
        decoder_heads=heads,
        encoder_d_mlp=4 * d_model,
        decoder_d_mlp=4 * d_model,
    )


def _read_config(folder: Path, dtype: str | None) -> tuple[WhisperConfig, str | None]:
    """Read the sizes of a model in a folder, and the dtype in which it will be loaded."""
    if (folder / saved.MARKER).exists():
        return saved.read_config(folder)
    if (folder / "model.bin").exists():
        # Its sizes are those of its tensors, which are named one after the other in one file.
        with (folder / "model.bin").open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return ctranslate2.read_tensors(memoryview(data), str(folder / "model.bin"))[0], dtype
    return WhisperConfig.from_hf(huggingface.read_json(folder / "config.json")), dtype
