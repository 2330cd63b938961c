"""A tree is claimed as one; what a killed claimer had whole of it does not come from the origin again."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import failpoints
from modelcache import Cache, Tier
from modelcache.fleet import parts
from modelcache.testing import Fault
from tests.crash.world import QUICK, forked
from tests.fleet.machines import traces
from tests.support.hub import Hub

FILES = {f"part-{number}.bin": random.Random(number).randbytes(200_000) for number in range(4)} | {"config.json": b"{}"}
REF = "hf://org/name"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def get(place: Path, number: int) -> dict[str, bytes]:
    tier = Tier(f"directory://{place / 'bucket'}", single_flight=True, name="bucket", lease=1.0)
    with Cache(place / f"root-{number}", tiers=[tier], retry=QUICK) as cache:
        top = Path(cache.get_tree(REF))
        return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def test_of_many_machines_one_fetches_a_tree(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/name", FILES)
    found: list[dict[str, bytes]] = []

    threads = [threading.Thread(target=lambda n=n: found.append(get(tmp_path, n))) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [FILES] * 3
    assert len(hub.cdn.seen()) == 4
    assert len(hub.seen("config.json")) <= 2  # The redirect, and where it leads.
    assert traces(tmp_path / "bucket") == []


def test_files_of_a_tree_that_a_killed_claimer_had_whole_are_taken_from_the_bucket(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_AT_ONCE", 1)  # So that what was begun before the kill is there.
    hub.add("org/name", FILES, faults=[Fault(rate=400_000)])

    def live() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario("fleet.parts.before-whole=3*off->kill"):
            get(tmp_path, 0)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(live), 0)[1]) == -signal.SIGKILL
    before = len(hub.cdn.seen())

    assert get(tmp_path, 1) == FILES

    assert len(hub.cdn.seen()) - before <= 2
    assert traces(tmp_path / "bucket") == []
