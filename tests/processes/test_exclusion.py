"""Locks between processes, threads and forks: who holds one is alone, who waits is let in, who dies lets go."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from modelcache import locks
from modelcache.errors import LockTimeoutError

# Counts up in a file that nothing but the lock protects, from several threads.
_COUNTER = """
import sys, threading
from modelcache import locks
lock, counter, threads, times = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def work():
    for _ in range(times):
        with locks.exclusive(lock, timeout=120, what="the counter") as turn:
            assert turn.held
            number = int(open(counter).read())
            open(counter, "w").write(str(number + 1))
workers = [threading.Thread(target=work) for _ in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
"""

# Takes the lock, says so, and keeps it until it is told otherwise.
_HOLDER = """
import sys
from modelcache import locks
with locks.exclusive(sys.argv[1], timeout=60, what="the lock") as turn:
    print("held", flush=True)
    note = sys.stdin.readline().strip()
    if note:
        turn.leave_note(note.encode())
"""

# Waits for the lock, or for a file to appear, and says what came of it.
_WAITER = """
import os, sys
from modelcache import locks
class Announced(locks._KernelWait):
    def __init__(self, file):  # From here on it does not try again before the other one has let go.
        super().__init__(file)
        print("waiting", flush=True)
locks._KernelWait = Announced
with locks.exclusive(sys.argv[1], timeout=60, what="the lock", done=lambda: os.path.exists(sys.argv[2])) as turn:
    print("held" if turn.held else "not needed", turn.note.decode(), flush=True)
"""


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "some.lock")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def test_processes_and_threads_exclude_each_other(path: str, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")

    workers = [run(_COUNTER, path, counter, 3, 25) for _ in range(4)]

    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    assert counter.read_text() == str(4 * 3 * 25)
    assert not os.path.exists(path)
    for worker in workers:
        worker.communicate()


def test_a_killed_holder_lets_go_at_once(path: str) -> None:
    holder = run(_HOLDER, path)
    assert first_line(holder) == "held"
    waiter = run(_WAITER, path, "/nonexistent")
    assert first_line(waiter) == "waiting"

    holder.send_signal(signal.SIGKILL)
    holder.communicate()

    assert waiter.communicate(timeout=60)[0].strip() == "held"
    assert not os.path.exists(path)


def test_all_who_wait_pass_together_when_what_they_wait_for_is_there(path: str, tmp_path: Path) -> None:
    holder = run(_HOLDER, path)
    assert first_line(holder) == "held"
    waiters = [run(_WAITER, path, tmp_path / "result") for _ in range(12)]
    assert {first_line(waiter) for waiter in waiters} == {"waiting"}

    (tmp_path / "result").write_text("x")
    holder.communicate("\n", timeout=60)

    assert {waiter.communicate(timeout=60)[0].strip() for waiter in waiters} == {"not needed"}
    assert not os.path.exists(path)


def test_a_note_reaches_those_who_wait_and_nobody_later(path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ready, told = os.pipe()
        release, let_go = os.pipe()
        holder = os.fork()
        if holder == 0:
            with locks.exclusive(path, timeout=60, what="the lock") as turn:
                os.write(told, b"x")
                os.read(release, 1)
                turn.leave_note(b"it failed")
            os._exit(0)
    os.read(ready, 1)
    outcome: list[tuple[bool, bytes]] = []
    started = threading.Event()
    original = locks._KernelWait

    class Announced(original):  # type: ignore[misc, valid-type]
        def __init__(self, file: object) -> None:
            super().__init__(file)
            started.set()

    def wait() -> None:
        with locks.exclusive(path, timeout=60, what="the lock") as turn:
            outcome.append((turn.held, turn.note))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "_KernelWait", Announced)
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert started.wait(60)
        # The wait is announced just before its thread asks the kernel; either way the holder still holds.
        os.write(let_go, b"x")
        waiter.join()
    os.waitpid(holder, 0)
    with locks.exclusive(path, timeout=60, what="the lock") as later:
        assert (later.held, later.note) == (True, b"")

    assert outcome in ([(False, b"it failed")], [(True, b"")])  # The latter if it asked only after the release.
    for descriptor in (ready, told, release, let_go):
        os.close(descriptor)


def test_a_wait_is_bounded_and_names_the_holder(path: str) -> None:
    holder = run(_HOLDER, path)
    assert first_line(holder) == "held"

    for timeout in (0, 0.05):
        expected = pytest.raises(LockTimeoutError, match=f"process {holder.pid} on ")
        with expected as caught, locks.exclusive(path, timeout=timeout, what="the model"):
            pass
        assert caught.value.exit_code == 9

    holder.communicate("\n", timeout=60)


def test_a_wait_that_was_given_up_does_no_harm_to_later_ones(path: str) -> None:
    holder = run(_HOLDER, path)
    assert first_line(holder) == "held"
    with pytest.raises(LockTimeoutError), locks.exclusive(path, timeout=0.02, what="the lock"):
        pass

    holder.communicate("\n", timeout=60)
    with locks.exclusive(path, timeout=60, what="the lock") as turn:
        assert turn.held
        contender = run(_WAITER, path, "/nonexistent")
        assert first_line(contender) == "waiting"
        # Still ours: the given-up wait has closed its descriptor, and took no lock away with it.
        probe = "import sys; from modelcache import locks; sys.exit(locks.probe(sys.argv[1]))"
        assert subprocess.run([sys.executable, "-c", probe, path], check=False).returncode == 0

    assert contender.communicate(timeout=60)[0].strip() == "held"


def test_whoever_waits_for_more_than_a_second_is_told_for_whom(path: str) -> None:
    holder = run(_HOLDER, path)
    assert first_line(holder) == "held"
    told: list[str] = []

    with pytest.raises(LockTimeoutError), locks.exclusive(path, timeout=1.1, what="the model", on_wait=told.append):
        pass

    assert len(told) == 1
    assert told[0].startswith(f"process {holder.pid} on ")
    holder.communicate("\n", timeout=60)


def test_a_forked_child_owns_nothing_and_takes_nothing_away(path: str) -> None:
    with locks.exclusive(path, timeout=60, what="the lock") as turn:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            turn.release(path)  # What the end of the block does in a child that runs on.
            os._exit(0 if not locks.probe(path) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert os.path.exists(path)

    assert not os.path.exists(path)


def test_two_processes_that_hold_one_lock_and_want_the_other_in_another_thread_are_no_deadlock(
    tmp_path: Path,
) -> None:
    # Each holds its own lock for a while in one thread, and waits for the other's in a second: the kernel, which
    # sees only processes, calls that a deadlock (EDEADLK).
    code = """
import sys, threading
from modelcache import locks
mine, other = sys.argv[1:]
release = threading.Event()
def hold():
    with locks.exclusive(mine, timeout=60, what="mine"):
        print("held", flush=True)
        release.wait()
holder = threading.Thread(target=hold)
holder.start()
sys.stdin.readline()
def want():
    with locks.exclusive(other, timeout=60, what="other") as turn:
        print("got" if turn.held else "not", flush=True)
wanter = threading.Thread(target=want)
wanter.start()
sys.stdin.readline()
release.set()
holder.join(); wanter.join()
"""
    first, second = tmp_path / "a.lock", tmp_path / "b.lock"
    processes = [run(code, first, second), run(code, second, first)]
    assert [first_line(process) for process in processes] == ["held", "held"]

    for _ in range(2):
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["got", "got"]


def test_a_place_where_no_lock_file_can_be_made_is_told_apart(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing" / "x.lock")

    with pytest.raises(locks.LockUnavailableError), locks.exclusive(missing, timeout=1, what="the lock"):
        pass


def test_a_planted_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "x.lock").symlink_to(tmp_path / "precious")

    with locks.exclusive(str(tmp_path / "x.lock"), timeout=1, what="the lock") as turn:
        assert turn.held  # It went: else it would keep everybody from having a lock.

    assert (tmp_path / "precious").read_text() == "content"


def test_a_file_that_was_unlinked_before_the_lock_came_is_not_mistaken_for_the_lock(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fcntl.lockf
    stolen: list[str] = []

    def unlink_first(*arguments: object) -> None:
        if not stolen:
            stolen.append(path)
            os.unlink(path)  # What the last holder does between our open and our lock.
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("fcntl.lockf", unlink_first)

    with locks.exclusive(path, timeout=60, what="the lock") as turn:
        assert turn.held
        assert os.path.exists(path)
        probe = "import sys; from modelcache import locks; sys.exit(locks.probe(sys.argv[1]))"
        assert subprocess.run([sys.executable, "-c", probe, path], check=False).returncode == 0


def test_neither_descriptors_nor_files_nor_slots_are_left(path: str) -> None:
    with locks.exclusive(path, timeout=60, what="the lock"):
        pass
    before = descriptors()

    for _ in range(50):
        with locks.exclusive(path, timeout=60, what="the lock"):
            pass

    assert descriptors() == before
    assert not os.path.exists(path)
    assert os.path.realpath(path) not in locks._registry


def test_two_spellings_of_one_path_are_one_lock(path: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    refused: list[str] = []

    def other() -> None:
        try:
            with locks.exclusive(f"{tmp_path}/link/{os.path.basename(path)}", timeout=0.05, what="the lock"):
                pass
        except LockTimeoutError as error:
            refused.append(error.summary)

    with locks.exclusive(path, timeout=60, what="the lock"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    assert len(refused) == 1
