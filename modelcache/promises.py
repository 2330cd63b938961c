"""Are the promises kept? One look at a root that answers, promise by promise (DESIGN.md section 3).

The crash suites judge by it, `modelcache doctor` and `modelcache verify` report it, and whoever tests the recovery of
their own program can call it: `modelcache.testing.check_cache`. It reads and changes nothing, so that it may run beside
a cache that is in use; then a finding that is gone at a second look was work under way.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from . import files, layout, process
from .digest import Digest
from .objects import Objects
from .records import Entries


@dataclass(frozen=True, slots=True)
class Violation:
    """One promise that is not kept.

    Attributes:
        promise: ``I1`` to ``I10``.
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
        root: The directory.
        acknowledged: What calls that returned have promised: the digest by key (``Entry.key``), None for what was
            removed. I3 is judged by it.
        hashing: Read all content (I1). Without, only names, sizes and records are looked at.
        read_already: Digests of objects that need not be read again.
    """
    place = os.fspath(root)
    found = [*_objects(place, hashing, read_already), *_records(place), *_shared(place), *_left_over(place)]
    return found + list(_lost(place, acknowledged or {}))


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
        inside = files.listing(path)
        if not inside:
            yield Violation("I1", "corrupt", path, "it holds no file")
        for file in inside if hashing and digest not in read_already else ():
            try:
                actual, _ = files.digest_of(f"{path}/{file}")
            except OSError as error:
                yield Violation("I1", "corrupt", f"{path}/{file}", f"it cannot be read: {error.strerror}")
                continue
            if actual != digest:
                yield Violation("I1", "corrupt", f"{path}/{file}", f"its content has the digest {actual}")
        if digest not in named:
            yield Violation("I7", "garbage", path, "no record names it")


def _records(root: str) -> Iterator[Violation]:
    """I2, I6: each record is whole, and names an object that is there."""
    entries = Entries(root)
    whole = set()
    for entry in entries.all():
        whole.add(layout.key_id(entry.key))
        try:
            found = os.stat(entry.path)
        except OSError:
            yield Violation("I2", "dangling", entry.key, f"its object is gone: {entry.path}")
            continue
        if found.st_size != entry.size:
            yield Violation("I2", "dangling", entry.key, f"{found.st_size} bytes, on record are {entry.size}")
    for identity in files.listing(f"{root}/{layout.ENTRIES}"):
        if identity not in whole:
            yield Violation("I6", "corrupt", f"{root}/{layout.ENTRIES}/{identity}", "the record is broken: a miss")


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
            actual, _ = files.digest_of(entry.path)
        except OSError:
            actual = Digest("sha256:nothing")
        if actual != digest:
            yield Violation("I3", "lost", key, f"{digest} was acknowledged, {entry.path} holds {actual}")


def _shared(root: str) -> Iterator[Violation]:
    """I5: no file that a writer may still write is that of an object."""
    published = {}
    for name in files.listing(f"{root}/{layout.OBJECTS}"):
        for file in files.listing(f"{root}/{layout.OBJECTS}/{name}"):
            path = f"{root}/{layout.OBJECTS}/{name}/{file}"
            inode = _inode(path)
            if inode is not None:
                published[inode] = path
    for bucket in (layout.PARTIALS, layout.STAGING):
        for directory, _, inside in os.walk(f"{root}/{bucket}"):
            for file in inside:
                twin = published.get(_inode(f"{directory}/{file}") or (0, 0))
                if twin is not None:
                    yield Violation("I5", "corrupt", f"{directory}/{file}", f"it is the same file as {twin}")


def _left_over(root: str) -> Iterator[Violation]:
    """I10: what the dead leave blocks nobody; it is told, and the next process that fetches sweeps it."""
    for bucket in (layout.STAGING, layout.TRASH):
        for name in files.listing(f"{root}/{bucket}"):
            if process.is_dead(name):
                yield Violation("I10", "garbage", f"{root}/{bucket}/{name}", "a process that is gone left it")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
