"""The SHA-256 of weight files, computed beside what is done with the weights."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

_BLOCK = 1 << 22
_thread = ThreadPoolExecutor(1, "hashing")


@dataclasses.dataclass(frozen=True)
class HashedFiles:
    """Where weights came from: `str` of it waits for the hash of their files.

    Attributes:
        place: the folder or file that was loaded.
        versions: size and time of the last change of each file.
        digest: the hash, which a thread computes.
    """

    place: str
    versions: tuple[tuple[int, int], ...]
    digest: "Future[str]" = dataclasses.field(compare=False, repr=False)

    @classmethod
    def of(cls, place: str, paths: Sequence[Path]) -> "HashedFiles":
        """Begin to hash some files, which may be removed from then on."""
        stats = [path.stat() for path in paths]
        files = [path.open("rb") for path in paths]
        versions = tuple((one.st_size, one.st_mtime_ns) for one in stats)
        return cls(place, versions, _thread.submit(_sha256, files))

    def __str__(self) -> str:
        return f"{self.place} sha256:{self.digest.result()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def sha256(paths: Iterable[Path]) -> str:
    """Compute the SHA-256 of files end to end."""
    return _sha256([path.open("rb") for path in paths])


def _sha256(files: Iterable[BinaryIO]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
