"""Builds that failed, remembered for a while, so that a model that cannot be built does not cost a build each time.

One sealed file an action, ``failures-v1/<action>``: how it failed, how often in a row, until when it is left alone; and
who is building now, so that a build that took its process along is noticed by the next one. It is a hint (`hints`): one
that is broken or lost costs a build. Moments are of the monotonic clock.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from . import files, layout, process
from .hints import Hints

TRIES = 3  # So often in a row it may fail the same way before it is left alone.
_FIRST_S, _LONGEST_S = 600.0, 6 * 3600.0  # After the third; twice as long after each further one, up to the second.
_KEPT_S = 86_400.0
_DIED = "the process that built it died"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a build has failed. ``left`` is for how many seconds it is still to be left alone; 0: it may be tried."""

    way: str
    last: str
    count: int
    left: float


class Failures:
    """The failures of the cache at *root*. None of its methods raises: a failure that is forgotten costs a build."""

    def __init__(self, root: str) -> None:
        self._root, self._hints = root, Hints(root, layout.FAILURES)

    def of(self, action: str) -> Failure | None:
        """Return how *action* has failed, None if it has not since the last time it went well."""
        noted = self._noted(action)
        facts = _counted(noted)
        if facts is not noted:
            self._write(action, facts)  # The time to leave it alone begins when its death is noticed, and ends.
        if not facts.get("count"):
            return None
        left = min(max(0.0, facts.get("until", 0.0) - time.monotonic()), _LONGEST_S)
        return Failure(facts.get("way", ""), facts.get("last", ""), facts["count"], left)

    def begin(self, action: str) -> None:
        """Note that this very process builds *action*: if it dies before it says more, that is how the build failed."""
        self._write(action, {**self._read(action), "builder": process.token()})

    def failed(self, action: str, way: str, last: str) -> None:
        """Note that the build failed, in that *way*; *last* is for a person."""
        self._write(action, _failed(self._read(action), way, last))

    def given_up(self, action: str) -> None:
        """Note that the build ended for a reason that is not its own."""
        self._settle(action, {name: value for name, value in self._read(action).items() if name != "builder"})

    def went_well(self, action: str) -> None:
        """Forget all failures of *action*."""
        self._settle(action, {})

    def sweep(self) -> int:
        """Remove what says nothing more: of another boot, of what is here, a day old; return how many there were."""
        swept = 0
        for action in self._hints.names():
            is_void = (not self._read(action) and self._is_ours(action)) or files.age(
                self._hints.path(action)
            ) > _KEPT_S
            if is_void or os.path.lexists(f"{self._root}/{layout.DERIVED}/{action}"):
                self._hints.remove(action)
                swept += 1
        return swept

    def _is_ours(self, action: str) -> bool:
        """Tell whether the note is of this machine and user, or broken."""
        facts = self._hints.written(action) or _who()
        return all(facts.get(name) == value for name, value in _who().items())

    def _settle(self, action: str, facts: dict[str, Any]) -> None:
        if facts.get("count"):
            self._write(action, facts)
        else:
            self._hints.remove(action)

    def _read(self, action: str) -> dict[str, Any]:
        return _counted(self._noted(action))

    def _noted(self, action: str) -> dict[str, Any]:
        """Return what the note says, if this user wrote it on this machine since it was started.

        What is wrong with another user's surroundings is nothing that concerns this one.
        """
        facts = self._hints.read(action)
        return facts if facts.get("user") == os.geteuid() else {}

    def _write(self, action: str, facts: dict[str, Any]) -> None:
        self._hints.write(action, {**facts, "user": os.geteuid()})


def _who() -> dict[str, Any]:
    return {"machine": process.machine_id(), "user": os.geteuid()}


def _counted(facts: dict[str, Any]) -> dict[str, Any]:
    """Return *facts*, and one failure more if who was building is gone."""
    return _failed(facts, _DIED, _DIED) if process.is_dead(facts.get("builder", "")) else facts


def _failed(facts: dict[str, Any], way: str, last: str) -> dict[str, Any]:
    count = facts.get("count", 0) + 1 if facts.get("way") == way else 1
    pause = min(_FIRST_S * 2 ** (count - TRIES), _LONGEST_S) if count >= TRIES else 0.0
    return {"way": way, "last": last[:500], "count": count, "until": time.monotonic() + pause}
