"""One model from one place: stream into a partial, verify size and digest, publish, record (DESIGN.md section 9).

What has come stays in a partial between attempts, and between processes; bytes that turned out wrong are used no more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial as partial_of
from typing import TYPE_CHECKING, Any

from failpoints import fail_point

from . import errors, files, retry, sidecar
from .backoff import Backoff
from .config import RetryPolicy, Timeout
from .digest import Digest
from .errors import (
    DigestMismatchError,
    EmptyContentError,
    HttpStatusError,
    IntegrityError,
    ModelCacheError,
    PolicyError,
    ProtocolError,
    SizeMismatchError,
    StorageError,
)
from .events import Event, Listener
from .gate import Gate, missing
from .gc import Room
from .intake import link
from .objects import Objects, Stored
from .partials import Partial, Partials
from .policy import NONE, PLACE_RULES
from .ranges import ParallelStream
from .records import Entries, Entry
from .reference import Ref
from .report import Counts
from .retry import Deadline
from .sources import Registry, Request, Source, Stream, Validators
from .sources.base import TIER
from .transfer import Throttle, Transfer

if TYPE_CHECKING:  # Who has no tiers does not import what they need.
    from .fleet import Sharing
    from .levels.base import Offer
    from .tiers import Tiers

BELOW = RetryPolicy(attempts=2, base=0.1, cap=0.5)  # A tier that fails twice is left for the next place.

_ASKING_S = 10.0  # Whether a content is for all.


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
        gate: What policies let in; None lets in all.
        no_news: What was on record could not be read, so that what is on record now may be what will not do.
        offer: What a tier has of it.
        local: Ask no source: what the tier has, or nothing.
        ttl: For how long it is wanted, in seconds: what the caller says, else what is on record.
        archive: Of a tree that is unpacked, the digest that the archive must have; None takes any.
        wrong: Filled in by the fetch: tiers, by name, and the digest of what they have that is not what its name says.
        filed: Filled in by the fetch: the tiers, by name, that what has come waits for.
    """

    ref: Ref
    digest: Digest | None = None
    size: int | None = None
    mirrors: tuple[Ref, ...] = ()
    known: Entry | None = None
    refresh: bool = False
    unless_changed: bool = False
    no_news: bool = False
    offer: Offer | None = None
    local: bool = False
    ttl: float | None = None
    gate: Gate | None = None
    archive: Digest | None = None
    wrong: list[tuple[str, Digest]] = field(default_factory=list)
    filed: list[str] = field(default_factory=list)

    @property
    def places(self) -> tuple[Ref, ...]:
        """Whom to ask, in order."""
        return () if self.local else (self.ref, *self.mirrors)


class Means:
    """What all downloads into the cache at *root* share."""

    def __init__(self, root: str, registry: Registry, timeout: Timeout, emit: Listener) -> None:
        self.root, self.registry, self.timeout, self.emit = root, registry, timeout, emit
        self.objects, self.entries, self.partials = Objects(root), Entries(root), Partials(root)
        self.backoff = Backoff(root)
        self.throttle: Throttle | None = None
        self.room: Room | None = None
        self.tiers: Tiers | None = None
        self.sharing: Sharing | None = None  # What comes is claimed for the fleet, and shared with it.
        self.counts = Counts()

    def entry(self, job: Job, stored: Stored, *, source: str, validators: Validators) -> Entry:
        """Return the entry of what *job* has brought, not recorded yet. What it takes the place of is kept a while."""
        now, known = int(time.time()), job.known
        mark = job.gate.mark if job.gate is not None else ""
        mirrors = tuple(mirror.key for mirror in job.mirrors)
        if known is not None and known.digest != stored.digest:
            self.objects.touch(known.digest)
            known = None
        if job.offer is not None and job.offer.entry is not None:
            # What the source has told the tier holds here too; how long it is wanted, and what let it in, does not.
            told = job.offer.entry
            return replace(
                told, path=stored.path, name=stored.name, mtime_ns=stored.mtime_ns, created=now,
                mirrors=mirrors or told.mirrors, ttl=job.ttl, sample=None, admitted=mark,
            )  # fmt: skip
        return Entry(
            key=job.ref.key,
            digest=stored.digest,
            path=stored.path,
            size=stored.size,
            name=stored.name,
            source=source,
            created=now if known is None else known.created,
            checked=now if job.offer is None else job.offer.checked,
            mtime_ns=stored.mtime_ns,
            etag=validators.etag,
            last_modified=validators.last_modified,
            revision=validators.revision,
            mirrors=mirrors,
            ttl=job.ttl,
            admitted=mark,
        )

    def record(self, job: Job, entry: Entry, place: Ref | None) -> None:
        """Let *entry*, whose object is durable, wait for the tiers that are to have it, and put it on record.

        In this order: should the process die in between, they get it all the same (I8). *place* is the one of the
        source that it came from; None if a tier had it.
        """
        personal = self._is_personal(job, entry, place)
        entry = replace(entry, personal=personal)
        if self.tiers is not None:
            job.filed.extend(self.tiers.file(entry, offer=job.offer, personal=personal, wrong=job.wrong))
            fail_point("download.before-record-of-filed")
        self.entries.write(entry)

    def _is_personal(self, job: Job, entry: Entry, place: Ref | None) -> bool:
        """Tell whether *entry* may hold what only somebody's credentials gave. The source is asked if it matters."""
        if place is not None:
            doubtful = self.registry.source(place).is_personal(place.url)
        else:
            assert job.offer is not None
            told = job.offer.entry
            doubtful = job.offer.tier.private or told is None or told.personal
            place = job.ref
        if not doubtful or job.local or place.scheme in {"", "file"} or self.tiers is None or not self.tiers.is_shared:
            return doubtful
        if place.scheme == "hf" and entry.revision is not None:
            place = place.at_revision(entry.revision)
        request = Request(
            url=place.url,
            ref=place.key,
            timeout=self.timeout,
            deadline=Deadline(_ASKING_S, ref=place.key),
            unless=Validators(etag=entry.etag, revision=entry.revision),
            policies=NONE if job.gate is None else job.gate.policies,
        )
        try:
            return not self.registry.source(place).is_for_all(request, entry.digest)
        except ModelCacheError:
            return True

    def check_space(self, key: str, needed: int | None) -> None:
        """Raise NoSpaceError if the disk has no room for *needed* bytes more, of *key*; None: as many as may come."""
        if needed is not None:
            files.check_space(self.root, needed, what=key)


class Download:
    """The download of one job from one place: the attempts share a partial."""

    def __init__(
        self, means: Means, job: Job, place: Ref, policy: RetryPolicy, deadline: Deadline, *, below: bool = False
    ) -> None:
        self._means, self._job, self._place, self._policy, self._deadline = means, job, place, policy, deadline
        self._below = below  # The place is in a tier: policies are asked of where the tier had it from, by who says so.
        self._sharing = None if below else means.sharing
        if below and place.scheme == TIER and means.tiers is not None:
            self._source: Source = means.tiers.source
        else:
            self._source = means.registry.source(place)
        self._host = self._source.host(place.key)
        self._policies = NONE if job.gate is None else job.gate.policies
        self._partial: Partial | None = None
        self._reached = 0  # The most bytes that were ever here: progress is more than that.
        self._may_split = True
        self._keeps = False  # The bytes are wanted, whoever has them too.
        self._started = time.monotonic()

    def run(self) -> Entry:
        """Return the entry of what was fetched, published and recorded.

        Raises:
            ModelCacheError: What has come is kept for the next attempt, unless its bytes are wrong.
        """
        with self._claimed():
            found = self._received()
            if isinstance(found, Entry):
                return found
            if self._job.gate is not None:
                self._job.gate.check_file(self._job.ref.key, found.path, name=self._job.ref.name, bring=self._bring)
            with self._means.objects.announced(found.digest):
                return self._record(found)

    def keep(self) -> Partial | Entry:
        """Return the closed partial with all of the content, verified: the caller's now, to give away or to release.

        The entry if the job knows one, and the source has confirmed it.

        Raises:
            ModelCacheError: As `run`.
        """
        self._keeps = True
        with self._claimed():
            found = self._received()
            if isinstance(found, Entry):
                return found
            found.close()
            self._partial = None
            return found

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Claim what has come before; let go of what is left at the end."""
        if not self._below:
            self._policies.check_place(self._place, self._host)
        self._partial = self._means.partials.claim(self._job.ref.key, self._job.ref.name)
        if self._sharing is not None:
            self._partial = self._sharing.longer(
                self._partial, self._job.ref, self._place.key, self._means.partials,
                proven=self._job.digest is not None, make_room=self._make_room,
            )  # fmt: skip
        if self._partial is not None:
            self._reached = self._partial.length
            self._means.counts.bytes_resumed += self._partial.length
        try:
            yield
        except (IntegrityError, StorageError, PolicyError) as error:
            # Wrong bytes, refused ones, or a sync that failed: none of it is used again. Not so if only the place is.
            if not (isinstance(error, PolicyError) and error.rule in PLACE_RULES):
                self._drop_partial(wrong=not isinstance(error, StorageError))
            raise
        finally:
            if self._partial is not None:
                self._partial.release()

    def _make_room(self, needed: int) -> None:
        self._means.check_space(self._job.ref.key, needed)
        if self._means.room is not None:
            self._means.room.make(self._job.ref.key, needed)

    def _received(self) -> Partial | Entry:
        """Return the partial with all of the content, or the entry that the source has confirmed."""
        try:
            return self._retried()
        except IntegrityError as error:
            # Once more, from the first byte: the fault may be in the transfer, or in what was resumed.
            self._drop_partial(wrong=True)
            self._tell("retry", seconds=0.0, detail=reason(error))
            return self._retried()

    def _retried(self) -> Partial | Entry:
        return retry.call(
            self._attempt,
            policy=self._policy,
            deadline=self._deadline,
            progress=lambda: self._reached,
            on_retry=self._on_retry,
        )

    def _on_retry(self, error: ModelCacheError, seconds: float) -> None:
        self._means.counts.retries += 1
        if isinstance(error, HttpStatusError) and error.status == 429:
            self._means.backoff.set(self._host, seconds, error.status)
        self._tell("retry", seconds=round(seconds, 3), detail=reason(error))

    def _attempt(self) -> Partial | Entry:
        self._deadline.check()
        partial = self._resumable()
        if partial is not None and partial.complete and not self._job.refresh and self._may_finish():
            return self._verified(partial)
        self._wait_for_host()
        known = validators_of(partial) if partial is not None else None
        ours = partial is not None and partial.facts["place"] == self._place.key
        # All of it has come, and only whether it still holds is to be asked.
        finished = partial is not None and partial.complete and ours and known is not None and bool(known.for_range)
        request = Request(
            url=self._place.url,
            ref=self._place.key,
            timeout=self._means.timeout,
            deadline=self._deadline,
            start=0 if partial is None or finished else partial.length,
            same_as=known if ours and not finished else None,
            unless=known if finished else self._unless() if partial is None else None,
            policies=self._policies,
        )
        fail_point("download.before-open")
        self._means.counts.requests += 0 if self._below else 1
        stream = self._open(request)
        try:
            if stream.unchanged and finished and partial is not None:
                return self._verified(partial)
            if stream.unchanged:
                entry = self._confirmed()
                if entry is not None:
                    return entry
                stream.close()
                self._job = replace(self._job, unless_changed=False)
                return self._attempt()
            entry = self._here_already(stream)
            if entry is not None:
                return entry
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
                return self._verified(partial)
        finally:
            stream.close()
        self._receive_in_parallel(stream, request, partial)
        return self._verified(partial)

    def _may_finish(self) -> bool:
        """Tell whether bytes that are all here need no word from their source any more."""
        return self._source.one_version or self._job.digest is not None

    def _confirmed(self) -> Entry | None:
        """Return the entry that the source has just confirmed; None if its object was removed meanwhile."""
        known, means = self._job.known, self._means
        assert known is not None
        with means.objects.announced(known.digest):
            if means.objects.find(known.digest, known.name) is None:
                return None
            means.counts.unchanged += 1
            self._tell("unchanged", total=known.size)
            return means.entries.confirm(known)

    def _here_already(self, stream: Stream) -> Entry | None:
        """Return an entry on what the source has just announced, if it is here under another ref: nothing has to come.

        A digest that the source announces counts like a given one (DESIGN.md section 9); the object is hashed first.
        """
        job, digest, means = self._job, stream.digest, self._means
        if self._keeps:
            return None
        fits = job.digest in {None, digest} and job.size in {None, stream.total}
        stored = means.objects.find(digest) if digest is not None and fits else None
        if digest is None or stored is None or stream.total not in {None, stored.size}:
            return None
        found = link(means.root, job.ref, digest, admit=None if job.gate is None else self._admit)
        if found is None:
            return None  # It was damaged, and is set aside now.
        validators = stream.validators
        entry = replace(
            found,
            source=self._place.key,
            checked=int(time.time()),
            etag=validators.etag,
            last_modified=validators.last_modified,
            revision=validators.revision,
            mirrors=tuple(mirror.key for mirror in job.mirrors),
            ttl=job.ttl,
        )
        means.record(job, entry, self._asked)
        self._drop_partial()
        means.counts.unchanged += 1
        self._tell("unchanged", total=entry.size)
        return entry

    @property
    def _asked(self) -> Ref | None:
        return None if self._below else self._place

    def _admit(self, entry: Entry) -> Entry:
        """Return *entry*, of what is here already and what this place announces, if policies let it in."""
        assert self._job.gate is not None
        return self._job.gate.check_entry(replace(entry, source=self._place.key), self._host, self._bring)

    def _bring(self) -> bytes:
        assert self._job.gate is not None
        if self._job.local:
            problem = "its signature lies beside the original, and the cache is offline"
            raise missing(self._job.gate, self._job.ref.key, problem)
        place = self._job.ref if self._below else self._place
        return sidecar.bring(
            self._job.gate, self._job.ref, place, self._means.registry, self._means.timeout, self._policy,
            self._deadline,
        )  # fmt: skip

    def _knows_the_end(self, partial: Partial) -> bool:
        return partial.total is not None or self._job.digest is not None

    def _open(self, request: Request) -> Stream:
        try:
            return self._source.open(request)
        except HttpStatusError as error:
            if error.retry_after is not None:
                self._means.backoff.set(self._host, error.retry_after, error.status)  # For the other processes too.
            raise

    def _resumable(self) -> Partial | None:
        """Return the partial if its bytes may be gone on with from this place; one that may not begins again."""
        partial = self._partial
        if partial is None or partial.length == 0:
            return None
        if self._job.digest is None:
            # Without a digest only the source can say that the rest belongs to what is here (RFC 9110, 13.1.5).
            ours = partial.facts["place"] == self._place.key
            if not ours or not (partial.complete or validators_of(partial).for_range):
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
        if self._job.digest is not None and stream.digest not in {None, self._job.digest}:
            # Before a byte of it comes.
            raise DigestMismatchError(ref=self._job.ref.key, expected=self._job.digest, actual=str(stream.digest))
        if self._policies:
            self._policies.check_announced(self._place, self._job.digest, stream.digest)
            self._policies.check_size(self._job.ref.key, stream.total or 0)
        resumes = self._partial is not None and stream.start == self._partial.length > 0
        # A part need not say of how much: what was announced before still holds.
        total = self._partial.total if resumes and self._partial and stream.total is None else stream.total
        if total is None and not stream.delimited and self._job.digest is None:
            detail = "the answer has no length, so that a whole one and a cut one look the same; give the digest"
            raise ProtocolError(ref=self._job.ref.key, detail=detail, transient=False)
        if self._means.room is not None and total is not None:
            self._means.room.make(self._job.ref.key, total - (self._partial.length if resumes and self._partial else 0))
        if self._partial is None:
            self._means.check_space(self._job.ref.key, total)
            self._partial = self._means.partials.create(self._job.ref.key, self._job.ref.name)
        elif stream.start != self._partial.length:
            self._tell("restarted", detail="the source sends only the whole content")
            self._partial.restart()
        partial = self._partial
        self._means.check_space(self._job.ref.key, None if total is None else total - partial.length)
        try:
            announced = stream.digest or (partial.facts.get("announced") if resumes else None)
            place, validators = self._origin(stream)
            partial.describe({"place": place, "announced": announced, **asdict(validators)}, total)
        except OSError as error:
            raise errors.storage_error(error, action="record", path=self._job.ref.key) from error
        if self._sharing is not None:
            resumable = self._job.digest is not None or stream.validators.for_range is not None
            self._sharing.follow(self._job.ref.key, partial, resumable=resumable)
        self._tell("started", done=partial.length, total=partial.total)
        return partial

    def _origin(self, stream: Stream) -> tuple[str, Validators]:
        """Return where the bytes of *stream* are from, and of what version.

        What comes from a bucket is a copy of what its source had: so the source can go on with it (If-Range). That is
        safe, because the digest was announced: what does not fit is found out.
        """
        told = None if self._job.offer is None else self._job.offer.entry
        if self._place.scheme != TIER or told is None or told.digest.is_tree:
            return self._place.key, stream.validators
        return told.source, Validators(told.etag, told.last_modified, revision=told.revision)

    def _splittable(self, stream: Stream) -> bool:
        """Tell whether parts of the content can be asked for, and be known to be parts of the same content."""
        known = self._job.digest is not None or stream.validators.for_range is not None
        return self._may_split and stream.ranges and known and self._means.throttle is None

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
            throttle=self._means.throttle,
            policies=self._policies,
            pace=None if self._sharing is None else partial_of(self._sharing.pace, self._deadline),
            may_split=may_split,
        )
        try:
            transfer.run()
        finally:
            came = max(0, partial.length - before)
            if self._below:
                self._means.counts.bytes_promoted += came
            else:
                self._means.counts.bytes_received += came
            self._reached = max(self._reached, partial.length)
            if came:
                self._tell("received", done=came, detail="tier" if self._below else "source")
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

    def _verified(self, partial: Partial) -> Partial:
        """Return *partial*, which holds what it must."""
        job = self._job
        if partial.total is not None and partial.length < partial.total:
            detail = f"it ended after {partial.length} of {partial.total} bytes"
            raise errors.InterruptedTransferError(ref=job.ref.key, detail=detail)
        if job.size is not None and partial.length != job.size:
            raise SizeMismatchError(ref=job.ref.key, expected=job.size, actual=partial.length)
        if job.digest is not None and partial.digest != job.digest:
            raise DigestMismatchError(ref=job.ref.key, expected=job.digest, actual=partial.digest)
        announced = partial.facts.get("announced")
        if announced is not None and partial.digest != announced:
            raise DigestMismatchError(ref=job.ref.key, expected=announced, actual=partial.digest, announced=True)
        if partial.length == 0 and job.digest is None and job.size is None:
            raise EmptyContentError(ref=job.ref.key)
        if self._policies:
            announced = partial.facts.get("announced")
            self._policies.check_announced(self._place, job.digest, None if announced is None else Digest(announced))
            self._policies.check_size(job.ref.key, partial.length)
        return partial

    def _record(self, partial: Partial) -> Entry:
        """Make what was verified durable and visible."""
        job, validators = self._job, validators_of(partial)
        stored = partial.publish(self._means.objects)
        self._partial = None
        entry = self._means.entry(job, stored, source=self._place.key, validators=validators)
        fail_point("download.before-record")
        self._means.record(job, entry, self._asked)
        fail_point("download.after-record")
        self._means.counts.fetched += 1
        seconds = round(time.monotonic() - self._started, 3)
        self._tell("fetched", done=stored.size, total=stored.size, seconds=seconds)
        return entry

    def _wait_for_host(self) -> None:
        """Wait until the host may be asked again, whichever process it told to wait."""
        left, status = self._means.backoff.wait(self._host)
        if left <= 0:
            return
        if left > self._policy.retry_after_max:
            raise HttpStatusError(ref=self._place.key, status=status, retry_after=round(left, 1))
        if self._deadline.left(left) < left:
            asked = HttpStatusError(ref=self._place.key, status=status, retry_after=round(left, 1))
            raise self._deadline.error(asked) from asked
        self._tell("waiting", seconds=round(left, 3), detail=f"{self._host} asked all clients to wait")
        self._deadline.sleep(left)

    def _drop_partial(self, *, wrong: bool = False) -> None:
        if self._sharing is not None and wrong:
            self._sharing.drop(self._job.ref.key)
        if self._partial is not None:
            self._partial.discard()
            self._partial = None
        self._reached = 0

    def _tell(self, kind: str, **facts: Any) -> None:
        self._means.emit(Event(kind, self._job.ref.key, **facts))


def reason(error: ModelCacheError) -> str:
    """Return why, without the ref that the event names already."""
    return str(getattr(error, "detail", "") or error.summary)


def validators_of(partial: Partial) -> Validators:
    """Return what its source has said of the version that *partial* is of."""
    return Validators(**{name: partial.facts[name] for name in Validators.__dataclass_fields__})


def _is_other_content(stream: Stream, partial: Partial, known: Validators | None, request: Request) -> bool:
    """Tell whether a partial answer is a part of something else than what is here: a server that ignores If-Range."""
    if stream.start == 0:
        return False
    changed = request.same_as is not None and known is not None and known.contradicts(stream.validators)
    announced = partial.facts.get("announced")
    if announced is not None and stream.digest not in {None, announced}:
        changed = True
    return changed or (partial.total is not None and stream.total not in {None, partial.total})
