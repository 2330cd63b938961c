"""Pausing: arriving, being seen from outside, and going on. No test sleeps; each waits for an announced event."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import failpoints
from failpoints import configure, fail_point, release, remove, scenario, wait_paused
from tests.failpoints.children import TIMEOUT, run, running

REACH = "from failpoints import fail_point; fail_point('place'); print('passed')"
REACH_TWICE = f"{REACH}; fail_point('place'); print('passed again')"
REACH_IN_THREADS = (
    "import threading; from failpoints import fail_point\n"
    "threads = [threading.Thread(target=fail_point, args=('place',)) for _ in range(3)]\n"
    "[thread.start() for thread in threads]; [thread.join() for thread in threads]; print('passed')\n"
)


@contextmanager
def paused_thread(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Thread]:
    """A thread of this process that is paused at ``place``; it must be let go inside the block."""
    monkeypatch.setenv("FAILPOINTS_DIR", str(directory))
    configure("place", "pause")
    thread = threading.Thread(target=fail_point, args=("place",), daemon=True)
    thread.start()
    wait_paused(directory, "place", TIMEOUT)
    yield thread
    thread.join(TIMEOUT)
    assert not thread.is_alive(), "it was not let go"


def test_a_paused_process_goes_on_when_another_process_releases_it(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        arrived = wait_paused(tmp_path, "place", TIMEOUT)
        released = release(tmp_path, "place")
        output, _ = child.communicate(timeout=TIMEOUT)

    assert arrived == released == [child.pid]
    assert output == "passed\n"


def test_a_paused_process_has_not_passed_the_point(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        wait_paused(tmp_path, "place", TIMEOUT)
        child.kill()
        output, _ = child.communicate(timeout=TIMEOUT)

    assert output == ""


def test_a_paused_process_uses_no_cpu(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        wait_paused(tmp_path, "place", TIMEOUT)
        system_call = Path(f"/proc/{child.pid}/syscall")  # The number of the one it sleeps in, or "running".
        if not system_call.exists():
            pytest.skip("this system does not say in which system call a process waits")
        # It announces itself just before it goes to sleep.
        seen = {system_call.read_text().split()[0] for _ in range(10_000)}

    assert {"x86_64": "0", "aarch64": "63"}[os.uname().machine] in seen, f"it does not sleep in read(2), but in {seen}"


def test_release_lets_go_of_a_process_that_arrives_later(tmp_path: Path) -> None:
    release(tmp_path, "place")

    assert run(REACH_TWICE, spec="place=pause", _DIR=str(tmp_path)).stdout == "passed\npassed again\n"


def test_release_of_one_point_leaves_another_paused(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        wait_paused(tmp_path, "place", TIMEOUT)
        released = release(tmp_path, "other")
        still = wait_paused(tmp_path, "place", TIMEOUT)

    assert released == []
    assert still == [child.pid]


def test_release_of_one_process_lets_it_pass_once(tmp_path: Path) -> None:
    with running(REACH_TWICE, spec="place=pause", _DIR=str(tmp_path)) as child:
        for _ in range(2):
            wait_paused(tmp_path, "place", TIMEOUT)
            assert release(tmp_path, "place", pid=child.pid) == [child.pid]
        output, _ = child.communicate(timeout=TIMEOUT)

    assert output == "passed\npassed again\n"


def test_release_of_one_process_leaves_others_paused(tmp_path: Path) -> None:
    settings = {"spec": "place=pause", "_DIR": str(tmp_path)}
    with running(REACH, **settings) as one, running(REACH, **settings) as other:
        both = wait_paused(tmp_path, "place", TIMEOUT, count=2)
        release(tmp_path, "place", pid=one.pid)
        output, _ = one.communicate(timeout=TIMEOUT)
        left = wait_paused(tmp_path, "place", TIMEOUT)

    assert both == sorted([one.pid, other.pid])
    assert output == "passed\n"
    assert left == [other.pid]


def test_each_paused_thread_of_a_process_is_seen_and_released(tmp_path: Path) -> None:
    with running(REACH_IN_THREADS, spec="place=pause", _DIR=str(tmp_path)) as child:
        arrived = wait_paused(tmp_path, "place", TIMEOUT, count=3)
        release(tmp_path, "place", pid=child.pid)
        output, _ = child.communicate(timeout=TIMEOUT)

    assert arrived == [child.pid] * 3
    assert output == "passed\n"


def test_a_process_that_was_killed_while_paused_is_not_seen_as_paused(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        wait_paused(tmp_path, "place", TIMEOUT)
        child.kill()
        child.wait(TIMEOUT)

        with pytest.raises(TimeoutError):
            wait_paused(tmp_path, "place", 0)

    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_keep_its_dead_parent_looking_paused(tmp_path: Path) -> None:
    # The parent pauses in a thread, forks, and is killed; the child lives on, with copies of the parent's descriptors.
    code = (
        "import os, sys, threading, failpoints\n"
        "threading.Thread(target=failpoints.fail_point, args=('place',), daemon=True).start()\n"
        f"failpoints.wait_paused({str(tmp_path)!r}, 'place', {TIMEOUT})\n"
        "if os.fork() == 0:\n"
        "    print('forked', flush=True)\n"
        "    sys.stdin.read()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
    )
    with running(code, spec="place=pause", _DIR=str(tmp_path)) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "forked\n"
        parent.kill()
        parent.wait(TIMEOUT)

        with pytest.raises(TimeoutError):
            wait_paused(tmp_path, "place", 0)


FORK_IN_A_HANDLER = f"""
import os, signal, sys
from failpoints import fail_point
child, files = None, []
def handle(*_):
    global child
    child = os.fork()
    if child == 0:
        signal.alarm({TIMEOUT})  # Nobody else would end it.
        files.extend(os.open(sys.executable, os.O_RDONLY) for _ in range(8))  # The numbers of all that the fork closed.
signal.signal(signal.SIGUSR1, handle)
fail_point("place")
if child == 0:
    fail_point("passed")
    print("child", [os.lseek(file, 0, os.SEEK_CUR) for file in files], flush=True)
    os._exit(7)
print("parent", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_a_paused_thread_forks_in_a_signal_handler_goes_on_and_its_parent_stays(tmp_path: Path) -> None:
    import signal

    with running(FORK_IN_A_HANDLER, spec="place=pause;passed=pause", _DIR=str(tmp_path)) as parent:
        wait_paused(tmp_path, "place", TIMEOUT)
        parent.send_signal(signal.SIGUSR1)
        wait_paused(tmp_path, "passed", TIMEOUT)
        still = wait_paused(tmp_path, "place", TIMEOUT)
        release(tmp_path, "passed")
        release(tmp_path, "place")
        output, errors = parent.communicate(timeout=TIMEOUT)

    assert still == [parent.pid]
    assert output == f"child {[0] * 8}\nparent 7\n", errors  # The child read no byte of any of its files.


def test_an_outside_wait_that_times_out_says_who_is_paused_where(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        wait_paused(tmp_path, "place", TIMEOUT)

        with pytest.raises(TimeoutError, match=rf"1 of 2 threads paused at place .*place\.paused-{child.pid}-1"):
            wait_paused(tmp_path, "place", 0, count=2)


def test_a_process_that_went_on_leaves_nothing_in_the_directory(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        wait_paused(tmp_path, "place", TIMEOUT)
        release(tmp_path, "place", pid=child.pid)
        child.communicate(timeout=TIMEOUT)

    assert list(tmp_path.iterdir()) == []


def test_the_directory_is_made_where_it_is_missing(tmp_path: Path) -> None:
    with running(REACH, spec="place=pause", _DIR=str(tmp_path / "new" / "one")) as child:
        assert wait_paused(tmp_path / "new" / "one", "place", TIMEOUT) == [child.pid]


def test_a_directory_that_cannot_be_used_is_not_taken_for_a_failure_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    child = run(REACH, spec="place=pause", _DIR=str(tmp_path / "file"))

    assert "FailPointUsageError: the fail point place at <string>:1 cannot be paused in FAILPOINTS_DIR" in child.stderr


def test_removing_a_point_lets_go_of_a_thread_paused_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with paused_thread(tmp_path, monkeypatch):
        remove("place")


def test_configuring_a_point_lets_go_of_a_thread_paused_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with paused_thread(tmp_path, monkeypatch):
        configure("place", "pause")


def test_configuring_another_point_lets_go_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with paused_thread(tmp_path, monkeypatch):
        configure("other", "off")
        assert wait_paused(tmp_path, "place", TIMEOUT) == [os.getpid()]
        remove("place")


def test_the_end_of_a_scenario_lets_go_of_a_thread_paused_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scenario(), paused_thread(tmp_path, monkeypatch) as thread, scenario():
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_without_a_directory_a_paused_thread_can_be_let_go_by_its_own_process() -> None:
    # Whether it is paused yet cannot be seen without a directory: the lock's own table says it.
    from failpoints import _engine

    configure("place", "pause")
    thread = threading.Thread(target=fail_point, args=("place",), daemon=True)
    thread.start()
    while not _engine._paused:
        thread.join(0.001)
        assert thread.is_alive(), "it did not wait"

    remove("place")
    thread.join(TIMEOUT)

    assert not thread.is_alive()
    assert not _engine._paused


def test_a_pause_can_be_interrupted_from_the_keyboard(tmp_path: Path) -> None:
    import signal

    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        wait_paused(tmp_path, "place", TIMEOUT)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=TIMEOUT)

    assert errors.endswith("KeyboardInterrupt\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_fifo_of_a_paused_thread_counts_for_nothing_and_is_left_alone(tmp_path: Path) -> None:
    strays = ["place.paused-12-1", "place.paused-²-1", "place.paused-12", "place.paused-12-x", ".paused-12-1"]
    for stray in strays:
        (tmp_path / stray).touch()
    (tmp_path / "place.paused-13-1").mkdir()
    (tmp_path / "place.paused-14-1").symlink_to("missing")
    os.mkfifo(tmp_path / "place.paused-²-2")

    with running(REACH, spec="place=pause", _DIR=str(tmp_path)) as child:
        arrived = wait_paused(tmp_path, "place", TIMEOUT)
        released = release(tmp_path, "place")
        child.communicate(timeout=TIMEOUT)

    assert arrived == released == [child.pid]
    assert {path.name for path in tmp_path.iterdir()} == {
        *strays,
        "place.paused-13-1",
        "place.paused-14-1",
        "place.paused-²-2",
        "place.release",
    }
    assert (tmp_path / "place.paused-12-1").read_bytes() == b""


@pytest.mark.parametrize("name", ["a/b", "", "two words", "../place"])
def test_a_name_that_no_point_can_have_is_refused_outside_as_well(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name!r} is no name"):
        wait_paused(tmp_path, name, 0)
    with pytest.raises(ValueError, match=f"{name!r} is no name"):
        release(tmp_path, name)
    with pytest.raises(ValueError, match=f"{name!r} is no name"):
        release(tmp_path, name, pid=1)

    assert list(tmp_path.iterdir()) == []


def test_the_outside_helpers_are_public() -> None:
    assert {"wait_paused", "release"} <= set(failpoints.__all__)
