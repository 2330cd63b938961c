"""The language of specs: from text to the terms that the engine follows. No point is touched here.

Everything that can be wrong with a spec is found when it is read, and never at the point: an argument is parsed to what
its task needs, and an exception that is to be raised is made once, to see that it can be.
"""

from __future__ import annotations

import builtins
import errno
import os
import re

from . import TYPE_CHECKING, FailPointSpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

# Part of file names in FAILPOINTS_DIR, and of lines in a trace.
_NAME = re.compile(r"[\w.:-]+")
_TERM = re.compile(
    r"""\s* (?: (?P<percent> [^%*(]*) % )?   \s* (?: (?P<count> [^*(]*) \* )?
        \s* (?P<task> [^(]*?)  \s* (?: \( (?P<argument> .*) \) )?  \s*""",
    re.VERBOSE | re.DOTALL,
)
_ERRNO = re.compile(r"E[A-Z0-9]+")

# Bounds, so that no number is an OverflowError at the point.
_DAY_MS = 24 * 60 * 60 * 1000
_MOST = 2**63 - 1


class Term:
    """One term of a point's actions.

    Attributes:
        percent: How many of a hundred calls do it, or None for all.
        count: How many more calls may do it, or None for ever.
        task: One of the words of the grammar.
        text: The argument of ``return``, ``print`` and ``panic``; "" without one.
        number: The argument of ``sleep``, ``delay``, ``exit`` and ``torn``; an int for the last two.
        error: Makes what ``raise`` raises.
    """

    text = ""
    number = 0.0
    error: Callable[[], BaseException] | None = None

    def __init__(self, percent: float | None, count: int | None, task: str) -> None:
        self.percent, self.count, self.task = percent, count, task

    def is_used_up(self) -> bool:
        """Tell whether no more call may do it."""
        return self.count is not None and self.count <= 0


class Actions:
    """What one point does: its terms, tried in order. The engine holds its lock around `next`."""

    def __init__(self, name: str, text: str) -> None:
        self._text = text.strip()
        self._terms = [_term(name, term) for term in _split(text, "->")]
        self._draws: Random | None = None
        self._seed = os.environ.get("FAILPOINTS_SEED")
        if any(term.percent is not None for term in self._terms):
            from random import Random

            # A generator for each point: its draws do not depend on how often others are reached.
            self._draws = Random(f"{self._seed}:{name}" if self._seed else None)  # noqa: S311  # To be repeatable.
        # Read here, like the seed, and made absolute: the program may change its directory.
        directory = os.environ.get("FAILPOINTS_DIR")
        self.directory = os.path.abspath(directory) if directory else None

    def __str__(self) -> str:
        return self._text

    def next(self) -> Term | None:
        """Return the term that this call does, None if it does nothing."""
        for term in self._terms:
            if term.is_used_up():
                continue
            if term.percent is not None and self._draws is not None and self._draws.random() * 100 >= term.percent:
                continue
            if term.is_used_up():  # By the handler of a signal that came while the draw was made.
                continue
            if term.count is not None:
                term.count -= 1
            return term
        return None

    def after_fork(self) -> None:
        """Draw apart from the parent and its other children, unless a seed says what to draw."""
        if self._draws is not None and not self._seed:
            self._draws.seed()


def parse(spec: str) -> dict[str, Actions]:
    """Return the actions by point in *spec*; raise FailPointSpecError."""
    points: dict[str, Actions] = {}
    for item in filter(None, (part.strip() for part in _split(spec, ";"))):
        name, equals, actions = item.partition("=")
        name = name.strip()
        if not equals:
            raise FailPointSpecError(item, "a point and its actions are joined by '='")
        if name in points:
            raise FailPointSpecError(item, f"{name} stands in this spec twice; join its terms by '->'")
        points[name] = parse_point(name, actions)
    return points


def parse_point(name: str, actions: str) -> Actions:
    """Return the *actions* of the point *name*; raise FailPointSpecError."""
    try:
        check_name(name)
    except ValueError as problem:
        raise FailPointSpecError(f"{name}={actions}", str(problem)) from None
    return Actions(name, actions)


def check_name(name: str) -> None:
    """Raise ValueError if no point can be called *name*."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: letters, digits and _ . : - make one")


def _term(name: str, text: str) -> Term:
    try:
        matched = _TERM.fullmatch(text)
        if matched is None:
            raise ValueError("its brackets do not match")
        percent, count, task, argument = matched.group("percent", "count", "task", "argument")
        if not _is_balanced(argument or ""):
            raise ValueError("its brackets do not match")
        term = Term(
            None if percent is None else _number(percent, "a percentage", 100),
            None if count is None else int(_number(count, "a count", _MOST, whole=True)),
            task,
        )
        _take_argument(term, name, argument)
    except ValueError as problem:
        raise FailPointSpecError(f"{name}={text.strip()}", str(problem)) from None
    return term


def _split(text: str, separator: str) -> list[str]:
    """Return the parts of *text* between those separators that stand in no brackets."""
    parts: list[str] = []
    for piece in text.split(separator):
        if parts and parts[-1].count("(") > parts[-1].count(")"):
            parts[-1] += separator + piece
        else:
            parts.append(piece)
    return parts


def _is_balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0


def _take_argument(term: Term, name: str, argument: str | None) -> None:
    match term.task:
        case "return" | "print" | "panic":
            term.text = argument or ""
        case "sleep" | "delay":
            term.number = _number(argument, "milliseconds", _DAY_MS)
        case "exit":
            term.number = _number(argument, "an exit code", 255, whole=True)
        case "torn":
            term.number = _number(argument, "a number of bytes", _MOST, whole=True)
        case "raise":
            term.error = _error(name, argument or "")
        case "off" | "yield" | "pause" | "kill":
            if argument is not None:
                raise ValueError(f"{term.task} takes no argument")
        case _:
            raise ValueError(f"{term.task!r} is no task")


def _number(text: str | None, what: str, most: int, *, whole: bool = False) -> float:
    pattern = r"-?\d+" if whole else r"-?\d+(\.\d+)?"
    text = (text or "").strip()
    if not re.fullmatch(pattern, text, re.ASCII):
        raise ValueError(f"{what} is needed, not {text!r}")
    digits = text.lstrip("0") or "0"
    # A float is not exact, and int refuses a text of some thousand digits; a float of so many is infinite.
    number = int(digits) if whole and len(digits) <= len(str(_MOST)) else float(digits)
    if number < 0:
        raise ValueError(f"{what} is at least 0, not {text}")
    if number > most:
        raise ValueError(f"{what} is at most {most}, not {text}")
    return number


def _error(name: str, argument: str) -> Callable[[], BaseException]:
    kind_name, _, text = (part.strip() for part in argument.partition(":"))
    if _ERRNO.fullmatch(kind_name) and not text:
        kind_name, text = "OSError", kind_name
    kind = getattr(builtins, kind_name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise ValueError(f"{kind_name!r} is no builtin exception and no errno name")
    arguments: tuple[object, ...] = (text or f"raised by the fail point {name}",)
    if issubclass(kind, OSError) and text:
        number = getattr(errno, text, None) if _ERRNO.fullmatch(text) else None
        if number is None:
            raise ValueError(f"{text!r} is no errno name of this system")
        # OSError itself picks the class that belongs to the number: ENOENT becomes a FileNotFoundError.
        arguments = (number, f"{os.strerror(number)} (raised by the fail point {name})")

    def make() -> BaseException:
        error: BaseException = kind(*arguments)
        return error

    try:
        make()
    except TypeError:
        raise ValueError(f"{kind_name} cannot be made from a text alone") from None
    return make
