"""Imports: what a bundle holds into the cache, all of it verified before the first of it is visible.

Order (I1, I2, I3): read and check the index → decide for each entry → announce the digests → hold what is here and is
used again → room → each missing content into a partial, hashed → objects → records. So an import that was killed
goes on with what its partials hold, and one that finds a wrong byte has changed nothing.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from failpoints import fail_point

from . import commit, files, hit, layout, locks, roots, trees
from .bundle import Bundle, Item
from .config import Timeout
from .digest import Digest
from .errors import (
    BundleError,
    CancelledError,
    DigestMismatchError,
    LockTimeoutError,
    MissingContentsError,
    ModelCacheError,
    PolicyError,
    StorageError,
    storage_error,
)
from .events import Event, Listener
from .gate import Gate, missing
from .gc import Room
from .jobs import run_all
from .leases import Leases
from .leasing import take, vanishing
from .listing import Leaf
from .objects import Objects, Stored
from .partials import Partial, Partials
from .pins import Pins
from .records import Entries, Entry
from .reference import Ref, parse
from .retry import Deadline
from .sources import Stream
from .staged import Present, StagedTree, of_file, written
from .sweep import sweep
from .transfer import Transfer

CONFLICTS = ("newer", "replace", "keep")
_COMES = {"new", "replaced"}
_PARTIAL_NAME = "content"
_TELL_S = 0.1
Materials = dict[tuple[Digest, bool], str]  # Paths of files that hold a content, by digest and the mode bit x.


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one entry of a bundle.

    Attributes:
        ref: Its key.
        digest: Of its content.
        size: Of its content, in bytes.
        state: ``new``, ``replaced`` (another content of that ref), ``here`` (it was, with this content), ``kept`` (what
            is here was confirmed later, or stays in any case), or ``pinned`` (so that what is here stays).
    """

    ref: str
    digest: Digest
    size: int
    state: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import has done, or would do.

    Attributes:
        path: Of the bundle.
        digest: Of its index.
        models: What became of each entry.
        contents: How many files' contents had to come from the bundle.
        bytes_read: Their bytes, those that an earlier try had brought included.
    """

    path: str
    digest: Digest
    models: tuple[Imported, ...]
    contents: int
    bytes_read: int

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-ready dict."""
        models = [{"ref": one.ref, "digest": one.digest, "size": one.size, "state": one.state} for one in self.models]
        return {
            "path": self.path, "digest": self.digest, "models": models, "contents": self.contents,
            "bytes_read": self.bytes_read,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What is imported from where. ``keys`` is empty for all; ``digest`` is what the index must have, if given."""

    path: str
    keys: Sequence[str] = ()
    digest: Digest | None = None
    conflict: str = CONFLICTS[0]


class Importer:
    """Imports into the cache at *root*."""

    def __init__(
        self,
        root: str,
        wish: Wish,
        *,
        leases: Leases,
        room: Room | None,
        gate: Gate | None,
        host_of: Callable[[Ref], str],
        lock_timeout: float,
        tell: Listener,
    ) -> None:
        self._root, self._wish, self._leases, self._room = root, wish, leases, room
        self._gate, self._host_of = gate, host_of
        self._lock_timeout, self._tell = lock_timeout, tell
        self._objects, self._entries, self._pins = Objects(root), Entries(root), Pins(root)
        self._partials = Partials(root)
        self._kept: dict[Digest, Partial] = {}
        self._first_error: ModelCacheError | None = None
        self._guard = threading.Lock()
        self._done: dict[Digest, int] = {}
        self._total = 0
        self._told = 0.0

    def plan(self) -> ImportReport:
        """Return what `run` would do; nothing is changed, and contents in the bundle are not read."""
        with self._opened() as bundle:
            items = self._chosen(bundle)
            states = {item.key: self._state(item) for item in items}
            with ExitStack() as held:
                made = self._to_make(items, states)
                missing = self._missing(bundle, made, self._materials(bundle, made, held, hold=False))
            return self._report(bundle, items, states, missing)

    def run(self) -> ImportReport:
        """Import; return what became of each entry.

        Raises:
            BundleError, NotInBundleError, DigestMismatchError: Nothing is visible of it, and what was here stands.
            NoSpaceError, StorageError: The same, or, where the disk fails while it is recorded, some entries are here,
                each of them whole; the same call goes on.
        """
        with self._opened() as bundle, ExitStack() as held:
            items = self._chosen(bundle)
            roots.prepare_root(self._root)
            held.enter_context(self._turn(bundle))
            sweep(self._root)
            states = {item.key: self._state(item) for item in items}
            try:
                self._check_origins([item for item in items if states[item.key] in _COMES])
                # Before the look: what is found here must still be here when it is recorded.
                for digest in {item.digest for item in items if states[item.key] in _COMES}:
                    held.enter_context(self._objects.announced(digest))
                made = self._to_make(items, states)
                materials = self._materials(bundle, made, held, hold=True)
                missing = self._missing(bundle, made, materials)
                self._make_room(bundle, items, missing)
                self._receive_all(bundle, missing)
                for digest in missing:
                    materials[digest, False] = self._kept[digest].path
                self._admit(bundle, [item for item in items if states[item.key] in _COMES], made, materials)
                self._publish(bundle, made, materials)
                for item in items:
                    if states[item.key] in _COMES:
                        states[item.key] = self._record(item)
                for digest in {leaf.digest for item in items for leaf in bundle.index.leaves(item)}:
                    self._partials.remove(_partial_key(digest))  # Of others, who died: it is here now.
            except PolicyError:
                for partial in self._kept.values():
                    partial.discard()  # What is refused is kept for nobody.
                raise
            except OSError as error:
                if isinstance(error, ModelCacheError):
                    raise
                raise storage_error(error, action="import into", path=self._root) from error
            finally:
                for partial in self._kept.values():
                    partial.release()
            self._tell(Event("imported", self._wish.path, done=self._total, total=self._total))
            return self._report(bundle, items, states, missing)

    # -- what is to be done ------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[Bundle]:
        with Bundle(self._wish.path) as bundle:
            wanted, found = self._wish.digest, bundle.index.digest
            if wanted is not None and wanted != found:
                raise DigestMismatchError(ref=self._wish.path, expected=wanted, actual=found)
            yield bundle

    def _chosen(self, bundle: Bundle) -> list[Item]:
        if not self._wish.keys:
            return list(bundle.index.items)
        return [bundle.find(key) for key in dict.fromkeys(self._wish.keys)]

    def _state(self, item: Item) -> str:
        """Return what is to become of *item*, by what is on record for its key."""
        known = self._entries.read(item.key)
        if known is None:
            return "new"
        if known.digest == item.digest:
            return "here" if hit.stands(known.path, known.size, known.mtime_ns) else "new"
        if self._pins.has(item.key):
            return "pinned"
        if self._objects.find(known.digest, known.name) is None:
            return "replaced"
        wins = self._wish.conflict == "replace" or (self._wish.conflict == "newer" and item.checked > known.checked)
        return "replaced" if wins else "kept"

    def _to_make(self, items: list[Item], states: dict[str, str]) -> list[Item]:
        """Return what objects are missing, or not whole: one item for each."""
        made: dict[Digest, Item] = {}
        for item in items:
            if states[item.key] in _COMES and item.digest not in made and not self._is_whole(item.digest):
                made[item.digest] = item
        return list(made.values())

    def _is_whole(self, digest: Digest) -> bool:
        """Tell whether the object is here, and holds what its name says: it has been read then (I1)."""
        stored = self._objects.find(digest)
        try:
            return stored is not None and trees.digest_of(stored.path, digest)[0] == digest
        except OSError:
            return False

    def _materials(self, bundle: Bundle, made: list[Item], held: ExitStack, *, hold: bool) -> Materials:
        """Return the files of the cache that hold what is needed, each read and hashed, and leased for as long."""
        found: dict[tuple[Digest, bool], str] = {}
        present = Present(self._root)
        for leaf in (leaf for item in made for leaf in bundle.index.leaves(item)):
            for executable in {leaf.executable, False}:
                path = None if (leaf.digest, executable) in found else present.find(leaf.digest, executable=executable)
                lease = take(self._root, self._leases, path) if hold and path is not None else None
                if lease is not None:
                    held.enter_context(lease)
                if path is not None and (lease is not None or not hold):
                    found[leaf.digest, executable] = path
        return found

    def _missing(self, bundle: Bundle, made: list[Item], materials: Materials) -> list[Digest]:
        """Return the contents that must come from the bundle; raise MissingContentsError if it lacks them."""
        needed = {leaf.digest for item in made for leaf in bundle.index.leaves(item)}
        needed -= {digest for digest, _ in materials}
        lacking = needed & bundle.index.without
        if lacking:
            raise MissingContentsError(path=self._wish.path, missing=tuple(sorted(lacking)))
        return sorted(needed)

    def _make_room(self, bundle: Bundle, items: list[Item], missing: list[Digest]) -> None:
        needed = 0
        for digest in missing:
            size = bundle.index.contents[digest]
            needed += size - min(size, self._partials.bytes_of(_partial_key(digest)))
        self._total = sum(bundle.index.contents[digest] for digest in missing)
        if needed and self._room is not None:
            self._room.make(self._wish.path, needed, wanted={item.key for item in items})
        files.check_space(self._root, needed, what=self._wish.path)

    @contextmanager
    def _turn(self, bundle: Bundle) -> Iterator[None]:
        """Hold the lock of this bundle for the block; without one two imports of it do the same work (I9)."""
        path = f"{self._root}/{layout.LOCKS}/{layout.key_id(bundle.index.digest)}.lock"
        with ExitStack() as stack:
            with suppress(locks.LockUnavailableError, LockTimeoutError):
                stack.enter_context(
                    locks.exclusive(path, timeout=self._lock_timeout, what=self._wish.path, on_wait=self._waits)
                )
            yield

    def _waits(self, holder: str) -> None:
        self._tell(Event("waiting", self._wish.path, detail=f"{holder} is importing it"))

    def _check_origins(self, items: list[Item]) -> None:
        """Ask the policies of where *items* came from, before anything is read; raise PolicyError."""
        if self._gate is None:
            return
        for item in items:
            self._gate.policies.check_size(item.key, item.size)
            if item.source != "put":
                place = parse(item.source)
                self._gate.policies.check_place(place, self._host_of(place))

    # -- contents ----------------------------------------------------------------------------------------------------

    def _receive_all(self, bundle: Bundle, missing: list[Digest]) -> None:
        self._tell(Event("started", self._wish.path, total=self._total))

        def one(digest: Digest, deadline: Deadline) -> None:
            if self._first_error is not None:
                return
            try:
                self._receive(bundle, digest, deadline)
            except ModelCacheError as error:
                with self._guard:
                    if self._first_error is None or isinstance(self._first_error, CancelledError):
                        self._first_error = error

        run_all(missing, one, jobs=os.cpu_count() or 1, deadline=lambda _: Deadline(None, ref=self._wish.path))
        if self._first_error is not None:
            raise self._first_error

    def _receive(self, bundle: Bundle, digest: Digest, deadline: Deadline) -> None:
        """Read the content into a partial, on from what an earlier try has left; what is wrong is not kept."""
        key = _partial_key(digest)
        partial = self._partials.claim(key, _PARTIAL_NAME)
        if partial is None or self._fill(partial, bundle, digest, deadline) is not None:
            # Nothing was left, or not the beginning of this content.
            partial = self._partials.create(key, _PARTIAL_NAME)
            actual = self._fill(partial, bundle, digest, deadline)
            if actual is not None:
                raise BundleError(path=self._wish.path, problem=f"what should be {digest} in it is {actual}")
        partial.close()
        with self._guard:
            self._kept[digest] = partial

    def _fill(self, partial: Partial, bundle: Bundle, digest: Digest, deadline: Deadline) -> Digest | None:
        """Bring *partial* to its end; None if it holds the content then, else what it held: it is discarded."""
        size = bundle.index.contents[digest]
        try:
            if partial.length < size:
                partial.describe({}, size)
                stream = _Content(bundle, digest, partial.length)
                with closing(stream):
                    Transfer(
                        stream, partial, self._wish.path, Timeout(), deadline,
                        lambda done: self._on_progress(digest, done),
                    ).run()  # fmt: skip
            self._on_progress(digest, partial.length)
        except (BundleError, StorageError):
            partial.discard()  # Wrong bytes, or a sync that failed: none of it is used again.
            raise
        except BaseException:
            partial.release()
            raise
        if partial.digest == digest:
            return None
        partial.discard()
        return partial.digest

    def _on_progress(self, digest: Digest, done: int) -> None:
        with self._guard:
            self._done[digest] = done
            now = time.monotonic()
            if now - self._told < _TELL_S:
                return
            self._told = now
            together = sum(self._done.values())
        self._tell(Event("progress", self._wish.path, done=together, total=self._total))

    # -- what becomes visible ----------------------------------------------------------------------------------------

    def _publish(self, bundle: Bundle, made: list[Item], materials: Materials) -> None:
        """Make the objects of *made*, of verified contents, durable and visible."""
        for item in made:
            leaves = bundle.index.leaves(item)
            if item.digest.is_tree:
                stored = self._publish_tree(item, leaves, materials)
            else:
                stored = self._publish_file(item, materials)
            for leaf in leaves:  # Where the next one finds it: its partial is gone.
                path = f"{stored.path}/{leaf.path}" if item.digest.is_tree else stored.path
                materials[leaf.digest, leaf.executable] = path

    def _publish_tree(self, item: Item, leaves: Sequence[Leaf], materials: Materials) -> Stored:
        staged = StagedTree(self._root, item.name, ref=item.key)
        try:
            for leaf in leaves:
                path, may_be_linked = self._material(leaf, materials)
                if may_be_linked and staged.link(path, leaf):
                    continue
                self._check(leaf.digest, staged.write(leaf.path, of_file(path), executable=leaf.executable).digest)
            self._check(item.digest, staged.listing().digest)
            if self._gate is not None:
                self._gate.check_tree(item.key, staged.path, ((leaf.path, leaf.size) for leaf in leaves))
            staged.seal()
            self._drop(leaves, materials)
            fail_point("importing.before-publish-tree")
            return staged.publish(self._objects)
        finally:
            staged.discard()

    def _publish_file(self, item: Item, materials: Materials) -> Stored:
        leaf = Leaf(item.name, item.size, item.digest)
        staged = commit.stage_directory(self._root)
        try:
            path, may_be_linked = self._material(leaf, materials)
            place = f"{staged}/{item.name}"
            if not (may_be_linked and commit.share(path, place)):
                descriptor = commit.create_file(place)
                try:
                    self._check(leaf.digest, written(descriptor, of_file(path)))
                finally:
                    os.close(descriptor)
            commit.seal(staged)
            self._drop([leaf], materials)
            fail_point("importing.before-publish")
            return self._objects.publish(staged, item.digest, item.name)
        finally:
            commit.discard(staged)

    def _admit(self, bundle: Bundle, items: list[Item], made: list[Item], materials: Materials) -> None:
        """Ask the policies of each of *items*, under its own name, whether its content came or was here already.

        A tree of *made* is looked at when it has been put together.
        """
        gate, new = self._gate, {item.digest for item in made}
        if gate is None:
            return
        for item in items:
            stored = None if item.digest in new else self._objects.find(item.digest)
            if item.digest not in new and stored is None:
                raise vanishing(self._objects.path(item.digest))
            if item.digest.is_tree and stored is not None:
                gate.check_tree(item.key, stored.path, [(leaf.path, leaf.size) for leaf in bundle.index.leaves(item)])
            elif not item.digest.is_tree:
                leaf = Leaf(item.name, item.size, item.digest)
                path = self._material(leaf, materials)[0] if stored is None else stored.path
                gate.check_file(item.key, path, name=item.name, bring=functools.partial(self._signature, item))

    def _signature(self, item: Item) -> bytes:
        assert self._gate is not None
        raise missing(self._gate, item.key, "a bundle holds no signatures beside files; a tree has its own in it")

    def _material(self, leaf: Leaf, materials: Materials) -> tuple[str, bool]:
        """Return the path of a file that holds *leaf*, and whether it has its mode too, so that it may be linked."""
        partial = self._kept.get(leaf.digest)
        if partial is not None:
            partial.check()
        path = materials.get((leaf.digest, leaf.executable))
        return (path, True) if path is not None else (materials[leaf.digest, not leaf.executable], False)

    def _drop(self, leaves: Sequence[Leaf], materials: Materials) -> None:
        """Let go of the partials of *leaves*, whose content is sealed: what is published has no other name (I5)."""
        for leaf in leaves:
            partial = self._kept.pop(leaf.digest, None)
            if partial is not None:
                del materials[leaf.digest, False]
                partial.unname()

    def _check(self, expected: Digest, actual: Digest) -> None:
        if expected != actual:
            raise DigestMismatchError(ref=self._wish.path, expected=expected, actual=actual)

    def _record(self, item: Item) -> str:
        """Record *item*, unless somebody has recorded its key meanwhile and that stays; return what became of it."""
        state = self._state(item)
        if state not in _COMES:
            return state
        stored = self._named(item)
        before = self._entries.read(item.key)
        if before is not None and before.digest != item.digest:
            self._objects.touch(before.digest)  # It was promised until now: kept a while.
        now = int(time.time())
        fail_point("importing.before-record")
        self._entries.write(
            Entry(
                key=item.key,
                digest=item.digest,
                path=stored.path,
                size=stored.size,
                name=stored.name,
                source=item.source,
                created=now,
                checked=min(item.checked, now),
                mtime_ns=stored.mtime_ns,
                etag=item.etag,
                last_modified=item.last_modified,
                revision=item.revision,
                mirrors=item.mirrors,
                ttl=None if before is None else before.ttl,
                admitted=self._gate.mark if self._gate is not None else "",
            )
        )
        return state

    def _named(self, item: Item) -> Stored:
        stored = self._objects.name(item.digest, item.name)
        if stored is None:
            raise vanishing(self._objects.path(item.digest))
        return stored

    def _report(self, bundle: Bundle, items: list[Item], states: dict[str, str], missing: list[Digest]) -> ImportReport:
        models = tuple(Imported(item.key, item.digest, item.size, states[item.key]) for item in items)
        size = sum(bundle.index.contents[digest] for digest in missing)
        return ImportReport(self._wish.path, bundle.index.digest, models, len(missing), size)


class _Content(Stream):
    """One content of a bundle, from *start* on."""

    def __init__(self, bundle: Bundle, digest: Digest, start: int) -> None:
        self._path, self._digest = bundle.path, digest
        self.start, self.total = start, bundle.index.contents[digest]
        self._descriptor, self._offset = bundle.open(digest)
        self._at = start

    def read(self, limit: int) -> bytes:
        """See `Stream.read`."""
        assert self.total is not None
        try:
            chunk = os.pread(self._descriptor, min(limit, self.total - self._at), self._offset + self._at)
        except OSError as error:
            raise storage_error(error, action="read", path=self._path) from error
        if not chunk and self._at < self.total:
            problem = f"what should be {self._digest} in it ends after {self._at} of {self.total} bytes"
            raise BundleError(path=self._path, problem=problem)
        self._at += len(chunk)
        return chunk

    def close(self) -> None:
        """See `Stream.close`."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _partial_key(digest: Digest) -> str:
    """Return the key of the partials of a content; no ref can be that, because of the space."""
    return f"content {digest}"
