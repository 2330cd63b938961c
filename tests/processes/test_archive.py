"""The archive across processes: ends, forks and kills; who delivers the outbox, and that just one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import failpoints
from modelcache import Cache
from modelcache.archive import Archivist, DirectoryBackend, Registration, SqliteBackend
from modelcache.backends import contents
from modelcache.digest import Digest
from modelcache.promises import check_cache
from modelcache.testing import spawn

LONG_S = 60.0
START = """
    from modelcache.archive import *
    from modelcache.testing import acknowledge
    from modelcache import RetryPolicy
    root, place = sys.argv[1], sys.argv[2]
"""
IN_SQLITE = f"""{START}
    backend = SqliteBackend(place)
    archivist = Archivist([Registration("s", backend, policy=Queued(batch_window=60))], root=root)
"""


def events_in(place: Path) -> list[object]:
    backend = SqliteBackend(place)
    try:
        return [one.event for one in backend.read_events()]
    finally:
        backend.close()


@pytest.fixture
def digest(root: Path) -> Digest:
    with Cache(root) as cache:
        return Digest(cache.put(b"model" * 50_000, name="m.onnx").digest)


# -- the end of a process ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end",
    [
        "",
        "sys.exit(3)",
        "raise RuntimeError('its own bug')",
        "import threading; threading.Thread(target=lambda: None).start()",
    ],
)
def test_what_waits_is_written_when_a_process_ends(root: Path, tmp_path: Path, end: str) -> None:
    with spawn(
        f"{IN_SQLITE}\n    archivist.append_events('k', [1, 2, 3])\n    {end}", root, tmp_path / "e.db"
    ) as victim:
        victim.wait()

    assert events_in(tmp_path / "e.db") == [1, 2, 3]
    assert "Exception ignored" not in victim.errors()
    assert "atexit" not in victim.errors()


def test_a_process_whose_backend_hangs_ends_all_the_same(root: Path, tmp_path: Path) -> None:
    code = f"""{START}
    import threading
    class Hanging:
        def append_events(self, key, events):
            acknowledge("hangs")
            threading.Event().wait()
    backend = SqliteBackend(place)
    archivist = Archivist(
        [Registration("h", Hanging(), policy=Queued(batch_window=0)), Registration("s", backend)],
        root=root, exit_timeout=0.2,
    )
    archivist.append_events("k", [1])
    """
    with spawn(code, root, tmp_path / "e.db") as victim:
        assert victim.wait() == 0

    assert victim.acknowledged() == ["hangs"]
    assert events_in(tmp_path / "e.db") == [1]


def test_a_child_of_multiprocessing_writes_what_waits_when_it_ends(root: Path, tmp_path: Path) -> None:
    code = f"""{IN_SQLITE}
    import multiprocessing
    def work():
        archivist.append_events("child", ["of the child"])
    if __name__ == "__main__":
        archivist.append_events("parent", ["of the parent"])
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join()
        acknowledge(str(child.exitcode))
    """
    with spawn(code, root, tmp_path / "e.db") as victim:
        assert victim.wait() == 0, victim.errors()

    assert victim.acknowledged() == ["0"]
    assert sorted(map(str, events_in(tmp_path / "e.db"))) == ["of the child", "of the parent"]


def test_forked_children_write_their_own_and_nothing_twice(root: Path, tmp_path: Path) -> None:
    code = f"""{IN_SQLITE}
    archivist.append_events("parent", ["before"])
    children = []
    for number in range(6):
        child = os.fork()
        if child == 0:
            archivist.append_events("child", [number])
            done = archivist.shutdown(60)
            os._exit(0 if done and archivist.health()["s"].dispatched == 1 else 1)
        archivist.append_events("parent", [f"after {{number}}"])
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    acknowledge(str(codes))
    """
    with spawn(code, root, tmp_path / "e.db") as victim:
        assert victim.wait() == 0, victim.errors()

    assert victim.acknowledged() == [str([0] * 6)]
    backend = SqliteBackend(tmp_path / "e.db")
    found = list(backend.read_events())
    backend.close()
    assert [one.event for one in found if one.key == "parent"] == ["before", *(f"after {n}" for n in range(6))]
    assert sorted(one.event for one in found if one.key == "child") == list(range(6))


def test_a_fork_while_every_lock_is_in_use_leaves_a_child_that_works(root: Path, tmp_path: Path) -> None:
    code = f"""{START}
    import threading
    backend = DirectoryBackend(place)
    archivist = Archivist([Registration("d", backend, policy=Queued(batch_window=0))], root=root)
    stop = threading.Event()
    def busy():
        while not stop.is_set():
            archivist.append_events("busy", [1])
    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads: thread.start()
    codes = []
    for number in range(20):
        child = os.fork()
        if child == 0:
            archivist.append_events("child", [number])
            done = archivist.shutdown(60)
            os._exit(0 if done else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads: thread.join()
    archivist.shutdown(60)
    acknowledge(str(codes))
    """
    with spawn(code, root, tmp_path / "d") as victim:
        assert victim.wait() == 0, victim.errors()

    assert victim.acknowledged() == [str([0] * 20)]
    assert sorted(one.event for one in DirectoryBackend(tmp_path / "d").read_events("child")) == list(range(20))


def test_signals_that_append_again_and_again_lose_nothing_and_hang_nothing(root: Path, tmp_path: Path) -> None:
    code = f"""{START}
    import itertools, signal, threading
    backend = SqliteBackend(place)
    roomy = Queued(capacity=1_000_000, capacity_bytes=1 << 30, batch_window=0)
    archivist = Archivist([Registration("s", backend, policy=roomy)], root=root)
    numbers, told = itertools.count(), []
    def handler(*_):
        number = next(numbers)
        archivist.append_events("handler", [number])
        told.append(number)
    signal.signal(signal.SIGUSR1, handler)
    ended = threading.Event()
    def interrupt():
        while not ended.wait(0.0003):
            os.kill(os.getpid(), signal.SIGUSR1)
    thread = threading.Thread(target=interrupt)
    thread.start()
    for number in itertools.count():
        archivist.append_events("main", [number])
        if number >= 5000 and len(told) >= 100:
            break
    ended.set()
    thread.join()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert archivist.shutdown(60)
    acknowledge(f"{{number}} {{len(told)}}")
    """
    with spawn(code, root, tmp_path / "e.db") as victim:
        assert victim.wait() == 0, victim.errors()

    number, told = map(int, victim.acknowledged()[0].split())
    backend = SqliteBackend(tmp_path / "e.db")
    assert [one.event for one in backend.read_events("main")] == list(range(number + 1))
    assert sorted(one.event for one in backend.read_events("handler")) == list(range(told))
    backend.close()


@pytest.mark.parametrize(
    "start",
    [
        "multiprocessing.get_context('fork').Process(target=work, args=('c',), daemon=True)",
        "multiprocessing.get_context('spawn').Process(target=work, args=('c',), daemon=True)",
        "concurrent.futures.ProcessPoolExecutor(1)",
    ],
)
def test_workers_of_every_kind_write_what_waits_when_they_end(root: Path, tmp_path: Path, start: str) -> None:
    (tmp_path / "program.py").write_text(
        f"""
import concurrent.futures, multiprocessing, sys
from modelcache.archive import Archivist, Queued, Registration, SqliteBackend
root, place = sys.argv[1:3]
archivist = Archivist([Registration("s", SqliteBackend(place), policy=Queued(batch_window=60))], root=root)

def work(what):
    archivist.append_events("child", [what])

if __name__ == "__main__":
    archivist.append_events("parent", ["p"])
    made = {start}
    if hasattr(made, "submit"):
        made.submit(work, "c").result()
        made.shutdown()
    else:
        made.start()
        made.join()
        assert made.exitcode == 0
"""
    )
    command = [sys.executable, str(tmp_path / "program.py"), str(root), str(tmp_path / "e.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(map(str, events_in(tmp_path / "e.db"))) == ["c", "p"]


def test_a_service_writes_what_waits_when_it_is_asked_to_end(root: Path, tmp_path: Path) -> None:
    """As systemd and Kubernetes do it: SIGTERM, for which the service has a handler that leaves by sys.exit."""
    code = f"""{IN_SQLITE}
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    archivist.append_events("k", ["of the service"])
    acknowledge("ready")
    signal.pause()
    """
    with spawn(code, root, tmp_path / "e.db") as victim:
        victim.wait_for("ready")
        victim.signal(signal.SIGTERM)
        assert victim.wait() == 0, victim.errors()

    assert events_in(tmp_path / "e.db") == ["of the service"]


def test_a_fork_by_a_signal_or_a_thread_in_the_queue_leaves_no_thread_lost(root: Path, tmp_path: Path) -> None:
    """A child forked while a sender waits for room has an empty queue, and a writer of its own."""
    code = f"""{START}
    import threading
    backend = MemoryBackend()
    archivist = Archivist([Registration("m", backend, policy=Queued(capacity=1, batch_window=0))], root=root)
    with backend.hold():
        archivist.append_events("k", [0])
        backend.waiting.wait(60)
        archivist.append_events("k", [1])
        sender = threading.Thread(target=archivist.append_events, args=("k", [2]))
        sender.start()
        while not archivist._lanes[0]._writer.queue._line:
            threading.Event().wait(0.001)
        child = os.fork()
        if child == 0:
            backend._open.set()
            archivist.append_events("k", ["child"])
            done = archivist.shutdown(60)
            os._exit(0 if done and backend.events == ["child"] and not archivist.dropped("m") else 1)
        acknowledge(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    sender.join()
    assert archivist.shutdown(60) and backend.events == [0, 1, 2]
    """
    with spawn(code, root, tmp_path / "e.db") as victim:
        assert victim.wait() == 0, victim.errors()

    assert victim.acknowledged() == ["0"]


def test_events_survive_a_kill_up_to_the_last_batch_that_was_written(root: Path, tmp_path: Path) -> None:
    code = f"""{START}
    backends = {{"s": SqliteBackend(place), "d": DirectoryBackend(place + ".d")}}
    archivist = Archivist([Registration(name, backend) for name, backend in backends.items()], root=root)
    for number in range(100):
        archivist.append_events("k", [number])
    assert archivist.flush(60)
    acknowledge("written")
    while True:
        archivist.append_events("k", ["later"])
    """
    with spawn(code, root, tmp_path / "e.db") as victim:
        victim.wait_for("written")
        victim.kill()

    for backend in (SqliteBackend(tmp_path / "e.db"), DirectoryBackend(f"{tmp_path}/e.db.d")):
        found = [one.event for one in backend.read_events()]
        assert found[:100] == list(range(100))
        assert set(found[100:]) <= {"later"}
        backend.close()


# -- the outbox --------------------------------------------------------------------------------------------------------

PUT = f"""{START}
    archivist = Archivist([Registration("d", DirectoryBackend(place))], root=root)
    archivist.put_object(sys.argv[3])
    acknowledge("put")
    archivist.flush(60)
    acknowledge("there")
"""


def deliver(root: Path, place: Path) -> None:
    """Do what the next process does: it knows the tier, and nothing of the object."""
    with Archivist([Registration("d", DirectoryBackend(place))], root=root) as archivist:
        assert archivist.flush(LONG_S)


@pytest.mark.parametrize(
    "point",
    [
        "outbox.before-record", "archive.carrier.before-wake", "archive.carrier.before-bring",
        "backends.contents.before-blob", "backends.contents.before-manifest", "archive.carrier.before-forget",
        "outbox.before-forget",
    ],
)  # fmt: skip
def test_what_was_put_before_a_kill_is_delivered_by_the_next_process(
    root: Path, tmp_path: Path, digest: Digest, point: str
) -> None:
    with spawn(PUT, root, tmp_path / "d", digest, failpoints=f"{point}=kill") as victim:
        assert victim.wait() == -signal.SIGKILL

    waits = (root / "outbox-v1/d").is_dir() and os.listdir(root / "outbox-v1/d") != []
    assert waits == (point != "outbox.before-record")
    assert waits or victim.acknowledged() == []
    deliver(root, tmp_path / "d")
    assert contents.has(DirectoryBackend(tmp_path / "d"), digest) == waits
    assert not waits or os.listdir(root / "outbox-v1/d") == []
    assert [one for one in check_cache(root) if one.kind != "garbage"] == []


def test_one_process_at_a_time_delivers_whatever_others_have_filed(root: Path, tmp_path: Path, digest: Digest) -> None:
    point, waits, points, trace = (
        "backends.contents.before-blob", "locks.before-wait", tmp_path / "points", tmp_path / "trace",
    )  # fmt: skip
    points.mkdir()
    environment = {"FAILPOINTS_DIR": str(points), "FAILPOINTS_TRACE": str(trace)}
    spec = f"{point}=pause;{waits}=pause"
    with (
        spawn(PUT, root, tmp_path / "d", digest, failpoints=spec, environment=environment) as first,
        spawn(PUT, root, tmp_path / "d", digest, failpoints=spec, environment=environment) as second,
    ):
        (delivering,) = failpoints.wait_paused(points, point, LONG_S)
        (waiting,) = failpoints.wait_paused(points, waits, LONG_S)
        assert {delivering, waiting} == {first.pid, second.pid}
        for victim in (first, second):
            victim.wait_for("put")
        assert first.acknowledged() == second.acknowledged() == ["put"]

        failpoints.release(points, waits)
        failpoints.release(points, point)

        assert (first.wait(), second.wait()) == (0, 0)
    assert first.acknowledged() == second.acknowledged() == ["put", "there"]
    assert trace.read_text().split().count(point) == 1
    assert os.listdir(root / "outbox-v1/d") == []


def test_when_the_process_that_delivers_is_killed_one_that_waits_goes_on(
    root: Path, tmp_path: Path, digest: Digest
) -> None:
    point, points = "backends.contents.before-manifest", tmp_path / "points"
    points.mkdir()
    environment = {"FAILPOINTS_DIR": str(points)}
    with spawn(PUT, root, tmp_path / "d", digest, failpoints=f"{point}=pause", environment=environment) as first:
        failpoints.wait_paused(points, point, LONG_S)
        with spawn(PUT, root, tmp_path / "d", digest) as second:
            second.wait_for("put")
            first.kill()
            assert second.wait() == 0

    assert second.acknowledged() == ["put", "there"]
    assert contents.has(DirectoryBackend(tmp_path / "d"), digest)


def test_what_was_not_delivered_at_the_end_of_a_process_waits_for_the_next_one(
    root: Path, tmp_path: Path, digest: Digest
) -> None:
    code = f"""{START}
    class Down(DirectoryBackend):
        def upload(self, name, path, size):
            raise OSError("the disk is away")
    archivist = Archivist(
        [Registration("d", Down(place), retry=RetryPolicy(attempts=1), cooldown=1000.0, cooldown_max=1000.0)], root=root
    )
    archivist.put_object(sys.argv[3])
    """
    with spawn(code, root, tmp_path / "d", digest) as victim:
        assert victim.wait() == 0, victim.errors()
    assert os.listdir(root / "outbox-v1/d") != []

    deliver(root, tmp_path / "d")

    assert contents.has(DirectoryBackend(tmp_path / "d"), digest)


def test_many_processes_put_and_append_at_once_and_all_of_it_lands_once(root: Path, tmp_path: Path) -> None:
    code = f"""{START}
    from modelcache import Cache
    number = int(sys.argv[3])
    backends = {{"d": DirectoryBackend(place), "s": SqliteBackend(place + ".db")}}
    archivist = Archivist([Registration(name, backend) for name, backend in backends.items()], root=root)
    with Cache(root) as cache:
        for count in range(5):
            which = (number + count) % 7
            archivist.put_object(cache.put(b"%d" % which * 1000, name=f"m{{which}}").digest)
            archivist.append_events(f"k{{number}}", [[number, count]])
    assert archivist.shutdown(60)
    """
    victims = [spawn(code, root, tmp_path / "d", str(number)) for number in range(4)]
    for victim in victims:
        with victim:
            assert victim.wait() == 0, victim.errors()

    with Cache(root) as cache:
        digests = {Digest(entry.digest) for entry in cache.entries()}
    backend, events = DirectoryBackend(tmp_path / "d"), SqliteBackend(tmp_path / "d.db")
    assert set(backend.names("objects/")) == {contents.manifest_name(one) for one in digests}
    for found in (backend, events):
        got = [one.event for one in found.read_events()]
        assert [json.dumps(one) for one in got if one[0] == 2] == [f"[2, {count}]" for count in range(5)]
        assert len(got) == 20
        found.close()
    assert os.listdir(root / "outbox-v1/d") == os.listdir(root / "outbox-v1/s") == []
    assert [one for one in check_cache(root) if one.kind != "garbage"] == []
