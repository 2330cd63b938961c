"""Usage elsewhere: sent to archives while it is counted, and read from one.

One event for each model, process and write, with what was counted since the last one. Each has an id, by which a
backend, and who reads, tell a repetition. Sending is best effort: a queue of its own, dropping the oldest first. Who
counts never waits for a backend, nor does who ends a program wait for longer than he says: a backend is opened by the
thread that writes to it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..backends import locations
from ..backends.base import KEY_CHARACTERS_MAX, Batch
from ..errors import ModelCacheError
from . import tally
from .store import Part
from .tally import Tally, Usage

if TYPE_CHECKING:
    from ..archive.archivist import Archivist

KIND = "usage"
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_QUEUE = 10_000
_log = logging.getLogger("modelcache")


class Sender:
    """Sends usage of the cache at *root* to *places*, as `locations.parse` takes them."""

    def __init__(self, root: str, places: tuple[str, ...]) -> None:
        self._root, self._places = root, places
        self._archivist: Archivist | None = None
        self._warned = False

    def begin(self) -> None:
        """Have the threads that write: from Python 3.12 on, none can be begun when the program ends."""
        self._made().start()

    def send(self, day: str, host: str, counted: Tally) -> None:
        """Queue what was *counted*; what cannot be queued is dropped, and warned of once."""
        about = {"kind": KIND, "day": day, "host": host, "pid": os.getpid()}
        for key, usage in counted.items():
            try:
                event = {**about, "model": key, **usage.as_dict()}
                self._made().append_events(key[:KEY_CHARACTERS_MAX], [event])
            except (ModelCacheError, RuntimeError) as error:  # It may be that no thread can be begun any more.
                if not self._warned:
                    self._warned = True
                    _log.warning("usage is not archived: %s", error)

    def close(self, seconds: float) -> None:
        """Write what waits, for *seconds* at most."""
        archivist, self._archivist = self._archivist, None
        if archivist is not None:
            archivist.shutdown(seconds)

    def _made(self) -> Archivist:
        if self._archivist is not None:
            return self._archivist
        from ..archive.archivist import Archivist
        from ..archive.registration import Queued, Registration

        policy = Queued(capacity=_QUEUE, overflow="drop-oldest")
        found = [
            Registration(f"usage-{number}", _Place(place), policy=policy) for number, place in enumerate(self._places)
        ]
        self._archivist = Archivist(found, root=self._root)
        return self._archivist


class _Place:
    """A backend that is opened by the first write, and by the next one if that failed."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._backend: Any = None
        self._warned = False

    def append_events(self, key: str, events: Sequence[Any]) -> None:
        """Append, as a backend does.

        Raises:
            BackendError: It cannot be opened, or written to.
        """
        self.append_batches([Batch.of(key, events)])

    def append_batches(self, batches: Sequence[Batch]) -> None:
        """Append what is of several models in one call; see `append_events`."""
        self._opened().append_batches(batches)

    def close(self) -> None:
        """Let go of it, if it was opened."""
        if self._backend is not None:
            self._backend.close()

    def _opened(self) -> Any:
        if self._backend is None:
            try:
                self._backend = locations.opened(self._location)
            except ModelCacheError as error:
                if not self._warned:
                    self._warned = True
                    _log.warning("usage is not archived: %s", error.summary)
                raise
        return self._backend


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
            tally.of(found.setdefault((day, host), {}), model).add(usage)
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
        names = [name for name in map(facts.get, ("model", "day", "host")) if isinstance(name, str)]
        if usage is not None and len(names) == 3 and _DAY.fullmatch(names[1]):
            yield tally.name(names[0]), names[1], tally.name(names[2]), usage
