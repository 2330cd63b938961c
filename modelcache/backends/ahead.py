"""One file of a backend as pieces in order, several of them under way: what a long path and a fast disk both need.

The threads are daemons, and nobody waits for one: a backend that hangs keeps neither a read nor a process from ending.
"""

from __future__ import annotations

import threading
from math import inf

from ..errors import DamagedReplicaError
from .base import Backend

PIECE_BYTES = 8 << 20
CONNECTIONS = 4


class Ahead:
    """The bytes of the file *name*, which has *size*, from *start* on. So many pieces are in memory, and no more."""

    def __init__(self, backend: Backend, name: str, size: int, start: int = 0) -> None:
        self._backend, self._name, self._size = backend, name, size
        self._starts = range(start, size, PIECE_BYTES)
        self._change = threading.Condition()
        self._pieces: dict[int, bytes] = {}
        self._next_in = self._next_out = 0
        self._error: Exception | None = None
        self._closed = False
        self._threads = 0

    def take(self, seconds: float = inf) -> bytes | None:
        """Return the next piece, ``b""`` at the end; None if it did not come within *seconds*, or after `close`.

        Raises:
            NotInArchiveError: There is no such file.
            DamagedReplicaError: It is shorter.
            BackendError
        """
        if self._next_out == len(self._starts):
            return b""
        while self._threads < min(CONNECTIONS, len(self._starts)):
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
                    lambda: self._next_in < self._next_out + CONNECTIONS or self._closed or self._error
                )
                if self._closed or self._error or self._next_in == len(self._starts):
                    return
                index = self._next_in
                self._next_in += 1
            try:
                piece = self._read(self._starts[index])
            except Exception as error:  # noqa: BLE001  # Handed on to the thread that takes.
                with self._change:
                    self._error = self._error or error
                    self._change.notify_all()
                return
            with self._change:
                if not self._closed:
                    self._pieces[index] = piece
                self._change.notify_all()

    def _read(self, at: int) -> bytes:
        wanted = min(PIECE_BYTES, self._size - at)
        data = self._backend.read(self._name, at, wanted)
        if len(data) != wanted:
            detail = f"it ends at byte {at + len(data)} of {self._size}"
            raise DamagedReplicaError(backend=self._backend.location, name=self._name, detail=detail)
        return data
