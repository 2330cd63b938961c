"""Metrics for Prometheus: the only import of prometheus_client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import MissingLibraryError

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingLibraryError(
        library="prometheus_client", extra="metrics", purpose="write metrics for Prometheus", reason=str(error)
    ) from error

from .samples import COUNTER, Metric, Sampler

if TYPE_CHECKING:
    from ..archive import Archivist
    from ..cache import Cache

Family = CounterMetricFamily | GaugeMetricFamily


class CacheCollector(Collector):
    """Collects the metrics of *cache* whenever a registry asks."""

    def __init__(self, cache: Cache, archivist: Archivist | None, *, models: bool) -> None:
        self._sampler = Sampler(cache, archivist, models=models)

    def describe(self) -> list[Family]:
        """Say nothing in advance: registering reads no disk."""
        return []

    def collect(self) -> Iterator[Family]:
        """Yield what there is now."""
        for metric in self._sampler.read():
            yield _family(metric)


def render(collector: Collector) -> str:
    """Return what *collector* collects, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry).decode()


def _family(metric: Metric) -> Family:
    kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.means, labels=metric.labels)
    for labels, value in sorted(metric.values.items()):
        family.add_metric(list(labels), value)
    return family
