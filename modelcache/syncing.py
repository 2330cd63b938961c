"""What one side has and the other lacks is copied: from this cache to its buckets (push), or from one to here (pull).

Nothing that is there already is sent again, so that the same call goes on where it was interrupted. What goes is hashed
before it goes, what comes as it comes. A ref that stands for another content on the other side stays as it is there, or
here: to copy is not to choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .backends import contents, refs
from .backends.refs import RefRecord
from .breaker import Breaker
from .config import RetryPolicy
from .errors import DamagedReplicaError, EntryNotFoundError, ModelCacheError, UsageError
from .jobs import run_all
from .levels.bucket import BucketLevel, publish, record_of
from .objects import Objects
from .records import Entries, Entry
from .retry import Deadline
from .tiers import Tiers

_RETRY = RetryPolicy(attempts=3, base=0.2, cap=2.0)
_HANGS_S = 3600.0


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one ref.

    Attributes:
        ref: The key.
        tier: The name of the tier.
        state: ``copied``; ``there``: it was already; ``missing``: it would be copied; ``other``: the ref stands for
            another content there (a push) or here (a pull), and stays; ``failed``.
        bytes: That were copied, or would be.
        error: Why it failed, else None.
    """

    ref: str
    tier: str
    state: str
    bytes: int = 0
    error: ModelCacheError | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        facts = asdict(self)
        facts["error"] = None if self.error is None else self.error.summary
        return facts


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What became of all. ``seconds`` is how long that took."""

    refs: tuple[Synced, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Synced, ...]:
        """Those that failed."""
        return tuple(one for one in self.refs if one.state == "failed")

    def counts(self) -> dict[str, int]:
        """Return how many there are of each state, and the bytes."""
        states = ("copied", "missing", "there", "other", "failed")
        found = {state: sum(one.state == state for one in self.refs) for state in states}
        return {**found, "bytes": sum(one.bytes for one in self.refs)}

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        return {**self.counts(), "seconds": round(self.seconds, 3), "refs": [one.as_dict() for one in self.refs]}


class Sync:
    """Copies between the cache at *root* and the buckets of *tiers*, *jobs* at a time.

    Args:
        root: Of the cache.
        tiers: Its tiers.
        jobs: Refs at a time.
        dry_run: Say what would be copied, and copy nothing.
        tell: Called with each outcome as it comes.
    """

    def __init__(self, root: str, tiers: Tiers, *, jobs: int, dry_run: bool, tell: Callable[[Synced], object]) -> None:
        self._root, self._tiers = root, tiers
        self._jobs, self._dry_run, self._tell = jobs, dry_run, tell
        self._breakers: dict[str, Breaker] = {}

    def push(self, entries: Iterable[Entry], to: str | None) -> SyncReport:
        """Copy *entries* to the bucket called *to*; to all that are written to, if that is None."""
        levels = self._tiers.writable() if to is None else [self._level(to)]
        if not levels or not all(level.tier.write for level in levels):
            what = "no tier is" if to is None else f"the tier {to} is not"
            hint = "Say ,write behind the place of a bucket, or Tier(write=True)"
            raise UsageError(problem=f"{what} written to", hint=hint)
        asked = [(level, entry) for entry in entries for level in levels]
        return self._run(asked, lambda one: (one[1].key, one[0].name), lambda one: self._push(*one))

    def pull(
        self, wanted: Callable[[str], bool], from_: str, bring: Callable[[BucketLevel, RefRecord], Entry]
    ) -> SyncReport:
        """Copy what the bucket called *from_* has on record for keys that are *wanted*, by *bring*."""
        level = self._level(from_)
        names = list(self._breaker(level).call(lambda: list(level.backend().names("refs/")), patience=_patience()))
        entries = Entries(self._root)

        def one(name: str) -> Synced | None:
            record = self._breaker(level).call(lambda: _record(level, name), patience=_patience())
            if isinstance(record, DamagedReplicaError):
                raise record
            if record is None or not wanted(record.key):
                return None
            here = entries.read(record.key)
            if here is not None and Objects(self._root).find(here.digest, here.name) is not None:
                return Synced(record.key, level.name, "there" if here.digest == record.digest else "other")
            if self._dry_run:
                return Synced(record.key, level.name, "missing", record.size)
            try:
                return Synced(record.key, level.name, "copied", bring(level, record).size)
            except ModelCacheError as error:
                return Synced(record.key, level.name, "failed", error=error)

        return self._run(names, lambda name: (name, level.name), one)

    def _run(
        self, asked: list[Any], called: Callable[[Any], tuple[str, str]], work: Callable[[Any], Synced | None]
    ) -> SyncReport:
        started = time.monotonic()

        def one(item: Any, _: Deadline) -> Synced | None:
            ref, tier = called(item)
            try:
                found = work(item)
            except ModelCacheError as error:
                found = Synced(ref, tier, "failed", error=error)
            if found is not None:
                self._tell(found)
            return found

        outcomes = run_all(asked, one, jobs=self._jobs, deadline=lambda _: _patience())
        return SyncReport(tuple(one for one in outcomes if one is not None), time.monotonic() - started)

    def _push(self, level: BucketLevel, entry: Entry) -> Synced:
        breaker, record, wrong = self._breaker(level), record_of(entry), False
        stored = Objects(self._root).find(entry.digest, entry.name)
        if stored is None:
            raise EntryNotFoundError(ref=entry.key, root=self._root)
        found = stored

        def look() -> tuple[bool, RefRecord | None]:
            nonlocal wrong
            try:
                there = None if record is None else refs.read(level.backend(), entry.key)
            except DamagedReplicaError:
                there, wrong = None, True
            return contents.has_all(level.backend(), found), there

        has, there = breaker.call(look, patience=_patience())
        if there is not None and there.digest != entry.digest:
            return Synced(entry.key, level.name, "other")
        if has and not wrong and (record is None or there is not None):
            return Synced(entry.key, level.name, "there")
        if self._dry_run:
            return Synced(entry.key, level.name, "missing", 0 if has else entry.size)
        try:
            sent = breaker.call(lambda: publish(level, found, record), patience=_patience())
        except FileNotFoundError as error:
            raise EntryNotFoundError(ref=entry.key, root=self._root) from error
        return Synced(entry.key, level.name, "copied", sent)

    def _level(self, name: str) -> BucketLevel:
        buckets = [level for level in self._tiers.levels if isinstance(level, BucketLevel)]
        for level in buckets:
            if level.name == name:
                return level
        known = ", ".join(level.name for level in buckets) or "there is none"
        raise UsageError(problem=f"no bucket among the tiers is called {name!r:.100}", hint=f"There are: {known}")

    def _breaker(self, level: BucketLevel) -> Breaker:
        """Return what calls to *level* go through: when it is down, what is left fails at once."""
        if level.name not in self._breakers:
            self._breakers[level.name] = Breaker(
                level.name, policy=_RETRY, cooldown=10.0, cooldown_max=10.0, timeout=_HANGS_S
            )
        return self._breakers[level.name]


def _patience() -> Deadline:
    return Deadline(None, ref="tiers sync")


def _record(level: BucketLevel, name: str) -> RefRecord | DamagedReplicaError | None:
    """Return the record in the file *name*, or what is wrong with it: that is no sign of a tier that is down."""
    try:
        return refs.read_file(level.backend(), name)
    except DamagedReplicaError as error:
        return error
