"""Exports: cached models into a bundle outside the root, whole or not there at all, gone on with after a kill.

What is written is read from objects and hashed on the way, so that a bundle never holds what its index does not say.
Order: contents → fsync → rename → the index, or the name of the tar, last. What is half-written beside the target says
by its name whose it is (`process`); one of a process that is gone, or that failed, is claimed by a rename and verified.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

from failpoints import fail_point

from . import bundle, commit, files, locks, process, trees
from .bundle import CONTENTS, INDEX, Bundle, Index, Item, Member, content_name
from .digest import ALGORITHM, Digest
from .errors import (
    BundleError,
    CorruptObjectError,
    EntryNotFoundError,
    ModelCacheError,
    UsageError,
    storage_error,
)
from .events import Event, Listener
from .leases import Leases
from .leasing import take
from .listing import Listing, clash
from .objects import Objects
from .records import Entry
from .verification import examine

FILE_SUFFIX = ".tar"
_LOCK_S = 600.0
_TELL_S = 0.1


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export has done.

    Attributes:
        path: Of the bundle.
        refs: What was exported.
        digest: Of the bundle's index: what ``import_(digest=…)`` takes to accept this bundle and no other.
        contents: How many files' contents the bundle needs, those left out included.
        bytes_written: Bytes of contents that were written now.
        bytes_there: Bytes that the bundle, or what was left of an earlier try, had already.
        bytes_left_out: Bytes that the base has.
    """

    path: str
    refs: tuple[str, ...]
    digest: Digest
    contents: int
    bytes_written: int
    bytes_there: int
    bytes_left_out: int

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-ready dict."""
        return {**asdict(self), "refs": list(self.refs)}


def is_folder(to: str) -> bool:
    """Tell whether an export to *to* makes a folder: it is one, or its name does not end in ``.tar``."""
    return os.path.isdir(to) or not to.endswith(FILE_SUFFIX)


def export(
    root: str,
    entries: Sequence[Entry],
    to: str,
    *,
    base: str | None,
    full: bool,
    leases: Leases,
    tell: Listener,
) -> ExportReport:
    """Do what `Cache.export` says of *entries*."""
    target = os.path.abspath(to)
    _check_target(root, target)
    without = frozenset(bundle.read_index(base).contents) if base is not None else frozenset()
    with ExitStack() as held:
        for entry in entries:
            lease = take(root, leases, entry.path)
            if lease is None:
                raise EntryNotFoundError(ref=entry.key, root=root)
            held.enter_context(lease)
        job = _Export(root, entries, without, target, full=full, tell=tell)
        try:
            index = job.into_folder() if is_folder(target) else job.into_file()
        except OSError as error:
            if isinstance(error, ModelCacheError):
                raise
            raise storage_error(error, action="export to", path=target) from error
    job.told("exported")
    left_out = sum(job.index.contents[digest] for digest in job.index.without)
    refs = tuple(item.key for item in job.index.items)
    return ExportReport(target, refs, index.digest, len(index.contents), job.written, job.there, left_out)


def _check_target(root: str, target: str) -> None:
    inside = os.path.realpath(target)
    if f"{inside}/".startswith(f"{os.path.realpath(root)}/"):
        raise UsageError(problem=f"{target} is in the cache itself", hint="Export to a place outside of it")
    if is_folder(target) and os.path.lexists(target) and not os.path.isdir(target):
        hint = f"One file is written where the name ends in {FILE_SUFFIX}"
        raise UsageError(problem=f"{target} is a file that is no bundle by its name", hint=hint)
    directory = os.path.dirname(target)
    if not is_folder(target) and not os.path.isdir(directory):
        raise UsageError(problem=f"{directory}, where {target} would be, is no directory", hint="Make it first")


class _Export:
    """One export; see `ExportReport` for what is counted."""

    def __init__(
        self,
        root: str,
        entries: Sequence[Entry],
        without: frozenset[Digest],
        target: str,
        *,
        full: bool,
        tell: Listener,
    ) -> None:
        self.root, self.target, self.full, self.tell = root, target, full, tell
        self.written = self.there = 0
        self.sources: dict[Digest, tuple[str, Entry]] = {}  # Where a content is, and for whom it is read.
        listings: dict[Digest, Listing] = {}
        for entry in entries:
            if not entry.digest.is_tree:
                self.sources[entry.digest] = (entry.path, entry)
                continue
            listing = trees.listing_on_record(Objects(root).path(entry.digest), entry.digest)
            if listing is None:
                raise self._corrupt(entry, "a listing that is broken")
            problem = clash(leaf.path for leaf in listing.files)
            if problem is not None:
                raise UsageError(problem=f"{entry.key} cannot be exported: {problem}", hint="Put it under other names")
            listings[entry.digest] = listing
            for leaf in listing.files:
                self.sources.setdefault(leaf.digest, (f"{entry.path}/{leaf.path}", entry))
        self.index = Index.of(map(_item, entries), listings, without)
        self._told = time.monotonic()

    # -- a folder ----------------------------------------------------------------------------------------------------

    def into_folder(self) -> Index:
        """Write what the folder lacks; return its index, which goes on naming what was there before."""
        self._check_folder()
        commit.make_directories(f"{self.target}/{CONTENTS}")
        with ExitStack() as held:
            with suppress(locks.LockUnavailableError):  # Two that export without one do the same work twice.
                held.enter_context(locks.exclusive(f"{self.target}/.lock", timeout=_LOCK_S, what=self.target))
            before = self._before()
            for name in files.listing(f"{self.target}/{CONTENTS}"):
                if process.is_dead(name):
                    commit.remove_quietly(f"{self.target}/{CONTENTS}/{name}")
            missing = [digest for digest in self.index.carried if not self._has(digest)]
            self._begin(sum(self.index.contents[digest] for digest in missing), self.target)
            for digest in missing:
                self._write_content(digest)
            commit.sync_directory(f"{self.target}/{CONTENTS}")
            index = self._merged(before)
            if before is None or index.encoded != before.encoded:
                fail_point("exporting.before-index")
                commit.commit_record(f"{self.target}/{CONTENTS}", f"{self.target}/{INDEX}", index.encoded)
        return index

    def _check_folder(self) -> None:
        others = [name for name in files.listing(self.target) if name not in {INDEX, CONTENTS} and name[0] != "."]
        if others and not os.path.lexists(f"{self.target}/{INDEX}"):
            problem = f"{self.target} is no bundle, and not empty: it holds {others[0]!r}"
            raise UsageError(problem=problem, hint="Name a folder that is empty, or not there yet")

    def _before(self) -> Index | None:
        """Return the index that the folder has; None if it has none yet."""
        if not os.path.lexists(f"{self.target}/{INDEX}"):
            return None
        try:
            return bundle.read_index(self.target)
        except BundleError as error:
            hint = f"Remove {self.target}/{INDEX}: contents that are there are used again"
            raise BundleError(path=self.target, problem=error.facts["problem"], hint=hint) from error

    def _has(self, digest: Digest) -> bool:
        """Tell whether the folder holds the content: of its size; ``full`` says that it is read too."""
        path = f"{self.target}/{content_name(digest)}"
        try:
            descriptor = files.open_regular(path, follow=False)
        except OSError:
            return False
        try:
            whole = os.fstat(descriptor).st_size == self.index.contents[digest]
            if whole and self.full:
                whole = Digest.of_bytes(files.chunks(descriptor)) == digest
        finally:
            os.close(descriptor)
        self.there += self.index.contents[digest] if whole else 0
        return whole

    def _write_content(self, digest: Digest) -> None:
        staged = f"{self.target}/{CONTENTS}/{process.token()}"
        descriptor = commit.create_file(staged)
        try:
            try:
                self._copy(digest, descriptor, hashlib.sha256(), 0)
            finally:
                os.close(descriptor)
            commit.commit_file(staged, f"{self.target}/{content_name(digest)}")
        except BaseException:
            commit.remove_quietly(staged)
            raise

    def _merged(self, before: Index | None) -> Index:
        if before is None:
            return self.index
        ours = {item.key for item in self.index.items}
        items = [*self.index.items, *(item for item in before.items if item.key not in ours)]
        merged = Index.of(items, before.trees | self.index.trees)
        there = set(files.listing(f"{self.target}/{CONTENTS}"))
        without = {one for one in merged.contents if os.path.basename(content_name(one)) not in there}
        unknown = without - before.without - self.index.without
        if unknown:
            problem = f"contents of earlier exports are missing, such as {content_name(min(unknown))}"
            raise BundleError(path=self.target, problem=problem, hint="Export to a new folder")
        return Index.of(items, merged.trees, without)

    # -- one file ----------------------------------------------------------------------------------------------------

    def into_file(self) -> Index:
        """Write the tar beside its target, on from what is left of an earlier try, and rename it."""
        members = bundle.members(self.index)
        if self._is_done():
            self._begin(0, os.path.dirname(self.target))
            return self.index
        staged = self._claimed()
        try:
            descriptor = commit.open_existing(staged)
            try:
                have, state = self._verified(descriptor, members)
                if os.fstat(descriptor).st_size != have:
                    commit.truncate(descriptor, have)
                self.there = sum(min(one.size, max(0, have - one.start)) for one in members if one.digest is not None)
                self._begin(bundle.length(members) - have, os.path.dirname(self.target))
                self._go_on(descriptor, members, have, state)
            finally:
                os.close(descriptor)
        except BaseException:
            self._let_go(staged)
            raise
        try:
            commit.commit_file(staged, self.target)
        except OSError:
            commit.remove_quietly(staged)  # Its sync may be what failed: what is read back may not be on the disk.
            raise
        return self.index

    def _is_done(self) -> bool:
        """Tell whether the target is this very bundle already: whole by its index, its headers and its length."""
        if not os.path.isfile(self.target):
            return False
        try:
            with Bundle(self.target) as found:
                if found.index.encoded != self.index.encoded:
                    return False
                for digest in self.index.carried if self.full else ():
                    descriptor, at = found.open(digest)
                    try:
                        if (
                            Digest.of_bytes(files.chunks(descriptor, start=at, length=self.index.contents[digest]))
                            != digest
                        ):
                            return False
                    finally:
                        os.close(descriptor)
        except ModelCacheError:
            return False
        self.there = sum(self.index.contents[digest] for digest in self.index.carried)
        return True

    @property
    def _beside(self) -> str:
        """What the names of half-written files for this target begin with."""
        return f".{os.path.basename(self.target)}.partial-"

    def _claimed(self) -> str:
        """Return the path of our own half-written file: the longest that nobody writes any more, or one to be made."""
        directory = os.path.dirname(self.target)
        ours = f"{directory}/{self._beside}{process.token()}"
        found = []
        for name in files.listing(directory):
            owner = name.removeprefix(self._beside)
            if owner != name and (owner.startswith("free-") or process.is_dead(owner)):
                found.append(f"{directory}/{name}")
        found.sort(key=_size)
        while found and not os.path.lexists(ours):
            with suppress(FileNotFoundError):  # Another export was faster.
                commit.rename(found.pop(), ours)
        for path in found:
            commit.remove_quietly(path)
        if not os.path.lexists(ours):
            os.close(commit.create_file(ours))
        return ours

    def _let_go(self, staged: str) -> None:
        """Leave what was written to the next try, of whatever process."""
        with suppress(OSError):
            if os.path.getsize(staged):
                commit.rename(staged, f"{os.path.dirname(staged)}/{self._beside}free-{os.urandom(8).hex()}")
            else:
                commit.remove_quietly(staged)

    def _verified(self, descriptor: int, members: list[Member]) -> tuple[int, Any]:
        """Return how much of the file is as it must be, and the hash of what it has of the member that this ends in."""
        size = os.fstat(descriptor).st_size
        for member in members:
            if os.pread(descriptor, bundle.BLOCK_BYTES, member.at) != member.header:
                return member.at, None
            state, at = hashlib.sha256(), member.start
            for chunk in files.chunks(descriptor, start=member.start, length=member.size):
                state.update(chunk)
                at += len(chunk)
            whole = f"{ALGORITHM}:{state.hexdigest()}" == (member.digest or self.index.digest)
            if at == member.start + member.size and not whole:
                return member.at, None
            if not whole or os.pread(descriptor, member.padding, at) != bytes(member.padding):
                return (member.at, None) if member.digest is None else (at, state)
        return min(size, members[-1].end), None

    def _go_on(self, descriptor: int, members: list[Member], have: int, state: Any) -> None:
        """Write what is missing from *have* on; *state* is the hash of the part of a content that is there."""
        os.lseek(descriptor, have, os.SEEK_SET)
        for member in members:
            if member.end <= have and state is None:
                continue
            if state is not None and not member.at < have <= member.end:
                continue
            if state is None:
                _write(descriptor, member.header)
            if member.digest is None:
                _write(descriptor, self.index.encoded)
            elif state is None or not self._continued(member, descriptor, state, have - member.start):
                self._copy(member.digest, descriptor, hashlib.sha256(), 0)
            state = None
            _write(descriptor, bytes(member.padding))
        _write(descriptor, bytes(bundle.length(members) - members[-1].end))

    def _continued(self, member: Member, descriptor: int, state: Any, offset: int) -> bool:
        """Write the rest of a content from *offset* on; False, and back at its start, if both parts are not it."""
        assert member.digest is not None
        try:
            self._copy(member.digest, descriptor, state, offset)
        except CorruptObjectError:  # What was there after a power cut, as a rule: once more from the first byte.
            commit.truncate(descriptor, member.start)
            os.lseek(descriptor, member.start, os.SEEK_SET)
            self.there -= offset
            return False
        return True

    # -- both --------------------------------------------------------------------------------------------------------

    def _copy(self, digest: Digest, descriptor: int, state: Any, offset: int) -> None:
        """Write the content *digest* from *offset* on; *state* is the hash of what is before that.

        Raises:
            CorruptObjectError: The object holds something else.
        """
        path, entry = self.sources[digest]
        reading = files.open_regular(path)
        try:
            for chunk in files.chunks(reading, start=offset, length=self.index.contents[digest] - offset):
                _write(descriptor, chunk)
                state.update(chunk)
                self.written += len(chunk)
                if time.monotonic() - self._told >= _TELL_S:
                    self._told = time.monotonic()
                    self.told("progress")
        finally:
            os.close(reading)
        found = f"{ALGORITHM}:{state.hexdigest()}"
        if found != digest:
            raise self._corrupt(entry, found)

    def _corrupt(self, entry: Entry, actual: str) -> CorruptObjectError:
        """Set aside what does not hold what its name says; return the error that says so."""
        moved_to = examine(self.root, entry).moved_to
        self.tell(Event("quarantined", entry.key, detail=moved_to))
        return CorruptObjectError(ref=entry.key, expected=entry.digest, actual=actual, moved_to=moved_to)

    def _begin(self, needed: int, directory: str) -> None:
        files.check_space(directory, needed, what=self.target)
        self.told("started")

    def told(self, kind: str) -> None:
        """Tell how far it is."""
        total = sum(self.index.contents[digest] for digest in self.index.carried)
        self.tell(Event(kind, self.target, done=self.there + self.written, total=total))


def _write(descriptor: int, data: bytes) -> None:
    fail_point("exporting.before-write", on_torn=lambda size: commit.write(descriptor, data[:size]))
    commit.write(descriptor, data)


def _size(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return -1


def _item(entry: Entry) -> Item:
    return Item(
        key=entry.key, digest=entry.digest, name=entry.name, size=entry.size, source=entry.source,
        checked=max(0, entry.checked), etag=entry.etag, last_modified=entry.last_modified, revision=entry.revision,
        mirrors=entry.mirrors,
    )  # fmt: skip
