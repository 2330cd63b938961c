"""One model from its source into the cache: single flight, retried, resumed, verified, durable (DESIGN.md section 9).

Order of a fetch (I1, I2, I3, I5): lock the key → look again → claim a partial → stream into it → verify size and
digest → publish the object → record the entry → let go. Whoever waited for the lock finds the entry, or the note of
why there is none, and asks nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from . import hit, layout, locks, notes, roots
from .config import ArchiveLimits, RetryPolicy, Timeout
from .digest import Digest
from .download import BELOW, Download, Job, Means, reason
from .errors import (
    CancelledError,
    DeadlineError,
    MirrorsExhaustedError,
    ModelCacheError,
    NetworkError,
    NoSpaceError,
    PolicyError,
    StorageError,
)
from .events import Event, Listener
from .patterns import Patterns
from .policy import PLACE_RULES
from .records import Entry
from .reference import parse
from .repository import TreeDownload
from .retry import Deadline
from .sources import Registry, RemoteListing
from .sweep import sweep
from .turns import turn

if TYPE_CHECKING:
    from .fleet import Sharing
    from .levels.base import Offer
    from .together import Together

_BRIEF_S = 5.0  # A host that asks to wait longer is left for a mirror, where there is one.


class Fetcher:
    """Fetches into the cache at *root*.

    Attributes:
        reaches: Whether buckets may be asked though no source is.
        deliver: Called with the tiers, by name, that something new waits for, and its digest, when the lock of
            its key is free again. What it raises is the fetch's.
    """

    def __init__(
        self,
        root: str,
        registry: Registry,
        *,
        retry_policy: RetryPolicy,
        timeout: Timeout,
        lock_timeout: float,
        on_event: Listener,
        archive_limits: ArchiveLimits | None = None,
    ) -> None:
        self._archive_limits = archive_limits or ArchiveLimits()
        self.means = Means(root, registry, timeout, on_event)
        self._policy, self._lock_timeout = retry_policy, lock_timeout
        self._swept = False
        self.reaches = False
        self.deliver: Callable[[list[str], Digest], None] | None = None

    def fetch(self, job: Job, deadline: Deadline) -> Entry:
        """Return the entry of *job*, fetched by this process or by the one that was faster.

        Raises:
            ModelCacheError: Any leaf; nothing half-written is visible, and what had come can be resumed.
        """

        def promote(job: Job, offer: Offer, policy: RetryPolicy = BELOW) -> Entry:
            assert offer.entry is not None
            place = offer.place or parse(offer.entry.path)
            return Download(self.means, job, place, policy, deadline, below=True).run()

        def ask(job: Job) -> Entry:
            return self._for_all(job, deadline, partial(promote, policy=self._policy), self._fetch)

        return self._delivered(job, self._once(job, deadline, lambda: self._promoted(job, promote, ask)))

    def fetch_tree(self, job: Job, patterns: Patterns, deadline: Deadline, *, jobs: int) -> Entry:
        """Do what `fetch` does for a tree: of the files at its source those that *patterns* let through.

        Raises:
            ModelCacheError: As `fetch`.
        """

        def work(job: Job, deadline: Deadline, means: Means, listing: RemoteListing | None = None) -> Entry:
            if listing is None and _is_archive(job):
                from .archived import ArchiveDownload  # With tarfile and zipfile it takes 20 ms to import.

                limits = self._archive_limits
                return ArchiveDownload(means, job, patterns, self._policy, deadline, limits).run()
            return TreeDownload(means, job, patterns, self._policy, deadline, jobs=jobs, listing=listing).run()

        def promote(job: Job, offer: Offer) -> Entry:
            return work(job, deadline, self.means, offer.listing)

        def ask(job: Job) -> Entry:
            return self._for_all(job, deadline, promote, work)

        return self._delivered(job, self._once(job, deadline, lambda: self._promoted(job, promote, ask)))

    def _for_all(
        self,
        job: Job,
        deadline: Deadline,
        promote: Callable[[Job, Offer], Entry],
        fetch: Callable[[Job, Deadline, Means], Entry],
    ) -> Entry:
        """Return what *fetch* brings, on this machine, or on one that was faster, where a tier has that settled."""
        level = None if self.means.tiers is None else self._together.level(job)
        if level is None:
            return fetch(job, deadline, self.means)

        def shared(job: Job, deadline: Deadline, sharing: Sharing | None) -> Entry:
            means = copy(self.means)
            means.sharing = sharing
            return fetch(job, deadline, means)

        return self._together.run(
            job,
            level,
            deadline,
            promote=promote,
            fetch=shared,
            heed=lambda note: self._heeds(note, job),
            asked=lambda: self._asked(job),
        )

    @cached_property
    def _together(self) -> Together:
        from .together import Together  # With `fleet` it takes 6 ms to import, which who has no tiers does not pay.

        return Together(self.means)

    def _delivered(self, job: Job, entry: Entry) -> Entry:
        """Return *entry*, brought to the tiers that it waits for, or on the way there."""
        if job.filed and self.deliver is not None:
            self.deliver(job.filed, entry.digest)
        return entry

    def _once(self, job: Job, deadline: Deadline, work: Callable[[], Entry]) -> Entry:
        """Return what *work* brings, or what another process has brought meanwhile."""
        roots.make_root(self.means.root)
        for place in job.places:
            self.means.registry.check(place)  # An unknown scheme is told before anything is waited for.
        with self._turn(job, deadline) as (held, seen):
            entry = seen or self._arrived(job)
            if entry is not None:
                self._tell(job, "coalesced", total=entry.size)
                return entry
            if held is not None and held.note:
                raise notes.error_in(held.note)
            try:
                roots.prepare_root(self.means.root)
                if self.means.tiers is not None:
                    self.means.tiers.note_outages()
                if not self._swept:  # Whoever fetches clears up too, once: those who wait have no time for it.
                    self._swept = True
                    sweep(self.means.root)
                return work()
            except ModelCacheError as error:
                self.means.counts.failed += 1
                self._tell(job, "failed", detail=error.summary, error=type(error).__name__)
                if held is not None and notes.is_for_all(error):
                    held.leave_note(notes.note(error, self._asked(job)))
                raise

    @contextmanager
    def _turn(self, job: Job, deadline: Deadline) -> Iterator[tuple[locks.Turn | None, Entry | None]]:
        """Hold the key's lock for the block, or know why not: without a turn the work is done without it (I9).

        The entry is what another process has brought meanwhile, if that was seen.
        """
        entry: Entry | None = None

        def done() -> bool:
            nonlocal entry
            entry = self._arrived(job)
            return entry is not None

        with turn(
            self.means.root,
            job.ref.key,
            timeout=self._lock_timeout,
            deadline=deadline,
            done=done,
            heed=lambda note: self._heeds(note, job),
            doing="fetching",
            tell=lambda detail: self._tell(job, "waiting", detail=detail),
        ) as held:
            yield held, entry

    def _asked(self, job: Job) -> list[str]:
        """Return what an error of *job* speaks of: the places, what they were asked for, within which limits."""
        sources = [(self.means.registry.source(place), place) for place in job.places]
        personal = any(source.is_personal(place.url) for source, place in sources)
        return [
            *(f"{place.key} at {source.host(place.key)}" for source, place in sources),
            f"archive={job.archive}, {self._archive_limits}",
            f"digest={job.digest}, size={job.size}, {self.means.timeout}, {self._policy}, {self.means.room}",
            "sources" if not job.local else f"tier={job.offer and job.offer.tier}",
            f"policies={'' if job.gate is None else job.gate.mark}",
            "with credentials" if personal else "without credentials",
        ]

    def _heeds(self, note: bytes, job: Job) -> bool:
        """Tell whether the error in *note* would be that of *job* too."""
        asked = self._asked(job)
        return notes.covers(note, asked) and not (notes.is_personal(note) and "with credentials" in asked)

    def _arrived(self, job: Job) -> Entry | None:
        """Return the entry if what *job* wants is in the cache, recorded since *job* was made."""
        entry = self.means.entries.read(job.ref.key)
        if entry is None or job.no_news or (job.digest is not None and entry.digest != job.digest):
            return None
        if job.archive not in {None, entry.revision}:
            return None
        if job.known is not None and entry.serial == job.known.serial:
            return None  # It is still the one that will not do.
        return entry if hit.stands(entry.path, entry.size, entry.mtime_ns) else None

    def _promoted(self, job: Job, promote: Callable[[Job, Offer], Entry], ask: Callable[[Job], Entry]) -> Entry:
        """Return what *promote* makes of what a tier has; what *ask* brings if there is nothing, or it will not do."""
        if job.offer is None:
            return ask(job)
        entry = job.offer.entry
        digest, size = (job.digest, job.size) if entry is None else (entry.digest, entry.size)
        if job.gate is not None:
            try:
                self._check_origin(job, entry)
            except ModelCacheError:
                if job.local:
                    raise
                return ask(replace(job, offer=None))  # Which is refused, or comes from where it may.
        here = replace(job, digest=digest, size=size, known=None, refresh=False, unless_changed=False)
        try:
            found = promote(here, job.offer)
        except (CancelledError, StorageError):
            raise
        except NoSpaceError as error:  # For what is on record there, which may be wrong.
            if job.local:
                raise
            try:
                return self._from_the_next(job, promote, ask, error)
            except NetworkError:
                raise error from None
        except ModelCacheError as error:
            return self._from_the_next(job, promote, ask, error)
        if job.local or not job.refresh:
            return found
        return ask(replace(job, offer=None, known=found, unless_changed=True))

    def _from_the_next(
        self,
        job: Job,
        promote: Callable[[Job, Offer], Entry],
        ask: Callable[[Job], Entry],
        error: ModelCacheError,
    ) -> Entry:
        """Return what the next tier has, or what *ask* brings: a tier's offer could not be promoted, for *error*."""
        assert job.offer is not None
        tiers, failed = self.means.tiers, job.offer.tier
        offer = None
        if tiers is not None:
            wrong = tiers.failed(failed, job.ref.key, error)
            told = job.offer.entry
            if wrong:
                expected = getattr(error, "expected", None) or (None if told is None else told.digest)
                job.wrong.extend([] if expected is None else [(failed.name, Digest(expected))])
            offer = tiers.find(job.ref, job.digest, local=job.local and not self.reaches, after=failed)
            if offer is not None and offer.in_place:
                offer = None if offer.entry is None else replace(offer, in_place=False)
        if offer is not None:
            self._tell(job, "mirror", detail=f"{reason(error)}; the tier {offer.tier.name} is asked")
            return self._promoted(replace(job, offer=offer), promote, ask)
        if job.local:
            raise error
        self._tell(job, "mirror", detail=f"{reason(error)}; {job.ref.key} is asked")
        return ask(replace(job, offer=None))

    def _check_origin(self, job: Job, entry: Entry | None) -> None:
        """Ask the policies of where a tier has had *entry* from; raise PolicyError."""
        assert job.gate is not None
        policies = job.gate.policies
        place = job.ref if entry is None or entry.source == "put" else parse(entry.source)
        if place.scheme:
            policies.check_place(place, self.means.registry.source(place).host(place.key))
            if entry is not None and not entry.digest.is_tree:
                policies.check_announced(job.ref, job.digest, entry.announced)

    def _fetch(self, job: Job, deadline: Deadline, means: Means) -> Entry:
        """Ask the places of *job* in order."""
        brief = replace(self._policy, retry_after_max=min(self._policy.retry_after_max, _BRIEF_S))
        queue = [(place, brief if job.mirrors else self._policy) for place in job.places]
        failures: dict[str, ModelCacheError] = {}
        for number, (place, policy) in enumerate(queue, 1):  # It may grow meanwhile.
            try:
                return Download(means, job, place, policy, deadline).run()
            except (CancelledError, StorageError, NoSpaceError):
                raise
            except ModelCacheError as error:
                if isinstance(error, PolicyError) and error.rule not in PLACE_RULES:
                    raise  # The content is refused, and a mirror has the same.
                failures[place.key] = error
                if isinstance(error, DeadlineError) and (deadline.left(1) == 0 or number == len(queue)):
                    raise
                asked = getattr(error, "retry_after", None) or 0.0
                if policy is brief and brief.retry_after_max < asked <= self._policy.retry_after_max:
                    queue.append((place, self._policy))  # If no mirror can serve, it is waited for.
                if number < len(queue):
                    self._tell(job, "mirror", detail=f"{reason(error)}; {queue[number][0].key} is asked")
        if len(failures) == 1:
            raise next(iter(failures.values()))
        raise MirrorsExhaustedError(ref=job.ref.key, errors=tuple(failures.values()))

    def _tell(self, job: Job, kind: str, **facts: Any) -> None:
        self.means.emit(Event(kind, job.ref.key, **facts))


def _is_archive(job: Job) -> bool:
    """Tell whether the tree of *job* comes out of one file: a URL, or a path where no directory is.

    What is compressed and no archive counts too, to be told so.
    """
    ref = job.ref
    if ref.scheme == "hf" and not ref.hub.path:
        return False
    if not layout.is_packed(ref.name):
        return False
    return ref.scheme != "file" or not os.path.isdir(ref.path)
