"""One build, from the turn to the record: single flight, in a private directory, published by one rename.

Order (I1, I2, I3): take the turn → look again → stage a directory → build into it → check the product → hash it →
announce → publish the object → record it. Whatever ends a build leaves a staged directory at most, which whoever comes
next removes. A build may run in a process of its own (`isolation`); one that fails the same way again and again is left
alone for a while (`failures`).
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from failpoints import fail_point

from . import commit, files, hit, isolation, notes, roots, stamps, trees
from .derivation import Derivation, InputGoneError
from .digest import Digest
from .errors import (
    BuildDiedError,
    BuildFailedError,
    BuildTimeoutError,
    CapacityError,
    CorruptObjectError,
    DerivationError,
    ModelCacheError,
    NoInterpreterError,
    NoSpaceError,
    NotReproducibleError,
    ProductRefusedError,
    RepeatedFailureError,
    storage_error,
)
from .events import Event, Listener
from .failures import TRIES, Failures
from .leasing import take
from .objects import Objects, Stored
from .products import WORK, Product
from .records import Entries, Entry
from .retry import Deadline
from .sweep import sweep
from .turns import turn
from .workspace import Workspace

if TYPE_CHECKING:
    from .gc import Room
    from .leases import Leases

_log = logging.getLogger("modelcache")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Spec:
    """What is to be built, and how.

    Attributes:
        derivation: All that the product depends on.
        build: Called with a `Workspace`, which it fills.
        check: Called with the path of the product before it is visible; what it raises refuses it.
        name: What several things together are called.
        paths: Where each input is, by name.
        isolate: Whether both run in a process of their own.
        timeout: Longest time for each, in seconds.
        force: Whether it is built although it is here, or has failed too often.
    """

    derivation: Derivation
    build: Callable[[Any], object]
    check: Callable[[str], object] | None
    name: str | None
    paths: Mapping[str, str]
    isolate: bool = False
    timeout: float | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.isolate:
            isolation.check_may_start()  # Now: a process that waits for its turn waits for who waits for it.


class Builder:
    """Builds into the cache at *root*."""

    def __init__(self, root: str, leases: Leases, *, lock_timeout: float, room: Room | None, tell: Listener) -> None:
        self._root, self._lock_timeout, self._room, self._tell = root, lock_timeout, room, tell
        self._leases = leases
        self._objects, self._entries, self._failures = Objects(root), Entries(root), Failures(root)
        self._swept = False

    def entry(self, spec: Spec, known: Entry | None, deadline: Deadline) -> Entry:
        """Return the entry of what *spec* says, built by this process or by the one that was faster.

        *known* is what was found of it before, and will not do.

        Raises:
            DerivationError: It could not be built.
            NoSpaceError, CapacityError, StorageError
        """
        ref = spec.derivation.ref
        roots.make_root(self._root)

        def arrived() -> Entry | None:
            found = self._entries.read(ref)
            if found is None or (known is not None and found.serial == known.serial):
                return None
            return found if hit.stands(found.path, found.size, found.mtime_ns) else None

        def told(detail: str) -> None:
            self._tell(Event("waiting", ref, detail=detail))

        with turn(
            self._root, ref, timeout=self._lock_timeout, deadline=deadline, done=lambda: arrived() is not None,
            heed=lambda note: not spec.force and notes.covers(note, [ref]), doing="building", tell=told,
        ) as held:  # fmt: skip
            found = arrived()
            if found is not None:
                return found
            if held is not None and held.note:
                raise notes.error_in(held.note)
            try:
                roots.prepare_root(self._root)
                if not self._swept:
                    self._swept = True
                    sweep(self._root)
                return self._built(spec, known, deadline)
            except ModelCacheError as error:
                self._tell(Event("failed", ref, detail=error.summary, error=type(error).__name__))
                if held is not None and notes.is_for_all(error):
                    held.leave_note(notes.note(error, [ref]))
                raise

    def again(self, spec: Spec, known: Entry, deadline: Deadline) -> Entry:
        """Build what is here a second time, and return *known* if that came to the same.

        Raises:
            NotReproducibleError: It did not; nothing was changed.
        """
        roots.prepare_root(self._root)
        staged = self._stage()
        product = None
        try:
            with self._inputs_held(spec):
                product = self._made(spec, staged, deadline)
            found = product.hash()
            if found != known.digest:
                raise NotReproducibleError(
                    ref=known.key, model=spec.derivation.model, before=known.digest, now=found,
                    differs=_differing(known, product),
                )  # fmt: skip
            return known
        except OSError as error:
            raise storage_error(error, action="build", path=staged) from error
        finally:
            _discard(staged, product)

    def _built(self, spec: Spec, known: Entry | None, deadline: Deadline) -> Entry:
        what, action = spec.derivation, spec.derivation.action
        failure = self._failures.of(action)
        if failure is not None and failure.count >= TRIES and failure.left and not spec.force:
            raise RepeatedFailureError(
                ref=what.ref, model=what.model, count=failure.count, retry_after=failure.left, last=failure.last
            )
        why = self._why(what)
        _log.info("building %s of %s%s", what.ref, what.model, f": {why}" if why else "")
        self._tell(Event("building", what.ref, detail=why))
        if not spec.isolate:
            self._failures.begin(action)
        started = time.monotonic()
        try:
            entry = self._committed(spec, deadline, started)
        except DerivationError as error:
            self._failures.failed(action, error.way, error.detail)
            raise
        except CapacityError as error:  # Only the product itself tells how large it is.
            self._failures.failed(action, type(error).__name__, error.summary)
            raise
        except BaseException:
            self._failures.given_up(action)
            raise
        self._failures.went_well(action)
        if known is not None and known.digest != entry.digest:
            self._objects.touch(known.digest)  # It was promised until now: kept a while.
        seconds = round(time.monotonic() - started, 3)
        self._tell(Event("derived", what.ref, done=entry.size, total=entry.size, seconds=seconds, detail=why))
        return entry

    def _committed(self, spec: Spec, deadline: Deadline, started: float) -> Entry:
        what = spec.derivation
        staged = self._stage()
        product = None
        try:
            with self._inputs_held(spec):
                product = self._made(spec, staged, deadline)
                digest = product.hash()
                product.share()
                if self._room is not None:
                    self._room.make(what.ref, product.size, staged=product.size)
                with self._objects.announced(digest):
                    stored = product.publish(self._objects)
                    made = replace(what, seconds=round(time.monotonic() - started, 3))
                    entry = _entry(made, stored)
                    fail_point("deriving.before-record")
                    self._entries.write(entry)
                    return entry
        except OSError as error:
            raise storage_error(error, action="build", path=staged) from error
        finally:
            _discard(staged, product)

    @contextmanager
    def _inputs_held(self, spec: Spec) -> Iterator[None]:
        """Keep a gc from taking an input away, also to make room for the product: a build may outlast any grace.

        Raises:
            InputGoneError: One was removed, or set aside, before.
        """
        with ExitStack() as held:
            for path in spec.paths.values():
                if path.startswith(f"{self._root}/"):
                    lease = take(self._root, self._leases, path)
                    if lease is None:
                        raise InputGoneError(path)
                    held.enter_context(lease)
            yield

    def _read_inputs(self, spec: Spec) -> None:
        """Hash each input: what is built of rotten bytes would be found under the digest of good ones for ever."""
        for part in spec.derivation.inputs:
            digest, place = Digest(part.object), self._objects.path(Digest(part.object))
            path = spec.paths[part.name]
            if not path.startswith(f"{place}/"):
                continue  # In a tier, which reads what it serves as it is told to.
            top = "/".join(path[len(place) :].split("/", 2)[:2])
            try:
                actual, seen = trees.digest_of(f"{place}{top}", digest)
            except FileNotFoundError as error:
                raise InputGoneError(path) from error
            if actual != digest:
                moved_to = self._objects.quarantine(digest, f"{path}: expected {digest}, found {actual}", seen)
                self._tell(Event("quarantined", part.ref or path, detail=moved_to))
                corrupt = CorruptObjectError(ref=part.ref or path, expected=digest, actual=actual, moved_to=moved_to)
                raise InputGoneError(path, corrupt)

    def _stage(self) -> str:
        try:
            staged = commit.stage_directory(self._root)
            commit.make_staged(f"{staged}/{WORK}")
        except OSError as error:
            raise storage_error(error, action="stage", path=self._root) from error
        return staged

    def _made(self, spec: Spec, staged: str, deadline: Deadline) -> Product:
        """Return the product of a build in the directory *staged*, checked and not hashed yet.

        Raises:
            InputGoneError: An input was removed, or set aside, meanwhile.
        """
        what, work = spec.derivation, f"{staged}/{WORK}"
        self._read_inputs(spec)
        before = _facts(spec.paths)
        fail_point("deriving.before-build")
        workspace = Workspace(work, inputs=spec.paths, params=what.params)
        late = BuildTimeoutError(ref=what.ref, model=what.model, seconds=spec.timeout or 0.0)
        workspace.until(deadline, spec.timeout, late)
        returned = self._run(spec, spec.build, workspace, deadline, work)
        deadline.check()
        fail_point("deriving.after-build")
        product = Product(self._root, staged, returned, spec.name, what)
        try:
            changed = [name for name, facts in _facts(spec.paths).items() if facts != before[name]]
            if changed:
                problem = f"the build wrote to its input {changed[0]!r}, or somebody else did meanwhile"
                raise product.problem(problem)
            self._check(spec, product, deadline)
        except BaseException:
            product.discard()
            raise
        return product

    def _check(self, spec: Spec, product: Product, deadline: Deadline) -> None:
        if spec.check is None:
            return
        seen = product.seen()
        fail_point("deriving.before-check")
        try:
            self._run(spec, spec.check, product.path, deadline, os.path.dirname(product.path))
        except BuildDiedError as error:
            # Whoever is to find out why needs the very product.
            moved_to = product.set_aside(error.detail)
            raise BuildDiedError(**{**error.facts, "moved_to": moved_to}) from error
        except BuildFailedError as error:
            what = spec.derivation
            raise ProductRefusedError(ref=what.ref, model=what.model, detail=error.detail) from error
        if product.seen() != seen:
            raise product.problem("its check wrote to it")

    def _run(
        self, spec: Spec, function: Callable[[Any], object], argument: Any, deadline: Deadline, place: str
    ) -> object:
        """Return what *function* does, here or in a process of its own; what it raises is typed."""
        ref, model = spec.derivation.ref, spec.derivation.model
        try:
            if not spec.isolate:
                return function(argument)
            reason = isolation.no_interpreter()
            if reason:
                raise NoInterpreterError(ref=ref, model=model, reason=reason)
            return isolation.run(function, argument, timeout=spec.timeout, check=deadline.check, directory=place)
        except ModelCacheError:
            raise
        except isolation.DiedError as error:
            _check_room(place, ref)
            raise BuildDiedError(ref=ref, model=model, how=error.how, said=error.said) from error
        except isolation.TimedOutError as error:
            raise BuildTimeoutError(ref=ref, model=model, seconds=spec.timeout or 0.0) from error
        except isolation.ForeignError as error:
            _check_room(place, ref)
            raise BuildFailedError(ref=ref, model=model, error=error.kind, reason=error.text) from error
        except Exception as error:
            if isinstance(error, OSError) and isinstance(
                storage_error(error, action="build", path=place), NoSpaceError
            ):
                raise NoSpaceError(what=ref, needed=None, free=None) from error
            _check_room(place, ref)
            raise BuildFailedError(ref=ref, model=model, error=type(error).__name__, reason=str(error)) from error

    def _why(self, what: Derivation) -> str:
        """Return in what *what* differs from what is here of the same inputs, or models; "" if there is nothing."""
        nearest, nearness = None, (0, 0)
        for entry in self._entries.derived():
            other = entry.derived
            if other is None or other.recipe != what.recipe:
                continue
            same = [part.identity for part in other.inputs] == [part.identity for part in what.inputs]
            akin = [part.ref for part in other.inputs] == [part.ref for part in what.inputs]
            rank = (2 * same + akin, other.created)
            if rank > nearness and rank[0]:
                nearest, nearness = other, rank
        if nearest is None:
            return ""
        found = what.differences(nearest)
        return "; ".join(found[:_SHOWN]) + ("; …" if len(found) > _SHOWN else "")


def _entry(what: Derivation, stored: Stored) -> Entry:
    now = int(time.time())
    facts = what.as_dict()
    if stored.digest.is_tree:
        facts["stamps"] = stamps.taken(stored.path)
    return Entry(
        key=what.ref, digest=stored.digest, path=stored.path, size=stored.size, name=stored.name, source="derived",
        created=now, checked=now, mtime_ns=stored.mtime_ns, derivation=facts,
    )  # fmt: skip


def _facts(paths: Mapping[str, str]) -> dict[str, object]:
    """Return inode, size and mtime of each input, and of each file in one that is a tree; raise InputGoneError."""
    found: dict[str, object] = {}
    for name, path in paths.items():
        try:
            top = os.lstat(path)
            inside = trees.walk(path, follow=True) if stat.S_ISDIR(top.st_mode) else ()
            found[name] = stamps.stamp(top), sorted((below, stamps.stamp(facts)) for below, facts in inside)
        except FileNotFoundError as error:
            raise InputGoneError(path) from error
    return found


def _differing(known: Entry, product: Product) -> str:
    """Return which files of *product* are not those of *known*, for a person."""
    ours = product.leaves()
    listing = None
    if known.digest.is_tree:
        listing = trees.listing_on_record(os.path.dirname(known.path), known.digest)
    if listing is None:
        return "the whole file"
    theirs = {leaf.path: leaf.digest for leaf in listing.files}
    names = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")


def _check_room(place: str, ref: str) -> None:
    """Raise NoSpaceError if the disk of *place* is full: that is why it has failed, whatever the runtime said."""
    try:
        files.check_space(place, 0, what=ref)
    except OSError as error:
        if isinstance(error, ModelCacheError):
            raise


def _discard(staged: str, product: Product | None) -> None:
    commit.discard(staged)
    if product is not None:
        product.discard()
