"""One get, from the question to the entry: what the cache can answer itself, and when a fetch is needed.

The order of a look (I1, I6): record → object there, of the recorded size and mtime → use. A touched object is hashed
before it is believed. What a fetch needs is imported and made when the first one begins: it takes a tenth of a second.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import time
from typing import TYPE_CHECKING, Any

from failpoints import fail_point

from . import files, hit, layout, reference
from .errors import (
    ClosedError,
    DigestMismatchError,
    EntryNotFoundError,
    LocalNotFoundError,
    ModelCacheError,
    NetworkError,
    NoSpaceError,
    StorageError,
)
from .events import Event
from .forks import renew_after_fork
from .question import Ask, Limits
from .records import Entries, Entry
from .reference import Ref
from .report import Counts

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from .digest import Digest
    from .fetch import Fetcher
    from .flights import Flights
    from .gate import Gate
    from .retry import Deadline
    from .sources import Source
    from .tiers import Tiers
    from .usage.recorder import Recorder

_THREADS_MAX = 64
_Work = Callable[["Deadline"], Entry]


class Getter:
    """Answers the gets of one cache."""

    def __init__(
        self,
        root: str,
        limits: Limits,
        sources: tuple[Source, ...],
        tell: Callable[[Event], object],
        recorder: Recorder | None = None,
    ) -> None:
        self.root, self.limits, self._recorder = root, limits, recorder
        self.hits = self.misses = 0
        self._sources, self._tell = sources, tell
        self._entries = Entries(root)
        self._tiers: Tiers | None = None
        self.reaches = False  # Buckets may be asked though no source is.
        self.deliver: Callable[[list[str], Digest], None] | None = None  # See `Fetcher`.
        self._closed = False
        renew_after_fork(self)
        self._fetching: tuple[Fetcher, Flights[Entry]] | None = None
        self._executor: tuple[int, ThreadPoolExecutor] | None = None
        self._deadlines: weakref.WeakSet[Deadline] = weakref.WeakSet()
        self._told_over: set[str] = set()  # Of what has been told already.

    def renew_guard(self) -> None:
        """Replace the lock, which another thread may have held at a fork."""
        self._guard = threading.Lock()

    @property
    def tiers(self) -> Tiers | None:
        """What is below, made when it is first needed: a hit needs none of it. None if there are no tiers."""
        if self._tiers is None and self.limits.tiers:
            from .tiers import Tiers

            made = Tiers(self.limits.tiers, self.root, self._tell)
            with self._guard:
                self._tiers = self._tiers or made
        return self._tiers

    def entry(self, ask: Ask, deadline: Deadline) -> Entry:
        """Return the answer: a hit, or what a fetch brings."""
        try:
            return self.look(ask) or self.fetched(ask, deadline)
        except ModelCacheError as error:
            self.count_error(ask, error)
            raise

    def fetched(self, ask: Ask, deadline: Deadline) -> Entry:
        """Return what a fetch brings; `look` came to nothing."""
        try:
            with self._led(ask) as led:
                found = self._flights().run(ask.flight, led(self._work(ask)), deadline)
            entry = self._admitted(ask, found)
        except (NetworkError, StorageError, NoSpaceError) as error:
            entry = self._stale(ask, error)
        self._count(ask, entry, was_here=False)
        return self._wanted_for(ask, entry)

    async def aentry(self, ask: Ask, deadline: Deadline) -> Entry:
        """Do what `entry` does without blocking the event loop."""
        try:
            return await self._aentry(ask, deadline)
        except ModelCacheError as error:
            self.count_error(ask, error)
            raise

    async def _aentry(self, ask: Ask, deadline: Deadline) -> Entry:
        if self._is_quick(ask):
            entry = self.look(ask)
        else:
            from asyncio import to_thread

            entry = await to_thread(self.look, ask)  # It may have to hash a file.
        if entry is not None:
            return entry
        try:
            with self._led(ask) as led:
                entry = await self._flights().arun(ask.flight, led(self._work(ask)), deadline, self.threads())
        except (NetworkError, StorageError, NoSpaceError) as error:
            entry = self._stale(ask, error, admit=False)
        self._count(ask, entry, was_here=False)
        if ask.policies or self._changes(ask, entry):
            from asyncio import to_thread

            # It may have to read all of it, and to sync a record.
            return await to_thread(lambda: self._wanted_for(ask, self._admitted(ask, entry)))
        return entry

    def count_error(self, ask: Ask, error: ModelCacheError) -> None:
        """Count that *ask* was answered by *error*."""
        if self._recorder is not None:
            self._recorder.error(ask.ref.key, type(error).__name__)

    @contextmanager
    def _led(self, ask: Ask) -> Iterator[Callable[[_Work], _Work]]:
        """Give what stands for some work, and count it if, at the end of the block, another thread has done it."""
        led = False

        def leading(work: _Work) -> _Work:
            def do(deadline: Deadline) -> Entry:
                nonlocal led
                led = True
                return work(deadline)

            return do

        if self._recorder is None:
            yield _same
            return
        yield leading
        if not led:
            self._recorder.coalesced(ask.ref.key)

    def _count(self, ask: Ask, entry: Entry, *, was_here: bool) -> None:
        """Count that *ask* was answered by *entry*, which was here, or has come."""
        if self._recorder is None:
            return
        if not ask.for_use:
            self._recorder.warmed(entry.key, entry.digest, entry.size, was_here=was_here)
        elif was_here:
            self._recorder.hit(entry.key, entry.digest, entry.size)
        else:
            self._recorder.brought(entry.key, entry.digest, entry.size)

    def _wanted_for(self, ask: Ask, entry: Entry) -> Entry:
        """Return *entry* with the time that *ask* wants it for on record; a tier's keeps its own."""
        if not self._changes(ask, entry):
            return entry
        return self.noted(entry, ttl=ask.ttl)

    def _changes(self, ask: Ask, entry: Entry) -> bool:
        """Tell whether *ask* wants *entry*, of this cache, for another time than is on record."""
        return ask.ttl not in {None, entry.ttl} and entry.path.startswith(f"{self.root}/")

    def noted(self, entry: Entry, **new: Any) -> Entry:
        """Return *entry* with what is *new* of it, on record too, unless that cannot be written."""
        try:
            self._note(entry, lambda now: now.digest == entry.digest, new)
        except ModelCacheError as error:
            logging.getLogger("modelcache").warning("%s cannot be noted on record: %s", entry.key, error.summary)
        return replace(entry, **new)

    def _note(self, entry: Entry, fits: Callable[[Entry], bool], new: dict[str, Any]) -> None:
        """Write what is *new* of *entry* on record, if what is there now *fits*, and its object is there (I2)."""
        from .objects import Objects

        objects = Objects(self.root)
        with objects.announced(entry.digest):
            now = self._entries.read(entry.key)
            if now is not None and fits(now) and objects.find(now.digest, now.name) is not None:
                fail_point("getting.before-note")
                self._entries.write(replace(now, **new))

    def look(self, ask: Ask) -> Entry | None:
        """Return the entry that answers *ask* without a fetch, None if one is needed.

        Raises:
            LocalNotFoundError, EntryNotFoundError: None may be made.
            PolicyError: A policy refuses the question, or what is here.
        """
        if ask.policies:
            ask.policies.check_question(ask.ref, ask.digest)
        entry = ask.known = self.find(ask)
        named = not ask.ref.scheme
        used = entry is not None and ask.offer is None and ask.takes(entry)
        if entry is not None and used and self._entries.stamp_use(entry.key) and not self._stays(entry):
            entry = ask.known = self.find(ask)  # It went just before its use was on record.
        if entry is not None and ask.takes(entry):
            if ask.force and ask.local:
                raise LocalNotFoundError(
                    ref=ask.ref.key,
                    root=self.root,
                    reason="force_download needs a connection, but the cache is offline",
                )
            self.hits += 1
            self._count(ask, entry, was_here=True)
            if 0 < entry.expires <= time():
                self._tell_over(ask, entry)
            return self._wanted_for(ask, self._admitted(ask, entry))
        self.misses += 1
        if self._recorder is not None and ask.for_use:
            self._recorder.miss(ask.ref.key)
        if ask.offer is not None and not (ask.force and ask.local):
            return None  # It is promoted.
        if named:
            other = self._entries.read(ask.ref.key)
            if other is not None and ask.digest not in {None, other.digest}:
                raise DigestMismatchError(ref=ask.ref.key, expected=str(ask.digest), actual=other.digest)
            raise EntryNotFoundError(ref=ask.ref.key, root=self.root)
        if ask.local:
            reason = "the cache is offline" if self.limits.offline else "local_files_only was given"
            raise LocalNotFoundError(ref=ask.ref.key, root=self.root, reason=reason)
        return None

    def find(self, ask: Ask) -> Entry | None:
        """Return the entry that holds what *ask* names, whole, here or in a tier; None if there is none."""
        entry = self._find(ask)
        tiers = None if entry is not None or ask.own else self.tiers
        if tiers is None:
            return entry
        ask.offer = tiers.find(ask.ref, ask.digest, verify=ask.verify, local=ask.local and not self.reaches)
        if ask.offer is not None and ask.archive is not None:
            told = ask.offer.entry
            ask.offer = ask.offer if told is not None and told.revision == ask.archive else None
        return ask.offer.entry if ask.offer is not None and ask.offer.in_place and not ask.promote else None

    def _find(self, ask: Ask) -> Entry | None:
        """Return the entry that holds what *ask* names, whole, and here."""
        entry = ask.record = self._entries.read(ask.ref.key)
        ask.unread = entry is None and os.path.lexists(self._entries.path(ask.ref.key))
        if entry is None or (ask.digest is not None and entry.digest != ask.digest):
            if ask.digest is None or not ask.ref.scheme:
                return None  # A name means what was put under it, and nothing else.
            if not os.path.isdir(f"{self.root}/{layout.OBJECTS}/{layout.object_name(ask.digest)}"):
                return None
            from .intake import link

            return link(self.root, ask.ref, ask.digest, admit=self._judge(ask))
        if ask.archive not in {None, entry.revision}:
            return None
        found = self._stat(entry)
        if found is None:
            from .intake import link

            return link(self.root, ask.ref, entry.digest, lost=entry)
        if ask.verify == "stat" and hit.is_same(found, entry.size, entry.mtime_ns):
            return entry
        from .verification import examine, is_sampled, sample

        if ask.verify == "sample" and is_sampled(self.root, entry) and hit.is_same(found, entry.size, entry.mtime_ns):
            return entry
        finding = examine(self.root, entry)
        if finding.state == "corrupt":
            self._tell(Event("quarantined", entry.key, detail=finding.moved_to))
        if finding.state != "ok":
            return None
        return self.noted(entry, sample=sample(self.root, entry)) if ask.verify == "sample" else entry

    def _stat(self, entry: Entry) -> os.stat_result | None:
        """Return what ``stat`` says of the content of *entry*; None if it is gone, or behind a link."""
        found = _found(entry.path)
        if found is not None or not files.listing(f"{self.root}/{layout.TRASH}"):
            return found
        # A process that died while it removed another name of the same content may have taken it along.
        from .sweep import sweep

        sweep(self.root)
        return _found(entry.path)

    def _stays(self, entry: Entry) -> bool:
        """Tell whether *entry*, whose use has just been recorded, is out of reach of a gc that had not seen that."""
        if not os.access(f"{self.root}/{layout.STAGING}", os.W_OK):
            return True
        from .objects import Objects

        Objects(self.root).await_removal(entry.digest)
        return hit.stands(entry.path, entry.size, entry.mtime_ns)

    def _admitted(self, ask: Ask, entry: Entry) -> Entry:
        """Return *entry* if the policies in force let it be served; what they let in before is on record.

        Raises:
            PolicyError: They do not.
        """
        if not ask.policies:
            return entry
        gate = self._gate(ask)
        assert gate is not None
        place = reference.parse(entry.source) if entry.source != "put" else ask.ref
        if place.scheme and ask.patterns is None and not ask.digest:
            ask.policies.check_announced(ask.ref, ask.digest, entry.announced)
        if entry.admitted == gate.mark:
            return entry
        found = self._judged(ask, entry)
        try:
            self._note(entry, lambda now: now.serial == entry.serial, {"admitted": found.admitted})
        except (StorageError, NoSpaceError):
            pass  # It is looked at again next time.
        return found

    def _judge(self, ask: Ask) -> Callable[[Entry], Entry] | None:
        """Return what policies have to say before an entry is recorded, None if there are none."""
        return (lambda entry: self._judged(ask, entry)) if ask.policies else None

    def _judged(self, ask: Ask, entry: Entry) -> Entry:
        """Return *entry*, looked at and with the mark of the policies; raise PolicyError."""
        gate = self._gate(ask)
        assert gate is not None
        place = reference.parse(entry.source) if entry.source != "put" else ask.ref
        if place.scheme == "hf" and entry.revision:
            place = place.at_revision(entry.revision)  # Where its signature is that of these bytes.
        host = self.host_of(place) if place.scheme else ""
        return gate.check_entry(entry, host, lambda: self._signature(ask, place, gate))

    def _gate(self, ask: Ask) -> Gate | None:
        if not ask.policies:
            return None
        from .gate import Gate

        return Gate(self.root, ask.policies)

    def host_of(self, place: Ref) -> str:
        """Return whom a request for *place* would go to first."""
        self._flights()
        assert self._fetching is not None
        return self._fetching[0].means.registry.source(place).host(place.key)

    def _signature(self, ask: Ask, place: Ref, gate: Gate) -> bytes:
        """Return the signature beside the file that is here already."""
        from . import sidecar
        from .gate import missing

        if ask.local:
            raise missing(
                gate, ask.ref.key, "it was not verified when it came, and its signature is not asked for offline"
            )
        if not place.scheme:
            raise missing(gate, ask.ref.key, "it was put here without one")
        self._flights()
        assert self._fetching is not None
        registry, deadline = self._fetching[0].means.registry, self.deadline(ask.ref)
        return sidecar.bring(gate, ask.ref, place, registry, self.limits.timeout, self.limits.retry, deadline)

    def _is_quick(self, ask: Ask) -> bool:
        """Tell whether `look` is sure to find *ask* by one ``stat``."""
        if ask.policies or ask.ttl is not None:
            return False
        found = hit.look(self.root, ask.ref.key) if ask.verify == "stat" else None
        return (
            found is not None
            and ask.archive is None
            and (ask.digest is None or found.object == layout.object_name(ask.digest))
        )

    def deadline(self, ref: Ref) -> Deadline:
        """Return a new deadline for a get of *ref*, which `close` cancels."""
        return self.patience(ref.key, self.limits.timeout.total)

    def patience(self, key: str, seconds: float | None) -> Deadline:
        """Return a new deadline of *seconds* for *key*, which `close` cancels."""
        from .retry import Deadline

        deadline = Deadline(seconds, ref=key)
        with self._guard:
            self._deadlines.add(deadline)
        return deadline

    def counts(self) -> Counts:
        """Return what fetching has cost so far."""
        counts = self._fetching[0].means.counts if self._fetching else Counts()
        return counts if self._tiers is None else replace(counts, refused=self._tiers.refused)

    def close(self) -> None:
        """Cancel what is being fetched, and let go of threads and connections."""
        with self._guard:
            self._closed = True
            deadlines = tuple(self._deadlines)
        for deadline in deadlines:
            deadline.cancel()
        if self._executor is not None:
            self._executor[1].shutdown(wait=self._executor[0] == os.getpid())
        if self._fetching is not None:
            self._fetching[0].means.registry.close()
        if self._tiers is not None:
            self._tiers.close()

    def _work(self, ask: Ask) -> Callable[[Deadline], Entry]:
        from .download import Job

        gate = self._gate(ask)
        if gate is not None:
            gate.prepare()
        told = None if ask.offer is None else ask.offer.entry
        aged = ask.offer is not None and (ask.max_age is not None if told is None else ask.is_stale(told))
        refresh = ask.force or ask.known is not None or aged
        conditional = ask.known is not None
        job = Job(
            ask.ref, ask.digest, ask.size, ask.mirrors, ask.record, refresh,
            unless_changed=conditional, no_news=ask.force and ask.unread,
            offer=ask.offer, local=ask.local or not ask.ref.scheme, gate=gate, archive=ask.archive,
            ttl=ask.ttl if ask.ttl is not None or ask.record is None else ask.record.ttl,
        )  # fmt: skip
        self._flights()
        assert self._fetching is not None
        fetcher, patterns = self._fetching[0], ask.patterns
        if patterns is None and ask.offer is not None and ask.offer.listing is not None:
            from .patterns import Patterns

            patterns = Patterns.of(None, None)  # A name, which does not say that it is a tree's.
        if patterns is None:
            return lambda deadline: fetcher.fetch(job, deadline)
        return lambda deadline: fetcher.fetch_tree(job, patterns, deadline, jobs=self.limits.concurrency)

    def _tell_over(self, ask: Ask, entry: Entry) -> None:
        """Tell once that the time of *entry* is over, and that it is served because no source can be asked."""
        if entry.key in self._told_over:
            return
        self._told_over.add(entry.key)
        why = "the cache is offline" if ask.ref.scheme else "it was put here, so that no source can be asked"
        self._tell(Event("stale", entry.key, detail=f"its time is over, and it is served: {why}"))

    def _stale(self, ask: Ask, error: ModelCacheError, *, admit: bool = True) -> Entry:
        """Return what is cached where only its age asked for a fetch that failed; else raise *error*."""
        if ask.known is None and ask.offer is not None and not ask.force and isinstance(error, NetworkError):
            # It was promoted, and then its source was asked. What a disk refuses may be its very record (I3).
            ask.known = self._find(ask)
        if ask.known is None or ask.force:
            raise error
        self._tell(Event("stale", ask.ref.key, detail=f"{error.summary}; the cached content is served"))
        if self._recorder is not None:
            self._recorder.kept(ask.ref.key)
        return self._admitted(ask, ask.known) if admit else ask.known

    def _flights(self) -> Flights[Entry]:
        """Return what fetches need, made when the first one begins: it takes a tenth of a second to import."""
        if self._fetching is not None:
            return self._fetching[1]
        # Before the lock is taken: others, and forks, must not have to wait for it.
        from .fetch import Fetcher
        from .flights import Flights
        from .gc import Room
        from .sources import Registry
        from .transfer import Throttle

        tiers = self.tiers
        with self._guard:
            if self._fetching is None:
                fetcher = Fetcher(
                    self.root,
                    Registry(self._sources),
                    retry_policy=self.limits.retry,
                    timeout=self.limits.timeout,
                    lock_timeout=self.limits.lock_timeout,
                    on_event=self._tell,
                    archive_limits=self.limits.archives,
                )
                if self.limits.bandwidth is not None:
                    fetcher.means.throttle = Throttle(self.limits.bandwidth)
                if self.limits.capacity is not None:
                    fetcher.means.room = Room(self.root, self.limits.capacity, self.limits.grace, self._tell)
                fetcher.means.tiers, fetcher.deliver, fetcher.reaches = tiers, self.deliver, self.reaches
                self._fetching = fetcher, Flights()
            return self._fetching[1]

    def threads(self) -> ThreadPoolExecutor:
        """Return the threads that work for callers that must not block."""
        from concurrent.futures import ThreadPoolExecutor

        with self._guard:
            if self._closed:
                raise ClosedError(root=self.root)
            if self._executor is None or self._executor[0] != os.getpid():
                # Whoever asks for many at once says how many (`aget_many`); a single one need not wait for others.
                pool = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="modelcache-fetch")
                self._executor = os.getpid(), pool
            return self._executor[1]


def _same(work: _Work) -> _Work:
    return work


def _found(path: str) -> os.stat_result | None:
    """Return what ``stat`` says of the content *path* of an object; None if nothing is there, or behind a link."""
    try:
        return os.lstat(path) if hit.is_directory(os.path.dirname(path)) else None
    except OSError:
        return None
