"""Tiers that are buckets: read, refused, healed, written to, and passed over."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Event, Tier, errors
from modelcache.archive import DirectoryBackend, MemoryBackend
from modelcache.backends import contents, refs
from modelcache.digest import Digest
from modelcache.levels import base
from modelcache.outbox import Outbox
from modelcache.promises import check_cache
from modelcache.reference import parse
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers

CONTENT = bytes(range(256)) * 2000
OTHER = b"other" * 1000
DIGEST = Digest.of_bytes([CONTENT])
PATIENT = 30.0  # Two cores may be busy with other tests: only who tests a timeout sets a short one.


@pytest.fixture(autouse=True)
def _tell_everything_again() -> None:
    base._complained.clear()


@pytest.fixture
def bucket() -> MemoryBackend:
    return MemoryBackend()


def tier(backend: Any, name: str = "b", **options: Any) -> Tier:
    return Tier("bucket", name=name, backend=backend, **{"timeout": PATIENT, **options})


def cache(root: Path, *tiers: Tier, **options: Any) -> Cache:
    return Cache(root, tiers=tiers, **options)


def filled(bucket: Any, root: Path, url: str) -> None:
    """Let another cache fetch *url*, and bring it to the bucket."""
    with cache(root.parent / "first", tier(bucket, write="direct")) as first:
        first.get(url)
    assert list(bucket.names("refs/")) == [refs.record_name(url)]


def whole(root: Path) -> None:
    assert check_cache(root) == []
    assert leftovers(root) == []


# -- read ----------------------------------------------------------------------------------------------------------


def test_what_one_cache_has_fetched_another_one_has_from_the_bucket(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    seen = len(server.requests)

    with cache(root, tier(bucket)) as second:
        path = Path(second.get(url))
        stats = second.stats()
        entry = second.lookup(url)

    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(root)
    assert len(server.requests) == seen
    assert (stats.bytes_promoted, stats.bytes_received, stats.requests) == (len(CONTENT), 0, 0)
    assert entry is not None
    assert (entry.source, entry.digest) == (url, DIGEST)
    assert entry.etag is not None
    whole(root)
