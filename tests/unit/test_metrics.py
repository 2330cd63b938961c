"""Metrics: what Prometheus and OpenTelemetry are told, by whom, and that a count never falls."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from modelcache import Cache, errors, metrics
from modelcache.archive import Archivist, MemoryBackend, Registration
from modelcache.metrics import otel
from modelcache.testing import FaultServer
from modelcache.usage import store

CONTENT = b"x" * 5000


def values(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def used(root: Path, server: FaultServer) -> Path:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root, usage=True) as cache:
        for _ in range(4):
            cache.get(url.replace("://", "://user:secret@"))
        with pytest.raises(errors.EntryNotFoundError):
            cache.get("nothing")
    return root


def test_the_text_has_counts_of_all_processes_and_what_is_on_disk(used: Path) -> None:
    with Cache(used) as another:
        found = values(metrics.text(another))

    assert found["modelcache_hits_total",] == 3
    assert found["modelcache_misses_total",] == 2
    assert found["modelcache_hit_bytes_total",] == 15_000
    assert found["modelcache_received_bytes_total", "source"] == 5000
    assert found["modelcache_errors_total", "EntryNotFoundError"] == 1
    assert found["modelcache_object_bytes",] == 5000
    assert not any(name.startswith("modelcache_model") for name, *_ in found)


def test_models_are_told_where_they_are_asked_for_without_credentials(used: Path) -> None:
    with Cache(used) as cache:
        text = metrics.text(cache, models=True)

    assert "secret" not in text
    (key,) = (key for key in values(text) if key[0] == "modelcache_model_hits_total" and "m.onnx" in key[1])
    assert values(text)[key] == 3


def test_a_collector_serves_an_apps_own_registry(used: Path) -> None:
    registry = CollectorRegistry()
    with Cache(used, usage=True) as cache:
        registry.register(metrics.collector(cache))
        assert registry.get_sample_value("modelcache_hits_total") == 3
        (key,) = (entry.key for entry in cache.entries())
        cache.get(key)
        assert registry.get_sample_value("modelcache_hits_total") == 4


def test_a_count_never_falls(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    with Cache(used) as cache:
        registry.register(metrics.collector(cache))
        assert registry.get_sample_value("modelcache_hits_total") == 3
        monkeypatch.setattr(store, "read", lambda _root: [])  # What a reader may see while files are folded.
        assert registry.get_sample_value("modelcache_hits_total") == 3


def test_pages_of_text_are_readings_of_one_cache(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cache(used) as cache:
        first = values(metrics.text(cache))
        monkeypatch.setattr(store, "read", lambda _root: [])
        monkeypatch.setattr(Cache, "disk_usage", None)  # No page walks all objects again.
        second = values(metrics.text(cache))

    assert second["modelcache_hits_total",] == first["modelcache_hits_total",] == 3
    assert second["modelcache_objects",] == 1


def test_counts_of_a_new_archivist_begin_anew(used: Path) -> None:
    found = []
    with Cache(used) as cache:
        for number in (2, 1):
            with Archivist([Registration("shared", MemoryBackend())], root=used) as archivist:
                archivist.append_events("m", ["event"] * number)
                assert archivist.flush(30)
                found.append(values(metrics.text(cache, archivist=archivist)))

    assert [one["modelcache_backend_dispatched_total", "shared"] for one in found] == [2, 1]


def test_the_backends_of_an_archivist_are_told_of(used: Path) -> None:
    with (
        Cache(used) as cache,
        Archivist([Registration("shared", MemoryBackend())], root=used) as archivist,
    ):
        archivist.append_events("m", ["event"])
        assert archivist.flush(30)
        found = values(metrics.text(cache, archivist=archivist))

    assert found["modelcache_backend_state", "healthy", "shared"] == 1
    assert found["modelcache_backend_state", "down", "shared"] == 0
    assert found["modelcache_backend_dispatched_total", "shared"] == 1


def test_the_file_for_node_exporter_is_whole_and_others_may_read_it(used: Path, tmp_path: Path) -> None:
    path = tmp_path / "modelcache.prom"
    before = os.umask(0o077)
    try:
        with Cache(used) as cache:
            metrics.write(cache, path)
            metrics.write(cache, path)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert values(path.read_text())["modelcache_hits_total",] == 3
    assert [one.name for one in tmp_path.glob("*.prom*")] == ["modelcache.prom"]


def test_what_is_no_file_is_not_replaced_by_one(used: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with Cache(used) as cache:
        for name in ("pipe", "link", "."):
            with pytest.raises(errors.UsageError, match="no regular file"):
                metrics.write(cache, tmp_path / name)

    assert stat.S_ISFIFO((tmp_path / "link").stat().st_mode)


def test_a_file_that_cannot_be_written_is_told(used: Path, tmp_path: Path) -> None:
    with Cache(used) as cache, pytest.raises(errors.StorageError):
        metrics.write(cache, tmp_path / "nowhere" / "modelcache.prom")


def test_opentelemetry_observes_the_same(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "_SAME_S", 0.0)
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with Cache(used, usage=True) as cache:
        metrics.instrument(cache, provider=provider, models=True)
        (key,) = (entry.key for entry in cache.entries())
        cache.get(key)
        data = reader.get_metrics_data()
    provider.shutdown()

    assert data is not None
    found = {
        (metric.name, *map(str, (point.attributes or {}).values())): point.value  # type: ignore[union-attr]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }
    assert found["modelcache.hits",] == 4
    assert found["modelcache.received_bytes", "source"] == 5000
    assert found["modelcache.model_hits", key] == 4


@pytest.mark.parametrize(
    ("library", "call", "extra"),
    [("prometheus_client", "text(cache)", "metrics"), ("opentelemetry", "instrument(cache)", "otel")],
)
def test_a_library_that_is_not_installed_is_told_with_the_extra_that_brings_it(
    library: str, call: str, extra: str, root: Path
) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
from modelcache import Cache, metrics, errors
cache = Cache(sys.argv[1])
try:
    metrics.{call}
except errors.MissingLibraryError as error:
    print(error.hint)
"""
    said = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True).stdout

    assert said == f"pip install 'modelcache[{extra}]'\n"
