"""Single flight within a process: threads and asyncio tasks that want the same thing share one piece of work.

The first to ask leads, the others wait for its result or its error. Between processes a lock does the same (`locks`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from .errors import CancelledError, DeadlineError, UsageError
from .forks import renew_after_fork
from .retry import Deadline

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self, deadline: Deadline) -> None:
        self.result: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.deadline = deadline
        self.interested = 1
        self.thread = 0

    def landed(self) -> bool:
        """Tell whether the outcome is one for all: not the end of the leader's own patience."""
        return self.result.done() and not isinstance(self.result.exception(), DeadlineError | CancelledError)


class Flights(Generic[T]):
    """The work under way, by key."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Flight[T]] = {}
        self._pid = os.getpid()
        renew_after_fork(self)

    def renew_guard(self) -> None:
        """Replace the lock, which another thread may have held at a fork."""
        self._guard = threading.Lock()

    def run(self, key: Hashable, work: Callable[[Deadline], T], deadline: Deadline) -> T:
        """Return ``work(deadline)``, or what the one who does it for *key* already comes to.

        Raises:
            UsageError: The work for *key* calls this itself, from a listener: it would wait for its own end.
        """
        while True:
            flight, leads = self._join(key, deadline)
            try:
                if leads:
                    self._lead(key, flight, work)
                    return flight.result.result()
                if flight.thread == threading.get_ident():
                    raise UsageError(problem=f"{deadline.ref} was asked for by a listener of its own fetch")
                wake = threading.Event()
                flight.result.add_done_callback(lambda _done: wake.set())  # noqa: B023  # Called for this very one.
                with deadline.cutting(wake.set):
                    wake.wait()
                if flight.landed():
                    return flight.result.result()
                deadline.check()  # Within our own limits the work is begun again.
            finally:
                self._leave(flight)

    async def arun(
        self,
        key: Hashable,
        work: Callable[[Deadline], T],
        deadline: Deadline,
        executor: concurrent.futures.Executor,
    ) -> T:
        """Do what `run` does without blocking the event loop: only a leader takes a thread of *executor*.

        When the last one who is interested is cancelled, so is the work.
        """
        while True:
            flight, leads = self._join(key, deadline)
            try:
                if leads:
                    self._send_off(executor, key, flight, work)
                result = asyncio.wrap_future(flight.result)
                # Looked at even if this task is cancelled, or asyncio complains that it was never retrieved.
                result.add_done_callback(lambda done: done.cancelled() or done.exception())
                # Not awaited itself: the result belongs to all who wait, and is not cancelled with one of them.
                await asyncio.wait([result], timeout=None if leads else _or_none(deadline))
                if flight.landed() or (leads and flight.result.done()):
                    return flight.result.result()
                deadline.check()
            finally:
                self._leave(flight)

    def _send_off(
        self, executor: concurrent.futures.Executor, key: Hashable, flight: _Flight[T], work: Callable[[Deadline], T]
    ) -> None:
        try:
            executor.submit(self._lead, key, flight, work)
        except RuntimeError as error:  # It was shut down this moment.
            self._forget(key)
            flight.result.set_exception(CancelledError(ref=flight.deadline.ref))
            raise CancelledError(ref=flight.deadline.ref) from error

    def _join(self, key: Hashable, deadline: Deadline) -> tuple[_Flight[T], bool]:
        with self._guard:
            if self._pid != os.getpid():
                self._running.clear()  # Those threads fly on in the parent only.
                self._pid = os.getpid()
            flight = self._running.get(key)
            if flight is None:
                flight = self._running[key] = _Flight(deadline)
                return flight, True
            flight.interested += 1
            return flight, False

    def _leave(self, flight: _Flight[T]) -> None:
        with self._guard:
            flight.interested -= 1
            abandoned = flight.interested == 0 and not flight.result.done()
        if abandoned:
            flight.deadline.cancel()

    def _lead(self, key: Hashable, flight: _Flight[T], work: Callable[[Deadline], T]) -> None:
        """Do the work and hand its outcome to all who wait. What stops this very thread (an interrupt) goes on up."""
        flight.thread = threading.get_ident()
        try:
            outcome = work(flight.deadline)
        except Exception as error:  # noqa: BLE001  # Not handled here: handed on.
            self._forget(key)
            flight.result.set_exception(error)
        except BaseException:
            self._forget(key)
            flight.result.set_exception(CancelledError(ref=flight.deadline.ref))
            raise
        else:
            self._forget(key)
            flight.result.set_result(outcome)

    def _forget(self, key: Hashable) -> None:
        with self._guard:
            self._running.pop(key, None)


def _or_none(deadline: Deadline) -> float | None:
    return None if deadline.seconds is None else deadline.left(deadline.seconds)
