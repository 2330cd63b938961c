"""The one writer of a backend's events: collect, coalesce, dispatch, try again, in a thread of its own.

Consecutive events of one key become one call. What fails is tried again as it was, with the same ids, before anything
behind it; nothing is left out, doubled in a backend that knows ids, or reordered. While the backend is down the events
wait, up to the capacity. What it rejects is found by halves, and left out alone; so is what it chokes on while it takes
others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

from .. import forks
from ..backends.base import Batch, LandsBatches
from ..breaker import Breaker
from ..errors import BackendDownError, CancelledError, ModelCacheError, RejectedError
from ..retry import Deadline
from . import exits
from .queue import Item, Ledger, Queue
from .registration import Queued, Registration

# What a backend of somebody's own raises for an event that it cannot take; or while its server talks nonsense.
_ABOUT_DATA = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
_DOUBTS = 3  # Rounds of tries that end so, before events are tried one by one.
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

    def __init__(self, registration: Registration, breaker: Breaker, ledger: Ledger) -> None:
        assert isinstance(registration.policy, Queued)
        self._name, self._backend, self._breaker = registration.name, registration.backend, breaker
        self._ledger = ledger
        self._at_once = isinstance(registration.backend, LandsBatches)
        self._rest_s = registration.cooldown
        self.queue = Queue(registration.name, registration.policy, ledger)
        self.dispatched = self.coalesced = 0
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. The thread of the parent does not exist here."""
        self._guard = threading.RLock()
        self._thread: threading.Thread | None = None
        self._patience = Deadline(None, ref=self._name)
        self.dispatched = self.coalesced = 0
        self._failing = False
        self.error: ModelCacheError | None = None  # The failure that a required backend owes to its callers.

    def start(self) -> None:
        """Make sure that the thread runs: a backend may have ended it by what is no Exception."""
        thread = self._thread
        if _runs(thread):
            return
        with self._guard:
            # A daemon: one that hangs in its backend must not keep the process from ending (`exits` drains).
            fresh = threading.Thread(target=self._run, name=f"modelcache-archive-{self._name}", daemon=True)
            if self._thread is not thread:
                return  # Another thread, or a signal handler that has interrupted this one, was faster.
            self._thread = fresh
            try:
                fresh.start()
            except RuntimeError as error:  # There are too many, or the interpreter ends: what waits is counted then.
                self._thread = None
                _log.warning("%s: %d events wait, no thread can be started: %s", self._name, self.queue.depth, error)
                return
        exits.arm()

    def end(self, seconds: float) -> bool:
        """Write what waits, for so many *seconds*, and end the thread; tell whether it has ended."""
        self.queue.close()
        until = monotonic() + seconds
        for _ in range(2):  # One that its backend has ended is started once more.
            if self.queue.depth:
                self.start()
            if self._thread is not None:
                self._thread.join(min(max(0.0, until - monotonic()), threading.TIMEOUT_MAX))
        thread = self._thread
        ended = thread is None or not thread.is_alive()
        if not ended:
            self._patience.cancel()  # It may sleep between two tries; one that hangs in its backend does not hear it.
        self.queue.abandon("shutdown")
        return ended

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
        most, doubts = len(items), 0
        batches: list[Batch] = []
        while items:
            batches = batches or coalesced(items[:most])
            closing, landing = self.queue.closed, batches if self._at_once else batches[:1]
            count = sum(map(len, landing))
            try:
                self._breaker.call(partial(self._write, landing), patience=self._patience, probe=closing)
            except CancelledError:
                return False
            except RejectedError as error:
                if count == 1:
                    self._leave_out(items[:1], error)
                    items = items[1:]
                most, batches = count // 2 or len(items), []  # The halves are tried apart, until the one is found.
            except ModelCacheError as error:
                told, self._failing = self._failing, True
                self._owe(error)
                if closing:  # That was the last try.
                    return False
                level = logging.DEBUG if told else logging.WARNING  # Told once, until it is well.
                _log.log(level, "%s: %d events wait: %s", self._name, self.queue.depth, error)
                self.queue.pause(max(self._breaker.closed_in(), self._rest_s))
                if isinstance(error, BackendDownError):
                    continue  # It was not asked.
                doubts = doubts + 1 if isinstance(error.__cause__, _ABOUT_DATA) else 0
                if doubts >= _DOUBTS:
                    most, batches = 1, []
                if doubts > _DOUBTS and count == 1:
                    items = self._sifted(items, doubts - _DOUBTS)
            else:
                self._landed(items[:count])
                items, batches, doubts = items[count:], batches[len(landing) :], 0
        return True

    def _sifted(self, items: list[Item], number: int) -> list[Item]:
        """Return what is left of *items*, whose first one fails again and again, with an error as of wrong data.

        Whether that is the event's fault or the backend's is seen by another one. If that lands, those in front of it
        are tried once more, and left out if they fail again; one that lands only then is late, which is better than
        lost. If it does not land, all stay.
        """
        if len(items) == 1:
            items = [*items, *self.queue.more()]
        behind = 1 + (number - 1) % max(1, len(items) - 1)
        if behind >= len(items) or self._try_alone(items[behind]) is not None:
            return items
        other = items.pop(behind)
        self.queue.take_out(other)
        self._count([other])
        for one in items[:behind]:
            error = self._try_alone(one)
            if error is None:
                self._landed([one])
            elif isinstance(error, RejectedError) or isinstance(error.__cause__, _ABOUT_DATA):
                detail = f"it fails each time, and others do not: {getattr(error, 'detail', error)}"
                self._leave_out([one], RejectedError(backend=self._name, detail=detail))
            else:
                break
            items = items[1:]
        return items

    def _try_alone(self, item: Item) -> ModelCacheError | None:
        try:
            self._breaker.call(partial(self._write, coalesced([item])), patience=self._patience, probe=True, once=True)
        except ModelCacheError as error:
            return error
        return None

    def _leave_out(self, items: list[Item], error: RejectedError) -> None:
        _log.warning("%s: %d events were dropped, the first of %.100r: %s", self._name, len(items), items[0].key, error)
        for item in items:
            self._ledger.add(item.key, item.event, "rejected", item.size)
        self._owe(error)
        self.queue.done(len(items))

    def _landed(self, items: list[Item]) -> None:
        self._failing = False
        if not isinstance(self.error, RejectedError):  # Which nothing that lands makes good.
            self.error = None
        self._count(items)
        self.queue.done(len(items))

    def _count(self, items: list[Item]) -> None:
        self.dispatched += len(items)
        self.coalesced += max(0, sum(item.starts for item in items) - 1)

    def _owe(self, error: ModelCacheError) -> None:
        if not isinstance(self.error, RejectedError):
            self.error = error

    def _write(self, batches: list[Batch]) -> None:
        if self._at_once:
            self._backend.append_batches(batches)
            return
        for batch in batches:
            self._backend.append_events(batch.key, batch)


def _runs(thread: threading.Thread | None) -> bool:
    return thread is not None and (thread.ident is None or thread.is_alive())  # None: it is about to be started.


def write_now(backend: Any, items: Sequence[Item], breaker: Breaker) -> None:
    """Write *items* of one call in this thread; raise BackendError."""
    (batch,) = coalesced(items)
    breaker.call(lambda: backend.append_events(batch.key, batch), patience=Deadline(None, ref=breaker.name))
