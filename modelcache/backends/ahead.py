"""One file of a backend as bytes in order, read ahead: in one stream (`Flow`), or several pieces at a time (`Ahead`).

Which is faster depends on the path and on the server: one stream on a short path, pieces where each connection is slow.
`Brisk` begins with the one, tries the other where that is slow, and stays with what was faster. All threads are
daemons, and nobody waits for one: a backend that hangs keeps neither a read nor a process from ending.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic

from ..errors import DamagedReplicaError
from . import base
from .base import Backend

CONNECTIONS = 4
FAST_BYTES_PER_S = 128 << 20  # One stream that is as fast is not left.
_JUDGE_AFTER_S = 1.0
_WORTH_BYTES = 64 << 20  # With less to come, nothing is tried.
_QUEUED = 8


class Ordered:
    """What *read* returns for 0, 1, … *count* - 1, in this order; *at_once* of them are in memory, and no more."""

    def __init__(self, count: int, read: Callable[[int], bytes], *, at_once: int = CONNECTIONS) -> None:
        self._count, self._read, self._at_once = count, read, at_once
        self._change = threading.Condition()
        self._pieces: dict[int, bytes] = {}
        self._next_in = self._next_out = 0
        self._error: Exception | None = None
        self._closed = False
        self._threads = 0

    def take(self, seconds: float = inf) -> bytes | None:
        """Return the next one, ``b""`` at the end; None if it did not come within *seconds*, or after `close`.

        Raises:
            Exception: Whatever *read* has raised.
        """
        if self._next_out == self._count:
            return b""
        while self._threads < min(self._at_once, self._count):
            self._threads += 1
            threading.Thread(target=self._work, name="modelcache-read-ahead", daemon=True).start()
        with self._change:
            self._change.wait_for(
                lambda: self._next_out in self._pieces or self._error or self._closed,
                min(seconds, threading.TIMEOUT_MAX),
            )
            piece = self._pieces.pop(self._next_out, None)
            if piece is None:
                if self._error is not None:
                    raise self._error
                return None
            self._next_out += 1
            self._change.notify_all()
        return piece

    def close(self) -> None:
        """Ask for nothing more; what is under way ends by itself."""
        with self._change:
            self._closed = True
            self._pieces.clear()
            self._change.notify_all()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(
                    lambda: self._next_in < self._next_out + self._at_once or self._closed or self._error
                )
                if self._closed or self._error or self._next_in == self._count:
                    return
                index = self._next_in
                self._next_in += 1
            try:
                piece = self._read(index)
            except Exception as error:  # noqa: BLE001  # Handed on to the thread that takes.
                with self._change:
                    self._error = self._error or error
                    self._change.notify_all()
                return
            with self._change:
                if not self._closed:
                    self._pieces[index] = piece
                self._change.notify_all()


class Ahead(Ordered):
    """The bytes of the file *name*, which has *size*, from *start* on: pieces of it, each asked for by itself.

    `take` raises NotInArchiveError if there is no such file, DamagedReplicaError if it is shorter, and BackendError.
    """

    def __init__(self, backend: Backend, name: str, size: int, start: int = 0) -> None:
        self._backend, self._name, self._size = backend, name, size
        self._starts = range(start, size, base.PIECE_BYTES)
        super().__init__(len(self._starts), self._at)

    def _at(self, index: int) -> bytes:
        at = self._starts[index]
        wanted = min(base.PIECE_BYTES, self._size - at)
        data = self._backend.read(self._name, at, wanted)
        if len(data) != wanted:
            detail = f"it ends at byte {at + len(data)} of {self._size}"
            raise DamagedReplicaError(backend=self._backend.location, name=self._name, detail=detail)
        return data


class Flow:
    """The bytes of the file *name*, which has *size*, from *start* on, in one stream. See `Ahead`."""

    def __init__(self, backend: Backend, name: str, size: int, start: int = 0) -> None:
        self._backend, self._name, self._size, self._start = backend, name, size, start
        self._change = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._taken = start
        self._error: Exception | None = None
        self._closed = self._begun = False

    def take(self, seconds: float = inf) -> bytes | None:
        """See `Ahead.take`."""
        if self._taken >= self._size:
            return b""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._work, name="modelcache-read-ahead", daemon=True).start()
        with self._change:
            self._change.wait_for(
                lambda: self._chunks or self._error or self._closed, min(seconds, threading.TIMEOUT_MAX)
            )
            if not self._chunks:
                if self._error is not None:
                    raise self._error
                return None
            chunk = self._chunks.popleft()
            self._taken += len(chunk)
            self._change.notify_all()
        return chunk

    def close(self) -> None:
        """See `Ahead.close`."""
        with self._change:
            self._closed = True
            self._chunks.clear()
            self._change.notify_all()

    def _work(self) -> None:
        came = self._start
        error: Exception
        try:
            for chunk in self._backend.stream(self._name, self._start):
                came += len(chunk)
                with self._change:
                    self._change.wait_for(lambda: len(self._chunks) < _QUEUED or self._closed)
                    if self._closed:
                        return
                    self._chunks.append(chunk)
                    self._change.notify_all()
                if came >= self._size:
                    return
            detail = f"it ends at byte {came} of {self._size}"
            error = DamagedReplicaError(backend=self._backend.location, name=self._name, detail=detail)
        except Exception as raised:  # noqa: BLE001  # Handed on to the thread that takes.
            error = raised
        with self._change:
            self._error = error
            self._change.notify_all()


class Brisk:
    """The bytes of the file *name*, which has *size*, from *start* on, in whichever way is faster. See `Ahead`."""

    def __init__(self, backend: Backend, name: str, size: int, start: int = 0) -> None:
        self._backend, self._name, self._size, self._at = backend, name, size, start
        self._way: Flow | Ahead = Flow(backend, name, size, start)
        self._rates: list[float] = []
        self._mark, self._marked = 0.0, start

    def take(self, seconds: float = inf) -> bytes | None:
        """See `Ahead.take`."""
        data = self._way.take(seconds)
        if data:
            self._at += len(data)
            self._judge()
        return data

    def close(self) -> None:
        """See `Ahead.close`."""
        self._way.close()

    def _judge(self) -> None:
        """Try the other way once, if this one is slow; go back if that was slower."""
        now = monotonic()
        if not self._mark:  # What the first byte took says nothing of the rate.
            self._mark, self._marked = now, self._at
            return
        if now - self._mark < _JUDGE_AFTER_S or len(self._rates) == 2 or self._size - self._at < _WORTH_BYTES:
            return
        self._rates.append((self._at - self._marked) / max(now - self._mark, 1e-9))
        self._mark = 0.0
        first = len(self._rates) == 1
        if self._rates[0] < FAST_BYTES_PER_S if first else self._rates[1] < self._rates[0]:
            self._way.close()
            self._way = (Ahead if first else Flow)(self._backend, self._name, self._size, self._at)
        elif first:
            self._rates.append(0.0)  # It is fast enough: nothing more is judged.
