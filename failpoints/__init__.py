"""Fail points: named places in a program where a test makes it fail, stop or die. After tikv/fail-rs.

Mark the place, directly before the call that it endangers::

    from failpoints import fail_point

    fail_point("commit.before-rename")
    os.replace(staged, final)

and make the process die there, from outside or from a test::

    FAILPOINTS="commit.before-rename=kill" python -m yourprogram
    with failpoints.active("commit.before-rename", "panic"): ...

Grammar::

    spec = point *(";" point)      point = name "=" term *("->" term)      term = [count "*"] task ["(" argument ")"]
    task = off | return | sleep(ms) | panic | kill

Terms are used up in order: ``2*off->kill`` passes twice and kills at the third. A last term without a count holds for
ever. ``FAILPOINTS`` is read at import. An inactive point costs a call and one test. Depends on nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing takes 10 ms to import.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "FailPointPanic",
    "FailPointSpecError",
    "active",
    "configure",
    "configured",
    "fail_point",
    "remove",
    "scenario",
]


class FailPointPanic(BaseException):  # A panic is what it is, and no `except Exception` may swallow it.
    """Raised by the task ``panic``."""


class FailPointSpecError(ValueError):
    """A spec that cannot be understood; names the item and shows the grammar."""


_points: dict[str, Any] = {}


def fail_point(name: str, on_return: Callable[[str], Any] | None = None) -> Any:
    """Do here what is configured for *name*: nothing, as a rule.

    Args:
        name: Literal and unique in the program, such as ``commit.before-rename``.
        on_return: Called with the argument of the task ``return``; what it returns is returned here.

    Raises:
        FailPointPanic: The task is ``panic``.
    """
    if _points:
        from ._engine import evaluate

        return evaluate(_points, name, on_return)
    return None


def configure(name: str, actions: str) -> None:
    """Make the point *name* do *actions*, terms joined by ``->``; raise FailPointSpecError."""
    from ._engine import parse_actions

    _points[name] = parse_actions(name, actions)


def remove(name: str) -> None:
    """Make the point *name* do nothing again."""
    _points.pop(name, None)


def configured() -> dict[str, str]:
    """Return what is configured: actions by point."""
    return {name: str(actions) for name, actions in _points.items()}


def scenario(spec: str | None = None) -> Any:
    """Return a context manager: within it exactly *spec* is configured, after it what was before."""
    from ._engine import scenario as make

    return make(_points, spec or "")


def active(name: str, actions: str) -> Any:
    """Return a context manager: within it the point *name* does *actions* as well as what is configured."""
    from ._engine import scenario as make

    return make(_points, f"{name}={actions}", keep=True)


if os.environ.get("FAILPOINTS"):
    from ._engine import parse_spec

    _points.update(parse_spec(os.environ["FAILPOINTS"]))
