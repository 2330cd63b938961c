"""Does the cache hold what it says? Content is read and hashed; what is not what its name says is set aside.

A hit looks at size and mtime only. This is the slow look behind it: for an entry whose file was touched, and for
``modelcache verify``. No network is used here; fetching again is the caller's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from . import commit, layout, trees
from .digest import Digest
from .errors import CorruptObjectError, InvalidDigestError, ModelCacheError
from .objects import Objects
from .pins import Pins
from .promises import Violation, check_cache
from .records import Entries, Entry
from .sampling import sample_of

_LINK = "(a symbolic link)"
_LOOKS = 3  # Each after the first needs another process that replaces the object at that moment.


@dataclass(frozen=True, slots=True)
class Finding:
    """What one entry's content turned out to be.

    Attributes:
        entry: As it is on record.
        state: ``ok``, ``corrupt`` (set aside, unless the root is read-only), ``missing``, ``unreadable``.
        actual: The digest found, if it is another one.
        moved_to: Where the corrupt object is now.
        repaired: Whether it has been fetched again since.
        error: Why a repair failed.
    """

    entry: Entry
    state: str
    actual: str = ""
    moved_to: str = ""
    repaired: bool = False
    error: ModelCacheError | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one verification found: a finding for each entry and, if it was of the whole cache, promises not kept."""

    findings: tuple[Finding, ...]
    violations: tuple[Violation, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every entry is whole now, and every other promise is kept."""
        return not self.violations and all(finding.state == "ok" or finding.repaired for finding in self.findings)

    @property
    def bad(self) -> tuple[Finding, ...]:
        """The findings that are not ``ok``, repaired ones included."""
        return tuple(finding for finding in self.findings if finding.state != "ok")

    @property
    def bytes_read(self) -> int:
        """Bytes that were read and hashed."""
        return sum(finding.entry.size for finding in self.findings if finding.state in {"ok", "corrupt"})


def verify(
    root: str,
    entries: Sequence[Entry],
    *,
    everything: bool,
    jobs: int,
    on_finding: Callable[[Finding], object],
    fetch_again: Callable[[Entry], object] | None,
) -> Report:
    """Read and hash the content of *entries*, *jobs* at a time; of *everything*, what no entry names is read too.

    What is corrupt is set aside. With *fetch_again*, what is corrupt or missing comes back by it, and what nothing can
    bring back, broken records and objects that no entry names, is set aside as well.
    """
    findings = examine_all(root, entries, jobs=jobs, on_finding=on_finding)
    if fetch_again is not None:
        findings = [_repaired(finding, fetch_again) for finding in findings]
    if not everything:
        return Report(tuple(findings))
    told = {finding.entry.key for finding in findings}  # A loss is told once, by its finding.
    others = check_cache(root, read_already={finding.entry.digest for finding in findings})
    others = [other for other in others if other.kind != "garbage" and other.where not in told]
    if fetch_again is not None:
        others = [other for other in others if not _is_set_aside(root, other)]
    return Report(tuple(findings), tuple(others))


def examine(root: str, entry: Entry) -> Finding:
    """Return what the content of *entry* is. A corrupt object is set aside, and so not served again (I1)."""
    for look in range(1, _LOOKS + 1):
        if os.path.islink(os.path.dirname(entry.path)):  # What is behind it is not ours to keep, whatever it is.
            return Finding(entry, "corrupt", _LINK, _set_aside(root, entry, _LINK, None))
        try:
            actual, found = trees.digest_of(entry.path, entry.digest)
        except FileNotFoundError:
            return Finding(entry, "missing")
        except OSError as error:
            return Finding(entry, "unreadable", actual=error.strerror or str(error))
        if actual == entry.digest:
            break
        moved_to = _set_aside(root, entry, actual, found)
        if moved_to or look == _LOOKS:
            return Finding(entry, "corrupt", actual, moved_to)
        # Another process has just replaced it: what is there now is looked at instead.
    if found.st_mtime_ns != entry.mtime_ns:
        try:
            commit.stamp(entry.path, entry.mtime_ns)  # Touched and unharmed: the next hit is quick again.
        except OSError:
            pass  # Not ours to write: it is served all the same, and hashed each time.
    return Finding(entry, "ok")


def sample(root: str, entry: Entry) -> str | None:
    """Return what a quick look at the content of *entry* finds, None if it cannot be had."""
    try:
        listing = trees.listing_on_record(Objects(root).path(entry.digest), entry.digest)
        return sample_of(entry.path, entry.digest, listing)
    except OSError:
        return None


def is_sampled(root: str, entry: Entry) -> bool:
    """Tell whether a quick look finds what the one before has found."""
    return entry.sample is not None and sample(root, entry) == entry.sample


def corrupt_error(finding: Finding) -> CorruptObjectError:
    """Return the error for a corrupt *finding*."""
    entry = finding.entry
    return CorruptObjectError(ref=entry.key, expected=entry.digest, actual=finding.actual, moved_to=finding.moved_to)


def examine_all(
    root: str, entries: Iterable[Entry], *, jobs: int, on_finding: Callable[[Finding], object]
) -> Sequence[Finding]:
    """Return what the content of all *entries* is, *jobs* at a time (hashing releases the interpreter lock).

    One that was removed or replaced meanwhile is left out.
    """
    recorded = Entries(root)

    def one(entry: Entry) -> Finding | None:
        finding = examine(root, entry)
        if finding.state != "ok":
            now = recorded.read(entry.key)
            if now is None or now.serial != entry.serial:
                return None
        on_finding(finding)
        return finding

    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="modelcache-verify") as pool:
        return [finding for finding in pool.map(one, entries) if finding is not None]


def _repaired(finding: Finding, fetch_again: Callable[[Entry], object]) -> Finding:
    if finding.state == "ok":
        return finding
    try:
        fetch_again(finding.entry)
    except ModelCacheError as error:
        return replace(finding, error=error)
    return replace(finding, repaired=True)


def _is_set_aside(root: str, violation: Violation) -> bool:
    """Set aside what *violation* is about, if that mends it; tell whether it is out of the way."""
    directory, name = os.path.split(violation.where)
    try:
        if violation.promise == "I6" and os.path.basename(directory) == layout.PINS:
            entry = Entries(root).load(name)
            Pins(root).mend(name, None if entry is None else entry.key)
            return True
        if violation.promise == "I6":
            return Entries(root).set_aside(name)
        if violation.promise != "I1":
            return False
        place = violation.where.removeprefix(f"{root}/{layout.OBJECTS}/").partition("/")[0]
        return bool(Objects(root).quarantine(Digest.parse(place.replace("-", ":", 1)), violation.what))
    except (InvalidDigestError, ModelCacheError):
        return False


def _set_aside(root: str, entry: Entry, actual: str, found: os.stat_result | None) -> str:
    if not os.access(f"{root}/{layout.OBJECTS}", os.W_OK):
        return "(left in place: the root is read-only)"
    return Objects(root).quarantine(entry.digest, f"{entry.key}: expected {entry.digest}, found {actual}", found)
