"""How a model was used: plain counts that can be added, and read back from JSON. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from ..reference import REF_CHARACTERS_MAX

SAMPLES_MAX = 32  # Durations of fetches that are kept of one model: enough for a median.
KEYS_MAX = 10_000  # Models that are counted by name, in a process and on a day; the others are counted together.
OTHERS = "(others)"
_MOST = 10**18  # Of anything; more is a mistake, or somebody's joke, and no float.


@dataclass(slots=True)
class Usage:
    """How one model was used, by some processes, for some time.

    Attributes:
        hits: Gets that were answered from the cache; of what was derived, builds that were not needed.
        hit_bytes: What these would have downloaded.
        misses: Gets that had to fetch, or failed to.
        coalesced: Of these, those for which another thread or process fetched.
        kept: Of the misses, those that were answered by what is here after all: the source confirmed it, or was away.
        fetches: Downloads that were verified and stored.
        seconds: What these took, together.
        source_bytes: Received from sources, for whatever came of it.
        tier_bytes: Received from tiers.
        builds: Products that were built, of what is derived.
        build_seconds: What these took, together.
        prewarms: Prewarms that came to something, and fetches of ``lock``: neither gets nor uses.
        ahead: Of fetches, coalesced and kept, those that were for these.
        evictions: By gc.
        evicted_bytes: What was free by that.
        quarantines: Contents that were found corrupt, and set aside.
        errors: Gets and builds that raised, by the name of the class.
        fetch_seconds: What single fetches took, 32 at most.
        size: Of the content, in bytes; 0 while it is not known.
        digest: Of the content when it was last used; ``""`` while it is not known.
    """

    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0
    coalesced: int = 0
    kept: int = 0
    fetches: int = 0
    seconds: float = 0.0
    source_bytes: int = 0
    tier_bytes: int = 0
    builds: int = 0
    build_seconds: float = 0.0
    prewarms: int = 0
    ahead: int = 0
    evictions: int = 0
    evicted_bytes: int = 0
    quarantines: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    fetch_seconds: list[float] = field(default_factory=list)
    size: int = 0
    digest: str = ""

    def add(self, other: Usage) -> None:
        """Add what *other* counts, which is later."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, count in other.errors.items():
            self.errors[name] = self.errors.get(name, 0) + count
        self.fetch_seconds = thinned([*self.fetch_seconds, *other.fetch_seconds])
        if other.digest:  # The size is that of the same content, or a lock file would demand what there never was.
            self.size, self.digest = other.size, other.digest
        elif not self.digest:
            self.size = other.size or self.size

    @property
    def uses(self) -> int:
        """Gets that came to something, as far as that is known: hits, fetches, what others fetched or was kept."""
        return self.hits + max(0, self.fetches + self.coalesced + self.kept - self.ahead)

    @property
    def median_seconds(self) -> float | None:
        """What a fetch takes, None if none is known."""
        return sorted(self.fetch_seconds)[len(self.fetch_seconds) // 2] if self.fetch_seconds else None

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict, without what is nothing."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items() if value}

    @classmethod
    def from_dict(cls, facts: object) -> Usage | None:
        """Return what `as_dict` gave; None if it is something else, or absurd. What a later one counts is left out."""
        if not isinstance(facts, dict):
            return None
        found = cls()
        for name, value in facts.items():
            if name in _SUMS or name == "size":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
                    return None
                setattr(found, name, float(value) if name.endswith("seconds") else int(value))
        errors, samples, digest = facts.get("errors", {}), facts.get("fetch_seconds", []), facts.get("digest", "")
        if not (isinstance(errors, dict) and isinstance(samples, list) and isinstance(digest, str)):
            return None
        found.errors = {str(name): count for name, count in errors.items() if _is_error(name, count)}
        found.fetch_seconds = thinned(
            [float(one) for one in samples if type(one) in {int, float} and 0 <= one <= _MOST]
        )
        found.digest = digest
        return found


def _is_error(name: object, count: object) -> bool:
    """Tell whether *name* is that of a class, as it becomes a label of metrics, and *count* a number of errors."""
    return isinstance(name, str) and name.isidentifier() and type(count) is int and 0 < count <= _MOST


_SUMS = (
    "hits", "hit_bytes", "misses", "coalesced", "kept", "fetches", "seconds", "source_bytes", "tier_bytes", "builds",
    "build_seconds", "prewarms", "ahead", "evictions", "evicted_bytes", "quarantines",
)  # fmt: skip

Tally = dict[str, Usage]


def of(tally: Tally, key: str) -> Usage:
    """Return what counts for the model *key* in *tally*; beyond `KEYS_MAX` models, what counts for the others."""
    found = tally.get(key)
    if found is None:
        if len(tally) >= KEYS_MAX:
            key = OTHERS
        found = tally.setdefault(key, Usage())
    return found


def name(text: str, limit: int = REF_CHARACTERS_MAX) -> str:
    """Return *text*, read from what others may have written, if it can be a ref or a host; else the others' name.

    It becomes a label of metrics, and a line on a terminal; what is no text in UTF-8 would end both.
    """
    return text if 0 < len(text) <= limit and text.isprintable() else OTHERS


def add(tally: Tally, other: Tally) -> None:
    """Add *other*, which is later, to *tally*."""
    for key, usage in other.items():
        of(tally, key).add(usage)


def thinned(samples: list[float]) -> list[float]:
    """Return *samples*, or so many of them, evenly out of their order by size, that they have the same median."""
    if len(samples) <= SAMPLES_MAX:
        return samples
    ordered, last = sorted(samples), len(samples) - 1
    return [ordered[round(number * last / (SAMPLES_MAX - 1))] for number in range(SAMPLES_MAX)]
