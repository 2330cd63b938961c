"""One fetch for all machines of a fleet: what `fetch` does, seen as a question to `fleet`.

A claim is worth its requests only for what may be in the tier for all: a ref that means the same on every machine, and
nothing that was fetched with somebody's credentials, unless the tier takes that too. What is asked for again, though it
is known, is taken from the tier only if that has news since the question was put.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from . import errors, layout
from .backends.refs import is_shared
from .download import Job, Means, reason
from .errors import CancelledError, DeadlineError, ModelCacheError, NoSpaceError, StorageError
from .events import Event
from .fleet import Bucket, Fleet, Question, Sharing
from .hints import Hints
from .levels.base import Offer
from .levels.bucket import BucketLevel, publish, record_of
from .objects import Stored
from .records import Entry
from .retry import Deadline


class Together:
    """Asks the fleet for what a cache with *means* fetches. There is one for each cache and process."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._fleets: dict[str, Fleet] = {}

    def level(self, job: Job) -> BucketLevel | None:
        """Return the tier on which *job* is to be claimed; None if it is fetched by each machine for itself."""
        means = self._means
        level = None if means.tiers is None or job.local else means.tiers.single_flight()
        if level is None or not is_shared(job.ref):
            return None
        personal = any(means.registry.source(place).is_personal(place.url) for place in job.places)
        return None if personal and not level.tier.private else level

    def run(
        self,
        job: Job,
        level: BucketLevel,
        deadline: Deadline,
        *,
        promote: Callable[[Job, Offer], Entry],
        fetch: Callable[[Job, Deadline, Sharing | None], Entry],
        heed: Callable[[bytes], bool],
        asked: Callable[[], list[str]],
    ) -> Entry:
        """Return the entry of *job*: promoted from *level*, once it is there, or fetched by us, for all.

        Args:
            job: What is wanted.
            level: Where it is claimed.
            deadline: Of the caller.
            promote: Brings what the tier offers here.
            fetch: Asks the origin, within the deadline that it is given.
            heed: Tells whether the error in a note would be ours too.
            asked: What an error of ours speaks of.

        Raises:
            NoConditionalWritesError: The tier cannot hold claims.
            ModelCacheError: As `Fetcher.fetch`.
        """
        fleet = self._fleet(level)
        before = self._mark(self._offer(fleet.bucket, level, job, deadline)) if job.refresh else None

        def look() -> Entry | None:
            offer = self._offer(fleet.bucket, level, job, deadline)
            if offer is None or (job.refresh and self._mark(offer) == before):
                return None
            return self._promoted(job, offer, promote)

        question = Question(
            key=job.ref.key,
            look=look,
            fetch=lambda own, sharing: fetch(job, own, sharing),
            publish=lambda entry: self._publish(job, level, entry),
            heed=heed,
            asked=asked,
            tell=lambda detail: self._tell(job, "waiting", detail=detail),
            trusted=level.tier.trust == "records",
        )
        return fleet.run(question, deadline)

    def _fleet(self, level: BucketLevel) -> Fleet:
        if level.name not in self._fleets:
            lease = level.tier.lease
            bucket = Bucket(
                level.name, level.backend, patience=2 * lease, hints=Hints(self._means.root, layout.BACKOFF)
            )
            self._fleets[level.name] = Fleet(bucket, lease=lease)
        return self._fleets[level.name]

    @staticmethod
    def _offer(bucket: Bucket, level: BucketLevel, job: Job, deadline: Deadline) -> Offer | None:
        """Return what *level* has by now: asked itself, because a look through the tiers is given up at once."""
        try:
            found = bucket.ask(partial(level.find, job.ref, job.digest), deadline)
        except errors.BackendError:
            return None
        offer = None if found is None else found()
        told = None if offer is None else offer.entry
        fits = told is not None and job.archive in {None, told.revision}
        return offer if fits and (level.name, told and told.digest) not in job.wrong else None

    @staticmethod
    def _mark(offer: Offer | None) -> tuple[Any, ...]:
        told = None if offer is None else offer.entry
        return () if told is None else (told.digest, told.checked, told.etag, told.last_modified, told.revision)

    def _promoted(self, job: Job, offer: Offer, promote: Callable[[Job, Offer], Entry]) -> Entry | None:
        told = offer.entry
        assert told is not None
        here = replace(
            job, offer=offer, digest=told.digest, size=told.size, known=None, refresh=False, unless_changed=False
        )
        try:
            return promote(here, offer)
        except (CancelledError, DeadlineError, StorageError, NoSpaceError):
            raise
        except ModelCacheError as error:
            if self._means.tiers is not None and self._means.tiers.failed(offer.tier, job.ref.key, error):
                job.wrong.append((offer.tier.name, told.digest))
            self._tell(job, "mirror", detail=f"{reason(error)}; {job.ref.key} is asked")
            return None

    def _publish(self, job: Job, level: BucketLevel, entry: Entry) -> None:
        """Bring *entry* to *level*: the object, then what is on record for its ref.

        It waits in the outbox as well, for the case that we are killed; whoever delivers it finds that it is there.
        """
        stored = Stored(entry.digest, entry.path, entry.name, entry.size, entry.mtime_ns)
        wrong = [digest for name, digest in job.wrong if name == level.name]
        publish(level, stored, record_of(entry), wrong=wrong)

    def _tell(self, job: Job, kind: str, **facts: Any) -> None:
        self._means.emit(Event(kind, job.ref.key, **facts))
