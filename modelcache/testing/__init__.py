"""For tests of your own recovery: a server that fails on purpose. The demo and modelcache's own tests use it too."""

from __future__ import annotations

from .server import OK, Fault, FaultServer, Seen

__all__ = ["OK", "Fault", "FaultServer", "Seen"]
