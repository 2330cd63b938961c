"""Metrics for OpenTelemetry: the only import of its API. Observable instruments, read when a reader collects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import MissingLibraryError

try:
    from opentelemetry.metrics import CallbackOptions, Observation, get_meter
except ImportError as error:
    raise MissingLibraryError(
        library="opentelemetry-api", extra="otel", purpose="observe metrics", reason=str(error)
    ) from error

from .samples import COUNTER, Metric, Sampler

if TYPE_CHECKING:
    from ..archive import Archivist
    from ..cache import Cache

_SAME_S = 1.0  # Instruments are asked one by one: those of one collection see one reading.
_UNITS = {"seconds": "s", "bytes": "By"}


class _Reading:
    """The metrics, by name, read at most once a second."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler, self._guard = sampler, threading.Lock()
        self._metrics: dict[str, Metric] = {}
        self._until = 0.0

    def of(self, name: str) -> Metric | None:
        with self._guard:
            if time.monotonic() >= self._until:
                self._metrics = {metric.name: metric for metric in self._sampler.read()}
                self._until = time.monotonic() + _SAME_S
            return self._metrics.get(name)


def observe(cache: Cache, archivist: Archivist | None, *, models: bool, provider: Any) -> None:
    """Make an instrument of each metric."""
    sampler = Sampler(cache, archivist, models=models)
    reading = _Reading(sampler)
    meter = get_meter("modelcache", meter_provider=provider)
    for metric in sampler.read():
        make = meter.create_observable_counter if metric.kind == COUNTER else meter.create_observable_gauge
        name = metric.name.replace("modelcache_", "modelcache.", 1)
        make(name, [_callback(reading, metric.name)], unit=_UNITS.get(metric.unit, "1"), description=metric.means)


def _callback(reading: _Reading, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def look(_options: CallbackOptions) -> Iterable[Observation]:
        metric = reading.of(name)
        if metric is None:
            return []
        values = metric.values.items()
        return [Observation(value, dict(zip(metric.labels, labels, strict=True))) for labels, value in values]

    return look
