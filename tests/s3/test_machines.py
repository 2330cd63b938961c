"""Caches on one bucket of a real S3 server: what one has the others have, and one of them downloads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Tier
from modelcache.archive import ObjectStoreBackend
from modelcache.testing import Fault, FaultServer
from tests.fleet.machines import PIECE, ends, got, machines, next_to
from tests.support.buckets import KEYS

MB = 1_000_000
CONTENT = random.Random(85).randbytes(2 * MB)


@pytest.fixture
def options(s3: str) -> dict[str, Any]:
    # A gateway that has just started takes a second or two for its first answers.
    return {"config": {"endpoint": s3, **KEYS}, "client_options": {"allow_http": True}, "timeout": 30.0}


def test_what_one_machine_has_fetched_another_reads_from_the_tier(
    tmp_path: Path, server: FaultServer, options: dict[str, Any]
) -> None:
    place = f"s3://models/{tmp_path.name}"
    url = server.add("/m.onnx", CONTENT)
    with Cache(tmp_path / "a", tiers=[Tier(place, write="direct", **options)]) as cache:
        cache.get(url)

    with Cache(tmp_path / "b", tiers=[Tier(place, **options)]) as cache:
        found = Path(cache.get(url)).read_bytes()
        stats = cache.stats()

    assert found == CONTENT
    assert (stats.bytes_promoted, len(server.seen())) == (len(CONTENT), 1)


def test_of_four_machines_one_downloads_and_when_it_is_killed_the_next_goes_on(
    tmp_path: Path, server: FaultServer, options: dict[str, Any]
) -> None:
    place = f"s3://models/{tmp_path.name}"
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=MB), Fault(rate=2 * MB)])
    with machines(4, tmp_path, place, url, options=options) as started:
        server.wait_for_sent(MB)
        first = next_to(started, "claimed")
        first.wait_for(f"shared {MB // PIECE}")
        first.kill()
        outcomes = ends([one for one in started if one is not first])
    backend = ObjectStoreBackend(place, config=options["config"], client_options=options["client_options"])

    assert outcomes == [got(CONTENT)] * 3
    assert [seen.headers.get("range") for seen in server.seen()] == [None, f"bytes={MB // PIECE * PIECE}-"]
    assert [name for top in ("claims/", "parts/", "probes/") for name in backend.names(top)] == []
