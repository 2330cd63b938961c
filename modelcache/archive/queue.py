"""The queue of events of one backend: bounded in events and in bytes, in order, with a policy for what finds no room.

A signal handler and a finalizer may write while the thread that they interrupt is in here: the lock is its owner's to
take again, and who is in here already is never held back.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic
from typing import Any, NamedTuple

from .. import forks
from ..errors import ArchiveClosedError, QueueFullError
from .health import Dropped
from .registration import Queued

DROPPED_MAX = 1000  # The last so many are named, while they have no more bytes than these; all are counted.
DROPPED_BYTES_MAX = 4 << 20
BATCH_BYTES_MAX = 8 << 20  # Of one call to a backend, unless one event has more.
_TOLD_S = 1.0
_log = logging.getLogger("modelcache")


class Item(NamedTuple):
    """An event on its way. ``since``: by the monotonic clock. ``starts``: it is the first one of a call.

    ``size``: the bytes that its text takes in memory.
    """

    key: str
    event: Any
    line: str
    id: str
    time: float
    since: float
    starts: bool
    size: int


class Ledger:
    """What was dropped: how much, and the last of it by name; and what landed without a queue (``direct``)."""

    def __init__(self) -> None:
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. What the parent has dropped is the parent's."""
        self._guard = threading.RLock()
        self.count = self.direct = self._bytes = 0
        self._last: deque[tuple[Dropped, int]] = deque()

    def add(self, key: str, what: Any, reason: str, size: int = 0) -> None:
        """Note one, whose text has *size* bytes."""
        with self._guard:
            self.count += 1
            self._bytes += size
            self._last.append((Dropped(key, what, reason), size))
            while len(self._last) > DROPPED_MAX or (self._bytes > DROPPED_BYTES_MAX and len(self._last) > 1):
                self._bytes -= self._last.popleft()[1]

    def landed(self, count: int) -> None:
        """Count writes that their callers have made."""
        with self._guard:
            self.direct += count

    def last(self) -> tuple[Dropped, ...]:
        """Return the last thousand, the oldest first; fewer where they are large."""
        return tuple(dropped for dropped, _ in self._last.copy())


class Queue:
    """Events that wait for one backend: senders put them in, its one writer takes them out.

    What the writer has taken is *under way* until it says `done`, and counts as depth, not against the capacity.
    """

    def __init__(self, name: str, policy: Queued, ledger: Ledger) -> None:
        self._name, self._policy, self._ledger = name, policy, ledger
        self._goal = min(policy.batch_max, policy.capacity)
        self._goal_bytes = min(BATCH_BYTES_MAX, policy.capacity_bytes)
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. What waits in the parent is the parent's to write."""
        lock = threading.RLock()
        self._ready, self._room, self._idle = (threading.Condition(lock) for _ in range(3))
        self._lock = lock
        self._waiting: deque[Item] = deque()
        self._under_way: list[Item] = []
        self._bytes = 0  # Of what waits.
        self._line: list[object] = []  # Senders that wait for room, who came first before the others.
        self._inside: set[int] = set()  # Threads that are in here: what interrupts one of them must not wait for it.
        self._taken = 0  # Batches so far.
        self._in_vain = -1  # What that was when a sender had waited as long as it may, and nothing had moved.
        self._told = False
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
        return max(0.0, monotonic() - oldest[0].since) if oldest else 0.0

    def offer(self, items: Sequence[Item]) -> int:
        """Take *items* without waiting; return how many were taken or dropped: the others are to `wait`.

        Raises:
            QueueFullError: None was taken.
            ArchiveClosedError: The same.
        """
        me, inside = threading.get_ident(), self._inside
        if me in inside:
            with self._lock:
                return self._offer(items)
        inside.add(me)
        try:
            with self._lock:
                return self._offer(items)
        finally:
            inside.discard(me)

    def _offer(self, items: Sequence[Item]) -> int:
        self._check_open()
        policy, overflow, waiting = self._policy, self._policy.overflow, self._waiting
        if overflow == "block" and self._line:
            return 0  # Nobody overtakes who waits already.
        size = items[0].size if len(items) == 1 else sum([item.size for item in items])
        if len(waiting) + len(items) <= policy.capacity and self._bytes + size <= policy.capacity_bytes:
            self._told = False
            self._add(items, size)
            return len(items)
        fitting = self._fitting(items, 0)
        if overflow == "error" and fitting < len(items):
            detail = f"{len(items)} more were to be written, and there is room for {fitting}"
            raise QueueFullError(backend=self._name, capacity=self._policy.capacity, detail=detail)
        if overflow == "drop-oldest":
            self._add(items, size)
            while len(waiting) > policy.capacity or (self._bytes > policy.capacity_bytes and len(waiting) > 1):
                self._drop(self._popped(), "full")
            return len(items)
        self._add(items[:fitting], sum([item.size for item in items[:fitting]]))
        if overflow == "drop-newest":
            for item in items[fitting:]:
                self._drop(item, "full")
            return len(items)
        return fitting

    def wait(self, items: Sequence[Item], *, hopeless: Callable[[], bool], look_in: Callable[[], float]) -> int:
        """Take *items* as there is room for them, for a bounded time; return how many were taken.

        After one sender has waited in vain, all as long as it may, no other one does until something has moved.

        Args:
            items: What `offer` has left.
            hopeless: Tells whether to wait at all.
            look_in: Returns the seconds after which *hopeless* may change by itself.

        Raises:
            ArchiveClosedError: It was closed meanwhile.
        """
        me, turn = threading.get_ident(), object()
        if me in self._inside:
            return 0  # It would wait for the very thread that it has interrupted.
        self._inside.add(me)
        self._line.append(turn)
        try:
            with self._lock:
                return self._take_turn(turn, items, hopeless, look_in)
        finally:
            self._line.remove(turn)
            self._inside.discard(me)
            with self._lock:
                self._room.notify_all()

    def _take_turn(
        self, turn: object, items: Sequence[Item], hopeless: Callable[[], bool], look_in: Callable[[], float]
    ) -> int:
        taken, began, before = 0, monotonic(), self._taken
        until = began + self._policy.wait_max
        while taken < len(items):
            self._check_open()
            fitting = self._fitting(items, taken) if self._line[0] is turn else 0
            if fitting:
                fits = items[taken : taken + fitting]
                self._add(fits, sum([item.size for item in fits]))
                taken += fitting
                continue
            now = monotonic()
            if now >= until and before == self._taken:
                self._in_vain = before
            if now >= until or hopeless() or self._in_vain == self._taken:
                break
            if not self._told and now - began >= _TOLD_S:
                self._told = True  # Once, until there is room again.
                _log.warning(
                    "%s: its queue is full, and a write waits for room, %g s at most", self._name, until - began
                )
            self._room.wait(min(until - now, max(look_in(), 0.001), _TOLD_S))
        return taken

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
            while (
                len(self._waiting) < self._goal
                and self._bytes < self._goal_bytes
                and not (self._closed or self._urgent)
            ):
                left = until - monotonic()
                if left <= 0:
                    break
                self._ready.wait(left)
            waiting = self._waiting
            count = size = 0
            for item in islice(waiting, self._policy.batch_max):
                if count and size + item.size > BATCH_BYTES_MAX:
                    break
                count, size = count + 1, size + item.size
            self._under_way = [waiting.popleft() for _ in range(count)]
            self._bytes -= size
            self._taken += 1
            self._room.notify_all()
            return self._under_way

    def more(self) -> list[Item]:
        """Take what waits now, beside what is under way, and return it; nothing is waited for."""
        with self._lock:
            found = [self._popped() for _ in range(min(len(self._waiting), self._policy.batch_max))]
            self._under_way = [*self._under_way, *found]
            self._room.notify_all()
            return found

    def take_out(self, item: Item) -> None:
        """Forget *item*, which is under way behind others: it has landed."""
        with self._lock:
            self._under_way = [one for one in self._under_way if one is not item]

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
            self._under_way, self._bytes = [], 0
            self._idle.notify_all()
            return len(left)

    def _fitting(self, items: Sequence[Item], start: int) -> int:
        """Return how many of *items*, from *start* on, there is room for now; one that is alone always has it."""
        waiting, policy = len(self._waiting), self._policy
        count, size = 0, self._bytes
        for item in items[start : start + max(0, policy.capacity - waiting)]:
            size += item.size
            if size > policy.capacity_bytes and waiting + count:
                break
            count += 1
        return count

    def _add(self, items: Sequence[Item], size: int) -> None:
        self._waiting.extend(items)
        self._bytes += size
        now = len(self._waiting)
        was = now - len(items)
        # The writer waits for the first event, then for as many as it takes at once, or for its window.
        if was <= 0 or was < self._goal <= now or self._bytes >= self._goal_bytes:
            self._ready.notify_all()

    def _popped(self) -> Item:
        item = self._waiting.popleft()
        self._bytes -= item.size
        return item

    def _drop(self, item: Item, reason: str) -> None:
        self._ledger.add(item.key, item.event, reason, item.size)

    def _check_open(self) -> None:
        if self._closed:
            raise ArchiveClosedError(what=f"a write to {self._name}")
