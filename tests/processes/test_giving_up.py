"""SIGINT and SIGTERM end every wait: for a lock, for the head of an answer, for a host that asked to wait."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache import Cache, layout, locks, reference
from modelcache.backoff import Backoff
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers

CONTENT = random.Random(4).randbytes(300_000)


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MODELCACHE_DIR": str(root), "MODELCACHE_PROGRESS": "json"}
    command = [sys.executable, "-m", "modelcache", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str], number: signal.Signals) -> str:
    process.send_signal(number)
    _, said = process.communicate(timeout=30)  # Each of these waits would last minutes.
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    return said


def wait_for(process: subprocess.Popen[str], event: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if f'"event": "{event}"' in line:
            return
    raise AssertionError(f"it never said {event}")


@pytest.fixture
def manifest(server: FaultServer, tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(f'[[model]]\nref = "{server.url("/m.onnx")}"\n')
    return file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["get", "prewarm"])
def test_a_signal_ends_the_wait_for_another_process(
    command: str, number: signal.Signals, server: FaultServer, manifest: Path, root: Path
) -> None:
    url = server.add("/m.onnx", CONTENT)
    Cache(root).put(b"x", name="x")  # The root is there.
    key = layout.key_id(reference.parse(url).key)

    with locks.exclusive(f"{root}/locks/{key}.lock", timeout=0, what="the test"):
        process = start(root, command, url if command == "get" else str(manifest))
        wait_for(process, "waiting")
        end(process, number)

    assert server.seen() == []
    assert leftovers(root) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["get", "prewarm"])
def test_a_signal_ends_the_wait_for_an_answer(
    command: str, number: signal.Signals, server: FaultServer, manifest: Path, root: Path
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_head=True)])
    process = start(root, command, url if command == "get" else str(manifest))
    server.wait_for_requests(1)

    end(process, number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_that_a_host_asked_for(
    number: signal.Signals, server: FaultServer, manifest: Path, root: Path
) -> None:
    url = server.add("/m.onnx", CONTENT)
    Cache(root).put(b"x", name="x")
    Backoff(str(root)).set(url.split("/")[2], 300, 503)
    process = start(root, "prewarm", str(manifest))
    wait_for(process, "waiting")

    end(process, number)

    assert server.seen() == []


def test_prewarm_whose_reader_goes_away_ends(server: FaultServer, manifest: Path, root: Path) -> None:
    server.add("/m.onnx", random.Random(5).randbytes(20_000_000), [Fault(rate=1_000_000)])
    process = start(root, "prewarm", "--json", str(manifest))
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()

    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()

    assert process.wait(30) == 1
    assert "Traceback" not in said
    assert server.sent() < 20_000_000  # It ended long before the download would have.


def test_a_forked_child_that_closes_the_cache_leaves_its_parents_download_alone(
    server: FaultServer, root: Path
) -> None:
    import threading
    import warnings

    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=100_000)])
    cache = Cache(root)
    outcomes: list[str] = []
    thread = threading.Thread(target=lambda: outcomes.append(cache.get(url)))
    thread.start()
    server.wait_for_sent(100_000)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        cache.close()
        os._exit(0)
    os.waitpid(pid, 0)
    server.release()
    thread.join(60)

    assert Path(outcomes[0]).read_bytes() == CONTENT
    assert len(server.seen()) == 1
