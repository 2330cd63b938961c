"""What usage comes to: by model, host or day; what the cache has saved. Plain sums, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import tally
from .store import EARLIER, Part
from .tally import OTHERS, Tally, Usage

BY = ("model", "host", "day")


@dataclass(slots=True)
class UsageRow:
    """The use of one model, on one host or of one day.

    Attributes:
        name: Of it: a ref without credentials, a host, a day (UTC).
        usage: The counts.
        seconds_saved: What its hits would have taken: each as long as the median fetch of its model.
    """

    name: str
    usage: Usage = field(default_factory=Usage)
    seconds_saved: float = 0.0

    @property
    def hit_ratio(self) -> float | None:
        """The share of hits among all gets; None without any."""
        asked = self.usage.hits + self.usage.misses
        return self.usage.hits / asked if asked else None

    @property
    def bytes_saved(self) -> int:
        """What its hits did not download: each counts as a download that a program without a cache makes."""
        return self.usage.hit_bytes

    @property
    def error_count(self) -> int:
        """How many gets and builds raised."""
        return sum(self.usage.errors.values())

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        usage = self.usage
        return {
            "name": self.name, "hits": usage.hits, "misses": usage.misses, "hit_ratio": _rounded(self.hit_ratio),
            "coalesced": usage.coalesced, "kept": usage.kept, "prewarms": usage.prewarms, "fetches": usage.fetches,
            "fetch_seconds": _rounded(usage.seconds),
            "fetch_seconds_median": _rounded(usage.median_seconds), "bytes_from_sources": usage.source_bytes,
            "bytes_from_tiers": usage.tier_bytes, "bytes_saved": self.bytes_saved,
            "seconds_saved": _rounded(self.seconds_saved), "builds": usage.builds,
            "build_seconds": _rounded(usage.build_seconds), "evictions": usage.evictions,
            "evicted_bytes": usage.evicted_bytes, "quarantines": usage.quarantines, "errors": dict(usage.errors),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class UsageReport:
    """How a cache, or all that report to one archive, was used.

    Attributes:
        by: What the rows are by: ``model``, ``host`` or ``day``.
        since: The first day that counts (``YYYY-MM-DD``, UTC); None for all that is known.
        total: Of everything.
        rows: The most used first; days in order.
        models: Each model's counts, whatever the rows are by.
    """

    by: str
    since: str | None
    total: UsageRow
    rows: tuple[UsageRow, ...]
    models: Tally

    @property
    def slowest(self) -> tuple[UsageRow, ...]:
        """The models that take longest to fetch, by the median, the slowest first."""
        known = [UsageRow(key, usage) for key, usage in self.models.items() if usage.median_seconds is not None]
        return tuple(sorted(known, key=lambda row: (-(row.usage.median_seconds or 0), row.name)))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-ready dict."""
        slowest = [{"name": row.name, "fetch_seconds_median": row.usage.median_seconds} for row in self.slowest[:10]]
        return {
            "by": self.by, "since": self.since, "total": self.total.as_dict(),
            "rows": [row.as_dict() for row in self.rows], "slowest": slowest,
        }  # fmt: skip


def summed(parts: Iterable[Part], *, by: str = "model", since: str | None = None) -> UsageReport:
    """Return what *parts* come to, those of days *since* then."""
    # In the order of time: what is known of a model's content is what was known last.
    parts = sorted((part for part in parts if since is None or part.day >= since), key=lambda part: part.day)
    models: Tally = {}
    for part in parts:
        for key, usage in part.tally.items():
            models.setdefault(key, Usage()).add(usage)
    medians = {key: usage.median_seconds or 0.0 for key, usage in models.items()}
    total, rows = UsageRow("total"), dict[str, UsageRow]()
    for part in parts:
        for key, usage in part.tally.items():
            name = {"model": key, "host": part.host, "day": part.day}[by]
            name = name or "(earlier)" if name != EARLIER else "(earlier)"
            for row in (total, rows.setdefault(name, UsageRow(name))):
                row.usage.add(usage)
                row.seconds_saved += usage.hits * medians[key]
    if by == "day":
        ordered = sorted(rows.values(), key=lambda row: (row.name != "(earlier)", row.name))
    else:
        ordered = sorted(rows.values(), key=lambda row: (-row.usage.uses, -row.usage.misses, row.name))
    return UsageReport(by, since, total, tuple(ordered), models)


def most_used(models: Tally) -> list[tuple[str, Usage]]:
    """Return the models that were used, by gets that came to something; the most used first, then the larger."""
    used = [(key, usage) for key, usage in models.items() if usage.uses and key != OTHERS]
    return sorted(used, key=lambda one: (-one[1].uses, -one[1].size, one[0]))


def merged(parts: Iterable[Part]) -> Tally:
    """Return what *parts* count, by model."""
    found: Tally = {}
    for part in sorted(parts, key=lambda part: part.day):
        tally.add(found, part.tally)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
