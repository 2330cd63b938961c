"""Points belong to the process: threads share their counts exactly, forks start with a copy."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from failpoints import configure, fail_point, remove
from tests.failpoints.children import run


def test_counts_are_exact_across_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class SwitchingRandom:
        """Lets other threads run between the look at a count and its change."""

        def __init__(self, _seed: object) -> None: ...

        def random(self) -> float:
            time.sleep(1e-5)  # Gives the interpreter lock away; nothing waits for it.
            return 0.0

    monkeypatch.setattr("random.Random", SwitchingRandom)
    configure("place", "100%97*return(x)->100%1*return(y)->off")
    threads_count, calls = 8, 25
    start = threading.Barrier(threads_count)
    results: list[str | None] = []

    def reach() -> None:
        start.wait()
        results.extend([fail_point("place", str) for _ in range(calls)])

    threads = [threading.Thread(target=reach) for _ in range(threads_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (results.count("x"), results.count("y"), len(results)) == (97, 1, threads_count * calls)


def test_a_count_is_exact_when_a_signal_handler_reaches_the_point_in_the_midst_of_a_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handled: list[str | None] = []

    class InterruptedRandom:
        """Reaches the point again within its first draw, as a handler does that runs there."""

        def __init__(self, _seed: object) -> None: ...

        def random(self) -> float:
            if not handled:
                handled.append(None)
                handled[0] = fail_point("place", str)
            return 0.0

    monkeypatch.setattr("random.Random", InterruptedRandom)
    configure("place", "100%1*return(x)->1*return(y)")

    results = [fail_point("place", str) for _ in range(4)]

    assert handled == ["x"]
    assert results == ["y", None, None, None]


def test_points_may_be_configured_while_other_threads_reach_them() -> None:
    wrong: list[BaseException] = []
    done = threading.Event()

    def reach() -> None:
        try:
            while not done.is_set():
                assert fail_point("place", str) in {None, "x"}
        except BaseException as error:  # noqa: BLE001  # The evidence of this test.
            wrong.append(error)

    threads = [threading.Thread(target=reach) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2000):
        configure("place", "return(x)")
        remove("place")
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == []


FORK = """
import os, sys
from failpoints import *
fail_point("place", str)
if (child := os.fork()) == 0:
    print("child", [fail_point("place", str) for _ in range(3)], flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", [fail_point("place", str) for _ in range(3)])
"""


def test_a_forked_child_goes_on_with_a_copy_of_the_counts() -> None:
    child = run(FORK, spec="place=2*return(x)->off")

    assert child.stdout == "child ['x', None, None]\nparent ['x', None, None]\n", child.stderr


FORK_UNDER_LOAD = """
import os, sys, threading
from failpoints import *
sys.setswitchinterval(1e-6)
configure("place", "off")
def reach():
    while True:
        fail_point("place")
        configure("other", "off")
for _ in range(4):
    threading.Thread(target=reach, daemon=True).start()
for _ in range(30):
    if (child := os.fork()) == 0:
        configure("place", "exit(5)")
        grandchild = os.fork()
        if grandchild == 0:
            thread = threading.Thread(target=fail_point, args=("place",))
            thread.start()
            thread.join()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
print("done")
os._exit(0)
"""


def test_a_fork_while_other_threads_are_at_points_leaves_a_child_that_works() -> None:
    child = run(FORK_UNDER_LOAD)  # A lock that was copied while held would hang here.

    assert child.stdout == "done\n", child.stderr


DRAW = """
import os
from failpoints import *
for _ in range(2):
    if (child := os.fork()) == 0:
        print([fail_point("place", str) for _ in range(64)], flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_forked_children_draw_apart_without_a_seed_and_alike_with_one() -> None:
    free = run(DRAW, spec="place=50%return").stdout.splitlines()
    seeded = run(DRAW, spec="place=50%return", _SEED="3").stdout.splitlines()

    assert len(free) == len(seeded) == 2
    assert free[0] != free[1]
    assert seeded[0] == seeded[1]


def test_lines_of_a_trace_written_by_several_processes_do_not_mix(tmp_path: Path) -> None:
    code = (
        "import os, sys; from failpoints import fail_point\n"
        "for name in ('a' * 50, 'b' * 70):\n"
        "    if os.fork() == 0:\n"
        "        [fail_point(name) for _ in range(500)]; os._exit(0)\n"
        "os.wait(); os.wait()\n"
    )

    child = run(code, _TRACE=str(tmp_path / "trace"))

    assert sorted((tmp_path / "trace").read_text().split()) == ["a" * 50] * 500 + ["b" * 70] * 500, child.stderr


def test_kill_at_a_point_in_a_thread_kills_the_whole_process() -> None:
    code = (
        "import threading, failpoints\n"
        "thread = threading.Thread(target=failpoints.fail_point, args=('place',)); thread.start(); thread.join()\n"
        "print('survived')\n"
    )

    child = run(code, spec="place=kill")

    assert (child.returncode, child.stdout) == (-signal.SIGKILL, "")


def test_a_signal_handler_may_reach_a_point() -> None:
    code = (
        "import signal, sys, time; from failpoints import *\n"
        "configure('place', 'off')\n"
        "handled = []\n"
        "def handle(*_): fail_point('place'); handled.append(1)\n"
        "signal.signal(signal.SIGALRM, handle)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)\n"
        "while len(handled) < 200: fail_point('place')\n"
        "signal.setitimer(signal.ITIMER_REAL, 0); print('done')\n"
    )

    child = run(code)  # A lock that is not reentrant would hang here.

    assert child.stdout == "done\n", child.stderr
