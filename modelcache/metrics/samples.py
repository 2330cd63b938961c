"""What is measured of a cache, whoever asks: names, kinds, meanings and values. No library.

Names are those of Prometheus: base units, ``_total`` behind what only grows. Labels have few values: the class of an
error, the name of a backend, and a model only where somebody asks for that, the thousand that are used most.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from ..forks import renew_after_fork
from ..usage.summary import UsageReport, most_used
from ..usage.tally import Usage

if TYPE_CHECKING:
    from ..archive import Archivist
    from ..cache import Cache

COUNTER, GAUGE = "counter", "gauge"
MODELS_MAX = 1_000
_DISK_S = 30.0
Values = dict[tuple[str, ...], float]
_STATES = ("healthy", "degraded", "down")


@dataclass(slots=True)
class Metric:
    """One metric: ``values`` by the values of its ``labels``."""

    name: str
    kind: str
    means: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    values: Values = field(default_factory=dict)


_USAGE = (
    ("modelcache_hits", "Gets that were answered from the cache", "", "hits"),
    ("modelcache_misses", "Gets that had to fetch, or failed to", "", "misses"),
    ("modelcache_coalesced", "Gets for which another thread or process fetched", "", "coalesced"),
    ("modelcache_kept", "Misses that were answered by what is here: confirmed, or its source away", "", "kept"),
    ("modelcache_hit_bytes", "Bytes that hits did not download", "bytes", "hit_bytes"),
    ("modelcache_prewarms", "Models that were brought, or found here, ahead of their use", "", "prewarms"),
    ("modelcache_fetches", "Downloads that were verified and stored", "", "fetches"),
    ("modelcache_fetch_seconds", "Time that these took, together", "seconds", "seconds"),
    ("modelcache_builds", "Products that were built, of what is derived", "", "builds"),
    ("modelcache_build_seconds", "Time that these took, together", "seconds", "build_seconds"),
    ("modelcache_evictions", "Models that gc removed", "", "evictions"),
    ("modelcache_evicted_bytes", "Bytes that were free by that", "bytes", "evicted_bytes"),
    ("modelcache_quarantines", "Contents that were found corrupt, and set aside", "", "quarantines"),
)
_BY_MODEL = (
    ("modelcache_model_hits", "Hits, of the models that are used most", "", "hits"),
    ("modelcache_model_misses", "Misses, of the models that are used most", "", "misses"),
    ("modelcache_model_hit_bytes", "Bytes that hits did not download", "bytes", "hit_bytes"),
)


class _Kept:
    """What is kept of one cache from one reading to the next, whoever reads: most of them make a new `Sampler`."""

    def __init__(self) -> None:
        self.most: dict[tuple[str, ...], float] = {}
        self.disk: list[Metric] = []
        self.disk_until = 0.0
        renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`."""
        self.guard = threading.Lock()


_kept: weakref.WeakKeyDictionary[Cache, _Kept] = weakref.WeakKeyDictionary()
_making = threading.Lock()


class Sampler:
    """Reads the metrics of *cache*, and of the backends of *archivist*. Any thread may ask."""

    def __init__(self, cache: Cache, archivist: Archivist | None, *, models: bool) -> None:
        self._cache, self._archivist, self._models = cache, archivist, models
        with _making:
            self._kept = _kept.setdefault(cache, _Kept())

    def read(self) -> list[Metric]:
        """Return all metrics as they are now."""
        report = self._cache.usage()
        metrics = _of_usage(report)
        if self._models:
            metrics += _of_models(report)
        with self._kept.guard:
            for metric in metrics:
                if metric.kind == COUNTER:
                    self._keep_growing(metric)
        metrics += self._of_disk()
        # Not kept growing: an archivist is of this process, and a new one begins at nothing.
        return metrics if self._archivist is None else metrics + _of_archive(self._archivist)

    def _keep_growing(self, metric: Metric) -> None:
        """Let no count fall: Prometheus would take that for a restart, and count all of it anew.

        What is read while files are folded may lack some of them for a moment.
        """
        for labels, value in metric.values.items():
            name = (metric.name, *labels)
            metric.values[labels] = self._kept.most[name] = max(value, self._kept.most.get(name, 0.0))

    def _of_disk(self) -> list[Metric]:
        """Return what is on disk, as it was half a minute ago at most: all objects are walked for that."""
        failures = self._cache.stats().usage_failures
        told = _one("modelcache_usage_failures", COUNTER, "Writes of usage by this process that failed", failures)
        with self._kept.guard:
            if not self._kept.disk or monotonic() >= self._kept.disk_until:
                self._kept.disk, self._kept.disk_until = self._walked(), monotonic() + _DISK_S
            return [*self._kept.disk, told]

    def _walked(self) -> list[Metric]:
        disk = self._cache.disk_usage()
        return [
            _one("modelcache_entries", GAUGE, "Refs that are on record", disk.entries),
            _one("modelcache_pinned", GAUGE, "Entries that are pinned", disk.pinned),
            _one("modelcache_objects", GAUGE, "Pieces of content", disk.objects),
            _one("modelcache_object_bytes", GAUGE, "Bytes of content, each counted once", disk.object_bytes, "bytes"),
            _one("modelcache_partial_bytes", GAUGE, "Bytes that can be resumed", disk.partial_bytes, "bytes"),
            _one("modelcache_quarantined_objects", GAUGE, "Corrupt contents that were set aside", disk.quarantined),
            _one("modelcache_free_bytes", GAUGE, "Bytes free on the disk, for this user", disk.free_bytes, "bytes"),
        ]


def _one(name: str, kind: str, means: str, value: float, unit: str = "") -> Metric:
    return Metric(name, kind, means, unit, values={(): value})


def _of_usage(report: UsageReport) -> list[Metric]:
    usage = report.total.usage
    found = [_one(name, COUNTER, means, getattr(usage, of), unit) for name, means, unit, of in _USAGE]
    received: Values = {("source",): float(usage.source_bytes), ("tier",): float(usage.tier_bytes)}
    errors: Values = {(name,): float(count) for name, count in usage.errors.items()}
    found.append(Metric("modelcache_received_bytes", COUNTER, "Bytes received", "bytes", ("from",), received))
    found.append(Metric("modelcache_errors", COUNTER, "Gets and builds that raised", "", ("error",), errors))
    return found


def _of_models(report: UsageReport) -> list[Metric]:
    used = most_used(report.models)[:MODELS_MAX]

    def values(of: str) -> Values:
        return {(key,): float(getattr(usage, of)) for key, usage in used}

    found = [Metric(name, COUNTER, means, unit, ("model",), values(of)) for name, means, unit, of in _BY_MODEL]
    medians: Values = {(key,): _median(usage) for key, usage in used if _median(usage)}
    means = "What a fetch of the model takes, the median"
    found.append(Metric("modelcache_model_fetch_seconds", GAUGE, means, "seconds", ("model",), medians))
    return found


def _median(usage: Usage) -> float:
    return usage.median_seconds or 0.0


def _of_archive(archivist: Archivist) -> list[Metric]:
    """Return how the backends are; one that was removed is not told of any more."""
    health = archivist.health()
    states: Values = {(name, state): float(one.state == state) for name, one in health.items() for state in _STATES}
    found = [Metric("modelcache_backend_state", GAUGE, "1 for the state it is in", "", ("backend", "state"), states)]
    for of, kind, means, unit in (
        ("depth", GAUGE, "Writes that wait", ""),
        ("lag", GAUGE, "Age of the write that waits longest", "seconds"),
        ("consecutive_failures", GAUGE, "Calls that failed since the last one that did not", ""),
        ("dropped", COUNTER, "Events that were dropped", ""),
        ("dispatched", COUNTER, "Events and objects that were written", ""),
        ("coalesced", COUNTER, "Events that shared a call with another one", ""),
    ):
        values: Values = {(name,): float(getattr(one, of)) for name, one in health.items()}
        name = f"modelcache_backend_{of}{f'_{unit}' if unit else ''}"
        found.append(Metric(name, kind, means, unit, ("backend",), values))
    return found
