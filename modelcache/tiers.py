"""Tiers: what is below this cache, asked in order before any source (DESIGN.md section 1).

What a tier has is *served in place*, or *promoted*: brought here, verified, by the same download that fetches from a
source; a tree then shares what this cache holds already. A tier that is not there, or does not answer in time, is
passed over, and that is said once (`levels.health`). Where one has not answered after `_ALONE_S`, the others are looked
at side by side with it, so that a get waits for the slowest, and not for their sum.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from time import monotonic, time
from typing import Any

from .backends.base import Backend
from .breaker import DOWN
from .digest import Digest
from .errors import (
    BackendAccessError,
    BackendDownError,
    BackendError,
    BackendSetupError,
    DeadlineError,
    IntegrityError,
    ModelCacheError,
    NetworkError,
    NoSpaceError,
    NotFoundError,
    QueueFullError,
    StorageError,
    UsageError,
)
from .events import Event, Listener, ignore
from .levels.base import Found, Level, Offer, TierState
from .levels.bucket import BucketLevel, record_of
from .levels.directory import DirectoryLevel
from .levels.health import Health, Look
from .outbox import Outbox
from .records import Entry
from .reference import Ref
from .sources.base import RemoteFile
from .sources.tier import TierSource
from .tier import Tier

_ALONE_S = 0.1
_log = logging.getLogger("modelcache")


class Tiers:
    """The *tiers* of the cache at *root*, in order.

    Attributes:
        refused: How often a tier had something that was not what its name says.
        source: Reads contents of buckets.
    """

    def __init__(self, tiers: tuple[Tier, ...], root: str, tell: Listener = ignore) -> None:
        self._root, self._tell = root, tell
        self.refused = 0
        self.levels: tuple[Level, ...] = tuple(
            BucketLevel(tier, self.refuse) if tier.is_bucket else DirectoryLevel(tier) for tier in tiers
        )
        self._healths = {level.name: Health(level, root) for level in self.levels}
        self.source = TierSource(self._backend_of)

    def find(
        self,
        ref: Ref,
        digest: Digest | None,
        *,
        verify: str = "stat",
        local: bool = False,
        after: Tier | None = None,
    ) -> Offer | None:
        """Return what the first tier offers that has *ref*, or anything with *digest*; None if none has.

        Args:
            ref: What is asked for.
            digest: What it must be.
            verify: That of a get: ``full`` reads all of what is served in place, ``sample`` does so once in a process.
            local: Open no connection.
            after: Ask only those behind this one.

        Raises:
            BackendSetupError, BackendAccessError: A tier cannot be used as it is configured; it has not been able to
                in this process before.
        """
        levels = [level for level in self._behind(after) if not (local and level.is_remote)]
        for level, found in self._looks(levels, lambda level: level.find(ref, digest)):
            offer = self._offered(level, found, ref, verify)
            if offer is not None:
                return offer
        return None

    def copy_of(self, file: RemoteFile) -> Ref | None:
        """Return where a tier has the content of *file*, None if none has. Who takes it from there hashes it."""
        return next((found for _, found in self._looks(self.levels, lambda level: level.copy_of(file))), None)

    def states(self) -> list[TierState]:
        """Return how each is now.

        Raises:
            BackendSetupError, BackendAccessError: As `find`.
        """
        looked = [(level, self._healths[level.name].start(level.state, anyhow=True)) for level in self.levels]
        return [self._state(level, look) for level, look in looked]

    def single_flight(self) -> BucketLevel | None:
        """Return the first level on which one machine of many may fetch; None if there is none."""
        return next(
            (level for level in self.levels if isinstance(level, BucketLevel) and level.tier.single_flight), None
        )

    def writable(self) -> list[BucketLevel]:
        """Return those that new content is brought to, in order."""
        return [level for level in self.levels if isinstance(level, BucketLevel) and level.tier.write]

    @property
    def is_shared(self) -> bool:
        """Whether new content is brought to any that is not for what is private."""
        return any(not level.tier.private for level in self.writable())

    def health(self, level: Level) -> Health:
        """Return how *level* is, and what its calls go through."""
        return self._healths[level.name]

    def note_outages(self) -> None:
        """Tell other processes which tiers are down: when that was found out, there may have been no root yet."""
        for health in self._healths.values():
            health.note_outage()

    def failed(self, tier: Tier, key: str, error: ModelCacheError) -> bool:
        """Take note that what *tier* had offered for *key* could not be brought; tell whether it was wrong."""
        level = next(level for level in self.levels if level.tier is tier)
        if isinstance(error, IntegrityError) or error.exit_code == IntegrityError.exit_code:
            self.refuse(level, key, error)
            return True
        if isinstance(error, NotFoundError):
            return True  # A record, and nothing behind it: as good as damaged.
        is_outage = isinstance(error, BackendError | NetworkError) and not isinstance(error, DeadlineError)
        if isinstance(level, BucketLevel) and is_outage:  # A policy that refuses the content, say, is none.
            self._healths[level.name].failed(error)
        return False

    def refuse(self, level: Level, key: str, error: ModelCacheError) -> None:
        """Say that what *level* has for *key* is not what its name says."""
        self.refused += 1
        _log.warning("what the tier %s has for %s is refused: %s", level.name, key, error.summary)
        self._tell(Event("refused", key, detail=f"{level.name}: {error.summary}"))

    def file(
        self,
        entry: Entry,
        *,
        offer: Offer | None = None,
        personal: bool = False,
        wrong: Iterable[tuple[str, Digest]] = (),
    ) -> list[str]:
        """Let *entry*, whose object is durable, wait for each tier that is to have it; return their names.

        Args:
            entry: What has come.
            offer: Of the tier that it has come from: those before it get it. None: from elsewhere, and all do.
            personal: It was fetched with somebody's credentials: only those get it that ask for such content.
            wrong: Tiers, by name, and what they have that is not what its name says: they get it in its place.

        Raises:
            QueueFullError, StorageError, NoSpaceError: It does not wait for a required tier.
        """
        names, wrong = [], list(wrong)
        levels = [level.name for level in self.levels]
        before = levels if offer is None else levels[: levels.index(offer.tier.name)]
        record = record_of(entry)
        facts = None if record is None else record.facts()
        for level in self.writable():
            bad = [digest for name, digest in wrong if name == level.name]
            if (level.name not in before and not bad) or (personal and not level.tier.private):
                continue
            try:
                if self._has_room(level):
                    Outbox(self._root, level.name).add(entry.digest, record=facts, wrong=bad)
                    names.append(level.name)
            except (StorageError, NoSpaceError) as error:
                if level.tier.is_required:
                    raise
                _log.warning("%s does not wait for the tier %s: %s", entry.key, level.name, error.summary)
        return names

    def _has_room(self, level: BucketLevel) -> bool:
        """Tell whether one more object may wait for *level*, for which the oldest may go."""
        queue, outbox = level.tier.queue, Outbox(self._root, level.name)
        if outbox.count() < queue.capacity:
            return True
        if queue.overflow == "drop-oldest":
            oldest = next(iter(outbox.all()), None)
            if oldest is not None:  # Else all of it has been delivered meanwhile.
                outbox.remove(oldest)
            return True
        full = QueueFullError(backend=level.name, capacity=queue.capacity, detail="so many objects wait for it already")
        if level.tier.is_required:
            raise full
        _log.warning("%s; `modelcache tiers sync` brings what is missing there", full.summary)
        return False

    def close(self) -> None:
        """Give back what backends hold open."""
        for level in self.levels:
            if isinstance(level, BucketLevel):
                level.close()

    def _backend_of(self, name: str) -> Backend:
        for level in self.levels:
            if level.name == name and isinstance(level, BucketLevel):
                return level.backend()
        raise UsageError(problem=f"no tier is called {name!r:.100}")

    def _behind(self, tier: Tier | None) -> tuple[Level, ...]:
        places = [number for number, level in enumerate(self.levels) if level.tier is tier]
        return self.levels[places[0] + 1 :] if places else self.levels

    def _looks(
        self, levels: tuple[Level, ...] | list[Level], work: Callable[[Level], Any]
    ) -> Iterator[tuple[Level, Any]]:
        """Yield what each of *levels* has, in order, of those that have something."""
        looks: list[Look | ModelCacheError | None] = []

        def start(until: int, since: float | None = None) -> None:
            for level in levels[len(looks) : until]:
                try:
                    look = self._healths[level.name].start(lambda level=level: work(level), since)  # type: ignore[misc]
                    looks.append(look)
                except ModelCacheError as error:
                    looks.append(error)  # It is raised when its turn comes.

        for number, level in enumerate(levels):
            start(number + 1)
            look = looks[number]
            if isinstance(look, ModelCacheError):
                raise look
            if look is None:
                continue
            if not look.wait(min(_ALONE_S, look.until - monotonic())):
                start(len(levels), look.began)  # All together take as long as one.
            found = self._answer(level, look)
            if found is not None:
                yield level, found

    def _answer(self, level: Level, look: Look, *, silent: bool = False) -> Any:
        """Return what *look* came to; None if that is nothing, it failed, or is late. *silent*: say nothing of that."""
        health = self._healths[level.name]
        if not look.wait(look.until - monotonic()):
            health.overdue()
            return None
        level.answered(look.seconds)
        try:
            return look.result()
        except (BackendSetupError, BackendAccessError):
            if health.is_refused:
                raise
        except BackendDownError:
            pass
        except (OSError, ModelCacheError) as error:
            if not silent:
                level.complain(_why(error))
        return None

    def _offered(self, level: Level, found: Found, ref: Ref, verify: str) -> Offer | None:
        try:  # Not within the timeout: how long it takes to read a content is no sign of a tier that hangs.
            offer = found()
            if offer is None or offer.entry is None or not offer.in_place or level.holds(offer.entry, verify):
                return offer
        except (OSError, ModelCacheError) as error:
            level.complain(_why(error))
            return None
        level.complain(f"what it has for {ref.key} is not what its name says")
        return None

    def _state(self, level: Level, look: Look | None) -> TierState:
        health, tier = self._healths[level.name], level.tier
        found: TierState | None = self._answer(level, look, silent=True) if look is not None else None
        breaker = health.breaker
        if found is None:
            late = breaker.is_hanging or (look is not None and monotonic() >= look.until)
            why = "does not answer" if late else breaker.last_error or "does not answer"
            kind = level.kind if isinstance(level, BucketLevel) else "unknown"
            found = TierState(tier.path, kind, tier.is_bucket or bool(tier.promote), why, name=level.name)
        how = "" if not tier.write else "direct" if tier.is_direct else "queued"
        waiting = Outbox(self._root, level.name).filings() if tier.write else []
        return replace(
            found,
            write=how,
            state=DOWN if found.problem and tier.is_bucket else breaker.state,
            last_error=breaker.last_error,
            waiting=len({filing.digest for filing in waiting}),
            lag=round(max(0.0, time() - waiting[0].since), 3) if waiting else 0.0,
        )


def _why(error: Exception) -> str:
    """Return what *error* says of a tier that is named beside it."""
    if isinstance(error, BackendError):
        return error.detail
    return getattr(error, "summary", "") or str(error)
