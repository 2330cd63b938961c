"""One model from its source into the cache: single flight, retried, resumed, verified, durable (DESIGN.md section 9).

Order of a fetch (I1, I2, I3, I5): lock the key → look again → claim a partial → stream into it → verify size and
digest → publish the object → record the entry → let go. Whoever waited for the lock finds the entry, or the note of
why there is none, and asks nobody.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from failpoints import fail_point

from . import commit, errors, hit, layout, locks, notes, retry
from .backoff import Backoff
from .config import RetryPolicy, Timeout
from .digest import Digest
from .errors import (
    CancelledError,
    DeadlineError,
    DigestMismatchError,
    EmptyContentError,
    HttpStatusError,
    IntegrityError,
    LockTimeoutError,
    MirrorsExhaustedError,
    ModelCacheError,
    NoSpaceError,
    ProtocolError,
    SizeMismatchError,
    StorageError,
)
from .events import Event, Listener
from .objects import Objects
from .partials import Partial, Partials
from .ranges import ParallelStream
from .records import Entries, Entry
from .reference import Ref
from .report import Counts
from .retry import Deadline
from .sources import Registry, Request, Source, Stream, Validators
from .sweep import sweep
from .transfer import Throttle, Transfer

_SPACE_MARGIN_BYTES = 1 << 20  # Records, the state of the partial, and the blocks of directories.
_BRIEF_S = 5.0  # A host that asks to wait longer is left for a mirror, where there is one.


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fetched.

    Attributes:
        ref: The model.
        digest: What the content must be; None trusts the first use.
        size: What its size must be, in bytes; None takes any.
        mirrors: Asked in order after ``ref``.
        known: The entry on record when this was asked for, which will not do: it is old, or its object is not whole.
        refresh: Ask the source in any case, also if a partial holds all bytes already.
        unless_changed: Ask only for content that differs from ``known``.
    """

    ref: Ref
    digest: Digest | None = None
    size: int | None = None
    mirrors: tuple[Ref, ...] = ()
    known: Entry | None = None
    refresh: bool = False
    unless_changed: bool = False

    @property
    def places(self) -> tuple[Ref, ...]:
        """Whom to ask, in order."""
        return (self.ref, *self.mirrors)


class Fetcher:
    """Fetches into the cache at *root*."""

    def __init__(
        self,
        root: str,
        registry: Registry,
        *,
        retry_policy: RetryPolicy,
        timeout: Timeout,
        lock_timeout: float,
        on_event: Listener,
    ) -> None:
        self.root, self.registry = root, registry
        self.policy, self.timeout, self.lock_timeout = retry_policy, timeout, lock_timeout
        self.emit = on_event
        self.objects, self.entries, self.partials = Objects(root), Entries(root), Partials(root)
        self.backoff = Backoff(root)
        self.throttle: Throttle | None = None
        self.counts = Counts()
        self._swept = False

    def fetch(self, job: Job, deadline: Deadline) -> Entry:
        """Return the entry of *job*, fetched by this process or by the one that was faster.

        Raises:
            ModelCacheError: Any leaf; nothing half-written is visible, and what had come can be resumed.
        """
        commit.prepare_root(self.root)
        for place in job.places:
            self.registry.check(place)  # An unknown scheme is told before anything is waited for.
        with self._turn(job, deadline) as turn:
            entry = self._arrived(job)
            if entry is not None:
                return entry
            if turn is not None and turn.note:
                raise notes.error_in(turn.note)
            try:
                return self._fetch(job, deadline)
            except ModelCacheError as error:
                self.counts.failed += 1
                self._tell(job, "failed", detail=error.summary)
                if turn is not None and notes.is_for_all(error):
                    turn.leave_note(notes.note(error, self._asked(job)))
                raise

    @contextmanager
    def _turn(self, job: Job, deadline: Deadline) -> Iterator[locks.Turn | None]:
        """Hold the key's lock for the block, or know why not; None where the work is done without it (I9)."""
        path = f"{self.root}/{layout.LOCKS}/{layout.key_id(job.ref.key)}.lock"
        with ExitStack() as stack:
            turn: locks.Turn | None = None
            try:
                turn = stack.enter_context(
                    locks.exclusive(
                        path,
                        timeout=deadline.left(self.lock_timeout),
                        what=job.ref.key,
                        done=lambda: self._arrived(job) is not None,
                        on_wait=lambda holder: self._tell(job, "waiting", detail=f"{holder} is fetching it"),
                        heed=lambda note: self._heeds(note, job),
                        check=deadline.check,
                    )
                )
            except LockTimeoutError as error:
                deadline.check()
                self._tell(job, "waiting", detail=f"{error.summary}; going on without the lock")
            except locks.LockUnavailableError as error:
                self._tell(job, "waiting", detail=f"no lock can be had ({error}); going on without")
            yield turn

    def _asked(self, job: Job) -> list[str]:
        """Return what an error of *job* speaks of: the places, what they were asked for, within which limits."""
        personal = any(self.registry.source(place).is_personal(place.url) for place in job.places)
        return [
            *(place.key for place in job.places),
            f"digest={job.digest}, size={job.size}, {self.timeout}, {self.policy}",
            "with credentials" if personal else "without credentials",
        ]

    def _heeds(self, note: bytes, job: Job) -> bool:
        """Tell whether the error in *note* would be that of *job* too."""
        asked = self._asked(job)
        return notes.covers(note, asked) and not (notes.is_personal(note) and "with credentials" in asked)

    def _arrived(self, job: Job) -> Entry | None:
        """Return the entry if what *job* wants is in the cache, recorded since *job* was made."""
        entry = self.entries.read(job.ref.key)
        if entry is None or (job.digest is not None and entry.digest != job.digest):
            return None
        if job.known is not None and entry.serial == job.known.serial:
            return None  # It is still the one that will not do.
        return entry if hit.look(self.root, job.ref.key) is not None else None

    def _fetch(self, job: Job, deadline: Deadline) -> Entry:
        """Ask the places of *job* in order. Whoever fetches clears up too, once: those who wait have no time for it."""
        if not self._swept:
            self._swept = True
            sweep(self.root)
        brief = replace(self.policy, retry_after_max=min(self.policy.retry_after_max, _BRIEF_S))
        queue = [(place, brief if job.mirrors else self.policy) for place in job.places]
        failures: dict[str, ModelCacheError] = {}
        for number, (place, policy) in enumerate(queue, 1):  # It may grow meanwhile.
            try:
                return _Download(self, job, place, policy, deadline).run()
            except (CancelledError, StorageError, NoSpaceError):
                raise
            except ModelCacheError as error:
                failures[place.key] = error
                if isinstance(error, DeadlineError) and (deadline.left(1) == 0 or number == len(queue)):
                    raise
                asked = getattr(error, "retry_after", None) or 0.0
                if policy is brief and brief.retry_after_max < asked <= self.policy.retry_after_max:
                    queue.append((place, self.policy))  # If no mirror can serve, it is waited for.
                if number < len(queue):
                    self._tell(job, "mirror", detail=f"{_reason(error)}; {queue[number][0].key} is asked")
        if len(failures) == 1:
            raise next(iter(failures.values()))
        raise MirrorsExhaustedError(ref=job.ref.key, errors=tuple(failures.values()))

    def _tell(self, job: Job, kind: str, **facts: Any) -> None:
        self.emit(Event(kind, job.ref.key, **facts))


class _Download:
    """The download of one job from one place: the attempts share a partial."""

    def __init__(self, fetcher: Fetcher, job: Job, place: Ref, policy: RetryPolicy, deadline: Deadline) -> None:
        self._fetcher, self._job, self._place, self._policy, self._deadline = fetcher, job, place, policy, deadline
        self._source: Source = fetcher.registry.source(place)
        self._host = urlsplit(place.key).netloc
        self._partial: Partial | None = None
        self._reached = 0  # The most bytes that were ever here: progress is more than that.
        self._may_split = True
        self._started = time.monotonic()

    def run(self) -> Entry:
        self._partial = self._fetcher.partials.claim(self._job.ref.key, self._job.ref.name)
        if self._partial is not None:
            self._reached = self._partial.length
            self._fetcher.counts.bytes_resumed += self._partial.length
        try:
            try:
                return self._retried()
            except IntegrityError as error:
                # Once more, from the first byte: the fault may be in the transfer, or in what was resumed.
                self._drop_partial()
                self._tell("retry", seconds=0.0, detail=_reason(error))
                return self._retried()
        except (IntegrityError, StorageError):
            # Wrong bytes, or a sync that failed: none of it is used again.
            self._drop_partial()
            raise
        finally:
            if self._partial is not None:
                self._partial.release()

    def _retried(self) -> Entry:
        return retry.call(
            self._attempt,
            policy=self._policy,
            deadline=self._deadline,
            progress=lambda: self._reached,
            on_retry=self._on_retry,
        )

    def _on_retry(self, error: ModelCacheError, seconds: float) -> None:
        self._fetcher.counts.retries += 1
        if isinstance(error, HttpStatusError) and error.status == 429:
            self._fetcher.backoff.set(self._host, seconds, error.status)
        self._tell("retry", seconds=round(seconds, 3), detail=_reason(error))

    def _attempt(self) -> Entry:
        self._deadline.check()
        partial = self._resumable()
        if partial is not None and partial.complete and not self._job.refresh and self._may_finish():
            return self._finish(partial)
        self._wait_for_host()
        known = _validators_of(partial) if partial is not None else None
        request = Request(
            url=self._place.url,
            ref=self._place.key,
            timeout=self._fetcher.timeout,
            deadline=self._deadline,
            start=partial.length if partial is not None else 0,
            same_as=known if partial is not None and partial.facts["place"] == self._place.key else None,
            unless=self._unless() if partial is None else None,
        )
        fail_point("fetch.before-open")
        self._fetcher.counts.requests += 1
        stream = self._open(request)
        try:
            if stream.unchanged:
                entry = self._confirmed()
                if entry is not None:
                    return entry
                stream.close()
                self._job = replace(self._job, unless_changed=False)
                return self._attempt()
            if partial is not None and _is_other_content(stream, partial, known, request):
                stream.close()
                self._tell("restarted", detail="the content at the source has changed")
                partial.restart()
                return self._attempt()
            if partial is not None and stream.start > 0 and not (stream.delimited or self._knows_the_end(partial)):
                stream.close()
                self._tell("restarted", detail="the source does not say where its content ends")
                partial.restart()
                return self._attempt()
            partial = self._prepare(stream)
            if self._receive(stream, request, partial, may_split=self._splittable(stream)):
                return self._finish(partial)
        finally:
            stream.close()
        self._receive_in_parallel(stream, request, partial)
        return self._finish(partial)

    def _may_finish(self) -> bool:
        """Tell whether bytes that are all here need no word from their source any more."""
        return self._source.one_version or self._job.digest is not None

    def _confirmed(self) -> Entry | None:
        """Return the entry that the source has just confirmed; None if its object was removed meanwhile."""
        known, fetcher = self._job.known, self._fetcher
        assert known is not None
        with fetcher.objects.announced(known.digest):
            if fetcher.objects.find(known.digest, known.name) is None:
                return None
            fetcher.counts.unchanged += 1
            self._tell("unchanged", total=known.size)
            return fetcher.entries.confirm(known)

    def _knows_the_end(self, partial: Partial) -> bool:
        return partial.total is not None or self._job.digest is not None

    def _open(self, request: Request) -> Stream:
        try:
            return self._source.open(request)
        except HttpStatusError as error:
            if error.retry_after is not None:
                self._fetcher.backoff.set(self._host, error.retry_after, error.status)  # For the other processes too.
            raise

    def _resumable(self) -> Partial | None:
        """Return the partial if its bytes may be gone on with from this place; one that may not begins again."""
        partial = self._partial
        if partial is None or partial.length == 0:
            return None
        if self._job.digest is None:
            # Without a digest only the source can say that the rest belongs to what is here (RFC 9110, 13.1.5).
            ours = partial.facts["place"] == self._place.key
            if not ours or not (partial.complete or _validators_of(partial).for_range):
                partial.restart()
                return None
        return partial

    def _unless(self) -> Validators | None:
        known = self._job.known
        if known is None or not self._job.unless_changed or known.source != self._place.key:
            return None
        return Validators(etag=known.etag, last_modified=known.last_modified)

    def _prepare(self, stream: Stream) -> Partial:
        """Return the partial, ready for the first byte of *stream*, once it is known to fit."""
        if self._job.size is not None and stream.total not in {None, self._job.size}:
            assert stream.total is not None
            raise SizeMismatchError(ref=self._job.ref.key, expected=self._job.size, actual=stream.total)
        resumes = self._partial is not None and stream.start == self._partial.length > 0
        # A part need not say of how much: what was announced before still holds.
        total = self._partial.total if resumes and self._partial and stream.total is None else stream.total
        if total is None and not stream.delimited and self._job.digest is None:
            detail = "the answer has no length, so that a whole one and a cut one look the same; give the digest"
            raise ProtocolError(ref=self._job.ref.key, detail=detail, transient=False)
        if self._partial is None:
            self._check_space(total, 0)
            self._partial = self._fetcher.partials.create(self._job.ref.key, self._job.ref.name)
        elif stream.start != self._partial.length:
            self._tell("restarted", detail="the source sends only the whole content")
            self._partial.restart()
        partial = self._partial
        self._check_space(total, partial.length)
        try:
            partial.describe({"place": self._place.key, **asdict(stream.validators)}, total)
        except OSError as error:
            raise errors.storage_error(error, action="record", path=self._job.ref.key) from error
        self._tell("started", done=partial.length, total=partial.total)
        return partial

    def _check_space(self, total: int | None, have: int) -> None:
        if total is None:
            return
        found = os.statvfs(self._fetcher.root)
        free = found.f_bavail * found.f_frsize
        needed = total - have + _SPACE_MARGIN_BYTES
        if needed > free:
            raise NoSpaceError(what=self._job.ref.key, needed=needed, free=free)

    def _splittable(self, stream: Stream) -> bool:
        """Tell whether parts of the content can be asked for, and be known to be parts of the same content."""
        known = self._job.digest is not None or stream.validators.for_range is not None
        return self._may_split and stream.ranges and known and self._fetcher.throttle is None

    def _receive(self, stream: Stream, request: Request, partial: Partial, *, may_split: bool = False) -> bool:
        """Receive *stream* to its end; False if it was left because several connections would be faster."""
        before = partial.length
        transfer = Transfer(
            stream,
            partial,
            request.ref,
            request.timeout,
            self._deadline,
            on_progress=lambda done: self._tell("progress", done=done, total=partial.total),
            throttle=self._fetcher.throttle,
            may_split=may_split,
        )
        try:
            transfer.run()
        finally:
            self._fetcher.counts.bytes_received += max(0, partial.length - before)
            self._reached = max(self._reached, partial.length)
        return not transfer.slow

    def _receive_in_parallel(self, first: Stream, request: Request, partial: Partial) -> None:
        """Go on from where *first* was left, with several connections."""
        assert first.total is not None
        self._may_split = False  # Should it fail, the next attempt uses one connection again.
        parallel = ParallelStream(
            self._source,
            replace(request, start=partial.length, same_as=first.validators, unless=None),
            first.total,
            lambda connections: self._tell("ranges", done=connections, total=partial.total),
        )
        try:
            self._receive(parallel, request, partial)
        finally:
            parallel.close()

    def _finish(self, partial: Partial) -> Entry:
        """Verify what is here, and make it durable and visible."""
        job = self._job
        if partial.total is not None and partial.length < partial.total:
            detail = f"it ended after {partial.length} of {partial.total} bytes"
            raise errors.InterruptedTransferError(ref=job.ref.key, detail=detail)
        if job.size is not None and partial.length != job.size:
            raise SizeMismatchError(ref=job.ref.key, expected=job.size, actual=partial.length)
        if job.digest is not None and partial.digest != job.digest:
            raise DigestMismatchError(ref=job.ref.key, expected=job.digest, actual=partial.digest)
        if partial.length == 0 and job.digest is None:
            raise EmptyContentError(ref=job.ref.key)
        with self._fetcher.objects.announced(partial.digest):
            return self._record(partial)

    def _record(self, partial: Partial) -> Entry:
        job, facts = self._job, partial.facts
        stored = partial.publish(self._fetcher.objects)
        self._partial = None
        now = int(time.time())
        known = job.known if job.known is not None and job.known.digest == stored.digest else None
        entry = Entry(
            key=job.ref.key,
            digest=stored.digest,
            path=stored.path,
            size=stored.size,
            name=stored.name,
            source=self._place.key,
            created=now if known is None else known.created,
            checked=now,
            mtime_ns=stored.mtime_ns,
            etag=facts.get("etag"),
            last_modified=facts.get("last_modified"),
            revision=facts.get("revision"),
            mirrors=tuple(mirror.key for mirror in job.mirrors),
        )
        fail_point("fetch.before-record")
        self._fetcher.entries.write(entry)
        fail_point("fetch.after-record")
        self._fetcher.counts.fetched += 1
        seconds = round(time.monotonic() - self._started, 3)
        self._tell("fetched", done=stored.size, total=stored.size, seconds=seconds)
        return entry

    def _wait_for_host(self) -> None:
        """Wait until the host may be asked again, whichever process it told to wait."""
        left, status = self._fetcher.backoff.wait(self._host)
        if left <= 0:
            return
        if left > self._policy.retry_after_max:
            raise HttpStatusError(ref=self._place.key, status=status, retry_after=round(left, 1))
        if self._deadline.left(left) < left:
            asked = HttpStatusError(ref=self._place.key, status=status, retry_after=round(left, 1))
            raise self._deadline.error(asked) from asked
        self._tell("waiting", seconds=round(left, 3), detail=f"{self._host} asked all clients to wait")
        self._deadline.sleep(left)

    def _drop_partial(self) -> None:
        if self._partial is not None:
            self._partial.discard()
            self._partial = None
        self._reached = 0

    def _tell(self, kind: str, **facts: Any) -> None:
        self._fetcher.emit(Event(kind, self._job.ref.key, **facts))


def _reason(error: ModelCacheError) -> str:
    """Return why, without the ref that the event names already."""
    return str(getattr(error, "detail", "") or error.summary)


def _validators_of(partial: Partial) -> Validators:
    return Validators(**{name: partial.facts[name] for name in Validators.__dataclass_fields__})


def _is_other_content(stream: Stream, partial: Partial, known: Validators | None, request: Request) -> bool:
    """Tell whether a partial answer is a part of something else than what is here: a server that ignores If-Range."""
    if stream.start == 0:
        return False
    changed = request.same_as is not None and known is not None and known.contradicts(stream.validators)
    return changed or (partial.total is not None and stream.total not in {None, partial.total})
