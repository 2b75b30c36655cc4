"""Fetching the files of a model from the model hub."""

from pathlib import Path

from jaxasr_interp.checkpoint.huggingface import weight_files
from jaxasr_interp.errors import InputError

# Repositories also hold the same weights in other precisions and frameworks.
_FILES = [
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
_TORCH_FILES = [
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model-*-of-*.bin",
]


def download(hub_id: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Fetch a model's files, those of torch only where there are no others.

    Args:
        hub_id: `owner/name`.
        revision: branch, tag or commit; by default the main branch.
        cache_dir: where the files are kept; by default where the hub's library keeps them.

    Returns:
        The folder that holds them.

    Raises:
        InputError: the hub cannot be reached, or has no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        try:
            folder = snapshot_download(
                hub_id, revision=revision, cache_dir=cache_dir, allow_patterns=patterns
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{hub_id} could not be fetched from the model hub: {reason}"
            ) from None
        return Path(folder)

    folder = fetch(_FILES)
    if (folder / "model.bin").exists() or weight_files(folder):
        return folder
    return fetch(_TORCH_FILES)
