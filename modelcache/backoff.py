"""When a host may be asked again: one stamp a host, shared by all processes of the machine.

A server that answers 429 or 503 with ``Retry-After`` says so to one process; all others would go on asking it. The
stamp is a hint (`hints`) that holds a moment of the monotonic clock.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from . import layout
from .hints import Hints

LONGEST_S = 3600.0  # A host that asked for a year by mistake is asked again after so many seconds.


class Wait(NamedTuple):
    """How long a host is left alone, in seconds (0: it may be asked now), and the HTTP status that asked for it."""

    seconds: float
    status: int


class Backoff:
    """The stamps of the cache at *root*. None of its methods raises: a stamp only saves requests."""

    def __init__(self, root: str) -> None:
        self._hints = Hints(root, layout.BACKOFF)

    def wait(self, host: str) -> Wait:
        """Return how long *host* is still to be left alone."""
        facts = self._hints.read(layout.key_id(host))
        if not facts:
            return Wait(0.0, 0)
        left = facts.get("until", 0.0) - time.monotonic()
        return Wait(min(max(0.0, left), LONGEST_S), facts.get("status", 429))

    def set(self, host: str, seconds: float, status: int) -> None:
        """Let nobody on this machine ask *host* for *seconds*, for it answered *status*."""
        if seconds <= self.wait(host).seconds:
            return
        until = time.monotonic() + min(seconds, LONGEST_S)
        self._hints.write(layout.key_id(host), {"until": until, "status": status})
