"""Garbage collection: a plan of what would go, and its execution, which looks at everything again.

Order of an eviction (DESIGN.md section 4; I2, I4), under the gc lock: say that the object is about to go → look for who
wants it (announcements, leases, pins, uses) → remove its records, durably → look for leases and records → move it to
trash → look again → put it back if somebody arrived, else unlink. Whoever leases, pins, uses after an hour, or records,
writes that first and looks for removals afterwards, so that one of the two sees the other. The lock only saves two
collectors from doing the same work; that it works at all is what tells that leases can be trusted.

What crashed processes left goes too: staging, trash, locks and leases by `sweep`, and here the partials that nobody
has resumed for a week.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from failpoints import fail_point

from . import commit, files, layout, locks, process, roots
from .config import Capacity
from .digest import Digest
from .errors import CapacityError, LockTimeoutError, ModelCacheError, NoLocksError, storage_error
from .events import Event, Listener, ignore
from .eviction import ELSEWHERE, IN_GRACE, LEASED, PINNED, Candidate, Choice, Ledger, choose
from .footprint import footprint_of, object_footprint
from .leases import InUse, Leases
from .objects import Objects
from .pins import Pins
from .records import Entries
from .sweep import needed, sweep
from .usage import store

PARTIAL_S = 7 * 86_400.0  # A partial that nobody has resumed for so long is given up.
USED_SINCE = "used since it was planned"
_TRIES = 3  # Each after the first needs others that use, at that very moment, what was to go.
# Objects that go together: their records are read twice for all of them. Whoever wants one waits for all, some 50 ms.
_BATCH = 32
_OBJECT = re.compile("[^-]+-[0-9a-f]{64}")
_STORED = (layout.STAGING, layout.TRASH, layout.QUARANTINE)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that goes.

    Attributes:
        kind: ``object`` (with the entries that name it), ``partial``, ``staging``, ``trash`` or ``lease``.
        name: Of the directory or file.
        keys: Of the entries that go with it.
        size: Bytes that are free by that.
        used: When it was last used, in Unix seconds.
        reason: Why it goes.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    size: int
    used: float
    reason: str

    def age(self, now: float) -> float:
        """Return the seconds since its last use."""
        return abs(now - self.used)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        return {
            "kind": self.kind, "name": self.name, "refs": list(self.keys), "bytes": self.size,
            "used": int(self.used), "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What gc would remove, as things stand.

    Attributes:
        root: The cache.
        items: What would go, in order.
        used_bytes: What the cache uses now, each inode counted once.
        limit_bytes: What it may use; None for no limit.
        kept: Why what stays may not go, and how many bytes that is.
    """

    root: str
    items: tuple[Item, ...]
    used_bytes: int
    limit_bytes: int | None
    kept: dict[str, int]
    _collector: Collector = field(repr=False, compare=False)

    @property
    def freed_bytes(self) -> int:
        """What would be free: bytes that several names share are counted once."""
        return sum(item.size for item in self.items)

    @property
    def missing_bytes(self) -> int:
        """What the cache would still use beyond its limit."""
        return 0 if self.limit_bytes is None else max(0, self.used_bytes - self.freed_bytes - self.limit_bytes)

    def execute(self) -> Collected:
        """Remove what is planned, except what has been used, pinned, leased or recorded meanwhile.

        Raises:
            LockTimeoutError: Another collector is at work; it says which.
            NoLocksError: Locks keep nobody out here.
            StorageError: The file system failed; what went until then is gone.
        """
        return self._collector.execute(self)

    def table(self) -> str:
        """Return the plan for a person: bytes that are free, days since the last use, why, and what."""
        now = time.time()
        rows = [("BYTES", "DAYS", "REASON", "WHAT")]
        rows += [
            (str(item.size), f"{item.age(now) / 86_400:.1f}", item.reason, " ".join(item.keys) or item.name)
            for item in self.items
        ]
        sizes, days, reasons = (max(len(row[column]) for row in rows) for column in range(3))
        lines = (f"{row[0]:>{sizes}}  {row[1]:>{days}}  {row[2]:<{reasons}}  {row[3]}" for row in rows)
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON-ready dict."""
        return {
            "root": self.root, "items": [item.as_dict() for item in self.items], "used_bytes": self.used_bytes,
            "limit_bytes": self.limit_bytes, "freed_bytes": self.freed_bytes, "missing_bytes": self.missing_bytes,
            "kept": self.kept,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Collected:
    """What a gc did: what is gone, and what stayed although it was planned, by name with the reason."""

    removed: tuple[Item, ...]
    stayed: dict[str, str]

    @property
    def freed_bytes(self) -> int:
        """What is free by that."""
        return sum(item.size for item in self.removed)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-ready dict."""
        return {
            "removed": [item.as_dict() for item in self.removed], "stayed": self.stayed,
            "freed_bytes": self.freed_bytes,
        }  # fmt: skip


class Collector:
    """Collects the garbage of the cache at *root*."""

    def __init__(self, root: str, on_event: Listener = ignore) -> None:
        self._root, self._tell = root, on_event
        self._objects, self._entries, self._pins = Objects(root), Entries(root), Pins(root)
        self._leases = Leases(root)

    def plan(
        self,
        *,
        grace: float,
        capacity: Capacity | None = None,
        needed: int = 0,
        unused_for: float | None = None,
        wanted: Collection[str] = (),
        now: float | None = None,
    ) -> Plan:
        """Return what would go; nothing is changed.

        Args:
            grace: Nothing goes that may have been used within so many seconds.
            capacity: What the cache may use; more goes until it does.
            needed: Bytes that must fit into it as well.
            unused_for: All goes that has not been used for so many seconds.
            wanted: Keys that must stay.
            now: In Unix seconds.
        """
        now = time.time() if now is None else now
        candidates = self._candidates(wanted)
        ledger = Ledger()
        for candidate in candidates:
            ledger.add(candidate.footprint)
        for name in files.listing(f"{self._root}/{layout.OBJECTS}"):
            if not is_object(name):
                ledger.add(footprint_of(f"{self._root}/{layout.OBJECTS}/{name}"))
        for bucket in _STORED:
            ledger.add(footprint_of(f"{self._root}/{bucket}"))
        for name in files.listing(f"{self._root}/{layout.PARTIALS}"):
            ledger.add(footprint_of(f"{self._root}/{layout.PARTIALS}/{name}/object"))  # Without the notes beside it.
        used = ledger.total
        limit = None
        if capacity is not None and os.path.isdir(self._root):
            limit = self._limit(capacity, used) - needed
        left = [replace(item, size=ledger.drop(footprint_of(_path(self._root, item)))) for item in self._left_over(now)]
        chosen = choose(candidates, ledger, now=now, grace=grace, unused_for=unused_for, limit=limit)
        items = [item for choice in chosen if (item := self._item(choice)) is not None]
        gone = {item.name for item in items}
        kept = dict.fromkeys((PINNED, LEASED, IN_GRACE, ELSEWHERE), 0)
        for one in candidates:
            why = one.stays(now, grace)
            if why and one.name not in gone:
                kept[why] += one.size
        return Plan(self._root, (*left, *items), used, limit, kept, _collector=self)

    def execute(self, plan: Plan) -> Collected:
        """Do what *plan* says, where it still holds. See `Plan.execute`."""
        removed, stayed = [], {}
        if not os.path.isdir(self._root):
            return Collected((), {})
        with self._alone():
            fail_point("gc.before-collect")
            for batch in _batches(plan.items):
                reasons = (
                    self._evict(batch) if batch[0].kind == "object" else {one.name: self._clear(one) for one in batch}
                )
                for item in batch:
                    if reasons[item.name]:
                        stayed[item.name] = reasons[item.name]
                        continue
                    removed.append(item)
                    for key in item.keys:
                        self._tell(Event("evicted", key, done=item.size, detail=item.reason))
            sweep(self._root)
            store.fold_quietly(self._root)
        return Collected(tuple(removed), stayed)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the gc lock for the block, having seen that it keeps others out."""
        roots.prepare_root(self._root)
        path = f"{self._root}/{layout.LOCKS}/{layout.GC_LOCK}"
        try:
            with locks.exclusive(path, timeout=0, what="garbage collection"):
                locks.check_excludes(path)
                yield
        except locks.LockUnavailableError as error:
            raise NoLocksError(path=self._root, reason=str(error)) from error

    def _evict(self, items: Sequence[Item]) -> dict[str, str]:
        """Remove objects and what names them; return why each stays, "" if it is gone, by name."""
        by_digest = {Digest(item.name.replace("-", ":", 1)): item for item in items}
        why = dict.fromkeys(by_digest, "wanted by who is about to record it")

        def forget(digest: Digest) -> bool:
            item = by_digest[digest]
            why[digest] = self._objection(item)
            if not why[digest]:
                fail_point("gc.before-forget")
                why[digest] = self._forget(item, digest)
            if why[digest]:
                return False
            why[digest] = "in use, or named, by somebody who came meanwhile"
            return True

        gone = self._objects.remove_all(list(by_digest), look=lambda: needed(self._root), first=forget)
        here = {digest for digest in by_digest if digest not in gone and os.path.lexists(self._objects.path(digest))}
        return {item.name: why[digest] if digest in here else "" for digest, item in by_digest.items()}

    def _forget(self, item: Item, digest: Digest) -> str:
        """Remove the records of *item*, durably; return why they are as before, "" if they are gone.

        They are looked at once more when nobody can find them any more, for who was stopped in between.
        """
        why = ""
        taken: dict[str, str] = {}
        try:
            for key in item.keys:
                aside = self._entries.take(key)
                if aside is None:
                    continue
                taken[key] = aside
                entry, used = self._entries.taken(key, aside)
                if entry is None or entry.digest != digest:
                    why = "it means something else by now"
                elif used > item.used:
                    why = USED_SINCE
                elif self._pins.has(key):
                    why = PINNED
        except ModelCacheError:
            self._give_back(taken)
            raise
        fail_point("gc.before-forgotten")
        if why:
            self._give_back(taken)
        else:
            for aside in taken.values():
                commit.remove_quietly(aside)
        return why

    def _give_back(self, taken: dict[str, str]) -> None:
        for key, aside in taken.items():
            self._entries.give_back(key, aside)

    def _objection(self, item: Item) -> str:
        """Return why *item* must stay after all, "" if it need not. Its removal is announced by now."""
        if self._leases.in_use().covers(item.name):
            return LEASED
        if any(self._pins.has(key) for key in item.keys):
            return PINNED
        return USED_SINCE if self._used(item.name, item.keys) > item.used else ""

    def _clear(self, item: Item) -> str:
        """Remove what crashed processes left, other than objects; the sweep at the end does the rest."""
        if item.kind == "partial":
            path, trash = _path(self._root, item), f"{self._root}/{layout.TRASH}/{process.token()}.partial"
            fail_point("gc.before-partial")
            try:
                commit.rename(path, trash)  # Whoever resumes it claims it by a rename too: one of them gets it.
            except FileNotFoundError:
                return "resumed meanwhile"
            except OSError as error:
                raise storage_error(error, action="remove", path=path) from error
            commit.discard(trash)
        if item.kind == "lease" and locks.is_abandoned(_path(self._root, item)):
            commit.remove_quietly(_path(self._root, item))
        return ""

    def _candidates(self, wanted: Collection[str]) -> list[Candidate]:
        """Return every object and every entry, by object, with what speaks for it."""
        records: dict[str, tuple[str, ...]] = {}
        used: dict[str, float] = {}
        names: dict[str, str] = {}
        expires: dict[str, int] = {}
        for head in self._entries.heads():
            records[head.object] = (*records.get(head.object, ()), head.identity)
            names[head.object] = head.name
            others = expires.get(head.object, head.expires)
            expires[head.object] = (
                max(others, head.expires) if others and head.expires else 0
            )  # As long as any wants it.
            used[head.object] = max(used.get(head.object, 0.0), head.used)
        objects = f"{self._root}/{layout.OBJECTS}"
        here = [name for name in files.listing(objects) if is_object(name)]
        inputs = self._inputs(records)
        in_use = self._leases.in_use()
        pinned = frozenset(files.listing(f"{self._root}/{layout.PINS}"))
        wanted = frozenset(layout.key_id(key) for key in wanted)
        found = []
        for name in dict.fromkeys([*here, *records]):
            of = records.get(name, ())
            footprint = object_footprint(f"{objects}/{name}", names.get(name, ""))
            last = used[name] if of else _mtime(f"{objects}/{name}")
            held = _held(name, of, in_use, pinned, wanted)
            made_of = inputs.get(name, ())
            found.append(Candidate(name, of, footprint, last, held, expires.get(name, 0), made_of))
        return found

    def _inputs(self, records: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Return the objects that each object was derived from, by name, of those that nothing else names."""
        found: dict[str, list[set[str]]] = {}
        for entry in self._entries.derived():
            made = entry.derived
            if made is not None:
                parts = {layout.object_name(part.object) for part in made.inputs if not part.below}
                found.setdefault(layout.object_name(entry.digest), []).append(parts)
        # One product may be that of several inputs: it needs none of them but what all have in common.
        return {
            name: tuple(sorted(set.intersection(*parts)))
            for name, parts in found.items()
            if len(parts) == len(records.get(name, ()))
        }

    def _item(self, choice: Choice) -> Item | None:
        """Return what goes; None if one of its records is broken: that is a miss, and still names it."""
        one = choice.candidate
        entries = [self._entries.load(identity) for identity in one.records]
        keys = tuple(sorted(entry.key for entry in entries if entry is not None))
        return Item("object", one.name, keys, choice.freed, one.used, choice.reason) if None not in entries else None

    def _used(self, name: str, keys: tuple[str, ...]) -> float:
        """Return when the object was last used: by its entries' stamps; without any, when it was stored or replaced."""
        if keys:
            return max(self._entries.used(key) for key in keys)
        return _mtime(f"{self._root}/{layout.OBJECTS}/{name}")

    def _left_over(self, now: float) -> Iterator[Item]:
        """Yield what crashed processes left; lock files are not looked at, because a look would remove them."""
        for bucket, kind in ((layout.STAGING, "staging"), (layout.TRASH, "trash")):
            for name in files.listing(f"{self._root}/{bucket}"):
                if process.is_dead(name) or (kind == "staging" and self._objects.is_void(name)):
                    yield Item(kind, name, (), 0, now, "its process is gone")
        for name in self._leases.abandoned():
            yield Item("lease", name, (), 0, now, "its process is gone")
        for name in files.listing(f"{self._root}/{layout.PARTIALS}"):
            path = f"{self._root}/{layout.PARTIALS}/{name}"
            if process.is_dead(name.partition(".")[2]) is False:
                continue
            used = max((_mtime(f"{place}/{file}") for place, _, inside in os.walk(path) for file in inside), default=0)
            if abs(now - (used or _mtime(path))) > PARTIAL_S:
                yield Item("partial", name, (), 0, used, "nobody has resumed it for a week")

    def _limit(self, capacity: Capacity, used: int) -> int:
        found = os.statvfs(self._root)
        free = found.f_bavail * found.f_frsize
        return min(capacity.limit(used=used, size=found.f_blocks * found.f_frsize, free=free), used + free)


class Room:
    """Keeps the cache at *root* within its capacity: makes room before a fetch."""

    def __init__(self, root: str, capacity: Capacity, grace: float, on_event: Listener) -> None:
        self._root, self._capacity, self._grace = root, capacity, grace
        self._collector = Collector(root, on_event)

    def __repr__(self) -> str:
        """Return what two processes must have in common to be refused alike (`notes`)."""
        return f"Room({self._capacity}, grace={self._grace:g})"

    def make(self, key: str, needed: int, *, staged: int = 0, wanted: Collection[str] = ()) -> None:
        """Make room for *needed* bytes, of *key*, by evicting what was least recently used, but nothing *wanted*.

        So many of them as are *staged* lie on the disk already, and are counted there. If another collector is at work,
        it is trusted to do the same.

        Raises:
            CapacityError: They do not fit, whatever may go; nothing was evicted.
            NoLocksError: Something must go, and gc cannot run here.
        """
        more = needed - staged
        if self._capacity.spare is not None:
            found = os.statvfs(self._root)
            if found.f_bavail * found.f_frsize - more >= self._capacity.spare:
                return  # Nothing needs to be counted.
        for _ in range(_TRIES):
            plan = self._collector.plan(grace=self._grace, capacity=self._capacity, needed=more, wanted=wanted or {key})
            if plan.limit_bytes is None:
                return  # There is no cache yet.
            if plan.used_bytes <= plan.limit_bytes:
                return
            if plan.missing_bytes:
                break
            try:
                plan.execute()
            except LockTimeoutError:
                return
        assert plan.limit_bytes is not None
        raise CapacityError(
            what=key, needed=needed, capacity=plan.limit_bytes + more, used=plan.used_bytes - staged, kept=plan.kept
        )


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield *items* in their order, some at a time, all of a batch being objects or none."""
    for _, run in groupby(items, key=lambda item: item.kind == "object"):
        batch = list(run)
        for start in range(0, len(batch), _BATCH):
            yield batch[start : start + _BATCH]


def is_object(name: str) -> bool:
    """Tell whether *name* is that of an object of any kind, as ``sha256-`` and 64 hexadecimal digits."""
    return _OBJECT.fullmatch(name) is not None


def _held(name: str, records: tuple[str, ...], in_use: InUse, pinned: frozenset[str], wanted: frozenset[str]) -> str:
    if in_use.covers(name):
        return LEASED
    if not pinned.isdisjoint(records):
        return PINNED
    return "" if wanted.isdisjoint(records) else ELSEWHERE


def _path(root: str, item: Item) -> str:
    bucket = {"partial": layout.PARTIALS, "staging": layout.STAGING, "trash": layout.TRASH, "lease": layout.LEASES}
    return f"{root}/{bucket[item.kind]}/{item.name}"


def _mtime(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0
