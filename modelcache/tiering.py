"""The part of a Cache that has to do with tiers: how they are, what is brought to them, what is copied either way.

No algorithm of its own. `replication` is made when something has been filed; a cache without tiers makes none of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from . import reference
from .errors import EntryNotFoundError, UsageError
from .getting import Getter
from .making import Maker
from .question import RefLike, question

if TYPE_CHECKING:
    from .backends.refs import RefRecord
    from .digest import Digest
    from .levels.base import TierState
    from .levels.bucket import BucketLevel
    from .records import Entry
    from .replication import Replication
    from .syncing import Synced, SyncReport
    from .tier import Tier


class Tiered(Maker):
    """The part of a `Cache` that has to do with what is below it."""

    _replicating: Replication | None = None

    def tiers(self) -> list[TierState]:
        """Return the tiers in the order in which they are asked, and how each is now."""
        return [] if self._getter.tiers is None else self._getter.tiers.states()

    def flush(self, timeout: float | None = None) -> bool:
        """Bring what waits for the tiers, of whatever process, for *timeout* seconds (30) at most.

        Returns:
            Whether nothing waits any more. What does is tried again by the next process that fetches.

        Raises:
            ConfigurationError: *timeout* makes no sense.
        """
        self._check_open()
        replication = self._replication()
        return replication is None or replication.flush(timeout)

    def sync_tiers(
        self,
        *refs: RefLike,
        to: str | None = None,
        from_: str | None = None,
        jobs: int | None = None,
        dry_run: bool = False,
        on_synced: Callable[[Synced], object] | None = None,
    ) -> SyncReport:
        """Copy what is missing from this cache to buckets among its tiers, or from one of them to this cache.

        What was derived stays where it is. A ref that stands for another content on the other side is left alone.

        Args:
            refs: What to copy; all that there is if none is given, what is private too.
            to: The name of the bucket. Default: all that are written to.
            from_: The name of the bucket to copy from, in place of to. Capacity and policies hold as for `get`.
            jobs: Refs at a time.
            dry_run: Say what would be copied, and copy nothing.
            on_synced: Called with each outcome as it comes.

        Returns:
            What became of each ref. Failures are in it, not raised.

        Raises:
            UsageError: An argument makes no sense, or there is no such tier.
            EntryNotFoundError: One of *refs* is not on the side that is copied from.
            BackendError: What the bucket has cannot be listed.
        """
        from .syncing import Sync

        self._check_open()
        if to is not None and from_ is not None:
            raise UsageError(problem="to and from_ contradict each other: copying has one direction")
        tiers = self._getter.tiers
        if tiers is None:
            raise UsageError(problem="there are no tiers: MODELCACHE_TIERS names them")
        tell = on_synced or (lambda _: None)
        sync = Sync(self.root, tiers, jobs=self._jobs(jobs), dry_run=dry_run, tell=tell)
        if from_ is None:
            entries = [self._recorded(ref) for ref in refs] if refs else self.entries()
            return sync.push([entry for entry in entries if entry.derivation is None], to)
        keys = {reference.parse(ref).key for ref in refs}
        report = sync.pull(lambda key: not keys or key in keys, from_, self._bring)
        found = {one.ref for one in report.refs}
        absent = next((key for key in sorted(keys) if key not in found), None)
        if absent is not None:
            raise EntryNotFoundError(ref=absent, root=from_)
        return report

    def collect_tier(self, *, dry_run: bool = False) -> tuple[str, ...]:
        """Remove what killed machines have left in the tier with single flight: claims, and parts of downloads.

        It looks twice, one and a half leases apart (20 s at least), and takes only what has not moved: machines at
        work lose nothing. Content is never removed.

        Args:
            dry_run: Remove nothing.

        Returns:
            The names of the files that were removed, or would be.

        Raises:
            UsageError: No tier has single flight.
            BackendError: The bucket failed; some may have gone.
        """
        import time

        from .fleet import collect

        self._check_open()
        level = None if self._getter.tiers is None else self._getter.tiers.single_flight()
        if level is None:
            raise UsageError(
                problem="no tier has single flight", hint="Say ,single-flight behind the place of a bucket"
            )
        return collect(level.backend(), lease=level.tier.lease, wait=time.sleep, dry_run=dry_run)

    def waiting(self) -> dict[str, int]:
        """Return how many objects wait for which tier, by its name; of those that something waits for."""
        names = [tier.name for tier in self._limits.tiers if tier.write]
        if not names:
            return {}
        from .outbox import counts

        return counts(self.root, names)

    def _filing(self) -> tuple[list[str], Callable[[Entry], object] | None]:
        """Return where the tiers are told that something waits for, and what files it; None if none is written to."""
        tiers = self._getter.tiers
        filed: list[str] = []
        if tiers is None or not tiers.writable():
            return filed, None
        return filed, lambda entry: filed.extend(tiers.file(entry))

    def _deliver(self, names: list[str], digest: Digest) -> None:
        replication = self._replication()
        assert replication is not None
        replication.deliver(names, digest)

    def _replication(self) -> Replication | None:
        """Return what brings objects to tiers, made when it is first needed; None if no tier is written to."""
        tiers = self._getter.tiers
        if self._replicating is None and tiers is not None and tiers.writable():
            from .replication import Replication

            self._replicating = Replication(self.root, tiers)
        return self._replicating

    def _bring(self, level: BucketLevel, record: RefRecord) -> Entry:
        """Return the entry of *record*, brought from *level* alone."""
        patient = replace(level.tier, timeout=max(level.tier.timeout, 60.0))  # Nobody has another place to ask.
        limits = replace(self._limits, tiers=(patient,), offline=True)
        getter = Getter(self.root, limits, (), self._tell)
        getter.reaches = True
        try:
            ask = question(limits, record.key, record.digest, verify="stat", promote=True)
            return getter.entry(ask, self._getter.patience(record.key, limits.timeout.total))
        finally:
            getter.close()

    def _end_replication(self) -> None:
        """Bring what waits, within a bound; the rest is for the next process."""
        if self._replicating is not None:
            self._replicating.close()


def parsed(tiers: object, root: str) -> tuple[Tier, ...]:
    """Return *tiers*, as a `Cache` at *root* takes them; what makes no sense is a UsageError, or ConfigurationError."""
    if isinstance(tiers, str | os.PathLike) or not isinstance(tiers, Iterable):
        raise UsageError(problem=f"tiers is a list of tiers, not a single {type(tiers).__name__}")
    texts = list(tiers)
    if not texts:
        return ()
    from .tier import Tier

    found: list[Tier] = []
    for text in texts:
        tier = Tier.parse(text, os.environ)
        tier.check_with(found, root)
        found.append(tier)
    return tuple(found)
