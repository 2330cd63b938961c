"""Usage elsewhere: sent to archives while it is counted, and read from one.

One event for each model, process and write, with what was counted since the last one. Each has an id, by which a
backend, and who reads, tell a repetition. Sending is best effort: a queue of its own, dropping the oldest first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..backends import locations
from ..backends.base import KEY_CHARACTERS_MAX
from ..errors import ModelCacheError
from .store import Part
from .tally import Tally, Usage

if TYPE_CHECKING:
    from ..archive.archivist import Archivist

KIND = "usage"
_QUEUE = 10_000
_log = logging.getLogger("modelcache")


class Sender:
    """Sends usage of the cache at *root* to *places*, as `locations.parse` takes them."""

    def __init__(self, root: str, places: tuple[str, ...]) -> None:
        self._root, self._places = root, places
        self._archivist: Archivist | None = None
        self._warned: set[str] = set()
        self.dropped = 0

    def send(self, day: str, host: str, counted: Tally) -> None:
        """Queue what was *counted*; what no archive takes is dropped, and warned of once."""
        archivist = self._made()
        if archivist is None:
            self.dropped += len(counted)
            return
        about = {"kind": KIND, "day": day, "host": host, "pid": os.getpid()}
        for key, usage in counted.items():
            try:
                archivist.append_events(key[:KEY_CHARACTERS_MAX], [{**about, "model": key, **usage.as_dict()}])
            except ModelCacheError as error:
                self.dropped += 1
                self._warn("", error)

    def close(self, seconds: float) -> None:
        """Write what waits, for *seconds* at most."""
        archivist, self._archivist = self._archivist, None
        if archivist is not None:
            archivist.shutdown(seconds)

    def _made(self) -> Archivist | None:
        """Return the archivist, made when there is something to send: it may have to connect."""
        if self._archivist is not None:
            return self._archivist
        from ..archive.archivist import Archivist
        from ..archive.registration import Queued, Registration

        policy = Queued(capacity=_QUEUE, overflow="drop-oldest")
        found = []
        for number, place in enumerate(self._places):
            try:
                found.append(
                    Registration(f"usage-{number}", lambda place=place: locations.opened(place), policy=policy)
                )
            except ModelCacheError as error:
                self._warn(place, error)
        if found:  # Those that can be had get it; the others are tried again by the next process.
            self._archivist = Archivist(found, root=self._root)
        return self._archivist

    def _warn(self, place: str, error: ModelCacheError) -> None:
        if place not in self._warned:
            self._warned.add(place)
            _log.warning("usage is not archived: %s", error.summary)


def read(location: str, *, since: float = 0.0) -> list[Part]:
    """Return what was archived at *location* since then, in Unix seconds.

    Raises:
        UsageError: *location* makes no sense.
        BackendSetupError, BackendError: It cannot be read.
    """
    backend = locations.opened(location, reading=True)
    try:
        found: dict[tuple[str, str], Tally] = {}
        for model, day, host, usage in _events(backend.read_events(since=since)):
            found.setdefault((day, host), {}).setdefault(model, Usage()).add(usage)
    finally:
        backend.close()
    return [Part(day, host, counted) for (day, host), counted in found.items()]


def _events(events: Iterator[Any]) -> Iterator[tuple[str, str, str, Usage]]:
    """Yield model, day, host and counts of each event that is one of usage, once."""
    seen: set[str] = set()
    for archived in events:
        facts = archived.event
        if archived.id in seen or not isinstance(facts, dict) or facts.get("kind") != KIND:
            continue
        seen.add(archived.id)
        usage = Usage.from_dict(facts)
        names = [facts.get(name) for name in ("model", "day", "host")]
        if usage is not None and all(isinstance(name, str) for name in names):
            yield str(names[0]), str(names[1]), str(names[2]), usage
