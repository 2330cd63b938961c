"""What an active process does at its points. Loaded when the first point is configured or a trace is asked for.

One lock guards what is configured, the counts and who is paused; no task is done while it is held. A fork takes it
first, so that the child's copy is whole, and the child gets a lock of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

from . import TYPE_CHECKING, FailPointPanic, FailPointUsageError, _reasons
from ._pause import Gate
from ._spec import Actions, Term, parse, parse_point

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NoReturn, TypeVar

    _T = TypeVar("_T")

_lock = threading.RLock()  # Reentrant: the handler of a signal may reach a point as well.
_points: dict[str, Actions] = {}
_paused: dict[Gate, tuple[str, Actions]] = {}
_trace = ""


def start(spec: str, trace: str) -> None:
    """Configure what the environment asks for.

    Raises:
        FailPointSpecError: *spec* cannot be understood.
        OSError: The file *trace* cannot be written.
    """
    global _trace
    points = parse(spec)
    if trace:
        _trace = os.path.abspath(trace)
        _append(_trace, b"")
        _reasons.add("trace")
    _change(points)


def configure(name: str, actions: str) -> None:
    """See `failpoints.configure`."""
    parsed = parse_point(name, actions)
    with _lock:
        _change({**_points, name: parsed})


def remove(name: str) -> None:
    """See `failpoints.remove`."""
    with _lock:
        _change({other: actions for other, actions in _points.items() if other != name})


def configured() -> dict[str, str]:
    """See `failpoints.configured`."""
    with _lock:
        return {name: str(actions) for name, actions in _points.items()}


@contextmanager
def scenario(spec: str) -> Iterator[None]:
    """See `failpoints.scenario`."""
    within = parse(spec)
    with _lock:
        before = dict(_points)
        _change(within)
    try:
        yield
    finally:
        _change(before)


@contextmanager
def active(name: str, actions: str) -> Iterator[None]:
    """See `failpoints.active`."""
    within = parse_point(name, actions)
    with _lock:
        before = _points.get(name)
        _change({**_points, name: within})
    try:
        yield
    finally:
        with _lock:
            if before is None:
                remove(name)
            else:
                _change({**_points, name: before})


def evaluate(name: str, on_return: Callable[[str], _T] | None, on_torn: Callable[[int], object] | None) -> _T | None:
    """Do what is configured for *name*: see `failpoints.fail_point`."""
    if _trace:
        try:
            _append(_trace, f"{name}\n".encode())
        except OSError as error:
            raise _misused(name, f"cannot write FAILPOINTS_TRACE: {error}") from error
    with _lock:
        actions = _points.get(name)
        term = actions.next() if actions is not None else None
    if actions is None or term is None:
        return None
    match term.task:
        case "return":
            if on_return is None:
                raise _misused(name, "is to return, and has no on_return; give it one, or configure another task")
            return on_return(term.text)
        case "torn":
            if on_torn is None:
                raise _misused(name, "is to tear a write, and has no on_torn; give it one, or configure another task")
            on_torn(int(term.number))
            _die()
        case "pause":
            _pause(name, actions)
        case _:
            _perform(name, term)
    return None


def _perform(name: str, term: Term) -> None:
    match term.task:
        case "sleep":
            time.sleep(term.number / 1000)
        case "delay":
            end = time.perf_counter() + term.number / 1000
            while time.perf_counter() < end:
                pass
        case "yield":
            os.sched_yield()
        case "print":
            _print(term.text or f"reached the fail point {name}")
        case "panic":
            raise FailPointPanic(name, term.text)
        case "raise":
            assert term.error is not None
            raise term.error()
        case "kill":
            _die()
        case "exit":
            os._exit(int(term.number))
        case _:
            assert term.task == "off"


def _print(text: str) -> None:
    """Print *text* to standard error, as far as that can be done: the program must not notice that it cannot."""
    if sys.stderr is None:  # It was closed when the process started; print would take standard output.
        return
    try:
        sys.stderr.flush()
        try:
            descriptor = sys.stderr.fileno()
        except (AttributeError, OSError):  # It is no file.
            print(text, file=sys.stderr, flush=True)
        else:
            # Past its buffer: what stays in there, because it cannot be written, makes the process exit with 120.
            os.write(descriptor, f"{text}\n".encode(errors="backslashreplace"))
    except (OSError, ValueError):  # ValueError: it is closed, or cannot encode the text.
        pass


def _pause(name: str, actions: Actions) -> None:
    """Wait until the gate is opened: by `release`, from outside, or because *name* does something else now.

    Not bounded, against the house rule: how long it takes is the test's to say, and a test that dies leaves it waiting.
    """
    with _lock:
        if _points.get(name) is not actions:
            return
        try:
            gate = Gate(name, actions.directory)
        except OSError as error:
            raise _misused(name, f"cannot be paused in FAILPOINTS_DIR: {error}") from error
        _paused[gate] = name, actions
    try:
        gate.wait()
    finally:
        with _lock:
            _paused.pop(gate, None)  # Forgotten, if the handler of a signal forked meanwhile and this is the child.
            gate.close()


def _change(points: dict[str, Actions]) -> None:
    global _points
    with _lock:
        _points = points
        (_reasons.add if points else _reasons.discard)("points")
        for gate, (name, actions) in _paused.items():
            if points.get(name) is not actions:
                gate.open()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(128 + signal.SIGKILL)  # Reached by process 1 of a container only, which its own SIGKILL does not kill.


def _append(path: str, line: bytes) -> None:
    # Opened for each line: the program may close a descriptor that stays open, and its number be used for another file.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, line)  # A single one, so that lines of several processes do not mix.
    finally:
        os.close(descriptor)


def _misused(name: str, problem: str) -> FailPointUsageError:
    frame = sys._getframe()  # noqa: SLF001  # The way to name the place.
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return FailPointUsageError(name, f"{frame.f_code.co_filename}:{frame.f_lineno}", problem)


def _before_fork() -> None:
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    # They are the parent's, and must look closed once it is dead.
    for gate in _paused:
        gate.forget()
    _paused.clear()
    for actions in _points.values():
        actions.after_fork()


# Functions, not the lock's own methods: in a child that forks again the lock is another one.
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
