"""Events as log records: each that a cache tells reaches the logger ``modelcache``, of the standard `logging`.

The record's ``modelcache`` attribute is the event as a dict, for a formatter that writes JSON (docs/usage.md). This
library installs no handler and sets no level. A level that is off costs one test for each event, and none for a hit,
which is no event.
"""

from __future__ import annotations

import logging

from .events import Event

_log = logging.getLogger("modelcache")
# What wants somebody's attention although the call came to something. A failure is raised: its caller decides.
_WARNING = frozenset({"stale", "quarantined"})
_DEBUG = frozenset({"started", "progress", "received", "ranges"})


def level_of(event: Event) -> int:
    """Return the level at which *event* is logged."""
    if event.kind in _WARNING:
        return logging.WARNING
    return logging.DEBUG if event.kind in _DEBUG else logging.INFO


def log(event: Event) -> None:
    """Log *event*, if anybody listens at its level."""
    level = level_of(event)
    if _log.isEnabledFor(level):
        _log.log(level, "%s %s", event.kind, _text(event), extra={"modelcache": event.as_dict()})


def _text(event: Event) -> str:
    """Return what *event* says, for a person."""
    text = event.ref
    if event.kind in {"fetched", "derived"} and event.seconds is not None:
        text += f" ({event.done} bytes in {event.seconds:.3f} s)"
    return f"{text}: {event.detail}" if event.detail else text
