"""Are the promises kept? One look at a root that answers, promise by promise (DESIGN.md section 3).

The crash suites judge by it, `modelcache doctor` and `modelcache verify` report it, and whoever tests the recovery of
their own program can call it: `modelcache.testing.check_cache`. It reads and changes nothing, and may run beside a
cache that is in use: what a second look does not find again was work under way.

I8, I9 and I11 are about what processes do, not about what lies on disk; the crash and process suites show them. Lock
files are not looked at: to open one would let go of this process's own lock on it (`locks`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from . import files, layout, process, roots, sharing, trees
from .digest import Digest
from .errors import RootError
from .objects import Objects
from .pins import Pins
from .records import Entries, Entry

_BUCKETS = {
    layout.OBJECTS, layout.ENTRIES, layout.DERIVED, layout.FAILURES, layout.PINS, layout.PARTIALS,
    layout.STAGING, layout.TRASH, layout.QUARANTINE, layout.OUTBOX, layout.USAGE,
    layout.LOCKS, layout.BACKOFF, layout.LEASES, "format", "CACHEDIR.TAG", sharing.CONFIG,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that is not kept.

    Attributes:
        promise: One of ``I1`` to ``I7`` and ``I10``.
        kind: ``corrupt`` (wrong bytes can be seen), ``lost`` (acknowledged and gone), ``dangling`` (a record names what
            is not there) or ``garbage`` (left over; harmless, and swept later).
        where: The path, or the key.
        what: One sentence for a person.
    """

    promise: str
    kind: str
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise} {self.kind}: {self.where}: {self.what}"


def check_cache(
    root: str | os.PathLike[str],
    acknowledged: Mapping[str, str | None] | None = None,
    *,
    hashing: bool = True,
    read_already: Container[str] = (),
) -> list[Violation]:
    """Return the promises that the cache at *root* does not keep; none is good news.

    Args:
        root: The directory. One that does not exist, or is empty, holds nothing and so breaks nothing.
        acknowledged: What calls that returned have promised: the digest by key (``Entry.key``), None for what was
            removed. I3 is judged by it.
        hashing: Read all content (I1). Without, only names, sizes and records are looked at.
        read_already: Digests of objects that need not be read again.

    Raises:
        RootError: *root* is no cache: a file, or a directory of something else.
        FormatError: A newer modelcache wrote it.
        StorageError: A directory of it cannot be read.
    """
    place = os.fspath(root)
    check_is_cache(place)
    found = _look(place, acknowledged or {}, hashing, read_already)
    if all(violation.kind == "garbage" for violation in found):
        return found
    again = set(_look(place, acknowledged or {}, hashing, read_already))
    return [violation for violation in found if violation in again]


def check_is_cache(root: str) -> None:
    """Raise RootError or FormatError if *root* is there, holds something, and is no cache that this code knows."""
    if not root:
        raise RootError(path=root, reason="it is empty: no directory", hint="Give the directory of the cache")
    roots.check_format(root)
    if os.path.lexists(root) and not os.path.isdir(root):
        raise RootError(path=root, reason="it is not a directory", hint="Give the directory of the cache")
    inside = files.listing(root)
    if inside and _BUCKETS.isdisjoint(inside):
        hint = "Give the directory of the cache: what MODELCACHE_DIR or --root says"
        raise RootError(
            path=root, reason=f"it is no cache: it holds {inside[0]!r} and nothing of modelcache", hint=hint
        )


def _look(
    root: str, acknowledged: Mapping[str, str | None], hashing: bool, read_already: Container[str]
) -> list[Violation]:
    found = [
        *_buckets(root),
        *_objects(root, hashing, read_already),
        *_records(root),
        *_pins(root),
        *_shared(root),
        *_left_over(root),
    ]
    return found + list(_lost(root, acknowledged))


def _buckets(root: str) -> Iterator[Violation]:
    """I5: no link leads out of the root."""
    for name in (*sharing.BUCKETS, "format", "CACHEDIR.TAG", sharing.CONFIG):
        if os.path.islink(f"{root}/{name}"):
            yield Violation("I5", "corrupt", f"{root}/{name}", "it is a symbolic link, which the cache makes none of")
    for bucket in (layout.STAGING, layout.PARTIALS, layout.TRASH, layout.LOCKS, layout.LEASES, layout.BACKOFF):
        for name in files.listing(f"{root}/{bucket}"):
            if os.path.islink(f"{root}/{bucket}/{name}"):
                yield Violation("I5", "garbage", f"{root}/{bucket}/{name}", "it is a symbolic link: nobody follows it")


def _objects(root: str, hashing: bool, read_already: Container[str]) -> Iterator[Violation]:
    """I1, I7: each object holds what its name says, and something names it."""
    objects = Objects(root)
    named = {entry.digest for entry in Entries(root).all()}
    known = {os.path.basename(objects.path(digest)): digest for digest in objects.all()}
    for name in files.listing(f"{root}/{layout.OBJECTS}"):
        path = f"{root}/{layout.OBJECTS}/{name}"
        digest = known.get(name)
        if digest is None:
            yield Violation("I7", "garbage", path, "it is no object")
            continue
        if os.path.islink(path):
            yield Violation("I1", "corrupt", path, "it is a symbolic link: what is behind it is not ours to keep")
            continue
        inside = [file for file in files.listing(path) if not (digest.is_tree and file == layout.LISTING)]
        if not inside and os.path.lexists(path):
            yield Violation("I1", "corrupt", path, "it holds nothing")
        if digest.is_tree and trees.listing_on_record(path, digest) is None and os.path.lexists(path):
            yield Violation("I1", "corrupt", path, "its listing is broken")
        for file in inside:
            wrong = _content(f"{path}/{file}", digest, hashing and digest not in read_already)
            if wrong and os.path.lexists(path):  # Else it has been removed this moment.
                yield Violation("I1", "corrupt", f"{path}/{file}", wrong)
        if digest not in named:
            yield Violation("I7", "garbage", path, "no record names it")


def _content(path: str, digest: Digest, hashing: bool) -> str:
    """Return what is wrong with the file, or tree, *path* of the object *digest*, "" if nothing is."""
    try:
        mode = os.lstat(path).st_mode
        if not (stat.S_ISDIR if digest.is_tree else stat.S_ISREG)(mode):
            # Through a symbolic link something else would be served (I5).
            return "it is no directory" if digest.is_tree else "it is no regular file"
        actual = trees.digest_of(path, digest)[0] if hashing else digest
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "" if actual == digest else f"its content has the digest {actual}"


def _records(root: str) -> Iterator[Violation]:
    """I2, I6: each record is whole, and names an object that is there."""
    entries = Entries(root)
    for path in entries.paths():
        identity = os.path.basename(path)
        entry = entries.load(identity)
        if entry is None:
            if os.path.lexists(path):
                yield Violation("I6", "corrupt", path, "the record is broken: a miss")
            continue
        try:
            found = os.stat(_place(root, entry))
            size = entry.size if entry.digest.is_tree and stat.S_ISDIR(found.st_mode) else found.st_size
        except OSError:
            size = -1
        if size == entry.size or entries.load(identity) != entry:  # It has been replaced, or removed, this moment.
            continue
        if size < 0:
            yield Violation("I2", "dangling", entry.key, f"its object is gone: {entry.path}")
        else:
            yield Violation("I2", "dangling", entry.key, f"{size} bytes, on record are {entry.size}")


def _place(root: str, entry: Entry) -> str:
    """Return where the content of *entry* is: in trash, if a removal that came between was cut off; a get looks there.

    The removal had found the object unnamed, and died before it saw that somebody had named it meanwhile.
    """
    if not os.path.lexists(os.path.dirname(entry.path)):
        for name in files.listing(f"{root}/{layout.TRASH}"):
            if name.endswith(f".{layout.object_name(entry.digest)}"):
                return f"{root}/{layout.TRASH}/{name}/{entry.name}"
    return entry.path


def _pins(root: str) -> Iterator[Violation]:
    """I4, I6: what is pinned is there, and each pin is whole."""
    pins, entries = Pins(root), Entries(root)
    for identity in files.listing(f"{root}/{layout.PINS}"):
        key = pins.load(identity)
        path = f"{root}/{layout.PINS}/{identity}"
        if key is not None and entries.read(key) is None:
            yield Violation("I4", "lost", key, "it is pinned, and there is no record of it")
        if key is None and os.path.lexists(path):
            yield Violation("I6", "corrupt", path, "the pin is broken; it keeps what it was of all the same")


def _lost(root: str, acknowledged: Mapping[str, str | None]) -> Iterator[Violation]:
    """I3: what was acknowledged is there."""
    entries = Entries(root)
    for key, digest in acknowledged.items():
        entry = entries.read(key)
        if digest is None:
            if entry is not None:
                yield Violation("I3", "lost", key, "it was removed, and is there again")
            continue
        if entry is None or entry.digest != digest:
            there = "nothing" if entry is None else entry.digest
            yield Violation("I3", "lost", key, f"{digest} was acknowledged, on record is {there}")
            continue
        try:
            actual, _ = trees.digest_of(_place(root, entry), entry.digest)
        except OSError:
            actual = Digest("sha256:nothing")
        if actual != digest:
            yield Violation("I3", "lost", key, f"{digest} was acknowledged, {entry.path} holds {actual}")


def _shared(root: str) -> Iterator[Violation]:
    """I5: no file that a writer may still write is that of an object."""
    published = {}
    for directory, _, inside in os.walk(f"{root}/{layout.OBJECTS}"):
        for file in inside:
            inode = _inode(f"{directory}/{file}")
            if inode is not None:
                published[inode] = f"{directory}/{file}"
    for bucket in (layout.PARTIALS, layout.STAGING):
        for directory, _, inside in os.walk(f"{root}/{bucket}"):
            for file in inside:
                twin = published.get(_inode(f"{directory}/{file}") or (0, 0))
                # A tree that is put together has links to files of objects: nobody can write them.
                if twin is not None and (bucket == layout.PARTIALS or _may_be_written(f"{directory}/{file}")):
                    yield Violation("I5", "corrupt", f"{directory}/{file}", f"it is the same file as {twin}")


def _left_over(root: str) -> Iterator[Violation]:
    """I10: what the dead leave blocks nobody; it is told, and the next process that fetches sweeps it."""
    for bucket in (layout.STAGING, layout.TRASH, layout.LEASES):  # By name alone: no lease file is opened.
        for name in files.listing(f"{root}/{bucket}"):
            if process.is_dead(name):
                yield Violation("I10", "garbage", f"{root}/{bucket}/{name}", "a process that is gone left it")


def _may_be_written(path: str) -> bool:
    try:
        return bool(os.stat(path, follow_symlinks=False).st_mode & 0o222)
    except OSError:
        return False


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
