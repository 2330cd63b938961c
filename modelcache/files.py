"""Reading files: nothing here changes any. Listings and contents where *absent* is an ordinary answer, and hashing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from .digest import ALGORITHM, Digest
from .errors import storage_error

CHUNK_BYTES = 1 << 20


def listing(path: str) -> list[str]:
    """Return the names in the directory *path*, sorted; none if there is no such directory.

    Raises:
        StorageError: It is there and cannot be read.
    """
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error(error, action="list", path=path) from error


def content(path: str) -> bytes | None:
    """Return the bytes of the small file *path*, or None if there is none that can be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def chunks(descriptor: int, *, length: int | None = None) -> Iterator[bytes]:
    """Yield the bytes behind *descriptor* from its start, up to *length*; fewer if the file is shorter."""
    offset = 0
    while length is None or offset < length:
        wanted = CHUNK_BYTES if length is None else min(CHUNK_BYTES, length - offset)
        chunk = os.pread(descriptor, wanted, offset)
        if not chunk:
            return
        offset += len(chunk)
        yield chunk


def digest_of(path: str) -> Digest:
    """Return the digest of the file *path*; raise OSError."""
    with open(path, "rb") as file:
        return Digest(f"{ALGORITHM}:{hashlib.file_digest(file, ALGORITHM).hexdigest()}")
