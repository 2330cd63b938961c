"""A fleet of real processes, with roots of their own, asks one origin at once. It sees one download, whoever dies."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from modelcache.archive import ObjectStoreBackend
from modelcache.testing import Fault, FaultServer
from tests.fleet.machines import PIECE, ends, got, machines, next_to, traces
from tests.support.buckets import KEYS, s3_server

MB = 1_000_000
CONTENT = random.Random(81).randbytes(8 * MB)
SMALL = CONTENT[: 2 * MB]


def test_sixteen_machines_whose_claimers_are_killed_cause_one_download(
    tmp_path: Path, server: FaultServer, pytestconfig: pytest.Config
) -> None:
    large = pytestconfig.getoption("--crash-budget") == "large"
    kills, piece = (6, 64 * 1024) if large else (2, 64 * 1024)
    content = CONTENT * (6 if large else 2)
    count = len(content) // piece
    # Each claimer dies at the same of its own pieces, three of them on the way: so many die before one gets to the end.
    point = f"fleet.parts.before-piece={count // (kills + 1) + 2 * kills + 2}*off->kill"
    for trial in range(3):
        place = tmp_path / str(trial)
        bucket, url = place / "bucket", server.add(f"/{trial}.onnx", content, [Fault(rate=8 * MB)] * 40)
        with machines(
            16, place, f"directory://{bucket}", url, points={"all": point}, piece=piece, lease=1.5
        ) as started:
            outcomes = ends(started)
            if not any("stood down" in one.acknowledged() for one in started):
                break  # Else a machine was kept from its beats for a whole lease, and nothing is promised of that.

    assert outcomes.count("killed") == kills, outcomes
    assert set(outcomes) == {"killed", got(content)}
    # A kill costs less than five pieces (on the way, or not begun), a chunk, and what two kernels have of it.
    assert server.sent(f"/{trial}.onnx") <= len(content) + kills * (5 * piece + 5 * 64 * 1024)
    assert server.sent(f"/{trial}.onnx") <= 1.1 * len(content), f"{server.sent() / len(content):.2f} downloads"
    assert traces(bucket) == []


def test_a_bucket_that_is_slow_and_fails_one_time_in_five_still_saves_all_but_one_download(
    tmp_path: Path, server: FaultServer
) -> None:
    bucket = tmp_path / "bucket"
    url = server.add("/m.onnx", SMALL, [Fault(rate=2 * MB)])

    with machines(4, tmp_path, f"directory://{bucket}", url, failing=0.2, slow=0.02, lease=15.0) as started:
        outcomes = ends(started)

    assert outcomes == [got(SMALL)] * 4
    assert server.methods() == ["GET"]
    assert traces(bucket) == []


def test_over_a_real_s3_server_a_killed_claimer_is_followed_where_it_stood(tmp_path: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", SMALL, [Fault(hold_after=MB), Fault(rate=2 * MB)])

    with s3_server() as s3:
        options: dict[str, Any] = {"config": {"endpoint": s3, **KEYS}, "client_options": {"allow_http": True}}
        with machines(3, tmp_path, "s3://models/fleet", url, options=options) as started:
            server.wait_for_sent(MB)
            first = next_to(started, "claimed")
            first.wait_for(f"shared {MB // PIECE}")
            first.kill()
            outcomes = ends([one for one in started if one is not first])
        backend = ObjectStoreBackend("s3://models/fleet", **options)
        left = [name for top in ("claims/", "parts/", "probes/") for name in backend.names(top)]

    assert outcomes == [got(SMALL)] * 2
    assert [seen.headers.get("range") for seen in server.seen()] == [None, f"bytes={MB // PIECE * PIECE}-"]
    assert server.sent() <= 1.1 * len(SMALL)
    assert left == []


def test_a_claimer_that_was_stopped_and_comes_back_stands_down(tmp_path: Path, server: FaultServer) -> None:
    bucket = tmp_path / "bucket"
    url = server.add("/m.onnx", SMALL, [Fault(hold_after=MB)])

    with machines(3, tmp_path, f"directory://{bucket}", url) as started:
        server.wait_for_sent(MB)
        stopped = next_to(started, "claimed")
        stopped.wait_for(f"shared {MB // PIECE}")
        stopped.signal(signal.SIGSTOP)
        others = [one for one in started if one is not stopped]
        next_to(others, "claimed")  # One of them takes over, and goes on where the first one stands.
        rest = ends(others)
        stopped.signal(signal.SIGCONT)
        server.release()
        outcomes = [*rest, *ends([stopped])]

    assert outcomes == [got(SMALL)] * 3
    assert "stood down" in stopped.acknowledged()
    resumed = server.seen()[1].headers["range"]
    assert resumed == f"bytes={MB // PIECE * PIECE}-"
    assert traces(bucket) == []


def test_a_bucket_that_dies_half_way_costs_downloads_and_nothing_else(tmp_path: Path, server: FaultServer) -> None:
    bucket = tmp_path / "bucket"
    url = server.add("/m.onnx", SMALL, [Fault(hold_after=MB)])

    with machines(4, tmp_path, f"directory://{bucket}", url, lease=2.0) as started:
        server.wait_for_sent(MB)
        next_to(started, "claimed").wait_for(f"shared {MB // PIECE}")
        (tmp_path / "dead").touch()
        server.release()
        outcomes = ends(started)

    assert outcomes == [got(SMALL)] * 4
    assert len(server.seen()) <= 4


def test_what_the_origin_does_not_have_is_asked_for_by_one(tmp_path: Path, server: FaultServer) -> None:
    url = server.add("/missing.onnx", b"", [Fault(hold_head=True, status=404), *[Fault(status=404)] * 8])

    with machines(3, tmp_path, f"directory://{tmp_path / 'bucket'}", url, lease=15.0) as started:
        server.wait_for_requests(1)
        claimer = next_to(started, "claimed")
        for one in started:
            if one is not claimer:
                one.wait_for("waiting")
        server.release()
        outcomes = ends(started)

    assert outcomes == ["failed RemoteNotFoundError"] * 3
    assert server.methods() == ["GET"]
