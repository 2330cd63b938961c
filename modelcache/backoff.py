"""When a host may be asked again: one stamp a host, shared by all processes of the machine.

A server that answers 429 or 503 with ``Retry-After`` says so to one process; all others would go on asking it. The
stamp holds a moment of the monotonic clock, which all processes of one boot share: a wall clock that jumps changes
nothing, and a stamp of another boot, or of another machine on a shared disk, is ignored.
"""

from __future__ import annotations

import time

from . import commit, files, layout, process
from .sealed import seal, unseal


class Backoff:
    """The stamps of the cache at *root*. None of its methods raises: a stamp only saves requests."""

    def __init__(self, root: str, *, longest: float) -> None:
        self._root = root
        self._longest = longest

    def left(self, host: str) -> float:
        """Return the seconds until *host* may be asked again, 0 if it may be asked now."""
        facts = unseal(files.content(self._path(host)) or b"")
        if not facts or facts.get("boot") != process.boot_id() or facts.get("machine") != process.machine_id():
            return 0.0
        return float(min(max(0.0, facts.get("until", 0.0) - time.monotonic()), self._longest))

    def set(self, host: str, seconds: float) -> None:
        """Let nobody on this machine ask *host* for *seconds*."""
        if seconds <= self.left(host):
            return
        stamp = {
            "boot": process.boot_id(),
            "machine": process.machine_id(),
            "until": time.monotonic() + seconds,
        }
        try:
            commit.ensure_bucket(f"{self._root}/{layout.BACKOFF}")
            commit.replace_hint(f"{self._root}/{layout.STAGING}", self._path(host), seal(stamp))
        except OSError:
            return

    def clear(self, host: str) -> None:
        """Remove the stamp of *host*: it has answered."""
        commit.remove_quietly(self._path(host))

    def _path(self, host: str) -> str:
        return f"{self._root}/{layout.BACKOFF}/{layout.key_id(host)}"
