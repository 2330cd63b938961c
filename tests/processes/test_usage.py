"""Many processes, threads and forks use a cache: after clean ends the sums are exact, whoever folds meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, process
from modelcache.testing import FaultServer
from modelcache.usage import archive, store
from modelcache.usage.tally import Usage

CONTENT = b"x" * 1000
EACH = 40


def total(root: Path) -> Usage:
    found = Usage()
    for part in store.read(str(root)):
        for usage in part.tally.values():
            found.add(usage)
    return found


def use(root: str, times: int) -> None:
    """What a child of multiprocessing does: no close, no `with`."""
    cache = Cache(root, usage=True)
    for _ in range(times):
        cache.get("m")


def use_what_was_inherited(cache: Cache, times: int) -> None:
    for _ in range(times):
        cache.get("m")


@pytest.fixture
def used(root: Path) -> Path:
    with Cache(root) as cache:
        cache.put(CONTENT, name="m")
    return root


def test_programs_that_end_without_closing_count_all_they_used(used: Path) -> None:
    code = f"import modelcache\nfor _ in range({EACH}): modelcache.get('m')"
    environ = {**os.environ, "MODELCACHE_DIR": str(used), "MODELCACHE_USAGE": "1"}

    running = [subprocess.Popen([sys.executable, "-c", code], env=environ) for _ in range(4)]

    assert [one.wait(60) for one in running] == [0] * 4
    found = total(used)  # The first of each is a look, on record in another way.
    assert (found.hits, found.hit_bytes, found.misses) == (4 * EACH, 4 * EACH * len(CONTENT), 0)


def test_a_program_that_ends_without_closing_sends_its_last_counts_to_the_archive(used: Path, tmp_path: Path) -> None:
    """They are counted after the archivist was made, and must land before it ends."""
    place = f"sqlite://{tmp_path}/usage.db"
    code = f"""
from modelcache import Cache
cache = Cache({str(used)!r}, usage_archive=[{place!r}])
cache.get("m")
cache.usage()
for _ in range({EACH}):
    cache.get("m")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    (part,) = archive.read(place)
    assert part.tally["m"].hits == EACH + 1


def test_an_archive_that_takes_connections_and_says_nothing_holds_no_program_up(used: Path) -> None:
    code = f"""
import os, threading
from modelcache import Cache
from modelcache.usage import recorder
recorder._EXIT_S = 0.5
hangs = threading.Timer(30, os._exit, [7])  # Well below what a connection waits for an answer.
hangs.daemon = True
hangs.start()
with Cache({str(used)!r}, usage_archive=["s3://bucket/usage"]) as cache:
    cache.get("m")
    assert cache.usage().total.usage.hits == 1
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = {"AWS_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "AWS_ALLOW_HTTP": "true"}
        environ = {**os.environ, **place, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        done = subprocess.run([sys.executable, "-c", code], env=environ, check=False, timeout=90)

    assert done.returncode == 0
    assert total(used).hits == 1


@pytest.mark.parametrize("how", ["close", "exit"])
def test_an_interpreter_that_begins_no_thread_at_its_end_archives_all_the_same(
    how: str, used: Path, tmp_path: Path
) -> None:
    """As from Python 3.12 on."""
    place = f"sqlite://{tmp_path}/usage.db"
    code = f"""
import atexit, threading
from modelcache import Cache
from modelcache.usage import recorder
recorder.FLUSH_S = 600.0
begun, writing = threading.Thread.start, threading.Event()
def start(thread):
    begun(thread)
    if thread.name.startswith("modelcache-archive"):
        writing.set()
def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")
threading.Thread.start = start
cache = Cache({str(used)!r}, usage_archive=[{place!r}])
cache.get("m")
assert writing.wait(30), "before there is anything to send"
threading.Thread.start = refuse
if {how == "close"}:
    cache.close()
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)

    (part,) = archive.read(place)
    assert part.tally["m"].hits == 1
    assert done.stderr == ""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_count_all_they_used(used: Path, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # It forks beside threads of other tests.
        children = [context.Process(target=use, args=(str(used), EACH)) for _ in range(3)]
        for child in children:
            child.start()
    for child in children:
        child.join(60)

    assert [child.exitcode for child in children] == [0] * 3
    assert total(used).hits == 3 * EACH


def test_a_fork_counts_its_own_and_nothing_of_its_parent(used: Path) -> None:
    with Cache(used, usage=True) as cache:
        for _ in range(7):
            cache.get("m")
        context = multiprocessing.get_context("fork")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            children = [context.Process(target=use_what_was_inherited, args=(cache, EACH)) for _ in range(3)]
            for child in children:
                child.start()
        for _ in range(5):
            cache.get("m")
        for child in children:
            child.join(60)

    assert total(used).hits == 3 * EACH + 12


def test_threads_of_one_cache_count_all_they_used(used: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(EACH):
            cache.get("m")
            cache.get(url)

    with Cache(used, usage=True) as cache:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    found = total(used)
    assert found.hits + found.misses == 16 * EACH
    assert (found.fetches, found.source_bytes, found.misses) == (1, len(CONTENT), found.fetches + found.coalesced)


def test_processes_that_wait_for_the_fetch_of_another_one_are_counted_as_such(used: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT * 5000)
    code = f"import modelcache\nmodelcache.get({url!r})"
    environ = {**os.environ, "MODELCACHE_DIR": str(used), "MODELCACHE_USAGE": "1"}

    running = [subprocess.Popen([sys.executable, "-c", code], env=environ) for _ in range(4)]

    assert [one.wait(60) for one in running] == [0] * 4
    found = total(used)
    assert (found.fetches, found.source_bytes) == (1, len(CONTENT) * 5000)
    assert found.hits + found.coalesced == 3


def test_who_folds_and_who_reads_at_once_count_each_once(used: Path) -> None:
    """Files of days that are over: four threads fold them while others read; nothing is doubled, nothing lost."""
    for number in range(60):
        store.write(str(used), f"2020-01-{number % 28 + 1:02d}.{process.token()}", "host", {"m": Usage(hits=1)})
    start = threading.Barrier(5)

    def fold() -> None:
        start.wait()
        for _ in range(5):
            store.fold(str(used))

    threads = [threading.Thread(target=fold) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    seen = [total(used).hits for _ in range(20)]
    for thread in threads:
        thread.join()
    store.fold(str(used))

    assert max(seen) <= 60
    assert total(used).hits == 60
    assert len(os.listdir(used / "usage-v1")) <= 4


APP = """
import os
import re
from modelcache import Cache, metrics
cache = Cache(os.environ["MODELCACHE_DIR"], usage=True)
cache.get("m")  # Before the workers are forked.

def app(environ, start):
    body = b""
    if environ["PATH_INFO"] == "/metrics":
        body = metrics.text(cache).encode()
    else:
        cache.get("m")
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_workers_of_gunicorn_count_all_they_used_and_any_of_them_tells_of_all(used: Path, tmp_path: Path) -> None:
    (tmp_path / "served.py").write_text(APP)
    command = [sys.executable, "-m", "gunicorn", "--preload", "-w", "2", "-b", "127.0.0.1:0", "served:app"]
    environ = {**os.environ, "MODELCACHE_DIR": str(used)}
    # Its log goes to a file, so that nobody has to read on.
    with open(tmp_path / "log", "wb") as log:
        running = subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=log)
    try:
        while not (found := re.search(r"Listening at: (http\S+)", (tmp_path / "log").read_text())):
            assert running.poll() is None, (tmp_path / "log").read_text()
            os.sched_yield()
        for _ in range(EACH):
            with urllib.request.urlopen(f"{found[1]}/", timeout=30) as answer:  # Our own server.
                assert answer.status == 200
        with urllib.request.urlopen(f"{found[1]}/metrics", timeout=30) as answer:
            told = re.search(rb"(?m)^modelcache_hits_total (\S+)", answer.read())
    finally:
        running.terminate()
        assert running.wait(60) == 0

    assert told is not None
    assert float(told[1]) <= EACH + 1  # What the other worker has counted may not be on record yet.
    assert total(used).hits == EACH + 1
