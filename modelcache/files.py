"""Reading files: nothing here changes any. Listings and contents where *absent* is an ordinary answer, and hashing."""

from __future__ import annotations

import errno
import math
import os
import stat
import sys
import time
from collections.abc import Iterator

from .digest import ALGORITHM, Digest
from .errors import NoSpaceError, UsageError, storage_error

CHUNK_BYTES = 1 << 20
_SMALL_BYTES = 1 << 14
_SMALL_BYTES_MAX = 1 << 28  # The listing of a tree of a million files has less.
_SPACE_MARGIN_BYTES = 1 << 20  # Records, the state of a partial, and the blocks of directories.


# What open(2) says of a link with O_NOFOLLOW: on Linux and macOS, on FreeBSD, on NetBSD.
_LINK = {errno.ELOOP, errno.EMLINK, getattr(errno, "EFTYPE", errno.ELOOP)}


class NotRegularError(OSError):
    """What should be a file, or a directory of files, is something else: a link, a device, a FIFO."""


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


def content(path: str, *, follow: bool = False) -> bytes | None:
    """Return the bytes of the small file *path*, or None if there is none that can be read."""
    try:
        return read(path, follow=follow)
    except OSError:
        return None


def read(path: str, *, follow: bool = False) -> bytes | None:
    """Return the bytes of the small file *path*, or None if there is no regular file; raise OSError.

    A link is none: the cache makes none, and another user may have. Those of a user's own files are for *follow*.
    Nor is a file of more than a quarter of a GB small: a sparse one of terabytes costs who plants it nothing.
    """
    # No file object, and no look at its kind: a listing reads a hundred thousand of these. Without waiting, a read of
    # anything else ends at once.
    try:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ENOENT, *_LINK, errno.ENXIO}:  # ENXIO: a socket.
            return None
        raise
    try:
        data = os.read(descriptor, _SMALL_BYTES)
        if len(data) < _SMALL_BYTES:
            return data
        if os.fstat(descriptor).st_size > _SMALL_BYTES_MAX:
            return None
        rest = [data]
        while more := os.read(descriptor, CHUNK_BYTES):
            rest.append(more)
        return b"".join(rest)
    except (IsADirectoryError, BlockingIOError):
        return None
    finally:
        os.close(descriptor)


def chunks(descriptor: int, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
    """Yield the bytes behind *descriptor* from *start* on, up to *length* of them; fewer if the file is shorter."""
    offset, end = start, None if length is None else start + length
    while end is None or offset < end:
        wanted = CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - offset)
        chunk = os.pread(descriptor, wanted, offset)
        if not chunk:
            return
        offset += len(chunk)
        yield chunk


def digest_of(path: str) -> tuple[Digest, os.stat_result]:
    """Return the digest of the file *path*, no link, and what ``stat`` says of what was read; raise OSError."""
    import hashlib  # 3 ms, for OpenSSL; who only looks does without.

    with os.fdopen(open_regular(path, follow=False), "rb") as file:
        return Digest(f"{ALGORITHM}:{hashlib.file_digest(file, ALGORITHM).hexdigest()}"), os.fstat(file.fileno())


def blob_id(path: str) -> str:
    """Return the id that git gives the content of the file *path*: the SHA-1 of a header and the bytes; raise OSError.

    It identifies, and proves nothing: SHA-1 is broken. What is stored is named by SHA-256.
    """
    import hashlib

    with os.fdopen(open_regular(path), "rb") as file:
        state = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def age(path: str) -> float:
    """Return the seconds since *path* was last written, whichever way the clock went; infinite if it is not there."""
    try:
        return abs(time.time() - os.stat(path).st_mtime)
    except OSError:
        return math.inf


def open_regular(path: str, *, follow: bool = True) -> int:
    """Return a descriptor, open for reading, of the regular file *path*; raise OSError, also for anything else.

    A FIFO or a device would block, or never end. A link is taken for what it leads to only if *follow* says so.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, "it is not a regular file", path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def check_replaceable(path: str) -> None:
    """Raise UsageError if *path* is there and is no regular file: ``/dev/stdout`` would be replaced, or removed."""
    try:
        found = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(problem=f"{path} is no regular file, and would be replaced by one", hint="Name another file")


def has_changed(before: os.stat_result, descriptor: int) -> bool:
    """Tell whether the file behind *descriptor* was written since *before* was its ``stat``."""
    now = os.fstat(descriptor)
    return (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)


def has_writer(path: str) -> bool:
    """Tell whether anybody has the file open for writing, or mapped so, as far as the system tells (Linux does)."""
    if sys.platform != "linux":
        return False
    import fcntl
    import signal

    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        # Who opens it for writing while it is leased causes a signal: one that is ignored unless asked for.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def check_space(directory: str, needed: int, *, what: str) -> None:
    """Raise NoSpaceError if the disk of *directory* has no room for *needed* bytes more, of *what*; or OSError."""
    found = os.statvfs(directory)
    free, needed = found.f_bavail * found.f_frsize, needed + _SPACE_MARGIN_BYTES
    if needed > free:
        raise NoSpaceError(what=what, needed=needed, free=free)
