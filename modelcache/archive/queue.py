"""The queue of events of one backend: bounded, in order, with a policy for what finds no room."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from time import time as clock
from typing import Any, NamedTuple

from .. import forks
from ..errors import ArchiveClosedError, QueueFullError
from .health import Dropped
from .registration import Queued

DROPPED_MAX = 1000  # The last so many are named; all are counted.


class Item(NamedTuple):
    """An event on its way. ``starts``: it is the first one of a call."""

    key: str
    event: Any
    line: str
    id: str
    time: float
    starts: bool


class Ledger:
    """What was dropped: how much, and the last of it by name."""

    def __init__(self) -> None:
        self.count = 0
        self._last: deque[Dropped] = deque(maxlen=DROPPED_MAX)

    def add(self, key: str, what: Any, reason: str) -> None:
        """Note one."""
        self.count += 1
        self._last.append(Dropped(key, what, reason))

    def last(self) -> tuple[Dropped, ...]:
        """Return the last thousand, the oldest first."""
        return tuple(self._last.copy())


class Queue:
    """Events that wait for one backend: senders put them in, its one writer takes them out.

    What the writer has taken is *under way* until it says `done`, and counts as depth, not against the capacity.
    """

    def __init__(self, name: str, policy: Queued, ledger: Ledger) -> None:
        self._name, self._policy, self._ledger = name, policy, ledger
        self._goal = min(policy.batch_max, policy.capacity)
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. What waits in the parent is the parent's to write."""
        lock = threading.Lock()
        self._ready, self._room, self._idle = (threading.Condition(lock) for _ in range(3))
        self._lock = lock
        self._waiting: deque[Item] = deque()
        self._under_way: list[Item] = []
        self._closed = False
        self._urgent = 0

    @property
    def depth(self) -> int:
        """Events that wait or are under way."""
        return len(self._waiting) + len(self._under_way)

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closed

    @property
    def lag(self) -> float:
        """For how long the oldest of them has been here, in seconds."""
        with self._lock:
            oldest = self._under_way[:1] or [self._waiting[0]] if self._waiting else self._under_way[:1]
        return max(0.0, clock() - oldest[0].time) if oldest else 0.0

    def offer(self, items: Sequence[Item]) -> int:
        """Take *items* without waiting; return how many were taken or dropped: the others are to `wait`.

        Raises:
            QueueFullError: None was taken.
            ArchiveClosedError: The same.
        """
        with self._lock:
            self._check_open()
            overflow, waiting = self._policy.overflow, self._waiting
            room = self._policy.capacity - len(waiting)
            if len(items) <= room:
                self._add(items)
                return len(items)
            if overflow == "error":
                detail = f"{len(items)} more were to be written, and there is room for {room}"
                raise QueueFullError(backend=self._name, capacity=self._policy.capacity, detail=detail)
            if overflow == "drop-oldest":
                excess = len(items) - room
                for _ in range(min(excess, len(waiting))):
                    self._drop(waiting.popleft(), "full")
                skipped = max(0, len(items) - self._policy.capacity)
                for item in items[:skipped]:
                    self._drop(item, "full")
                self._add(items[skipped:])
                return len(items)
            self._add(items[:room])
            if overflow == "drop-newest":
                for item in items[room:]:
                    self._drop(item, "full")
                return len(items)
            return room

    def wait(self, items: Sequence[Item], *, hopeless: Callable[[], bool], look_in: Callable[[], float]) -> int:
        """Take *items* as there is room for them, for a bounded time; return how many were taken.

        Args:
            items: What `offer` has left.
            hopeless: Tells whether to wait at all.
            look_in: Returns the seconds after which *hopeless* may change by itself.

        Raises:
            ArchiveClosedError: It was closed meanwhile.
        """
        taken, until = 0, monotonic() + self._policy.wait_max
        with self._lock:
            while taken < len(items):
                self._check_open()
                room = self._policy.capacity - len(self._waiting)
                if room > 0:
                    self._add(items[taken : taken + room])
                    taken += room
                    continue
                left = until - monotonic()
                if left <= 0 or hopeless():
                    break
                self._room.wait(min(left, max(look_in(), 0.001)))
        return min(taken, len(items))

    def drop(self, items: Sequence[Item], reason: str) -> None:
        """Count *items*, which never came in, as dropped."""
        with self._lock:
            for item in items:
                self._drop(item, reason)

    def take(self) -> list[Item]:
        """Wait for events, collect for the window, and return them as under way; none when it is closed and empty."""
        with self._lock:
            if self._under_way:  # Those of a writer that came to an end with them.
                return self._under_way
            while not self._waiting:
                if self._closed:
                    return []
                self._ready.wait()
            until = monotonic() + self._policy.batch_window
            while len(self._waiting) < self._goal and not (self._closed or self._urgent):
                left = until - monotonic()
                if left <= 0:
                    break
                self._ready.wait(left)
            waiting = self._waiting
            self._under_way = [waiting.popleft() for _ in range(min(len(waiting), self._policy.batch_max))]
            self._room.notify_all()
            return self._under_way

    def done(self, count: int) -> None:
        """Forget the first *count* events under way: they have landed."""
        with self._lock:
            self._under_way = self._under_way[count:]
            if not self.depth:
                self._idle.notify_all()

    def pause(self, seconds: float) -> None:
        """Let the writer wait, less long if the queue is closed; who waits here looks again whether there is hope."""
        with self._lock:
            self._room.notify_all()
            self._idle.notify_all()
            if not self._closed:
                self._ready.wait_for(lambda: self._closed, seconds)

    def flush(self, seconds: float, *, stop: Callable[[], bool]) -> bool:
        """Wait until nothing waits or is under way, for so many *seconds*, or until *stop*; tell whether that came."""
        with self._lock:
            self._idle.wait_for(lambda: not self.depth or stop(), min(seconds, threading.TIMEOUT_MAX))
            return not self.depth

    def hurry(self, *, on: bool) -> None:
        """Let the writer take what waits at once, without a window, or do not any more."""
        with self._lock:
            self._urgent += 1 if on else -1
            self._ready.notify_all()

    def close(self) -> None:
        """Take nothing more; what waits is still written."""
        with self._lock:
            self._closed = True
            for condition in (self._ready, self._room):
                condition.notify_all()

    def abandon(self, reason: str) -> int:
        """Drop what waits and is under way; return how many that were."""
        with self._lock:
            left = [*self._under_way, *self._waiting]
            for item in left:
                self._drop(item, reason)
            self._waiting.clear()
            self._under_way = []
            self._idle.notify_all()
            return len(left)

    def _add(self, items: Sequence[Item]) -> None:
        was = len(self._waiting)
        self._waiting.extend(items)
        # The writer waits for the first event, then for as many as it takes at once, or for its window.
        if not was or (was < self._goal <= was + len(items)):
            self._ready.notify_all()

    def _drop(self, item: Item, reason: str) -> None:
        self._ledger.add(item.key, item.event, reason)

    def _check_open(self) -> None:
        if self._closed:
            raise ArchiveClosedError(what=f"a write to {self._name}")
