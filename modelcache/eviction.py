"""What goes when room is needed: a choice among facts, without I/O.

An object goes with all entries that name it. It never goes while one of them is pinned, a live process holds a lease of
it, or one of them was used within the grace period; then the least recently used goes first. What was derived goes
before what it was derived from, and with it: it is no use without, and is built again where the other is fetched again.

Bytes are those of inodes: one that several names share is counted once, and is free when the last of its links goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

# Uses are recorded once an hour (`hit.USE_STAMP_S`) and remembered for some seconds without a look (`memory`): a stamp
# may be that much older than the last use.
STAMP_LAG_S = 3600.0 + 60.0
PINNED, LEASED, IN_GRACE, ELSEWHERE = "pinned", "leased", "used within the grace period", "wanted by a fetch"


class File(NamedTuple):  # As cheap as can be: a plan makes one of each file there is.
    """One name of an inode. ``links`` is how many names it has in all."""

    inode: tuple[int, int]
    size: int
    links: int


class Footprint(NamedTuple):
    """What something takes of the disk: its ``own`` bytes, in files of one name, and files that have several names."""

    own: int = 0
    shared: tuple[File, ...] = ()

    @classmethod
    def of(cls, files: Iterable[File]) -> Footprint:
        """Return that of *files*."""
        files = tuple(files)
        own = sum(file.size for file in files if file.links == 1)
        return cls(own, tuple(file for file in files if file.links != 1))

    @property
    def size(self) -> int:
        """Its bytes, each inode counted once."""
        return self.own + sum({file.inode: file.size for file in self.shared}.values())


class Candidate(NamedTuple):
    """An object, and what speaks for it.

    Attributes:
        name: Of its directory under ``objects-v1``.
        records: The names of the records that name it; empty for one that nothing names.
        footprint: What it takes of the disk.
        used: When it was last used, in Unix seconds, as far as is on record.
        expires: When the time of all its entries is over, in Unix seconds; 0 if that never comes.
        held: Why it must stay whatever its age; empty if nothing says so.
        inputs: Of what was derived, and is nothing else: the names of the objects that it was derived from.
    """

    name: str
    records: tuple[str, ...]
    footprint: Footprint
    used: float
    held: str = ""
    expires: int = 0
    inputs: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Its bytes, each inode counted once."""
        return self.footprint.size

    def age(self, now: float) -> float:
        """Return the seconds since its last use; one in the future (a clock that jumped) counts as far as it is."""
        return abs(now - self.used)

    def stays(self, now: float, grace: float) -> str:
        """Return why it must not go now, "" if it may. A grace of 0 promises nothing to anybody."""
        if self.held:
            return self.held
        return IN_GRACE if grace > 0 and self.age(now) < grace + STAMP_LAG_S else ""


class Ledger:
    """The bytes of what was added, and what is free when some of it goes."""

    def __init__(self) -> None:
        self.total = 0
        self._left: dict[tuple[int, int], int] = {}

    def add(self, footprint: Footprint) -> None:
        """Count *footprint*."""
        self.total += footprint.own
        for file in footprint.shared:
            if file.inode not in self._left:
                self._left[file.inode] = file.links
                self.total += file.size

    def drop(self, footprint: Footprint) -> int:
        """Take *footprint* away; return the bytes that are free by that: those whose last link went."""
        freed = footprint.own
        for file in footprint.shared:
            left = self._left.get(file.inode, 0)
            self._left[file.inode] = left - 1
            if left == 1:
                freed += file.size
        self.total -= freed
        return freed


@dataclass(frozen=True, slots=True)
class Choice:
    """One candidate that goes, why, and what is free by that."""

    candidate: Candidate
    reason: str
    freed: int


def choose(
    candidates: Iterable[Candidate],
    ledger: Ledger,
    *,
    now: float,
    grace: float,
    unused_for: float | None = None,
    limit: int | None = None,
) -> list[Choice]:
    """Return what goes, least recently used first; *ledger* is left with what stays.

    Args:
        candidates: All objects.
        ledger: The bytes of all that is here, the candidates included.
        now: In Unix seconds.
        grace: Nothing goes that may have been used within so many seconds.
        unused_for: All goes that has not been used for so many seconds.
        limit: Then more goes until no more than so many bytes are left, or nothing more may go.
    """
    choosing = _Choosing(list(candidates), ledger, now, grace)
    for one in choosing.free:
        if not one.records:
            reason = "nothing names it"
        elif one.inputs and not choosing.present.issuperset(one.inputs):
            reason = "what it was derived from has gone"
        elif 0 < one.expires <= now:
            reason = "its time is over"
        elif unused_for is not None and one.age(now) >= unused_for:
            reason = "unused for too long"
        elif limit is not None and ledger.total > limit and any(one.footprint):
            choosing.take(one, "least recently used", lambda: ledger.total > limit)
            continue
        else:
            continue
        choosing.take(one, reason, lambda: True)
    return choosing.chosen


class _Choosing:
    """The candidates, and what was chosen of them so far."""

    def __init__(self, candidates: list[Candidate], ledger: Ledger, now: float, grace: float) -> None:
        self.chosen: list[Choice] = []
        self.present = {one.name for one in candidates if any(one.footprint)}
        self.free = [one for one in candidates if not one.stays(now, grace)]
        self.free.sort(key=lambda one: (bool(one.records), -one.age(now), one.name))
        self._ledger = ledger
        self._may_go = {one.name for one in self.free}
        self._gone: set[str] = set()
        self._made_of: dict[str, list[Candidate]] = {}  # What was derived, by each input.
        for one in candidates:
            for name in one.inputs:
                self._made_of.setdefault(name, []).append(one)

    def take(
        self, one: Candidate, reason: str, is_needed: Callable[[], bool], seen: frozenset[str] = frozenset()
    ) -> None:
        """Choose *one*, after all that was derived from it, if that may go, and while *is_needed* says so."""
        if one.name in self._gone or one.name in seen:
            return
        for other in self._made_of.get(one.name, ()):
            if is_needed() and other.name in self._may_go:
                self.take(other, "what it was derived from goes", is_needed, seen | {one.name})
        stays = any(other.name not in self._gone | seen | {one.name} for other in self._made_of.get(one.name, ()))
        if is_needed() and not stays:
            self._gone.add(one.name)
            self.chosen.append(Choice(one, reason, self._ledger.drop(one.footprint)))
