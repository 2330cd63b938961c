"""Fail points: named places in a program where a test makes it fail, stop or die. After tikv/fail-rs.

A point is *inactive* while nothing is configured in its process, *reached* whenever `fail_point` is called in a process
that is active. README.md grows one example from a first mark to a crash test.

    spec  = point *(";" point)      point = name "=" term *("->" term)
    term  = [percent "%"] [count "*"] task ["(" argument ")"]
    task  = off | return | sleep(ms) | delay(ms) | yield | pause | print | panic | raise(Error) | kill | exit(code)
          | torn(bytes)

Promised:
  * An inactive point costs one call and one test, and importing this package imports nothing else.
  * What is configured holds from the next call on, in every module and thread. Counts are exact across threads; a
    forked child starts with a copy of them.
  * The first term whose count is not used up and whose percentage is drawn is done; if there is none, nothing is.
  * With ``FAILPOINTS_SEED`` the draws of a point are the same in every run, whatever other points do.
  * A spec that cannot be understood is refused as a whole, when it is read.

Environment: ``FAILPOINTS`` (a spec) and ``FAILPOINTS_TRACE`` (a file that gets a line for each point reached) are read
at import; ``FAILPOINTS_SEED``, and ``FAILPOINTS_DIR`` (where a pause can be seen and ended from outside), whenever a
point is configured.

Not promised: isolation of threads. Points belong to the process, so tests that share one must take turns.
"""

import os

TYPE_CHECKING = False  # typing takes 10 ms to import.
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import TypeVar

    _T = TypeVar("_T")

__all__ = [
    "FailPointPanic",
    "FailPointSpecError",
    "FailPointUsageError",
    "active",
    "configure",
    "configured",
    "fail_point",
    "release",
    "remove",
    "scenario",
    "wait_paused",
]

# Why this process is active: "points", "trace". Kept by the engine; empty as a rule. Tested, and never rebound, so that
# a module that has imported `fail_point` sees at once what another one configures.
_reasons: "set[str]" = set()


class FailPointPanic(BaseException):
    """Raised by the task ``panic``. A BaseException, so that no ``except Exception`` of the program swallows it."""

    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(name, text)
        self.name, self.text = name, text

    def __str__(self) -> str:
        return f"panic at the fail point {self.name}" + (f": {self.text}" if self.text else "")


class FailPointUsageError(BaseException):
    """A point was told what it cannot do. A BaseException as well: the program must not take it for its own failure."""

    def __init__(self, name: str, place: str, problem: str) -> None:
        super().__init__(name, place, problem)
        self.name, self.place, self.problem = name, place, problem

    def __str__(self) -> str:
        return f"the fail point {self.name} at {self.place} {self.problem}"


class FailPointSpecError(ValueError):
    """A spec cannot be understood; nothing of it was configured."""

    def __init__(self, item: str, problem: str) -> None:
        super().__init__(item, problem)
        self.item, self.problem = item, problem

    def __str__(self) -> str:
        return (
            f"{self.item!r}: {self.problem}; nothing was configured. The grammar:\n"
            '  spec = point *(";" point)    point = name "=" term *("->" term)\n'
            '  term = [percent "%"] [count "*"] task ["(" argument ")"]\n'
            "  task = off | return | return(value) | sleep(ms) | delay(ms) | yield | pause | print | print(text)\n"
            "       | panic | panic(text) | raise(Error) | raise(Error:text) | raise(ENOSPC) | kill | exit(code)\n"
            "       | torn(bytes)"
        )


def fail_point(
    name: str,
    on_return: "Callable[[str], _T] | None" = None,
    # By position too, against the house rule: a keyword-only default costs every inactive call half as much again.
    on_torn: "Callable[[int], object] | None" = None,
) -> "_T | None":
    """Do here what is configured for *name*: nothing, as a rule.

    Args:
        name: A literal, unique in the program, that says module and place: ``commit.before-rename``.
        on_return: What ``return(value)`` does: called with the value ("" without one); its result is returned here.
        on_torn: What ``torn(bytes)`` does before the process dies: called with the number of bytes, it writes that much
            of what the caller is about to write, past all buffers of this process. What it raises is raised here.

    Returns:
        The result of *on_return*, if that was called, else None.

    Raises:
        FailPointPanic: The task is ``panic``.
        FailPointUsageError: The task is ``return`` or ``torn`` and this call has no hook for it, or a pause or trace
            file cannot be made.
    """
    if _reasons:
        from ._engine import evaluate

        return evaluate(name, on_return, on_torn)
    return None


def configure(name: str, actions: str) -> None:
    """Make the point *name* do *actions*, terms joined by ``->``, from now on; threads paused there go on.

    Raises:
        FailPointSpecError: *name* or *actions* cannot be understood; what was configured before still is.
    """
    from . import _engine

    _engine.configure(name, actions)


def remove(name: str) -> None:
    """Make the point *name* do nothing again; threads paused there go on. Nothing happens if nothing was configured."""
    from . import _engine

    _engine.remove(name)


def configured() -> "dict[str, str]":
    """Return what is configured: actions by point."""
    from . import _engine

    return _engine.configured()


def scenario(spec: str | None = None) -> "AbstractContextManager[None]":
    """Return a context manager: within it exactly *spec* is configured, after it exactly what was before.

    Raises:
        FailPointSpecError: Entering it, if *spec* cannot be understood.
    """
    from . import _engine

    return _engine.scenario(spec or "")


def active(name: str, actions: str) -> "AbstractContextManager[None]":
    """Return a context manager: within it *name* does *actions*, after it what it did before; others are left alone.

    Raises:
        FailPointSpecError: Entering it, if *name* or *actions* cannot be understood.
    """
    from . import _engine

    return _engine.active(name, actions)


def wait_paused(directory: "str | os.PathLike[str]", name: str, timeout: float, *, count: int = 1) -> list[int]:
    """Wait until at least *count* threads of living processes are paused at *name*.

    Args:
        directory: The ``FAILPOINTS_DIR`` of those processes.
        name: The point.
        timeout: In seconds.
        count: How many threads, of all processes together.

    Returns:
        The process id of each paused thread, in ascending order.

    Raises:
        TimeoutError: It did not happen in time; the message says who is paused, and where.
        ValueError: No point can be called *name*.
    """
    from . import _pause

    return _pause.wait_paused(os.fspath(directory), name, timeout, count)


def release(directory: "str | os.PathLike[str]", name: str, *, pid: int | None = None) -> list[int]:
    """Let the threads that are paused at *name* go on, and with no *pid* all that ever come there.

    Args:
        directory: The ``FAILPOINTS_DIR`` of those processes.
        name: The point.
        pid: Let go only what is paused now, and only in this process. So a point can be passed step by step.

    Returns:
        The process id of each thread that was let go, in ascending order.

    Raises:
        ValueError: No point can be called *name*.
    """
    from . import _pause

    return _pause.release(os.fspath(directory), name, pid)


if os.environ.get("FAILPOINTS") or os.environ.get("FAILPOINTS_TRACE"):
    from . import _engine

    _engine.start(os.environ.get("FAILPOINTS", ""), os.environ.get("FAILPOINTS_TRACE", ""))
