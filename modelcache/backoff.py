"""When a host may be asked again: one stamp a host, shared by all processes of the machine.

A server that answers 429 or 503 with ``Retry-After`` says so to one process; all others would go on asking it. The
stamp holds a moment of the monotonic clock, which all processes of one boot share: a wall clock that jumps changes
nothing, and a stamp of another boot, or of another machine on a shared disk, is ignored.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from . import commit, files, layout, process
from .sealed import seal, unseal

LONGEST_S = 3600.0  # A host that asked for a year by mistake is asked again after so many seconds.


class Wait(NamedTuple):
    """How long a host is left alone, in seconds (0: it may be asked now), and the HTTP status that asked for it."""

    seconds: float
    status: int


class Backoff:
    """The stamps of the cache at *root*. None of its methods raises: a stamp only saves requests."""

    def __init__(self, root: str) -> None:
        self._root = root

    def wait(self, host: str) -> Wait:
        """Return how long *host* is still to be left alone."""
        facts = unseal(files.content(self._path(host)) or b"")
        if not facts or facts.get("boot") != process.boot_id() or facts.get("machine") != process.machine_id():
            return Wait(0.0, 0)
        left = facts.get("until", 0.0) - time.monotonic()
        return Wait(min(max(0.0, left), LONGEST_S), facts.get("status", 429))

    def set(self, host: str, seconds: float, status: int) -> None:
        """Let nobody on this machine ask *host* for *seconds*, for it answered *status*."""
        if seconds <= self.wait(host).seconds:
            return
        stamp = {
            "boot": process.boot_id(),
            "machine": process.machine_id(),
            "until": time.monotonic() + min(seconds, LONGEST_S),
            "status": status,
        }
        try:
            commit.ensure_bucket(f"{self._root}/{layout.BACKOFF}", durable=False)
            commit.replace_hint(f"{self._root}/{layout.STAGING}", self._path(host), seal(stamp))
        except OSError:
            return

    def _path(self, host: str) -> str:
        return f"{self._root}/{layout.BACKOFF}/{layout.key_id(host)}"
