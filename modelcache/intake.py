"""Content that comes from the caller: staged, hashed, published and recorded like a download."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import BinaryIO

from failpoints import fail_point

from . import commit, files, layout, signatures, trees
from .companions import check_companions
from .config import ArchiveLimits
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
from .gate import Gate, missing
from .listing import Leaf, check_paths
from .objects import Objects, Stored
from .patterns import Patterns
from .records import Entries, Entry
from .reference import Ref
from .staged import Present, StagedTree, of_file, written

Content = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO


def put(
    root: str,
    content: Content,
    ref: Ref,
    digest: Digest | None = None,
    ttl: float | None = None,
    gate: Gate | None = None,
    file: Callable[[Entry], object] | None = None,
) -> Entry:
    """Store *content* (bytes, a path, or an open binary file) under the name *ref*; return its entry.

    *file* is called with it when its object is durable, before it is on record.

    Raises:
        InvalidReferenceError: *ref* is not a name.
        NotFoundError: *content* is a path where no file is.
        DigestMismatchError: The content is not what *digest* says.
        StorageError, NoSpaceError: Nothing is promised. The name stands for what it did before; if it was the very
            last sync that failed, perhaps for *content*. Either is whole.
    """
    if ref.scheme or ref.is_derived:
        raise InvalidReferenceError(ref=ref.key, problem="content is put under a name, not under a URL or a path")
    chunks = _chunks(content)
    staged = ""
    try:
        staged = commit.stage_directory(root)
        descriptor = commit.create_file(f"{staged}/{ref.name}")
        try:
            found = written(descriptor, chunks)
        finally:
            os.close(descriptor)
        if digest is not None and found != digest:
            raise DigestMismatchError(ref=ref.key, expected=digest, actual=found)
        if gate is not None:
            gate.check_file(
                ref.key, f"{staged}/{ref.name}", name=ref.name, bring=lambda: _signature(gate, ref, content)
            )
        objects = Objects(root)
        with objects.announced(found):
            fail_point("intake.before-publish")
            stored = objects.publish(staged, found, ref.name)
            staged = ""
            entry = _put_entry(root, ref, stored, ttl, gate)
            fail_point("intake.before-record")
            if file is not None:
                file(entry)
            Entries(root).write(entry)
            return entry
    except ModelCacheError:
        raise
    except OSError as error:
        raise storage_error(error, action="stage", path=root) from error
    finally:
        if staged:
            commit.discard(staged)


def put_tree(
    root: str,
    directory: str,
    ref: Ref,
    digest: Digest | None = None,
    limits: ArchiveLimits | None = None,
    ttl: float | None = None,
    gate: Gate | None = None,
    file: Callable[[Entry], object] | None = None,
) -> Entry:
    """Store *directory*, or what the archive *directory* holds within *limits*, under the name *ref*; return its entry.

    *file* is called as for `put`.
    Links to files are followed, as a huggingface_hub snapshot is made of them; empty directories are left out.

    Raises:
        InvalidReferenceError: *ref* is not a name, or a name in the directory could not be kept.
        NotFoundError: *directory* is none.
        UsageError: It holds what is neither a file nor a directory, or a link to a directory.
        EmptyContentError: It holds no file.
        MissingCompanionError: One of its files names another that it does not hold.
        DigestMismatchError: It is not what *digest* says.
        ArchiveError, UnsupportedArchiveError: It is an archive that cannot be unpacked, or a file that is none.
        StorageError, NoSpaceError: As `put`; also if something in it changed meanwhile.
    """
    if ref.scheme or ref.is_derived:
        raise InvalidReferenceError(ref=ref.key, problem="content is put under a name, not under a URL or a path")
    is_archive = layout.is_packed(directory) and os.path.isfile(directory)
    before = {} if is_archive else _seen(directory)
    check_paths(before, ref=directory)
    staged = None
    try:
        staged = StagedTree(root, ref.name, ref=directory)
        if is_archive:
            digest = _unpack(staged, directory, ref, digest, limits or ArchiveLimits())
        else:
            _fill(staged, Present(root), directory, before)
            if _seen(directory) != before:
                raise StorageError(path=directory, action="read", reason="it was written to meanwhile")
        check_companions(staged.path, staged.paths, ref=directory)
        found = staged.listing().digest
        if digest is not None and found != digest:
            raise DigestMismatchError(ref=ref.key, expected=digest, actual=found)
        if gate is not None:
            leaves = ((leaf.path, leaf.size) for leaf in staged.listing().files)
            gate.check_tree(ref.key, staged.path, leaves)
        objects = Objects(root)
        with objects.announced(found):
            fail_point("intake.before-publish-tree")
            entry = _put_entry(root, ref, staged.publish(objects), ttl, gate)
            fail_point("intake.before-record-tree")
            if file is not None:
                file(entry)
            Entries(root).write(entry)
            return entry
    except ModelCacheError:
        raise
    except OSError as error:
        raise storage_error(error, action="stage", path=root) from error
    finally:
        if staged is not None:
            staged.discard()


def _signature(gate: Gate, ref: Ref, content: Content) -> bytes:
    """Return the signature beside the file that is put."""
    if not isinstance(content, str | os.PathLike):
        raise missing(gate, ref.key, "only a file can have a signature beside it, and bytes or a stream were put")
    path = f"{os.fspath(content)}{signatures.BESIDE}"
    found = files.content(path, follow=True)
    if not found:
        raise missing(gate, ref.key, f"there is no signature that can be read at {path}")
    return found


def _put_entry(root: str, ref: Ref, stored: Stored, ttl: float | None, gate: Gate | None) -> Entry:
    """Return the entry of what was put, not recorded yet. What *ref* stood for was promised until now: kept a while."""
    before = Entries(root).read(ref.key)
    if before is not None and before.digest != stored.digest:
        Objects(root).touch(before.digest)
    entry = replace(_entry(ref, stored, source="put", checked=int(time.time())), ttl=ttl)
    return entry if gate is None else replace(entry, admitted=gate.mark)


def _seen(directory: str) -> dict[str, tuple[int, int, bool]]:
    """Return what there is to be stored: size, mtime and whether it may be executed, by path."""
    try:
        return {
            path: (facts.st_size, facts.st_mtime_ns, trees.is_executable(facts))
            for path, facts in trees.walk(directory, follow=True)
        }
    except files.NotRegularError as error:
        raise UsageError(
            problem=f"{error.filename}: {error.strerror}", hint="Leave it out; nothing was stored"
        ) from error
    except OSError as error:
        raise RemoteNotFoundError(ref=error.filename or directory, detail=error.strerror or str(error)) from error


def _fill(staged: StagedTree, present: Present, directory: str, seen: dict[str, tuple[int, int, bool]]) -> None:
    def one(path: str) -> None:
        size, _, executable = seen[path]
        if present.has_size(size):
            with closing(of_file(f"{directory}/{path}")) as chunks:
                found = Digest.of_bytes(chunks)
            existing = present.find(found, executable=executable)
            if existing is not None and staged.link(existing, Leaf(path, size, found, executable)):
                return
        staged.write(path, of_file(f"{directory}/{path}"), executable=executable)

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="modelcache-put") as pool:
        for _ in pool.map(one, seen):
            pass


def _unpack(staged: StagedTree, path: str, ref: Ref, digest: Digest | None, limits: ArchiveLimits) -> Digest | None:
    """Fill *staged* from the archive *path*; return what the tree must be, if *digest* is not the archive's."""
    from . import packed
    from .unpacking import Unpacking

    packed.check_form(os.path.basename(path), ref=path)
    descriptor = files.open_regular(path)
    try:
        before = os.fstat(descriptor)
        if digest is not None and not digest.is_tree:
            found = Digest.of_bytes(files.chunks(descriptor))
            if found != digest:
                raise DigestMismatchError(ref=ref.key, expected=digest, actual=found)
            digest = None
        Unpacking(
            staged, descriptor, ref=path, patterns=Patterns(), limits=limits, present=Present(staged.root),
            make_room=lambda _: None, check=lambda: None,
        ).run()  # fmt: skip
        if files.has_changed(before, descriptor):
            raise StorageError(path=path, action="read", reason="it was written to meanwhile")
    finally:
        os.close(descriptor)
    return digest


def link(
    root: str, ref: Ref, digest: Digest, lost: Entry | None = None, admit: Callable[[Entry], Entry] | None = None
) -> Entry | None:
    """Return an entry for *ref* on the object with *digest*, which is here already; None if it is not.

    *lost* is an entry of *ref* whose file is gone, although the object is here under another name: it holds again.

    The object is read and hashed: no record of *ref* says what ``stat`` should find, and one that is written now must
    not call altered bytes whole (I1). No source has confirmed it for *ref*, so that any ``max_age`` makes one say. A
    root that cannot be written serves the object all the same, under the name that it has.

    *admit* is called with the entry before it is recorded, and returns it with the mark of the policies that let it in,
    or raises PolicyError: then nothing is recorded.
    """
    objects = Objects(root)
    stored = objects.find(digest, ref.name) or objects.find(digest)
    if stored is None:
        return None
    writable = os.access(f"{root}/{layout.STAGING}", os.W_OK)
    with objects.announced(digest) if writable else nullcontext():
        try:
            actual, seen = trees.digest_of(stored.path, digest)
        except OSError:
            return None
        if actual != digest:
            if writable:
                objects.quarantine(digest, f"{ref.key}: expected {digest}, found {actual}", seen)
            return None
        mark = "" if lost is None else lost.admitted
        if admit is not None:
            mark = admit(replace(_linked(ref, stored, lost), name=ref.name)).admitted
        if not writable:
            return replace(_linked(ref, stored, lost), admitted=mark)
        named = objects.name(digest, ref.name)
        if named is None:
            return None
        before = Entries(root).read(ref.key)
        if before is not None and before.digest != digest:
            objects.touch(before.digest)  # It was promised until now: kept a while.
        ttl = None if before is None else before.ttl
        entry = replace(_linked(ref, named, lost), admitted=mark, ttl=ttl)
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
        return of_file(os.fspath(content))
    if not callable(getattr(content, "read", None)):
        raise UsageError(problem=f"content is bytes, a path or an open binary file, not {type(content).__name__}")
    return _of_stream(content)


def _of_stream(stream: BinaryIO) -> Iterator[bytes]:
    while True:
        chunk = stream.read(files.CHUNK_BYTES)
        if not isinstance(chunk, bytes):
            raise UsageError(problem="content must be opened in binary mode: open(path, 'rb')")
        if not chunk:
            return
        yield chunk
