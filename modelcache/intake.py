"""Content that comes from the caller: staged, hashed, published and recorded like a download."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import BinaryIO

from failpoints import fail_point

from . import commit, files, layout
from .digest import Digest
from .errors import (
    DigestMismatchError,
    InvalidReferenceError,
    ModelCacheError,
    RemoteNotFoundError,
    StorageError,
    UsageError,
    storage_error,
)
from .objects import Objects, Stored
from .records import Entries, Entry
from .reference import Ref

Content = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO


def put(root: str, content: Content, ref: Ref, digest: Digest | None = None) -> Entry:
    """Store *content* (bytes, a path, or an open binary file) under the name *ref*; return its entry.

    Raises:
        InvalidReferenceError: *ref* is not a name.
        NotFoundError: *content* is a path where no file is.
        DigestMismatchError: The content is not what *digest* says.
        StorageError, NoSpaceError: Nothing is promised. The name stands for what it did before; if it was the very
            last sync that failed, perhaps for *content*. Either is whole.
    """
    if ref.scheme:
        raise InvalidReferenceError(ref=ref.key, problem="content is put under a name, not under a URL or a path")
    chunks = _chunks(content)
    staged = ""
    try:
        staged = commit.stage_directory(root)
        descriptor = commit.create_file(f"{staged}/{ref.name}")
        try:
            found = Digest.of_bytes(_written(descriptor, chunks))
        finally:
            os.close(descriptor)
        if digest is not None and found != digest:
            raise DigestMismatchError(ref=ref.key, expected=digest, actual=found)
        objects = Objects(root)
        with objects.announced(found):
            fail_point("intake.before-publish")
            stored = objects.publish(staged, found, ref.name)
            staged = ""
            entry = _entry(ref, stored, source="put", checked=int(time.time()))
            before = Entries(root).read(ref.key)
            if before is not None and before.digest != found:
                objects.touch(before.digest)
            fail_point("intake.before-record")
            Entries(root).write(entry)
            return entry
    except ModelCacheError:
        raise
    except OSError as error:
        raise storage_error(error, action="stage", path=root) from error
    finally:
        if staged:
            commit.discard(staged)


def link(root: str, ref: Ref, digest: Digest, lost: Entry | None = None) -> Entry | None:
    """Return an entry for *ref* on the object with *digest*, which is here already; None if it is not.

    *lost* is an entry of *ref* whose file is gone, although the object is here under another name: it holds again.

    The object is read and hashed: no record of *ref* says what ``stat`` should find, and one that is written now must
    not call altered bytes whole (I1). No source has confirmed it for *ref*, so that any ``max_age`` makes one say. A
    root that cannot be written serves the object all the same, under the name that it has.
    """
    objects = Objects(root)
    stored = objects.find(digest, ref.name) or objects.find(digest)
    if stored is None:
        return None
    writable = os.access(f"{root}/{layout.STAGING}", os.W_OK)
    with objects.announced(digest) if writable else nullcontext():
        try:
            actual, seen = files.digest_of(stored.path)
        except OSError:
            return None
        if actual != digest:
            if writable:
                objects.quarantine(digest, f"{ref.key}: expected {digest}, found {actual}", seen)
            return None
        if not writable:
            return _linked(ref, stored, lost)
        named = objects.name(digest, ref.name)
        if named is None:
            return None
        entry = _linked(ref, named, lost)
        Entries(root).write(entry)
        return entry


def _linked(ref: Ref, stored: Stored, lost: Entry | None) -> Entry:
    if lost is None:
        return _entry(ref, stored, source=ref.key, checked=0)
    return replace(lost, path=stored.path, name=stored.name, size=stored.size, mtime_ns=stored.mtime_ns)


def _entry(ref: Ref, stored: Stored, *, source: str, checked: int) -> Entry:
    return Entry(
        key=ref.key, digest=stored.digest, path=stored.path, size=stored.size, name=stored.name, source=source,
        created=int(time.time()), checked=checked, mtime_ns=stored.mtime_ns,
    )  # fmt: skip


def _chunks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes | bytearray | memoryview):
        return iter((bytes(content),))
    if isinstance(content, str | os.PathLike):
        return _of_file(os.fspath(content))
    if not callable(getattr(content, "read", None)):
        raise UsageError(problem=f"content is bytes, a path or an open binary file, not {type(content).__name__}")
    return _of_stream(content)


def _of_file(path: str) -> Iterator[bytes]:
    try:
        descriptor = files.open_regular(path)
    except OSError as error:
        raise RemoteNotFoundError(ref=path, detail=error.strerror or str(error)) from error
    try:
        before = os.fstat(descriptor)
        yield from files.chunks(descriptor)
        if files.has_changed(before, descriptor):
            raise StorageError(path=path, action="read", reason="it was written to meanwhile")
    except OSError as error:
        if isinstance(error, ModelCacheError):
            raise
        raise storage_error(error, action="read", path=path) from error
    finally:
        os.close(descriptor)


def _of_stream(stream: BinaryIO) -> Iterator[bytes]:
    while True:
        chunk = stream.read(files.CHUNK_BYTES)
        if not isinstance(chunk, bytes):
            raise UsageError(problem="content must be opened in binary mode: open(path, 'rb')")
        if not chunk:
            return
        yield chunk


def _write(descriptor: int, chunk: bytes) -> None:
    fail_point("intake.before-write", on_torn=lambda size: commit.write(descriptor, chunk[:size]))
    commit.write(descriptor, chunk)


def _written(descriptor: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass *chunks* on, each written first."""
    for chunk in chunks:
        _write(descriptor, chunk)
        yield chunk
