"""Content that comes from the caller: staged, hashed, published and recorded like a download."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
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
    UsageError,
    storage_error,
)
from .objects import Objects
from .records import Entries, Entry
from .reference import Ref

Content = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO


def put(root: str, content: Content, ref: Ref, digest: Digest | None = None) -> Entry:
    """Store *content* (bytes, a path, or an open binary file) under the name *ref*; return its entry.

    Raises:
        InvalidReferenceError: *ref* is not a name.
        NotFoundError: *content* is a path where no file is.
        DigestMismatchError: The content is not what *digest* says.
        StorageError, NoSpaceError: Nothing was stored; what the name stood for before, it still does.
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
        fail_point("intake.before-publish")
        stored = Objects(root).publish(staged, found, ref.name)
        staged = ""
    except ModelCacheError:
        raise
    except OSError as error:
        raise storage_error(error, action="stage", path=root) from error
    finally:
        if staged:
            commit.discard(staged)
    now = int(time.time())
    entry = Entry(
        key=ref.key, digest=stored.digest, path=stored.path, size=stored.size, name=stored.name, source="put",
        created=now, checked=now, mtime_ns=stored.mtime_ns,
    )  # fmt: skip
    fail_point("intake.before-record")
    Entries(root).write(entry)
    return entry


def link(root: str, ref: Ref, digest: Digest) -> Entry | None:
    """Return an entry for *ref* on the object with *digest*, which is here already; None if it is not.

    The object is read and hashed: no record of *ref* says what ``stat`` should find, and one that is written now must
    not call
    altered bytes whole (I1). A root that cannot be written serves the object all the same, under the name that it has.
    """
    objects, entries = Objects(root), Entries(root)
    stored = objects.find(digest, ref.name) or objects.find(digest)
    if stored is None:
        return None
    writable = os.access(f"{root}/{layout.STAGING}", os.W_OK)
    try:
        actual = files.digest_of(stored.path)
    except OSError:
        return None
    if actual != digest:
        if writable:
            objects.quarantine(digest, f"{ref.key}: expected {digest}, found {actual}")
        return None
    now = int(time.time())
    entry = Entry(
        key=ref.key, digest=digest, path=stored.path, size=stored.size, name=stored.name, source=ref.key,
        created=now, checked=now, mtime_ns=stored.mtime_ns,
    )  # fmt: skip
    if writable:
        named = objects.name(digest, ref.name)
        if named is None:
            return None
        entry = replace(entry, path=named.path, name=named.name, mtime_ns=named.mtime_ns)
        entries.write(entry)
    return entry


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
        with open(path, "rb") as file:
            yield from _of_stream(file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise RemoteNotFoundError(ref=path, detail=error.strerror or str(error)) from error


def _of_stream(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(files.CHUNK_BYTES):
        if not isinstance(chunk, bytes):
            raise UsageError(problem="content must be opened in binary mode: open(path, 'rb')")
        yield chunk


def _written(descriptor: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pass *chunks* on, each written first."""
    for chunk in chunks:
        fail_point("intake.before-write")
        commit.write(descriptor, chunk)
        yield chunk
