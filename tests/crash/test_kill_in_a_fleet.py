"""A machine of a fleet is killed at each fail point that it comes by while it holds a claim: the next one goes on.

The next one waits for the dead claim's lease, takes what was shared of it, and ends with the right bytes; the one after
that finds it in the tier. Nothing is left of claims and parts.
"""

from __future__ import annotations

import io
import os
import random
import signal
import sys
from pathlib import Path

import pytest

import failpoints
from failpoints.source import find_points
from modelcache import Cache, Tier, tier
from modelcache.archive import DirectoryBackend
from modelcache.fleet import collect, growing, parts
from modelcache.promises import check_cache
from modelcache.testing import Fault, FaultServer
from tests.crash.world import QUICK, forked
from tests.fleet.machines import traces

CONTENT = random.Random(82).randbytes(400_000)
LEASE_S = 0.4
POINTS = sorted({point.name for point in find_points("modelcache") if point.name.startswith("fleet.")})
# Who wants it from here on finds it in the tier, and claims nothing: what is left is for `collect`.
PUBLISHED = {"fleet.parts.before-clear", "fleet.claims.before-release", "fleet.claims.before-last-beat"}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PIECE_BYTES", 100_000)
    monkeypatch.setattr(growing, "PIECE_BYTES_MAX", 100_000)
    monkeypatch.setattr(tier, "LEASE_MIN_S", LEASE_S)


def get(place: Path, url: str, number: int) -> Path:
    below = Tier(f"directory://{place / 'bucket'}", single_flight=True, name="bucket", lease=LEASE_S)
    with Cache(place / f"root-{number}", tiers=[below], retry=QUICK) as cache:
        return Path(cache.get(url))


def machine(place: Path, url: str, number: int, spec: str) -> tuple[int, list[str]]:
    """Get in a process of its own, which meets *spec*; return how it ended, and what its points have said."""
    said = place / f"said-{number}"

    def live() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario(spec):
            get(place, url, number)
        said.write_text(sys.stderr.getvalue())

    place.mkdir(exist_ok=True)
    code = os.waitstatus_to_exitcode(os.waitpid(forked(live), 0)[1])
    return code, said.read_text().split() if said.exists() else []


def test_a_kill_at_any_point_of_a_claim_costs_a_lease_and_nothing_else(tmp_path: Path, server: FaultServer) -> None:
    everywhere = ";".join(f"{point}=print({point})" for point in POINTS)
    reached = set()
    for point in POINTS:
        place = tmp_path / point
        # Parts are shared of what takes its time.
        faults = [Fault(rate=1_000_000)] * 3 if point.startswith("fleet.parts.") else []
        url = server.add(f"/{point}.onnx", CONTENT, faults)
        code, said = machine(place, url, 0, f"{point}=kill")
        if code == 0:
            continue  # Only one who takes over comes by it.
        reached.add(point)
        assert code == -signal.SIGKILL, point

        code, said = machine(place, url, 1, everywhere)

        assert code == 0, point
        assert get(place, url, 2).read_bytes() == CONTENT
        assert [
            str(one) for number in (1, 2) for one in check_cache(place / f"root-{number}") if one.kind != "garbage"
        ] == []
        if point in PUBLISHED:
            assert traces(place / "bucket") != []
            collect(DirectoryBackend(place / "bucket"), lease=LEASE_S, wait=lambda _: None)
        assert traces(place / "bucket") == [], point
        reached |= set(said)
    # The others are of one who takes up what another has shared, of a tree, and of who clears up: below.
    elsewhere = {"fleet.parts.before-restore", "fleet.parts.before-whole", "fleet.garbage.before-delete"}
    assert set(POINTS) - reached <= elsewhere


def test_who_is_killed_while_it_clears_up_leaves_less_for_the_next(tmp_path: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    assert machine(tmp_path, url, 0, "fleet.claims.before-release=kill")[0] == -signal.SIGKILL
    bucket = DirectoryBackend(tmp_path / "bucket")
    left = traces(tmp_path / "bucket")
    assert len(left) == 2

    def clear_up() -> None:
        with failpoints.scenario("fleet.garbage.before-delete=1*off->kill"):
            collect(DirectoryBackend(tmp_path / "bucket"), lease=LEASE_S, wait=lambda _: None)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(clear_up), 0)[1]) == -signal.SIGKILL
    assert traces(tmp_path / "bucket") == left[1:]
    collect(bucket, lease=LEASE_S, wait=lambda _: None)

    assert traces(tmp_path / "bucket") == []
    assert get(tmp_path, url, 1).read_bytes() == CONTENT


def test_one_after_the_other_is_killed_and_the_last_one_goes_on_where_the_first_one_was(
    tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=250_000), Fault(hold_after=1)])
    monkeypatch.setattr(parts, "_AT_ONCE", 1)  # So that the first piece is named before the second one is there.

    # The first one is killed when the second piece is there, the next one when it takes up what there is.
    assert machine(tmp_path, url, 0, "fleet.parts.before-index=1*off->kill")[0] == -signal.SIGKILL
    assert machine(tmp_path, url, 1, "fleet.parts.before-restore=kill")[0] == -signal.SIGKILL
    server.release()
    code, said = machine(tmp_path, url, 2, "fleet.parts.before-restore=print(restored)")

    assert (code, said) == (0, ["restored"])
    assert [seen.headers.get("range") for seen in server.seen()] == [None, "bytes=100000-"]
    assert get(tmp_path, url, 2).read_bytes() == CONTENT
    assert traces(tmp_path / "bucket") == []
