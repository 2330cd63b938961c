"""A backend in memory, for tests: slow, failing, holding and counting, as it is told. Nothing in it survives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import forks
from ..errors import BackendError, NotInArchiveError
from .base import Archived, Backend, Batch, check_name


class MemoryBackend(Backend):
    """A backend in memory.

    Args:
        delay: Seconds that each write takes.

    Attributes:
        calls: What `append_events` was called with, failed calls too: key and events, in order.
        down: While it is true, every call fails.
        waiting: Set while a call waits for the end of `hold`.
    """

    def __init__(self, *, delay: float = 0.0) -> None:
        self.location = "memory"
        self.delay, self.down = delay, False
        self.calls: list[tuple[str, list[Any]]] = []
        self.waiting = threading.Event()
        self._open = threading.Event()
        self._open.set()
        self._guard = threading.Lock()
        forks.renew_after_fork(self)
        self._failures: list[tuple[int, BaseException]] = []
        self._events: dict[str, Archived] = {}  # By id, in order.
        self._files: dict[str, bytes] = {}

    def renew_guard(self) -> None:
        """See `forks`."""
        self._guard = threading.Lock()

    def fail_next(self, count: int = 1, *, after: int = 0, error: BaseException | None = None) -> None:
        """Let the next *count* calls fail, with *error*; an append only when so many events as *after* have landed."""
        made = error or BackendError(backend=self.location, detail="it was told to fail")
        with self._guard:
            self._failures += [(after, made)] * count

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let every call wait until the block ends: a backend that hangs."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    @property
    def events(self) -> list[Any]:
        """All events that landed, in order, each once."""
        with self._guard:
            return [archived.event for archived in self._events.values()]

    def events_of(self, key: str) -> list[Any]:
        """Return those of *key*."""
        return [archived.event for archived in self.read_events(key)]

    def append_events(self, key: str, events: Sequence[Any]) -> None:
        """See `Backend`."""
        batch = Batch.of(key, events)
        with self._guard:
            self.calls.append((key, list(batch)))
        failure = self._enter()
        landing = zip(batch.ids, batch.times, batch, strict=True)
        with self._guard:
            for count, (identity, accepted, event) in enumerate(landing):
                if failure is not None and count >= failure[0]:
                    break
                self._events.setdefault(identity, Archived(identity, key, accepted, event))
        if failure is not None:
            raise failure[1]

    def read_events(self, key: str | None = None, *, since: float = 0.0) -> Iterator[Archived]:
        """See `Backend`."""
        self._pass()
        with self._guard:
            found = list(self._events.values())
        return (one for one in found if key in {None, one.key} and one.time >= since)

    def create(self, name: str, data: bytes) -> bool:
        """See `Backend`."""
        check_name(name)
        self._pass()
        with self._guard:
            if name in self._files:
                return False
            self._files[name] = data
            return True

    def put(self, name: str, data: bytes) -> None:
        """See `Backend`."""
        check_name(name)
        self._pass()
        with self._guard:
            self._files[name] = data

    def upload(self, name: str, path: str, size: int) -> None:
        """See `Backend`."""
        self._pass()
        with open(path, "rb") as file:
            data = file.read()
        if len(data) != size:
            raise BackendError(backend=self.location, detail=f"{path} has {len(data)} bytes and not {size}")
        with self._guard:
            self._files[name] = data

    def size(self, name: str) -> int | None:
        """See `Backend`."""
        self._pass()
        data = self._files.get(name)
        return None if data is None else len(data)

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Backend`."""
        self._pass()
        if name not in self._files:
            raise NotInArchiveError(what=name, asked=(self.location,))
        return self._files[name][start : None if length is None else start + length]

    def names(self, prefix: str = "") -> Iterator[str]:
        """See `Backend`."""
        self._pass()
        return iter(sorted(name for name in self._files if name.startswith(prefix)))

    def delete(self, name: str) -> None:
        """See `Backend`."""
        self._pass()
        with self._guard:
            self._files.pop(name, None)

    def alter(self, name: str, data: bytes) -> None:
        """Put *data* in the place of the file *name*: damage, for a test."""
        self._files[name] = data

    def _pass(self) -> None:
        failure = self._enter()
        if failure is not None:
            raise failure[1]

    def _enter(self) -> tuple[int, BaseException] | None:
        """Take the time that a call takes; return how it is to fail."""
        if not self._open.is_set():
            self.waiting.set()
            self._open.wait()
            self.waiting.clear()
        if self.delay:
            time.sleep(self.delay)
        with self._guard:
            if self.down:
                return 0, BackendError(backend=self.location, detail="it is down")
            return self._failures.pop(0) if self._failures else None
