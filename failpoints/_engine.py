"""What an active point does. Loaded when the first point is configured."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import FailPointPanic, FailPointSpecError

_GRAMMAR = "name=[count*]task[(argument)] [-> …] [; …], task: off, return, sleep(ms), panic, kill"
_TASKS = ("off", "return", "sleep", "panic", "kill")


class Actions:
    """The terms of one point, used up in order."""

    def __init__(self, text: str, terms: list[tuple[int | None, str, str]]) -> None:
        self._text, self._terms = text, terms
        self._guard = threading.Lock()

    def __str__(self) -> str:
        return self._text

    def next(self) -> tuple[str, str]:
        """Return (task, argument) of this call."""
        with self._guard:
            for index, (count, task, argument) in enumerate(self._terms):
                if count is None:
                    return task, argument
                if count > 0:
                    self._terms[index] = (count - 1, task, argument)
                    return task, argument
        return "off", ""


def parse_spec(spec: str) -> dict[str, Actions]:
    """Return the actions by point in *spec*."""
    points = {}
    for item in filter(None, (part.strip() for part in spec.split(";"))):
        name, equals, actions = item.partition("=")
        if not equals or not name.strip():
            raise FailPointSpecError(f"{item!r} names no point; the grammar is {_GRAMMAR}")
        points[name.strip()] = parse_actions(name.strip(), actions)
    return points


def parse_actions(name: str, text: str) -> Actions:
    """Return the actions in *text*, terms joined by ``->``."""
    return Actions(text, [_term(name, term.strip()) for term in text.split("->")])


def evaluate(points: dict[str, Any], name: str, on_return: Callable[[str], Any] | None) -> Any:
    """Do what *points* says of *name*."""
    actions = points.get(name)
    if actions is None:
        return None
    task, argument = actions.next()
    if task == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif task == "panic":
        raise FailPointPanic(name)
    elif task == "sleep":
        time.sleep(float(argument) / 1000)
    elif task == "return":
        if on_return is None:
            caller = sys._getframe(2)  # noqa: SLF001  # The way to name the place.
            place = f"{caller.f_code.co_filename}:{caller.f_lineno}"
            raise FailPointSpecError(f"the point {name} at {place} cannot return: it has no on_return")
        return on_return(argument)
    return None


@contextmanager
def scenario(points: dict[str, Any], spec: str, *, keep: bool = False) -> Iterator[None]:
    """Configure *spec*, beside what there is if *keep*; restore what there was at the end."""
    added = parse_spec(spec)
    before = dict(points)
    if not keep:
        points.clear()
    points.update(added)
    try:
        yield
    finally:
        points.clear()
        points.update(before)


def _term(name: str, term: str) -> tuple[int | None, str, str]:
    count, star, rest = term.rpartition("*")
    task, bracket, argument = rest.strip().partition("(")
    problem = None
    if star and not (count.strip().isascii() and count.strip().isdigit()):
        problem = f"{count!r} is no count"
    elif task not in _TASKS:
        problem = f"{task!r} is no task"
    elif bracket and not argument.endswith(")"):
        problem = "a bracket is not closed"
    elif task == "sleep" and not argument.removesuffix(")").replace(".", "", 1).isdigit():
        problem = "sleep takes milliseconds"
    if problem is not None:
        raise FailPointSpecError(f"{name}={term}: {problem}; the grammar is {_GRAMMAR}")
    return int(count) if star else None, task, argument.removesuffix(")")
