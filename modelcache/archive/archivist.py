"""The archivist: each write goes to all registered backends, each by its own way; each read asks them by priority."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from sys import getsizeof
from time import monotonic
from time import time as clock
from types import TracebackType
from typing import Any, Self, TypeVar

from .. import configfiles, forks, layout, roots
from ..backends import contents
from ..backends.base import KEY_CHARACTERS_MAX, Archived, encode
from ..backends.contents import Manifest
from ..breaker import DOWN
from ..digest import Digest
from ..errors import (
    ArchiveClosedError,
    BackendError,
    EntryNotFoundError,
    ModelCacheError,
    NotInArchiveError,
    UsageError,
)
from ..objects import Objects
from ..retry import Deadline
from . import exits
from .health import BackendHealth, Dropped
from .lane import Lane
from .queue import Item
from .reading import Landing
from .registration import Registration, check_timeout

T = TypeVar("T")
_FLUSH_S, _SHUTDOWN_S, _PUT_S = 30.0, 10.0, 600.0
_PAGE = 500


class Archivist:
    """Fans writes out to backends, and reads from them by priority.

    Args:
        registrations: The backends; more can be added later.
        root: The cache whose objects are replicated. Default: as for `Cache`.
        exit_timeout: How long what waits may be written when the process ends, in seconds.

    What an earlier process has left in the outbox of a tier of the same name is delivered from now on. All methods may
    be called from any thread. After a fork the child has the same backends and empty queues: what waits is the
    parent's to write.

    Raises:
        UsageError: Names are there twice, a backend lies in the cache itself, an argument makes no sense.
        FormatError: The cache was written by a newer modelcache.
    """

    def __init__(
        self,
        registrations: Iterable[Registration] = (),
        *,
        root: str | os.PathLike[str] | None = None,
        exit_timeout: float = 5.0,
    ) -> None:
        self._exit_s = check_timeout(exit_timeout, 0.0)
        if root is None:
            root = configfiles.root_of(configfiles.load(os.environ)[0], os.environ)
        self._root = layout.default_root({"MODELCACHE_DIR": os.fspath(root)})
        roots.check_format(self._root)
        self._lanes: tuple[Lane, ...] = ()  # Replaced whole, so that a write needs no lock to walk it.
        self._closed = False
        forks.renew_after_fork(self)
        wanted = list(registrations)
        self._check(wanted)
        exits.keep(self)
        try:
            for registration in wanted:
                self.add(registration)
        except BaseException:
            self.shutdown(0)  # Nobody else will: there is no archivist to call.
            raise

    def renew_guard(self) -> None:
        """See `forks`. Events of a child have ids of their own."""
        self._guard = threading.Lock()
        self._origin = os.urandom(10).hex()
        self._numbers = itertools.count()

    # -- which backends --

    def add(self, registration: Registration) -> None:
        """Register one more backend; writes go there from now on.

        Raises:
            UsageError: Its name is taken, or it lies in the cache itself.
            ArchiveClosedError
        """
        with self._guard:
            if self._closed:
                raise ArchiveClosedError(what=f"the backend {registration.name}")
            self._check([*(lane.registration for lane in self._lanes), registration])
            self._lanes = (*self._lanes, Lane(registration, self._root))

    def disable(self, name: str) -> None:
        """Write nothing more to the backend, and do not read from it; what waits is written."""
        self._lane(name).enable(on=False)

    def enable(self, name: str) -> None:
        """Write to the backend again, and read from it."""
        self._lane(name).enable(on=True)

    def remove(self, name: str, timeout: float | None = None) -> bool:
        """Unregister a backend, when what waits for it was written, or after *timeout* seconds (10).

        Returns:
            Whether all was written. Objects that were not wait in the outbox.
        """
        seconds = check_timeout(timeout, _SHUTDOWN_S)
        with self._guard:
            lane = self._lane(name)
            lane.removed = True
            self._lanes = tuple(one for one in self._lanes if one is not lane)
        return lane.end(monotonic() + seconds)

    # -- writes --

    def start(self) -> None:
        """Begin the threads that write, which the first write does otherwise: an interpreter that ends begins none."""
        for lane in self._lanes:
            lane.start()

    def append_events(self, key: str, events: Iterable[Any]) -> None:
        """Append *events* of *key* to all enabled backends, in order. What is queued has not landed when this returns.

        Args:
            key: What they are about, such as a ref.
            events: Each as JSON takes it, or with ``as_dict()``; a mebibyte at most.

        Raises:
            UsageError: An event has no form in JSON; nothing was accepted.
            BackendError: A required backend failed. Of an earlier, queued write: nothing of this call was accepted. Of
                this one: the others have accepted it.
            QueueFullError: A queue with the policy ``error`` is full, or one that is required stayed full.
            ArchiveClosedError
        """
        rest = self._accept(key, events)
        if rest:
            self._finish(rest)

    async def aappend_events(self, key: str, events: Iterable[Any]) -> None:
        """See `append_events`; what has to wait does so in a thread."""
        rest = self._accept(key, events)
        if rest:
            await _in_thread(self._finish, rest)

    def put_object(self, digest: str, *, timeout: float | None = None) -> None:
        """Bring an object of the cache to all enabled backends that hold objects.

        A queued one is filed in the outbox, durably, when this returns, and delivered by this process or the next one.
        A required one has it when this returns (I8).

        Args:
            digest: Of a file or a tree.
            timeout: Longest wait for a required backend with a queue, in seconds (600).

        Raises:
            EntryNotFoundError: The cache has no such object.
            BackendError: A required backend does not have it.
            StorageError: The outbox cannot be written.
            ArchiveClosedError
        """
        seconds = check_timeout(timeout, _PUT_S)
        if self._closed:
            raise ArchiveClosedError(what=f"the object {digest}")
        parsed = Digest.parse(digest)
        stored = Objects(self._root).find(parsed)
        if stored is None:
            raise EntryNotFoundError(ref=parsed, root=self._root)
        lanes = self._enabled()
        if not any(lane.takes_objects for lane in lanes):
            raise UsageError(problem="no enabled backend holds objects", hint="Register one that does: docs/archive.md")
        for lane in lanes:
            lane.check_takes_objects()
        found = stored
        # Those that only file it come first: a required one is waited for, and a direct one writes in this thread.
        lanes.sort(key=lambda lane: (lane.is_direct, lane.registration.is_required))
        _each([partial(lane.put, found, seconds) for lane in lanes])

    async def aput_object(self, digest: str, *, timeout: float | None = None) -> None:  # As above.
        """See `put_object`."""
        await _in_thread(self.put_object, digest, timeout=timeout)

    def resume(self, name: str) -> None:
        """Deliver what has been filed in the outbox of the backend by whatever process. Returns at once."""
        self._lane(name).resume()

    def wait_object(self, name: str, digest: Digest, timeout: float) -> bool:
        """Wait until the backend has an object that was filed, for *timeout* seconds; tell whether it has.

        Raises:
            ModelCacheError: Bringing it has failed, as often as the policy says. If it can be brought at all, it waits.
        """
        return self._lane(name).wait_object(digest, timeout)

    # -- reads --

    def find_object(self, digest: str) -> tuple[str, Manifest] | None:
        """Return the name of the first backend, by priority, that has the object, and what it is made of; else None.

        Raises:
            NotInArchiveError: No backend that answers has it, and some failed.
        """
        parsed = Digest.parse(digest)
        errors: list[ModelCacheError] = []
        for lane, manifest in self._replicas(parsed, errors):
            return lane.name, manifest
        if errors:
            raise NotInArchiveError(what=parsed, asked=self._names(), errors=tuple(errors))
        return None

    def read_object(self, digest: str, to: str | os.PathLike[str]) -> str:
        """Bring the object from the first backend, by priority, that has it whole; return the path *to*.

        Every byte is verified before anything is visible there. A backend that fails, or holds something else, is
        passed over; what had come is not asked for again. A file that is at *to* is replaced.

        Raises:
            NotInArchiveError: No backend that answers has it whole; ``errors`` tells why.
            StorageError, NoSpaceError: *to* cannot be written.
            UsageError: *to* is there, and it is a tree.
        """
        parsed = Digest.parse(digest)
        errors: list[ModelCacheError] = []
        for lane, manifest in self._replicas(parsed, errors):
            backend, patience = lane.registration.backend, Deadline(None, ref=lane.name)
            with Landing(manifest, os.fspath(to)) as landing:
                try:
                    lane.breaker.call(partial(landing.fill, backend), patience=patience, size=manifest.size)
                except (BackendError, NotInArchiveError) as error:
                    errors.append(error)
                    continue
                return landing.publish()
        raise NotInArchiveError(what=parsed, asked=self._names(), errors=tuple(errors))

    async def aread_object(self, digest: str, to: str | os.PathLike[str]) -> str:
        """See `read_object`."""
        return await _in_thread(self.read_object, digest, to)

    def read_events(self, key: str | None = None, *, since: float = 0.0) -> Iterator[Archived]:
        """Yield the events of *key* (of all keys: None) that were accepted *since* then, each once.

        They are those of the first backend, by priority, that answers; if it fails on the way, the next one goes on.

        Raises:
            NotInArchiveError: None answers.
        """
        errors: list[ModelCacheError] = []
        seen: set[str] = set()
        for lane in self._readable():
            try:
                for archived in _events(lane, key, since):
                    if archived.id not in seen:
                        seen.add(archived.id)
                        yield archived
            except (BackendError, NotInArchiveError) as error:
                errors.append(error)
            else:
                return
        raise NotInArchiveError(what="an archive of events", asked=self._names(), errors=tuple(errors))

    async def aread_events(self, key: str | None = None, *, since: float = 0.0) -> AsyncIterator[Archived]:
        """See `read_events`."""
        found = self.read_events(key, since=since)
        while page := await _in_thread(lambda: list(islice(found, _PAGE))):
            for archived in page:
                yield archived

    # -- the end of it --

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was accepted has landed, for *timeout* seconds (30) at most; tell whether it has.

        Raises:
            BackendError: A required backend has failed; what it failed with waits, and is tried again.
        """
        until = monotonic() + check_timeout(timeout, _FLUSH_S)
        lanes = self._lanes
        for lane in lanes:
            lane.hurry(on=True)
        try:
            done = [lane.flush(until) for lane in lanes]
        finally:
            for lane in lanes:
                lane.hurry(on=False)
        _each([lane.raise_pending for lane in lanes])
        return all(done)

    async def aflush(self, timeout: float | None = None) -> bool:  # As above.
        """See `flush`."""
        return await _in_thread(self.flush, timeout)

    def shutdown(self, timeout: float | None = None) -> bool:
        """Take nothing more, write what waits for *timeout* seconds (10) at most, and end. A second one does nothing.

        A backend that is down is tried once more. Events that could not be written are dropped and counted; objects
        stay in the outbox.

        Returns:
            Whether all was written.

        Raises:
            BackendError: A required backend has failed; all is shut down all the same.
        """
        seconds = check_timeout(timeout, _SHUTDOWN_S)
        with self._guard:
            if self._closed:
                return True
            self._closed = True
        exits.forget(self)
        lanes = self._lanes
        for lane in lanes:
            lane.close()
        until = monotonic() + seconds
        done = [lane.end(until) for lane in lanes]
        _each([lane.raise_pending for lane in lanes])
        return all(done)

    async def ashutdown(self, timeout: float | None = None) -> bool:  # As above.
        """See `shutdown`."""
        return await _in_thread(self.shutdown, timeout)

    def drain_at_exit(self) -> None:
        """See `exits`."""
        try:
            self.shutdown(self._exit_s)
        except ModelCacheError:
            return  # It has been logged; nobody is left to catch it.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.ashutdown()

    # -- how it is --

    def health(self) -> dict[str, BackendHealth]:
        """Return how each backend is, by name."""
        return {lane.name: lane.health() for lane in self._lanes}

    def dropped(self, name: str) -> tuple[Dropped, ...]:
        """Return what was not written to the backend, the last thousand; `health` counts all."""
        return self._lane(name).ledger.last()

    # -- inside --

    def _accept(self, key: str, events: Iterable[Any]) -> list[Callable[[], None]]:
        """Do what needs no waiting; return what is left to do."""
        if self._closed:
            raise ArchiveClosedError(what="an event")
        if not isinstance(key, str) or not 0 < len(key) <= KEY_CHARACTERS_MAX:
            raise UsageError(problem=f"{key!r:.100} is no key: text, {KEY_CHARACTERS_MAX} characters at most")
        if not key.isascii():
            _check_text(key)
        if isinstance(events, str | bytes | Mapping):
            raise UsageError(problem="append_events() takes several events: give a list, with one in it if need be")
        lanes = self._enabled()
        for lane in lanes:
            lane.raise_pending()
        items, starts, now, since = [], True, clock(), monotonic()
        for event in events:
            # Encoded here, once for all backends: what cannot be archived is told to whoever wrote it.
            identity = f"{self._origin}.{next(self._numbers)}"
            line = encode(event)
            items.append(Item(key, event, line, identity, now, since, starts, getsizeof(line)))
            starts = False
        if not items:
            return []
        rest: list[Callable[[], None]] = []
        direct: list[Callable[[], None]] = []
        for lane in lanes:
            if lane.is_direct:
                direct.append(partial(lane.write, items))
                continue
            try:
                left = lane.offer(items)
            except BackendError as error:
                rest.append(_raising(error))
                continue
            if left:
                rest.append(partial(lane.wait, left))
        return rest + direct

    def _finish(self, rest: Sequence[Callable[[], None]]) -> None:
        _each(rest)

    def _replicas(self, digest: Digest, errors: list[ModelCacheError]) -> Iterator[tuple[Lane, Manifest]]:
        """Yield the backends that have a manifest of the object, by priority; add others' failures to *errors*."""
        for lane in self._readable():
            if not lane.takes_objects:
                continue
            backend, patience = lane.registration.backend, Deadline(None, ref=lane.name)
            try:
                found = lane.breaker.call(partial(contents.manifest, backend, digest), patience=patience)
            except (BackendError, NotInArchiveError) as error:
                errors.append(error)
                continue
            if found is not None:
                yield lane, found

    def _readable(self) -> list[Lane]:
        """Return the backends that may be asked, those first that have the lowest number."""
        lanes = [lane for lane in self._enabled() if not lane.breaker.is_hanging]
        lanes.sort(key=lambda lane: (lane.breaker.state == DOWN, lane.registration.priority))
        return [lane for lane in lanes if hasattr(lane.registration.backend, "read_events") or lane.takes_objects]

    def _enabled(self) -> list[Lane]:
        return [lane for lane in self._lanes if lane.enabled]

    def _names(self) -> tuple[str, ...]:
        return tuple(lane.name for lane in self._enabled())

    def _lane(self, name: str) -> Lane:
        for lane in self._lanes:
            if lane.name == name:
                return lane
        raise UsageError(problem=f"no backend is called {name!r:.100}", hint=f"There are: {', '.join(self._names())}")

    def _check(self, registrations: Sequence[Registration]) -> None:
        """Raise UsageError if *registrations* cannot be together, or lead back here."""
        seen: set[str] = set()
        for registration in registrations:
            if not isinstance(registration, Registration):
                raise UsageError(problem=f"a Registration is expected, not {type(registration).__name__}")
            if registration.name.lower() in seen:  # It is also a directory's, where capital letters may not count.
                raise UsageError(problem=f"two backends are called {registration.name!r}: a name is one's own")
            seen.add(registration.name.lower())
            location = getattr(registration.backend, "location", "")
            path = location.removeprefix("file://") if isinstance(location, str) else ""
            root = os.path.realpath(self._root)
            if path.startswith("/") and f"{os.path.realpath(path)}/".startswith(f"{root}/"):
                raise UsageError(
                    problem=f"the backend {registration.name} lies in the cache {self._root}: a copy of itself",
                    hint="Give it a directory of its own, best on another disk",
                )


def _events(lane: Lane, key: str | None, since: float) -> Iterator[Archived]:
    """Yield the events that the backend has, page by page; only what has not begun is tried again."""
    backend, patience = lane.registration.backend, Deadline(None, ref=lane.name)

    def begin() -> tuple[Iterator[Archived], list[Archived]]:
        found = iter(backend.read_events(key, since=since))
        return found, list(islice(found, _PAGE))

    found, page = lane.breaker.call(begin, patience=patience)
    while page:
        yield from page
        page = lane.breaker.call(lambda: list(islice(found, _PAGE)), patience=patience, once=True)


async def _in_thread(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    import asyncio  # 40 ms, which who has no loop does not pay.

    return await asyncio.to_thread(call, *arguments, **options)


def _each(calls: Iterable[Callable[[], None]]) -> None:
    """Make all *calls*, then raise the first error of theirs; what the others raised is noted on it."""
    errors: list[ModelCacheError] = []
    for call in calls:
        try:
            call()
        except ModelCacheError as error:
            errors.append(error)
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"also: {other}")
        raise errors[0]


def _check_text(key: str) -> None:
    """Raise UsageError if *key* has no form in UTF-8: it would stay in every queue for ever."""
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise UsageError(problem=f"{key!r:.100} is no key: {error}") from error


def _raising(error: ModelCacheError) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call
