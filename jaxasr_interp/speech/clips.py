"""The clips of a manifest on disk or of a data set, and the audio that their rows name."""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxasr_interp.errors import InputError
from jaxasr_interp.speech.audio import as_audio, load_audio, read_audio
from jaxasr_interp.speech.hub import is_dataset, open_dataset_rows
from jaxasr_interp.speech.noise import noise_like
from jaxasr_interp.speech.tables import (
    NAMES_OF_AUDIO,
    Row,
    label_rows,
    read_manifest,
    with_usual_names,
)
from jaxasr_interp.speech.utterance import Clip

type ClipSource = Sequence[Clip] | str | Path | Iterable[Mapping[str, Any]]
type AudioSource = Path | bytes | tuple[np.ndarray, int]


class VanishedError(InputError):
    """A file that was there when the work began is gone, perhaps with its whole disk."""


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips in order.

    Attributes:
        rows: the columns of each, as text.
        read: gives the 16 kHz samples of one by its number; raises `InputError` if it cannot, and
            `VanishedError` if it could when the digest was taken.
        digest: gives the SHA-256 of what one is read from by its number: of a file, or of samples
            and their rate; `""` if that cannot be read.
    """

    rows: tuple[Row, ...]
    read: Callable[[int], Float[np.ndarray, " samples"]]
    digest: Callable[[int], str]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.rows[0])


def find_clips(source: str | Path | Iterable[Mapping[str, Any]], column: str = "path") -> Clips:
    """The clips of a manifest, of a data set, or of rows.

    Args:
        source: path of a manifest (see `read_manifest`), whose paths are relative to it; a folder
            or id of a Hugging Face dataset (see `hub.open_dataset_rows`); or rows: mappings with
            `audio`, which is `{"array", "sampling_rate"}`, `{"bytes"}` or a path, or with another
            column of `NAMES_OF_AUDIO`. All other columns that hold single values are labels.
        column: column that names the audio, if it is none of these.

    Returns:
        The clips; rows without a `path` have `row 0`, `row 1`, … for it.

    Raises:
        InputError: the manifest or data set cannot be read, there are no rows, or they name no
            audio.
    """
    if isinstance(source, str | Path):
        if is_dataset(source):
            return find_clips(open_dataset_rows(source), column)
        path = Path(source)
        rows = tuple(read_manifest(path))
        check_column(rows[0], column)
        return _clips(rows, lambda i: path.parent / rows[i][column])
    # A dataset decodes the audio of a row when asked for the row; what only streams has to be kept.
    indexed = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    given: Any = source if indexed else list(source)
    if not indexed or isinstance(source, Sequence | np.ndarray):
        odd = [type(row).__name__ for row in given if not isinstance(row, Mapping)]
        if odd:
            raise InputError(
                f"The rows of clips hold {odd[0]}: expected mappings with audio or path, or the "
                "path of a table."
            )
    decodes = "audio" in getattr(given, "column_names", ())
    silent = given.remove_columns("audio") if decodes else given
    values = [{k: v for k, v in row.items() if k != "audio"} for row in silent]
    if not values:
        raise InputError("There are no clips: give at least one row.")
    named = with_usual_names(label_rows(values))
    return _clips(
        tuple({"path": f"row {i}"} | row for i, row in enumerate(named)),
        lambda i: _row_source(given[i], i, column),
    )


def as_clips(source: ClipSource) -> Sequence[Clip]:
    """Return clips unchanged, and read those that a table, a data set or rows name.

    Args:
        source: clips; or what `find_clips` takes, where `text` and `lang` are what is said and in
            which language.

    Raises:
        InputError: a clip, or what names the clips, cannot be read.
    """
    if isinstance(source, Sequence) and all(isinstance(one, Clip) for one in source):
        return source  # pyright: ignore[reportReturnType]
    found = find_clips(source)  # pyright: ignore[reportArgumentType]
    return [read_clip(found, number) for number in range(len(found.rows))]


def read_clip(clips: Clips, number: int) -> Clip:
    """Read a clip with its text and language, each `None` where the row has none.

    An empty text may mean silence or an unknown text: it is taken for unknown.
    """
    row = clips.rows[number]
    return Clip(row["path"], clips.read(number), row.get("text") or None, row.get("lang") or None)


def check_column(row: Row, column: str) -> str:
    """Return `column`; raise `InputError` if the table has no such column."""
    if column not in row:
        raise InputError(f"The clips have no column {column!r}: choose one of {', '.join(row)}.")
    return column


def _clips(rows: tuple[Row, ...], source: Callable[[int], AudioSource]) -> Clips:
    digest = functools.cache(lambda i: _digest(source, i))

    def read(i: int) -> Float[np.ndarray, " samples"]:
        one = source(i)
        if isinstance(one, Path) and not one.is_file() and digest(i):
            raise VanishedError(
                f"{one} is gone: bring it back; what is done stays, and the same call goes on."
            )
        return _read(one, f"The audio of row {i}")

    return Clips(rows, read, digest)


def _digest(source: Callable[[int], AudioSource], number: int) -> str:
    try:
        match source(number):
            case Path() as path:
                with path.open("rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            case bytes() as content:
                return hashlib.sha256(content).hexdigest()
            case samples, rate:
                of = f"{samples.dtype} {samples.shape} {rate} ".encode()
                return hashlib.sha256(of + samples.tobytes()).hexdigest()
    except (InputError, OSError):
        return ""


def _read(source: AudioSource, origin: str) -> Float[np.ndarray, " samples"]:
    match source:
        case Path():
            return load_audio(source)
        case bytes():
            return read_audio(source, origin)
        case samples, rate:
            return as_audio(samples, rate, origin)


def _row_source(row: Mapping[str, Any], number: int, column: str) -> AudioSource:
    names = ("audio", *NAMES_OF_AUDIO) if column == "path" else (column,)
    audio: Any = next((row[name] for name in names if name in row), None)
    if isinstance(audio, Mapping) and audio.get("array") is None:
        if audio.get("bytes"):
            return bytes(audio["bytes"])
        audio = audio.get("path")
    if isinstance(audio, str | Path):
        return Path(audio)
    try:
        samples, rate = np.asarray(audio["array"]), int(audio["sampling_rate"])
        if rate == audio["sampling_rate"]:
            return samples, rate
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise InputError(
        f"The audio of row {number} is {type(audio).__name__}: expected a path, or an "
        "array of numbers and a whole sampling_rate."
    )


def choose(
    clips: Clips, where: Mapping[str, Sequence[str]] | None = None, limit: int | None = None
) -> Clips:
    """The clips whose columns hold one of the given values, at most `limit` of them.

    Raises:
        InputError: there is no such column, or no such clip.
    """
    where = where or {}
    for column in where:
        check_column(clips.rows[0], column)
    kept = [i for i, row in enumerate(clips.rows) if all(row[c] in where[c] for c in where)][:limit]
    if not kept:
        asked = ", ".join(f"{c}={' or '.join(v)}" for c, v in where.items())
        raise InputError(f"No clip has {asked}." if asked else "There are no clips to extract.")
    return Clips(
        tuple(clips.rows[i] for i in kept),
        lambda i: clips.read(kept[i]),
        lambda i: clips.digest(kept[i]),
    )


def with_noise(clips: Clips, snrs: Sequence[float | int]) -> Clips:
    """Every clip, followed by a copy for each ratio with white noise added.

    `y = x + n` with `10 log10(Σx² / Σn²) = SNR`; the noise is the same at each ratio and drawn anew
    for each path.

    Args:
        clips: the clean ones.
        snrs: signal-to-noise ratios in dB; if there are none, the clips stay as they are.

    Returns:
        The clips, with a column `snr`: `clean`, or the ratio.

    Raises:
        InputError: a ratio is named twice or not finite, or the clips have a column `snr`.
    """
    if not snrs:
        return clips
    if "snr" in clips.columns:
        raise InputError("The clips have a column 'snr' already: rename it, or add no noise.")
    if len(set(snrs)) < len(snrs) or not np.isfinite(snrs).all():
        raise InputError(f"The ratios {list(snrs)} are to be finite, and each named once.")
    names = ("clean", *(f"{snr:g}" for snr in snrs))
    n = len(names)

    def read(i: int) -> Float[np.ndarray, " samples"]:
        clean, which = clips.read(i // n), i % n
        if which == 0:
            return clean
        noise = noise_like(clean, zlib.crc32(clips.rows[i // n]["path"].encode()))
        return clean + noise * np.float32(10 ** (-snrs[which - 1] / 20))

    rows = tuple(row | {"snr": name} for row in clips.rows for name in names)
    return Clips(rows, read, lambda i: clips.digest(i // n))
