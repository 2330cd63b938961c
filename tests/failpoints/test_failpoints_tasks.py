"""What each task does at a point."""

from __future__ import annotations

import errno
import io
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest

from failpoints import FailPointPanic, FailPointUsageError, configure, fail_point
from tests.failpoints.children import run

REACH = "from failpoints import fail_point; fail_point('place'); print('passed')"


@pytest.mark.parametrize("actions", ["off", "yield", "sleep(0)", "delay(0)", "print", "0*kill"])
def test_a_task_that_only_passes_time_goes_on_and_returns_nothing(actions: str) -> None:
    configure("place", actions)

    assert fail_point("place", str) is None


def test_sleep_gives_its_milliseconds_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    configure("place", "sleep(30)")

    fail_point("place")

    assert slept == [0.03]


def test_delay_stays_busy_until_its_milliseconds_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5.0, 5.01, 5.029, 5.031, 6.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    configure("place", "delay(30)")

    fail_point("place")

    assert list(clock) == [6.0]


def test_return_gives_its_value_to_the_hook_and_returns_what_the_hook_returns() -> None:
    configure("place", "return(41)")

    assert fail_point("place", lambda value: int(value) + 1) == 42


def test_return_without_a_value_gives_the_hook_an_empty_text() -> None:
    configure("place", "return")

    assert fail_point("place", lambda value: [value]) == [""]


def test_return_at_a_point_without_a_hook_is_an_error_that_names_point_and_line() -> None:
    configure("place", "return(1)")

    with pytest.raises(FailPointUsageError) as caught:
        fail_point("place")
    line = sys._getframe().f_lineno - 1

    assert caught.value.name == "place"
    assert caught.value.place == f"{__file__}:{line}"
    assert str(caught.value).startswith(f"the fail point place at {__file__}:{line} is to return, and has no on_return")


def test_print_writes_its_text_or_the_name_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure("place", "1*print(here)->print")

    fail_point("place")
    fail_point("place")

    assert capsys.readouterr().err == "here\nreached the fail point place\n"


class Closing(io.StringIO):
    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, Closing(), io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.StringIO()])
def test_a_print_that_is_lost_changes_nothing(stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", stderr)
    if type(stderr) is io.StringIO:
        stderr.close()
    configure("place", "print(ä)")

    fail_point("place")

    assert output.getvalue() == ""


@pytest.mark.parametrize(
    "loss", ["os.close(2)", "sys.stderr.close()", "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)", "sys.stderr = None"]
)
def test_a_print_that_is_lost_leaves_the_exit_code_and_standard_output_alone(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "/dev/full" in loss and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # What stays in a buffer would make the exit code 120.

    child = run(f"import os, sys; {loss}; {REACH}", spec="place=print")

    assert (child.returncode, child.stdout) == (0, "passed\n")


def test_a_print_goes_to_what_stands_for_standard_error_and_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    class Collector:
        def __init__(self) -> None:
            self.written: list[str] = []
            self.write = self.written.append

        def flush(self) -> None: ...

    collector = Collector()
    monkeypatch.setattr(sys, "stderr", collector)
    configure("place", "print(here)")

    fail_point("place")

    assert collector.written == ["here", "\n"]


def test_a_print_comes_after_what_the_program_has_printed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)

    child = run(f"import sys; print('half a line, ', end='', file=sys.stderr); {REACH}", spec="place=print(ä\udcff)")

    assert child.stderr == "half a line, ä\\udcff\n"


def test_a_panic_passes_through_except_exception_and_names_its_point() -> None:
    configure("place", "panic(now)")

    def program() -> None:
        try:
            fail_point("place")
        except Exception:  # noqa: BLE001  # What a panic must get past.
            pytest.fail("the program swallowed it")

    with pytest.raises(FailPointPanic, match="panic at the fail point place: now"):
        program()


def test_a_panic_and_a_usage_error_survive_pickling() -> None:
    panic = pickle.loads(pickle.dumps(FailPointPanic("place", "now")))
    misused = pickle.loads(pickle.dumps(FailPointUsageError("place", "a.py:1", "is wrong")))

    assert (panic.name, panic.text) == ("place", "now")
    assert (misused.name, misused.place, misused.problem) == ("place", "a.py:1", "is wrong")


def test_raise_raises_a_builtin_exception_by_its_name() -> None:
    configure("place", "1*raise(ValueError)->1*raise(KeyError:which)->raise(KeyboardInterrupt)")

    with pytest.raises(ValueError, match="raised by the fail point place"):
        fail_point("place")
    with pytest.raises(KeyError, match="which"):
        fail_point("place")
    with pytest.raises(KeyboardInterrupt):
        fail_point("place")


@pytest.mark.parametrize(
    ("argument", "number", "kind"),
    [
        ("ENOSPC", errno.ENOSPC, OSError),
        ("OSError:ENOSPC", errno.ENOSPC, OSError),
        ("OSError: EIO", errno.EIO, OSError),
        ("ENOENT", errno.ENOENT, FileNotFoundError),
        ("ConnectionError:ECONNRESET", errno.ECONNRESET, ConnectionError),
    ],
)
def test_raise_takes_errno_names_and_raises_what_the_system_would(
    argument: str, number: int, kind: type[OSError]
) -> None:
    configure("place", f"raise({argument})")

    with pytest.raises(kind) as caught:
        fail_point("place")

    assert type(caught.value) is kind
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == number
    assert caught.value.strerror == f"{os.strerror(number)} (raised by the fail point place)"


def test_each_raise_raises_an_exception_of_its_own() -> None:
    configure("place", "raise(ValueError)")
    raised = []

    for _ in range(2):
        with pytest.raises(ValueError, match="place") as caught:
            fail_point("place")
        raised.append(caught.value)

    assert raised[0] is not raised[1]  # Else tracebacks and contexts of one call would show up in another.


def test_kill_is_sigkill_to_the_own_process() -> None:
    child = run(REACH, spec="place=kill")

    assert child.returncode == -signal.SIGKILL
    assert child.stdout == ""


def test_exit_ends_the_process_at_once_with_its_code() -> None:
    child = run(f"import atexit; atexit.register(print, 'cleaned up'); {REACH}", spec="place=exit(7)")

    assert child.returncode == 7
    assert child.stdout == ""


def test_a_panic_that_nobody_catches_ends_the_process_with_a_traceback() -> None:
    child = run(REACH, spec="place=panic")

    assert child.returncode == 1
    assert child.stderr.endswith("FailPointPanic: panic at the fail point place\n")


WRITE = """
import os, sys
from failpoints import fail_point
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for data in (b"first;", b"second"):
    fail_point("place", on_torn=lambda size: os.write(descriptor, data[:size]))
    os.write(descriptor, data)
"""


@pytest.mark.parametrize(
    ("actions", "left"),
    [("torn(0)", b""), ("torn(4)", b"firs"), ("torn(99)", b"first;"), ("1*off->torn(3)", b"first;sec")],
)
def test_torn_writes_the_first_bytes_of_the_data_and_kills_the_process(
    actions: str, left: bytes, tmp_path: Path
) -> None:
    child = run(WRITE, tmp_path / "file", spec=f"place={actions}")

    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (tmp_path / "file").read_bytes() == left


def test_torn_at_a_point_without_a_hook_is_an_error_and_kills_nothing() -> None:
    configure("place", "torn(1)")

    with pytest.raises(FailPointUsageError, match="is to tear a write, and has no on_torn"):
        fail_point("place", on_return=str)


def test_what_the_hook_of_torn_raises_is_raised_and_kills_nothing() -> None:
    configure("place", "torn(1)")

    def full(size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        fail_point("place", on_torn=full)
