"""A download that was killed goes on where it was, in the next process."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers

_GETTER = "import sys; from modelcache import Cache; print(Cache(sys.argv[1]).get(sys.argv[2]))"


def getter(root: Path, url: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _GETTER, str(root), url], stdout=subprocess.PIPE, text=True)


def test_a_download_killed_at_60_percent_costs_no_more_than_a_tenth_again(
    server: FaultServer, root: Path, tmp_path: Path
) -> None:
    size = 100_000_000
    original = tmp_path / "original.bin"
    original.write_bytes(random.Random(4).randbytes(size))
    url = server.add("/m.onnx", original, [Fault(hold_after=size * 6 // 10)])
    victim = getter(root, url)
    server.wait_for_sent(size * 6 // 10)

    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    server.release()
    with Cache(root) as cache:
        path = cache.get(url)
        stats = cache.stats()

    assert server.sent() <= size * 1.1
    assert stats.bytes_resumed > size * 0.5
    with open(path, "rb") as stream:
        assert hashlib.file_digest(stream, "sha256").digest() == hashlib.sha256(original.read_bytes()).digest()
    assert leftovers(root) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_download_that_is_resumed(number: signal.Signals, server: FaultServer, root: Path) -> None:
    # Large, because what sits in the buffers of the connection is sent again.
    content = random.Random(5).randbytes(80_000_000)
    url = server.add("/m.onnx", content, [Fault(hold_after=50_000_000)])
    environment = {**os.environ, "MODELCACHE_DIR": str(root)}
    command = [sys.executable, "-m", "modelcache", "get", url]
    victim = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server.wait_for_sent(50_000_000)

    victim.send_signal(number)
    _, errors = victim.communicate(timeout=60)
    server.release()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert victim.returncode == 128 + number
    assert "resumed" in errors
    assert Path(again.stdout.strip()).read_bytes() == content
    assert server.sent() <= len(content) * 1.1


def test_memory_does_not_grow_with_the_size_of_the_download(server: FaultServer, root: Path, tmp_path: Path) -> None:
    original = tmp_path / "original.bin"
    with original.open("wb") as file:
        file.truncate(600_000_000)
    url = server.add("/m.onnx", original)
    code = (
        "import sys, resource, modelcache.fetch, modelcache.flights, modelcache.sources.http\n"
        "from modelcache import Cache\n"
        "cache = Cache(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "cache.get(sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )

    grown = subprocess.run([sys.executable, "-c", code, str(root), url], capture_output=True, text=True, check=True)

    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown.stdout) * unit <= 40_000_000


def test_a_download_that_is_resumed_ten_times_is_whole(server: FaultServer, root: Path) -> None:
    content = random.Random(6).randbytes(2_000_000)
    url = server.add("/m.onnx", content, [Fault(abort_after=150_000)] * 10)
    failing = (
        "import sys; from modelcache import Cache, RetryPolicy, errors\n"
        "try: Cache(sys.argv[1], retry=RetryPolicy(attempts=1)).get(sys.argv[2])\n"
        "except errors.NetworkError: sys.exit(6)\n"
    )

    for _ in range(10):
        assert subprocess.run([sys.executable, "-c", failing, str(root), url], check=False).returncode == 6
    with Cache(root) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == content
    assert server.sent() == len(content)
