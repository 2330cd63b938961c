"""For tests of your own recovery. modelcache's own tests and its demo are made of these.

`FaultServer` fails on purpose; `spawn` runs code that is to be killed, and hears what it acknowledged; `check_cache`
says which promises a cache directory keeps; `Barrier` brings processes together.
"""

from __future__ import annotations

from ..promises import Violation, check_cache
from .server import OK, Fault, FaultServer, Seen
from .victims import Barrier, Victim, acknowledge, spawn

__all__ = [
    "OK",
    "Barrier",
    "Fault",
    "FaultServer",
    "Seen",
    "Victim",
    "Violation",
    "acknowledge",
    "check_cache",
    "spawn",
]
