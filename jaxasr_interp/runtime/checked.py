"""Zarr stores whose every byte is checked when it is read.

Every chunk ends with a checksum (CRC-32C) of its values. All chunks are written, even those that
hold nothing but fill values, and the group's attributes hold the SHA-256 of all metadata. So a
flipped bit, a lost chunk or a lost array raises an error that names the store; it never changes a
number silently.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from jaxasr_interp.errors import InputError

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

_SEAL, _UNSEALED = "metadata_sha256", hashlib.sha256(b"not sealed yet").hexdigest()
_CHUNK = re.compile(r".+/c(/\d+)*")


def codecs() -> tuple[ZstdCodec, Crc32cCodec]:
    """Return the codecs of a chunk: compression, and then a checksum at its end."""
    return ZstdCodec(level=0), Crc32cCodec()


def unsealed() -> dict[str, str]:
    """Return the attribute with which a group is created, so that `seal` can be called later."""
    return {_SEAL: _UNSEALED}


def seal(path: Path) -> None:
    """Write the checksum of a store's complete metadata into its attributes."""
    root = path / "zarr.json"
    root.write_bytes(root.read_bytes().replace(_UNSEALED.encode(), _digest(path, _UNSEALED), 1))


def read_attributes(path: Path) -> dict[str, Any]:
    """Read the attributes of a store, and check its metadata against their checksum.

    Raises:
        InputError: there is no such store, or its metadata are incomplete or damaged.
    """
    try:
        content = (path / "zarr.json").read_bytes()
    except OSError:
        raise InputError(f"There is no Zarr store at {path}.") from None
    damaged = InputError(
        f"{path} is damaged: its metadata are not what was written; make it again."
    )
    try:
        attributes = json.loads(content)["attributes"]
        sealed = attributes.get(_SEAL)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damaged from None
    if sealed is None:
        raise InputError(
            f"{path} holds no checksums: it is of an earlier version or of another program; make "
            "it again."
        )
    if not isinstance(sealed, str) or sealed.encode() != _digest(path, sealed):
        raise damaged
    return attributes


class CheckedStore(LocalStore):
    """The files of a store; a missing or damaged chunk raises `InputError` when it is read."""

    async def get(
        self,
        key: str,
        prototype: "BufferPrototype | None" = None,
        byte_range: "ByteRequest | None" = None,
    ) -> "Buffer | None":
        """Read the bytes of a key."""
        return self._checked(key, await super().get(key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: "BufferPrototype | None" = None,
        byte_range: "ByteRequest | None" = None,
    ) -> "Buffer | None":
        """Read the bytes of a key."""
        return self._checked(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))

    def _checked(self, key: str, content: "Buffer | None") -> "Buffer | None":
        if not _CHUNK.fullmatch(key):
            return content
        if content is None:
            raise InputError(
                f"{self.root} is incomplete: the chunk {key} is missing; make it again."
            )
        data = content.to_bytes()
        sound = len(data) > 4 and google_crc32c.value(data[:-4]) == int.from_bytes(
            data[-4:], "little"
        )
        if not sound:
            raise InputError(
                f"{self.root} is damaged: the chunk {key} is not what was written; make it again."
            )
        return content


def _digest(path: Path, seal: str) -> bytes:
    """Compute SHA-256 over the names and contents of all metadata, but for the seal itself."""
    digest = hashlib.sha256()
    for file in [path / "zarr.json", *sorted(path.glob("*/zarr.json"))]:
        content = file.read_bytes()
        if file.parent == path:
            content = content.replace(seal.encode(), _UNSEALED.encode(), 1)
        digest.update(f"{file.relative_to(path).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest().encode()
