"""What a cache says about itself: counts and health. Plain values, no I/O."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Counts:
    """What fetching has cost.

    Attributes:
        fetched: Models downloaded, verified and stored.
        unchanged: Conditional requests after which the cached content still held.
        requests: Requests sent to sources.
        retries: Attempts after a failed one.
        failed: Fetches that ended in an error.
        bytes_received: Bytes of content received from sources.
        bytes_promoted: Bytes of content copied from tiers.
        refused: What tiers had, and was not what its name says.
        bytes_resumed: Bytes that were here from an earlier attempt and were not asked for again.
    """

    fetched: int = 0
    unchanged: int = 0
    requests: int = 0
    retries: int = 0
    failed: int = 0
    bytes_received: int = 0
    bytes_promoted: int = 0
    bytes_resumed: int = 0
    refused: int = 0


@dataclass(slots=True)
class Stats(Counts):
    """What one Cache object has counted since it was made, the cost of fetching included.

    Attributes:
        hits: Gets answered from the cache.
        misses: Gets that had to fetch, or failed to.
    """

    hits: int = 0
    misses: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts as a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What one object takes of the disk.

    Attributes:
        object: Its name under ``objects-v1``.
        refs: Of the entries that name it; empty if nothing does.
        own_bytes: Of files that no other object has: about what is free when it goes.
        shared_bytes: Of files that other objects have as well.
    """

    object: str
    refs: tuple[str, ...]
    own_bytes: int
    shared_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        return {**asdict(self), "refs": list(self.refs)}


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the cache can do its work.

    Attributes:
        root: The directory.
        exists: Whether it is there yet.
        writable: Whether new models can be stored; hits need no write.
        offline: Whether connections are ruled out.
        free_bytes: What this user may still fill of the disk.
        problems: One sentence each; empty if nothing is wrong.
    """

    root: str
    exists: bool
    writable: bool
    offline: bool
    free_bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cache holds on disk. Bytes that several names share are counted once.

    Attributes:
        root: The directory.
        entries: Refs that are on record.
        pinned: How many of these are pinned.
        objects: Pieces of content.
        object_bytes: Their bytes.
        partials: Downloads that can be resumed.
        partial_bytes: Their bytes.
        quarantined: Corrupt objects that were set aside.
        free_bytes: What this user may still fill of the disk.
    """

    root: str
    entries: int
    pinned: int
    objects: int
    object_bytes: int
    partials: int
    partial_bytes: int
    quarantined: int
    free_bytes: int

    def as_dict(self) -> dict[str, int | str]:
        """Return the counts as a JSON-ready dict."""
        return asdict(self)
