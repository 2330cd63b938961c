"""The one writer of a backend's events: collect, coalesce, dispatch, try again, in a thread of its own.

Consecutive events of one key become one call. What fails is tried again as it was, with the same ids, before anything
behind it; nothing is left out, doubled in a backend that knows ids, or reordered. While the backend is down the events
wait, up to the capacity.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from .. import forks
from ..backends.base import Batch, LandsBatches
from ..errors import CancelledError, ModelCacheError
from ..retry import Deadline
from . import exits
from .health import Gate
from .queue import Item, Ledger, Queue
from .registration import Queued, Registration

_log = logging.getLogger("modelcache")


def coalesced(items: Sequence[Item]) -> list[Batch]:
    """Return *items* as batches, one for each run of one key."""
    batches: list[Batch] = []
    start = 0
    for end in range(1, len(items) + 1):
        if end == len(items) or items[end].key != items[start].key:
            run = items[start:end]
            batches.append(
                Batch(
                    run[0].key,
                    [item.event for item in run],
                    ids=[item.id for item in run],
                    times=[item.time for item in run],
                    lines=[item.line for item in run],
                )
            )
            start = end
    return batches


class Writer:
    """Writes the events of one registration. It starts its thread with the first of them."""

    def __init__(self, registration: Registration, gate: Gate, ledger: Ledger) -> None:
        assert isinstance(registration.policy, Queued)
        self._name, self._backend, self._gate = registration.name, registration.backend, gate
        self._at_once = isinstance(registration.backend, LandsBatches)
        self._rest_s = registration.cooldown
        self.queue = Queue(registration.name, registration.policy, ledger)
        self.dispatched = self.coalesced = 0
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. The thread of the parent does not exist here."""
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._patience = Deadline(None, ref=self._name)
        self.dispatched = self.coalesced = 0
        self._failing = False
        self.error: ModelCacheError | None = None  # The failure that a required backend owes to its callers.

    def start(self) -> None:
        """Make sure that the thread runs: a backend may have ended it by what is no Exception."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            return
        with self._guard:
            if self._thread is thread:
                # A daemon: one that hangs in its backend must not keep the process from ending (`exits` drains).
                thread = threading.Thread(target=self._run, name=f"modelcache-archive-{self._name}", daemon=True)
                thread.start()
                self._thread = thread
                exits.arm()

    def end(self, seconds: float) -> bool:
        """Write what waits, for so many *seconds*, and end the thread; tell whether it has ended."""
        self.queue.close()
        thread = self._thread
        if thread is None:
            self.queue.abandon("shutdown")
            return True
        thread.join(min(seconds, threading.TIMEOUT_MAX))
        if thread.is_alive():
            self._patience.cancel()  # It may sleep between two tries; one that hangs in its backend does not hear it.
            self.queue.abandon("shutdown")
        return not thread.is_alive()

    def take_error(self) -> ModelCacheError | None:
        """Return the failure that callers have not been told, once."""
        error, self.error = self.error, None
        return error

    def _run(self) -> None:
        while items := self.queue.take():
            if not self._land(items):
                left = self.queue.abandon("shutdown")
                _log.warning("%s: %d events were not written before the shutdown", self._name, left)
                return

    def _land(self, items: list[Item]) -> bool:
        """Write *items*; False if that failed and there is no more time."""
        batches = coalesced(items)
        while batches:
            closing = self.queue.closed
            try:
                landing = batches if self._at_once else batches[:1]
                self._gate.call(lambda: self._write(landing), patience=self._patience, probe=closing)  # noqa: B023
            except CancelledError:
                return False
            except ModelCacheError as error:
                told, self.error = self._failing, error
                self._failing = True
                if closing:  # That was the last try.
                    return False
                level = logging.DEBUG if told else logging.WARNING  # Told once, until it is well.
                _log.log(level, "%s: %d events wait: %s", self._name, self.queue.depth, error)
                self.queue.pause(max(self._gate.closed_in(), self._rest_s))
                continue
            self.error, self._failing = None, False
            count = sum(len(batch) for batch in landing)
            self.dispatched += count
            self.coalesced += max(0, sum(item.starts for item in items[:count]) - 1)
            items, batches = items[count:], batches[len(landing) :]
            self.queue.done(count)
        return True

    def _write(self, batches: list[Batch]) -> None:
        if self._at_once:
            self._backend.append_batches(batches)
            return
        for batch in batches:
            self._backend.append_events(batch.key, batch)


def write_now(backend: Any, items: Sequence[Item], gate: Gate) -> None:
    """Write *items* of one call in this thread; raise BackendError."""
    (batch,) = coalesced(items)
    gate.call(lambda: backend.append_events(batch.key, batch), patience=Deadline(None, ref=gate.name))
