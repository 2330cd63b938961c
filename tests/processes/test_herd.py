"""Many processes at once over one directory: one download, everybody served, nothing left behind."""

from __future__ import annotations

import hashlib
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.testing import OK, Fault, FaultServer
from tests.support.state import leftovers, wrong_objects

CONTENT = random.Random(3).randbytes(2_000_000)

# Says that it is ready, waits for the word, gets, and tells how it went.
_ASKER = """
import sys
from modelcache import Cache, RetryPolicy, errors
cache = Cache(sys.argv[1], retry=RetryPolicy(attempts=3, base=0))
print("ready", flush=True)
sys.stdin.readline()
for url in sys.argv[2:]:
    try:
        path = cache.get(url)
        import hashlib
        print("got", hashlib.sha256(open(path, "rb").read()).hexdigest(), cache.stats().fetched, flush=True)
    except errors.ModelCacheError as error:
        print("failed", type(error).__name__, flush=True)
"""


def start(root: Path, *urls: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ASKER, str(root), *urls], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def let_go(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert line(process) == ["ready"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def finish(processes: list[subprocess.Popen[str]]) -> list[list[str]]:
    outcomes = []
    for process in processes:
        output, _ = process.communicate(timeout=120)
        outcomes += [text.split() for text in output.splitlines()]
    return outcomes


def test_a_herd_promotes_what_a_tier_has_once(
    server: FaultServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(tmp_path / "below") as below:
        below.get(url)
    monkeypatch.setenv("MODELCACHE_TIERS", f"{tmp_path / 'below'},promote")
    processes = [start(root, url) for _ in range(16)]

    let_go(processes)
    outcomes = finish(processes)

    assert [outcome[:2] for outcome in outcomes] == [["got", hashlib.sha256(CONTENT).hexdigest()]] * 16
    assert sum(int(outcome[2]) for outcome in outcomes) == 1
    assert len(server.seen()) == 1
    assert leftovers(root) == []
    assert wrong_objects(root) == []


@pytest.mark.parametrize("count", [2, 8, 32, 64])
def test_one_cold_model_is_downloaded_once_however_many_ask(count: int, server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    processes = [start(root, url) for _ in range(count)]

    let_go(processes)
    outcomes = finish(processes)

    assert server.methods() == ["GET"]
    assert {outcome[1] for outcome in outcomes} == {hashlib.sha256(CONTENT).hexdigest()}
    assert len(outcomes) == count
    assert sum(int(outcome[2]) for outcome in outcomes) == 1
    assert leftovers(root) == []
    assert wrong_objects(root) == []


def test_one_refresh_serves_all_who_ask_for_it_meanwhile(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", b"old")
    with Cache(root) as cache:
        cache.get(url)
    server.add("/m.onnx", CONTENT, [Fault(hold_after=1000)])
    forced = _ASKER.replace("cache.get(url)", "cache.get(url, force_download=True)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", forced, str(root), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]

    let_go(processes)
    server.wait_for_sent(1003)
    server.release()
    outcomes = finish(processes)

    assert {outcome[1] for outcome in outcomes} == {hashlib.sha256(CONTENT).hexdigest()}
    assert server.sent() == 3 + len(CONTENT)
    assert leftovers(root) == []


def test_different_models_are_downloaded_side_by_side_once_each(server: FaultServer, root: Path) -> None:
    urls = [server.add(f"/{n}.onnx", random.Random(n).randbytes(300_000)) for n in range(6)]
    processes = [start(root, *urls[n:], *urls[:n]) for n in range(6)]

    let_go(processes)
    finish(processes)

    assert sorted(seen.path for seen in server.seen()) == [f"/{n}.onnx" for n in range(6)]
    assert leftovers(root) == []


def test_those_who_wait_share_the_failure_of_the_one_who_asked(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=403)] * 99)
    processes = [start(root, url) for _ in range(8)]

    let_go(processes)
    outcomes = finish(processes)

    assert outcomes == [["failed", "AccessDeniedError"]] * 8
    assert len(server.seen()) <= 8
    assert leftovers(root) == []


@pytest.mark.parametrize("why", ["policy", "digest", "archive"])
def test_what_is_refused_for_its_content_does_not_come_once_for_each_who_waits(
    why: str, server: FaultServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, content = "url", pickle.dumps(list(range(100_000)))
    if why == "policy":
        (tmp_path / "settings.toml").write_text("[policy]\n")
        monkeypatch.setenv("MODELCACHE_CONFIG", str(tmp_path / "settings.toml"))
    elif why == "digest":
        arguments = f"url, digest='sha256:{'0' * 64}'"
    url = server.add("/m.tar" if why == "archive" else "/m", content, [Fault(hold_after=1000)])
    asker = _ASKER.replace("cache.get(url)", f"cache.get({arguments})").replace(
        "base=0)", "base=0), on_event=lambda event: event.kind == 'waiting' and print('waiting', flush=True)"
    )

    def ask() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", asker, str(root), f"{url}#tree" if why == "archive" else url]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        let_go([process])
        return process

    first = ask()
    server.wait_for_sent(1000)
    others = [ask() for _ in range(4)]
    assert [line(other) for other in others] == [["waiting"]] * 4
    asked = len(server.seen())
    server.release()
    outcomes = finish([first, *others])

    error = {"policy": "PolicyError", "digest": "DigestMismatchError", "archive": "ArchiveError"}[why]
    assert outcomes == [["failed", error]] * 5
    assert len(server.seen()) - asked <= 1  # A wrong digest is asked for once more, by the one who asked.
    assert leftovers(root) == []


def test_a_killed_downloader_is_succeeded_by_one_who_waits_and_who_resumes(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=1_200_000)])
    first = start(root, url)
    let_go([first])
    server.wait_for_sent(1_200_000)
    others = [start(root, url) for _ in range(4)]
    let_go(others)

    first.send_signal(signal.SIGKILL)
    first.communicate()
    outcomes = finish(others)

    assert {outcome[1] for outcome in outcomes} == {hashlib.sha256(CONTENT).hexdigest()}
    assert len(server.seen()) == 2
    assert server.sent() <= len(CONTENT) * 1.1
    assert leftovers(root) == []


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=503), OK, Fault(corrupt_at=5), OK],
        [Fault(abort_after=512), Fault(status=503), OK, OK],
        [OK, Fault(hang_up=True), OK, Fault(abort_after=1024)],
    ],
)
def test_the_network_fails_and_recovers_under_contention(faults: list[Fault], server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, faults)
    processes = [start(root, url) for _ in range(8)]

    let_go(processes)
    outcomes = finish(processes)

    # Without a digest the first use is trusted: all have the same bytes, whichever these are.
    assert len({tuple(outcome[:2]) for outcome in outcomes}) == 1
    assert outcomes[0][0] == "got"
    assert leftovers(root) == []
    assert wrong_objects(root) == []


def test_locks_that_do_nothing_cost_downloads_and_never_content(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    lockless = "import fcntl; fcntl.lockf = lambda *a, **k: None\n" + _ASKER
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", lockless, str(root), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]

    let_go(processes)
    outcomes = finish(processes)

    assert {tuple(outcome[:2]) for outcome in outcomes} == {("got", hashlib.sha256(CONTENT).hexdigest())}
    assert wrong_objects(root) == []
    assert leftovers(root) == []
