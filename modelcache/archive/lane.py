"""One registration at work: its breaker, its writer, its carrier, and what they count."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic

from ..backends import contents
from ..backends.base import Backend
from ..breaker import DOWN, Breaker
from ..digest import Digest
from ..errors import (
    ArchiveClosedError,
    BackendDownError,
    BackendError,
    CorruptObjectError,
    ModelCacheError,
    NoSpaceError,
    NotInArchiveError,
    QueueFullError,
    RejectedError,
    StorageError,
    UsageError,
)
from ..objects import Stored
from ..retry import Deadline
from .carrier import Carrier
from .health import BackendHealth
from .queue import Item, Ledger
from .registration import Queued, Registration
from .writer import Writer, write_now

_log = logging.getLogger("modelcache")


class Lane:
    """The way of all writes to one backend.

    Attributes:
        registration: As it was given.
        enabled: Whether it takes writes and is read from.
        removed: Whether it was taken out: a write that comes too late is no error.
    """

    def __init__(self, registration: Registration, root: str) -> None:
        self.registration, self.enabled, self.removed = registration, registration.enabled, False
        self.ledger = Ledger()
        self.breaker = Breaker(
            registration.name, policy=registration.retry, cooldown=registration.cooldown,
            cooldown_max=registration.cooldown_max, timeout=registration.timeout,
        )  # fmt: skip
        self._writer: Writer | None = None
        self._carrier: Carrier | None = None
        if isinstance(registration.policy, Queued):
            self._writer = Writer(registration, self.breaker, self.ledger)
            if self.takes_objects:
                self._carrier = Carrier(root, registration, self.breaker, self.ledger)
                if self.enabled:
                    self._carrier.resume()

    @property
    def name(self) -> str:
        """That of the registration."""
        return self.registration.name

    @property
    def takes_objects(self) -> bool:
        """Whether the backend can hold objects."""
        return isinstance(self.registration.backend, Backend)

    @property
    def is_direct(self) -> bool:
        """Whether the caller makes each write."""
        return self._writer is None

    def raise_pending(self) -> None:
        """Raise what a required backend has failed with since it was last asked for; nothing of the call was done."""
        if self.registration.is_required and self._writer is not None:
            error = self._writer.take_error()
            if error is not None:
                raise error

    def start(self) -> None:
        """Begin the thread that writes events, if it has one."""
        if self._writer is not None:
            self._writer.start()

    def offer(self, items: Sequence[Item]) -> Sequence[Item]:
        """Queue *items* without waiting; return what found no room, and is to `wait`.

        Raises:
            QueueFullError
        """
        assert self._writer is not None
        try:
            taken = self._writer.queue.offer(items)
        except ArchiveClosedError:
            if self.removed:
                return ()
            raise
        self._writer.start()
        return items[taken:]

    def wait(self, items: Sequence[Item]) -> None:
        """Queue *items* when there is room; drop them after a bounded time, or raise QueueFullError if required."""
        assert self._writer is not None
        queue = self._writer.queue
        try:
            taken = queue.wait(items, hopeless=lambda: self.breaker.state == DOWN, look_in=self.breaker.hangs_in)
        except ArchiveClosedError:
            if self.removed:
                return
            raise
        rest = items[taken:]
        if not rest:
            return
        is_down = self.breaker.state == DOWN
        if self.registration.is_required:
            why = f"it is down ({self.breaker.last_error})" if is_down else "no room came in time"
            detail = f"{why}; {len(rest)} events were not accepted"
            policy = self.registration.policy
            assert isinstance(policy, Queued)
            raise QueueFullError(backend=self.name, capacity=policy.capacity, detail=detail)
        queue.drop(rest, "down" if is_down else "full")

    def write(self, items: Sequence[Item]) -> None:
        """Write *items* of one call now; raise only if the backend is required."""
        try:
            self._check_hanging()
            write_now(self.registration.backend, items, self.breaker)
        except ModelCacheError as error:
            self._forgive(error)
            reason = "rejected" if isinstance(error, RejectedError) else "down"
            for item in items:
                self.ledger.add(item.key, item.event, reason, item.size)
        else:
            self.ledger.landed(len(items))

    def check_takes_objects(self) -> None:
        """Raise UsageError if it must have every object, and cannot."""
        if self.registration.is_required and not self.takes_objects:
            raise UsageError(problem=f"{self.name} is required, and its backend holds events only")

    def put(self, stored: Stored, seconds: float) -> None:
        """Bring an object to the backend, or file it in the outbox; raise backend's failures only if required."""
        if not self.takes_objects:
            return
        until = monotonic() + seconds
        try:
            if self._carrier is None:
                self._check_hanging()
                backend, patience = self.registration.backend, Deadline(None, ref=self.name)
                self.breaker.call(lambda: contents.store(backend, stored), patience=patience, size=stored.size)
                self.ledger.landed(1)
            elif self._carrier.put(stored.digest) and self.registration.is_required:
                self._await(self._carrier, stored.digest, until)
        except ArchiveClosedError:
            if not self.removed:
                raise
        except (BackendError, CorruptObjectError, NotInArchiveError, StorageError, NoSpaceError) as error:
            self._forgive(error)
            reasons = {QueueFullError: "full", CorruptObjectError: "corrupt", RejectedError: "rejected"}
            if isinstance(error, StorageError | NoSpaceError):
                reasons[type(error)] = "disk"
            self.ledger.add(stored.digest, stored.digest, reasons.get(type(error), "down"))

    def resume(self) -> None:
        """Deliver what waits in the outbox."""
        if self._carrier is not None:
            self._carrier.resume()

    def wait_object(self, digest: Digest, seconds: float) -> bool:
        """See `Archivist.wait_object`."""
        return self._carrier is None or self._carrier.wait(digest, seconds)

    def _await(self, carrier: Carrier, digest: Digest, until: float) -> None:
        """Wait until the backend has the object (I8), to the moment *until*; raise BackendError."""
        if not carrier.wait(digest, max(0.0, until - monotonic())):
            detail, last = f"it did not take {digest} in the time allowed", self.breaker.last_error
            raise BackendError(backend=self.name, detail=f"{detail}; last: {last}" if last else detail)

    def flush(self, until: float) -> bool:
        """Wait until all that was queued has landed, to the moment *until*; tell whether it has.

        A required one that fails ends the wait: its error is pending then.
        """
        done, writer = True, self._writer
        if writer is not None:
            required = self.registration.is_required
            if writer.queue.depth:
                writer.start()
            done = writer.queue.flush(max(0.0, until - monotonic()), stop=lambda: required and writer.error is not None)
        if self._carrier is not None:
            done = self._carrier.flush(max(0.0, until - monotonic())) and done
        return done

    def hurry(self, *, on: bool) -> None:
        """Let the writer not wait for its window, or do again."""
        if self._writer is not None:
            self._writer.queue.hurry(on=on)

    def close(self) -> None:
        """Take nothing more."""
        if self._writer is not None:
            self._writer.queue.close()
        if self._carrier is not None:
            self._carrier.close()

    def end(self, until: float) -> bool:
        """Write what waits, to the moment *until*, and end the threads; tell whether all has landed."""
        dropped = self.ledger.count
        ended = self._writer is None or self._writer.end(max(0.0, until - monotonic()))
        landed = self._carrier is None or self._carrier.end(max(0.0, until - monotonic()))
        close = getattr(self.registration.backend, "close", None)
        # Not while a call hangs in it; whether all has landed does not matter.
        if ended and (self._carrier is None or self._carrier.has_ended) and callable(close):
            try:
                close()
            except Exception as error:  # noqa: BLE001  # Of somebody's own; the other backends are to end as well.
                _log.warning("%s: closing it failed: %s: %s", self.name, type(error).__name__, error)
        return ended and landed and self.ledger.count == dropped

    def health(self) -> BackendHealth:
        """Return how it is now."""
        writer, carrier = self._writer, self._carrier
        return BackendHealth(
            state=self.breaker.state,
            last_error=self.breaker.last_error,
            consecutive_failures=self.breaker.failures,
            depth=(writer.queue.depth if writer else 0) + (carrier.depth if carrier else 0),
            lag=max(writer.queue.lag if writer else 0.0, carrier.lag if carrier else 0.0),
            dropped=self.ledger.count,
            dispatched=self.ledger.direct
            + (writer.dispatched if writer else 0)
            + (carrier.dispatched if carrier else 0),
            coalesced=writer.coalesced if writer else 0,
            enabled=self.enabled,
        )

    def enable(self, *, on: bool) -> None:
        """Take writes and be read from, or do not; what waits is written either way."""
        self.enabled = on
        if on and self._carrier is not None:
            self._carrier.resume()

    def _check_hanging(self) -> None:
        """Raise BackendDownError while another call hangs: this one would, too."""
        if self.breaker.is_hanging:
            raise BackendDownError(backend=self.name, detail=self.breaker.last_error or "", seconds=0.0)

    def _forgive(self, error: ModelCacheError) -> None:
        if self.registration.is_required:
            raise error
        _log.warning("%s", error)
