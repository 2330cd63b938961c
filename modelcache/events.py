"""What the cache tells its caller while it works: one small frozen event at a time.

``Cache(on_event=callable)`` receives each event in the thread that caused it; the callable must be quick and must not
raise (what it raises is dropped, a progress bar never costs a download). A hit is not an event: it is counted in
``Cache.stats()``, because a call would cost as much as the hit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        kind: ``started`` (a transfer begins; ``done`` bytes were there already), ``progress``, ``restarted`` (what was
            there could not be used), ``retry`` (after ``seconds``), ``waiting`` (for another process: ``detail`` says
            which), ``ranges`` (``done`` connections in parallel from here on), ``mirror`` (the next place is asked),
            ``refused`` (a tier has something that is not what its name says: ``detail`` tells which),
            ``fetched`` (verified, durable, visible), ``unchanged`` (the source confirmed what is cached),
            ``failed``, ``quarantined``, ``stale`` (what is cached is served, because the source could not be asked),
            ``building`` (of what is derived: ``detail`` says in what it differs from what is here), ``derived`` (built,
            durable, visible), ``evicted`` (by gc; ``done`` bytes are free by that), ``exported``, ``imported``,
            ``verified`` (what was to be read).
        ref: The key of the model, or the path of a bundle or a root; never holds credentials.
        done: Bytes of the content that are here.
        total: Size of the content in bytes, None while it is not known.
        seconds: A duration: of the whole transfer, or until the next try.
        detail: One sentence for a person.
    """

    kind: str
    ref: str
    done: int = 0
    total: int | None = None
    seconds: float | None = None
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the event as a JSON-ready dict, without the fields that say nothing."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}


Listener = Callable[[Event], object]


def ignore(_event: Event) -> None:
    """Drop the event: the listener of who gave none."""
