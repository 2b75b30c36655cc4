"""Models without their weights: sizes and tokenizer alone, to plan work beforehand."""

from pathlib import Path

from jaxasr_interp.checkpoint import convert, ctranslate2, huggingface, openai, saved
from jaxasr_interp.checkpoint.bundled import BUNDLES, find_parts
from jaxasr_interp.checkpoint.shapes import check_sizes, stored_sizes
from jaxasr_interp.checkpoint.stored import FileBytes
from jaxasr_interp.checkpoint.table import TABLE
from jaxasr_interp.checkpoint.tokenizers import find_tokenizer
from jaxasr_interp.errors import InputError
from jaxasr_interp.model.config import WhisperConfig
from jaxasr_interp.model.whisper import Whisper

HUB = "openai/whisper-"
"""How the ids of OpenAI's models on the hub begin."""

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
    config = openai_config(name.removeprefix(HUB))
    if config is not None:
        parts = find_parts(name) if name in BUNDLES else None
        tokenizer = find_tokenizer(parts[0].parent) if parts else None
    elif folder.is_dir():
        config, dtype = _read_config(folder, dtype)
        tokenizer = find_tokenizer(folder)
    else:
        names = ", ".join([*_SIZES, *_LARGE])
        raise InputError(
            f"The sizes of {name!r} are not known here: choose one of {names}, or a local folder."
        )
    model = convert.abstract_model(config, dtype or "float32")
    model.tokenizer = tokenizer
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
        path = folder / "model.bin"
        return ctranslate2.read_tensors(FileBytes([path]), str(path))[0], dtype
    files = huggingface.weight_files(folder)
    if not files and (found := sorted(folder.glob("*.pt"))):
        return openai.read_openai(found[0])[0], dtype
    config = WhisperConfig.from_hf(huggingface.read_json(folder / "config.json"))
    if files:
        tensors = huggingface.read_tensors(folder)
        check_sizes(config, stored_sizes(tensors, TABLE, str(folder)), str(folder))
    return config, dtype
