"""Metrics of a cache: for an app's own Prometheus registry, as text, as a file for node_exporter, by OpenTelemetry.

Counts are sums over all processes that use the cache, from its usage on record (`modelcache.usage`), so that they are
the same whichever of several workers is asked; they need ``usage`` to be on. Gauges are of what is on disk, and of the
backends of an archivist. ``pip install modelcache[metrics]``, ``modelcache[otel]``; docs/usage.md has the names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import commit, files
from ..errors import storage_error

if TYPE_CHECKING:
    from ..archive import Archivist
    from ..cache import Cache
    from .prometheus import CacheCollector

_FILE_MODE = 0o644  # node_exporter is another user.


def collector(cache: Cache, *, archivist: Archivist | None = None, models: bool = False) -> CacheCollector:
    """Return a collector for a registry: ``REGISTRY.register(metrics.collector(cache))``.

    Args:
        cache: Whose metrics.
        archivist: Tell the health of its backends as well.
        models: Tell hits, misses and bytes by model too: a label with a thousand values at most.

    Raises:
        MissingLibraryError: prometheus_client is not installed.
    """
    from . import prometheus

    return prometheus.CacheCollector(cache, archivist, models=models)


def text(cache: Cache, *, archivist: Archivist | None = None, models: bool = False) -> str:
    """Return the metrics as Prometheus reads them, for an app's own endpoint. See `collector`."""
    from . import prometheus

    return prometheus.render(prometheus.CacheCollector(cache, archivist, models=models))


def write(
    cache: Cache, path: str | os.PathLike[str], *, archivist: Archivist | None = None, models: bool = False
) -> None:
    """Replace the file *path* (``….prom``), whole, by the metrics: what node_exporter's textfile collector reads.

    Raises:
        UsageError: It is there, and is no file.
        StorageError: It cannot be written; the old one stays.
        MissingLibraryError: prometheus_client is not installed.
    """
    target = os.path.abspath(os.fspath(path))
    files.check_replaceable(target)
    data = text(cache, archivist=archivist, models=models).encode()
    try:
        commit.replace_hint(os.path.dirname(target), target, data, mode=_FILE_MODE)
    except OSError as error:
        raise storage_error(error, action="write", path=target) from error


def instrument(cache: Cache, *, archivist: Archivist | None = None, models: bool = False, provider: Any = None) -> None:
    """Let OpenTelemetry observe the metrics, by the meter ``modelcache`` of *provider* (default: the global one).

    They are read when its reader collects. There is one process to do that for a root, or several that report the same.

    Raises:
        MissingLibraryError: opentelemetry-api is not installed.
    """
    from .otel import observe

    observe(cache, archivist, models=models, provider=provider)
