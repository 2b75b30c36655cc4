"""Zarr stores whose every byte is checked when it is read, and whose requests are made again.

Every chunk ends with a checksum (CRC-32C) of its values. All chunks are written, even those that
hold nothing but fill values, and the group's attributes hold the SHA-256 of all metadata. So a
flipped bit, a lost chunk or a lost array raises an error that names the store; it never changes a
number silently. The array `done` is the exception: what it does not hold is not done.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import WrapperStore

from jaxasr_interp.errors import InputError
from jaxasr_interp.runtime.location import (
    ROOT,
    Location,
    failure,
    reaching,
    read_metadata,
    read_root,
    write_file,
    zarr_store,
)

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

DONE = "done"
"""The array that says which rows are done."""

_SEAL, _UNSEALED = "metadata_sha256", hashlib.sha256(b"not sealed yet").hexdigest()
_CHUNK = re.compile(r".+/c(/\d+)*")
# Half a minute; what clients try by themselves each time comes to it.
_WAITS = (0.5, 1, 2, 4, 8, 15)
_FINAL = (PermissionError, FileNotFoundError)


def codecs() -> tuple[ZstdCodec, Crc32cCodec]:
    """Return the codecs of a chunk: compression, and then a checksum at its end."""
    return ZstdCodec(level=0), Crc32cCodec()


def unsealed() -> dict[str, str]:
    """Return the attribute with which a group is created, so that `seal` can be called later."""
    return {_SEAL: _UNSEALED}


def sealed_files(buffers: Mapping[str, "Buffer"]) -> dict[str, bytes]:
    """Return the files of a new store, with the checksum of its complete metadata.

    Args:
        buffers: what zarr wrote to memory, by key. To a disk it writes in threads of its own, which
            go on when one has failed.
    """
    content = {key: buffer.to_bytes() for key, buffer in buffers.items()}
    metadata = {key: content[key] for key in content if key.rpartition("/")[2] == ROOT}
    root = content[ROOT].replace(_UNSEALED.encode(), _digest(metadata, _UNSEALED), 1)
    return {**content, ROOT: root}


def read_attributes(path: Location) -> dict[str, Any]:
    """Read the attributes of a store, and check its metadata against their checksum.

    Raises:
        InputError: there is no such store, or its metadata are incomplete or damaged.
    """
    content = read_root(path)
    if content is None:
        raise InputError(f"There is no Zarr store at {path}.")
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
    if not isinstance(sealed, str) or sealed.encode() != _digest(read_metadata(path), sealed):
        raise damaged
    return attributes


class SteadyStore(WrapperStore[Store]):
    """The files of a store, in a folder or at a URL.

    At a URL, a request that fails is made again with growing waits, for a minute or two.

    Args:
        location: where the store lies.
        read_only: refuse writes.
    """

    def __init__(self, location: Location, *, read_only: bool = False):
        super().__init__(zarr_store(location, read_only=read_only))
        self.location = location

    async def get(
        self,
        key: str,
        prototype: "BufferPrototype",
        byte_range: "ByteRequest | None" = None,
    ) -> "Buffer | None":
        """Read the bytes of a key.

        Raises:
            InputError: they cannot be read.
        """
        return await self._again(lambda: self._store.get(key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: "BufferPrototype | None" = None,
        byte_range: "ByteRequest | None" = None,
    ) -> "Buffer | None":
        """Read the bytes of a key."""
        with reaching(self.location):
            return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    async def set(self, key: str, value: "Buffer") -> None:
        """Write the bytes of a key.

        Raises:
            InputError: they cannot be written.
        """
        if isinstance(self.location, Path):
            await asyncio.to_thread(self.set_sync, key, value)
        else:
            await self._again(lambda: self._store.set(key, value))

    def set_sync(self, key: str, value: "Buffer") -> None:
        """Write the bytes of a key."""
        with reaching(self.location):
            if isinstance(self.location, Path):
                write_file(self.location, key, value.to_bytes())
            else:
                super().set_sync(key, value)

    async def _again[Result](self, request: Callable[[], Awaitable[Result]]) -> Result:
        if isinstance(self.location, Path):
            with reaching(self.location):
                return await request()
        for wait in _WAITS:
            try:
                return await request()
            except _FINAL as error:
                raise failure(self.location, error) from None
            except Exception:
                await asyncio.sleep(wait)
        with reaching(self.location):
            return await request()


class CheckedStore(SteadyStore):
    """The files of a store; a missing or damaged chunk raises `InputError` when it is read."""

    async def get(
        self,
        key: str,
        prototype: "BufferPrototype",
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
        if not _CHUNK.fullmatch(key) or (content is None and key.startswith(f"{DONE}/")):
            return content
        if content is None:
            raise InputError(
                f"{self.location} is incomplete: the chunk {key} is missing; make it again."
            )
        data = content.to_bytes()
        sound = len(data) > 4 and google_crc32c.value(data[:-4]) == int.from_bytes(
            data[-4:], "little"
        )
        if not sound:
            raise InputError(
                f"{self.location} is damaged: the chunk {key} is not what was written; make it "
                "again."
            )
        return content


def _digest(metadata: Mapping[str, bytes], seal: str) -> bytes:
    """Compute SHA-256 over the names and contents of all metadata, but for the seal itself."""
    digest = hashlib.sha256()
    for key in sorted(metadata, key=lambda key: (key != ROOT, key.split("/"))):
        content = metadata[key]
        if key == ROOT:
            content = content.replace(seal.encode(), _UNSEALED.encode(), 1)
        digest.update(f"{key} {len(content)} ".encode() + content)
    return digest.hexdigest().encode()
