"""The end of a process: what waits in queues is written, within a bound. Nothing is left to the threads themselves.

Writers are daemon threads, so that one that hangs in its backend keeps no process from ending. So somebody must let
them drain first: a callback of `atexit`, and in a child of multiprocessing, which runs none of these, a finalizer.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Protocol


class Drains(Protocol):
    """What is to be shut down before the process ends."""

    def drain_at_exit(self) -> None:
        """Write what waits, within a bound."""


_live: dict[int, Drains] = {}
_armed: set[int] = set()  # The process in which the finalizer is in place.


def keep(archivist: Drains) -> None:
    """Drain *archivist* when the process ends."""
    if not _live:
        atexit.unregister(_drain)  # One that was here is too early in the order: the last registered runs first.
        atexit.register(_drain)
    _live[id(archivist)] = archivist


def forget(archivist: Drains) -> None:
    """Leave *archivist* alone: it was shut down."""
    _live.pop(id(archivist), None)


def arm() -> None:
    """Make sure that a child of multiprocessing drains as well; it forgets what its parent had registered."""
    pid = os.getpid()
    util = sys.modules.get("multiprocessing.util")
    if util is not None and pid not in _armed:
        _armed.clear()
        _armed.add(pid)
        util.Finalize(None, _drain, exitpriority=100)


def _drain() -> None:
    for archivist in list(_live.values()):
        archivist.drain_at_exit()
