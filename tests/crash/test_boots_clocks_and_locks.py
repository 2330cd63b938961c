"""What lies between two runs: a boot, a clock that jumps, a file system whose locks do nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, errors, process
from modelcache.sealed import unseal
from modelcache.testing import Fault, FaultServer, check_cache, spawn
from tests.crash.test_random_kills import CONTENTS, WORK, WORKERS, Promises
from tests.crash.world import digest_of, small_steps
from tests.support.state import leftovers

CONTENT = random.Random(40).randbytes(90_000)
ARRIVED = 70_000
DAY_S = 86_400.0


def partial_with_a_tail_that_never_reached_the_disk(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, int]:
    """Return the URL of a download that was killed, and how many bytes were synced by then; the rest is zeros now."""
    small_steps(monkeypatch)
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=ARRIVED)])
    code = """
    from modelcache import Cache, transfer
    transfer.CHUNK_BYTES, transfer.JOURNAL_BYTES = 4096, 24 * 1024
    Cache(sys.argv[1]).get(sys.argv[2])
    """
    with spawn(code, root, url) as victim:
        server.wait_for_sent(ARRIVED)
        (partial,) = wait_for_partial(root)
        victim.kill()
    server.release()
    facts = unseal((partial / "state").read_bytes())
    assert facts is not None
    synced = int(facts["synced"])
    (file,) = (partial / "object").iterdir()
    with file.open("r+b") as stream:
        stream.seek(synced)
        stream.write(bytes(ARRIVED - synced))
    return url, synced


def wait_for_partial(root: Path) -> list[Path]:
    """Return the partials, once one of them has been journalled."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = [path for path in (root / "partial-v1").iterdir() if (path / "state").exists()]
        facts = [unseal((path / "state").read_bytes()) for path in found]
        if any(one is not None and one["synced"] > 0 for one in facts):
            return found
    raise AssertionError("nothing was journalled")


@pytest.mark.parametrize("digest", [None, digest_of(CONTENT)])
def test_after_a_boot_a_tail_that_was_never_synced_is_not_trusted(
    digest: str | None, server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, synced = partial_with_a_tail_that_never_reached_the_disk(server, root, monkeypatch)
    monkeypatch.setattr(process, "boot_id", lambda: "b00ted00")

    with Cache(root) as cache:
        path = cache.get(url, digest=digest)

    assert Path(path).read_bytes() == CONTENT
    assert server.seen()[-1].headers["range"] == f"bytes={synced}-"
    assert leftovers(root) == []


@pytest.mark.parametrize("jump", [DAY_S, -DAY_S])
def test_a_clock_that_jumps_a_day_changes_nothing(
    jump: float, server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=ARRIVED)])
    busy = server.add("/busy.onnx", CONTENT, [Fault(status=429, headers={"Retry-After": "300"})])
    clock = time.time
    once = RetryPolicy(attempts=1)
    with Cache(root, retry=once) as cache:
        with pytest.raises(errors.NetworkError):
            cache.get(url)
        kept = cache.put(b"kept", name="kept")

    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    with Cache(root, retry=once) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT
        assert cache.stats().bytes_resumed == ARRIVED
        assert cache.get("kept") == kept.path
        assert cache.get(url, max_age=3600) == cache.get(url)
        cache.put(b"other", name="other")
        cache.remove("other")
        assert cache.verify().ok
    requests = len(server.seen())

    monkeypatch.setattr(time, "time", clock)
    with Cache(root, retry=RetryPolicy(attempts=1, retry_after_max=1)) as cache:
        assert cache.get("kept") == kept.path
        assert Path(cache.get(url)).read_bytes() == CONTENT
        assert len(server.seen()) == requests
        # What was confirmed in a future that has been taken back, or a day ago, is asked for once more; nothing else.
        cache.get(url, max_age=3600)
        assert len(server.seen()) == requests + 1
        with pytest.raises(errors.HttpStatusError):
            cache.get(busy)
    asked = len(server.seen())
    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    with Cache(root, retry=RetryPolicy(attempts=1, retry_after_max=1)) as cache, pytest.raises(errors.HttpStatusError):
        cache.get(busy)  # Still waiting: that host's stamp is on a clock that does not jump.
    assert len(server.seen()) == asked
    assert check_cache(root) == []


def test_with_locks_that_do_nothing_processes_repeat_work_and_serve_nothing_wrong(
    server: FaultServer, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds = 40 if pytestconfig.getoption("--crash-budget") == "large" else 3
    for number, content in enumerate(CONTENTS):
        for query in ("", *(f"?{worker}" for worker in range(WORKERS))):
            server.add(f"/{number}.onnx{query}", content)
    root = tmp_path / "cache"
    chance = random.Random(pytestconfig.getoption("--crash-seed"))
    promises = Promises()
    for turn in range(rounds):
        barrier = tmp_path / f"barrier-{turn}"
        barrier.mkdir()
        code = "import fcntl\nfcntl.lockf = fcntl.flock = lambda *_: None\n" + WORK
        arguments = [str(root), server.url(""), str(barrier), str(WORKERS), f"{turn}"]
        victims = [spawn(code, *arguments[:2], str(worker), *arguments[2:]) for worker in range(WORKERS)]
        for victim in victims:
            victim.wait_for("ready")
        victims[chance.randrange(WORKERS)].kill()
        for victim in victims:
            until = time.monotonic() + 30
            while victim.alive and len(victim.acknowledged()) < 5 and time.monotonic() < until:
                pass
        for victim in victims:
            victim.kill()
        promises.hear(victims)
        for victim in victims:
            with victim:
                assert "Traceback" not in victim.errors()

        assert promises.broken(root) == [], f"round {turn}"
