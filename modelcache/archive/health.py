"""What is told of a backend: how it is, and what was not written to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Dropped(NamedTuple):
    """A write that was not made.

    ``what`` is the event, or the digest of the object; ``reason`` is ``full``, ``down``, ``shutdown``, ``rejected``
    (the backend would never take it), ``disk`` (the outbox could not be written), ``gone`` (the object is not in the
    cache any more) or ``corrupt``.
    """

    key: str
    what: Any
    reason: str


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """How a backend is now.

    Attributes:
        state: ``healthy``; ``degraded``: its last call failed, and is tried again; ``down``: it failed as often as the
            policy allows, or a call hangs, and it is left alone but for a try now and then.
        last_error: What its last failure was, also after it has recovered; None if there was none.
        consecutive_failures: Calls that failed since one succeeded.
        depth: Events and objects that wait, or are under way.
        lag: For how long the oldest of them has been waiting, in seconds.
        dropped: Events and objects that were not written; `Archivist.dropped` tells which.
        dispatched: Events and objects that were.
        coalesced: Writes that shared a call with an earlier one.
        enabled: Whether it is written to and read from.
    """

    state: str
    last_error: str | None
    consecutive_failures: int
    depth: int
    lag: float
    dropped: int
    dispatched: int
    coalesced: int
    enabled: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        return asdict(self)
