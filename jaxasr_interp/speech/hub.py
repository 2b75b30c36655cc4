"""Data sets of Hugging Face: folders that `datasets` reads, and ids of the hub."""

import re
from pathlib import Path
from typing import Any

from jaxasr_interp.errors import InputError

# What ends like the name of a file is none.
_ID = re.compile(r"[\w.-]+/[\w-]+(\.\d[\w-]*)*(:[^:/]+){0,2}")
_SAVED = ("dataset_dict.json", "state.json")


def is_dataset(source: str | Path) -> bool:
    """Tell whether a source names a data set, not a file: a folder, or an id of the hub."""
    return Path(_parts(source)[0]).is_dir() or is_id(source)


def is_id(source: str | Path) -> bool:
    """Tell whether a source is an id of the hub, `owner/name`, and nothing that is here."""
    named = _ID.fullmatch(str(source)) is not None
    return named and not Path(_parts(source)[0]).exists()


def local_or_id(source: str | Path) -> Path | str:
    """Return the path of what is here, which other processes may be given, and an id as it is."""
    return str(source) if is_id(source) else Path(source)


def open_dataset_rows(source: str | Path) -> Any:
    """Open one split of a data set, whose audio stays encoded.

    Args:
        source: a folder, from `save_to_disk` or with what `load_dataset` reads, or an id such as
            `openslr/librispeech_asr`; then, if there are several, `:SPLIT` or `:CONFIG:SPLIT`.

    Returns:
        The rows, a `datasets.Dataset`.

    Raises:
        InputError: the package `datasets` is not installed, or there is no such data set or split.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        where = "is no file here, and a data set" if is_id(source) else "is a folder, which"
        raise InputError(
            f"{source} {where} is read by the package datasets: pip install "
            "'jaxasr-interp[datasets]'."
        ) from None
    place, *chosen = _parts(source)
    config, split = chosen if len(chosen) == 2 else (None, *(chosen or (None,)))
    try:
        if any((Path(place) / name).is_file() for name in _SAVED):
            found: Any = datasets.load_from_disk(place)
        else:
            found = datasets.load_dataset(place, config)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{place} cannot be read as a data set: {reason}.") from None
    if isinstance(found, datasets.DatasetDict):
        splits = list(map(str, found))
        if split not in found and (split is not None or len(splits) > 1):
            raise InputError(
                f"{place} has the splits {', '.join(splits)}: write {place}:{splits[0]}."
            )
        found = found[split or splits[0]]
    for name, feature in found.features.items():
        if isinstance(feature, datasets.Audio):
            found = found.cast_column(name, datasets.Audio(decode=False))
    return found


def _parts(source: str | Path) -> list[str]:
    """Split a source into its place and the one or two names behind it."""
    text = str(source)
    return [text] if Path(text).exists() else text.split(":")
