"""Several connections for one piece of content, as one stream in order.

Where each connection is slow (a long or shaped path), several together are faster. Pieces are fetched side by side and
handed out in order, so that a partial stays one prefix of the content and the digest keeps streaming. What is held in
memory is bounded: no piece is asked for that lies more than a window ahead. Connections are added while they help.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from .errors import InterruptedTransferError, ProtocolError
from .retry import Deadline
from .sources import Request, Source, Stream

PIECE_BYTES = 2 * 1024 * 1024
CONNECTIONS_MAX = 6
_WINDOW_PIECES = 10
_JUDGE_PIECES = 8  # Pieces between two decisions about one more connection.
_GAIN = 1.15


class ParallelStream(Stream):
    """The bytes of *request* from ``start`` on, out of several connections to *source*.

    Args:
        source: Opens each piece.
        request: With ``start``, and ``same_as`` that tells whether a piece is of the same content.
        total: Size of the whole content in bytes.
        on_connections: Told how many connections there are, each time that changes.
    """

    ranges = True

    def __init__(self, source: Source, request: Request, total: int, on_connections: Callable[[int], object]) -> None:
        # Its own end, which also cuts connections that are still waiting for an answer.
        self._deadline = Deadline(None, ref=request.ref)
        self._source, self._tell = source, on_connections
        self._request = replace(request, deadline=self._deadline)
        self.start, self.total = request.start, total
        if request.same_as is not None:
            self.validators = request.same_as
        self._change = threading.Condition()
        self._pieces: dict[int, bytes] = {}
        self._next_out = 0
        self._next_in = 0
        self._count = -(-(total - request.start) // PIECE_BYTES)
        self._error: Exception | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._open: set[Stream] = set()
        self._judged_at, self._judged_pieces, self._best_rate = time.monotonic(), 0, 0.0
        self._add_connection()
        self._add_connection()
        self._tell(len(self._threads))

    def read(self, limit: int) -> bytes:
        """Return the next piece; see `Stream.read`. A piece is larger than *limit* as a rule."""
        del limit
        with self._change:
            if self._next_out == self._count:
                return b""
            waited = self._change.wait_for(
                lambda: self._next_out in self._pieces or self._error or self._closed,
                self._request.timeout.stall,
            )
            if self._next_out not in self._pieces:
                if self._error is not None:
                    raise self._error
                detail = "no piece came in time" if not waited else "it was closed"
                raise InterruptedTransferError(ref=self._request.ref, detail=detail)
            piece = self._pieces.pop(self._next_out)
            self._next_out += 1
            self._change.notify_all()
        self._judge()
        return piece

    def close(self) -> None:
        """Cut all connections and wait for their threads."""
        self.interrupt()
        for thread in self._threads:
            thread.join()

    def interrupt(self) -> None:
        """See `Stream.interrupt`."""
        with self._change:
            self._closed = True
            streams = tuple(self._open)
            self._change.notify_all()
        self._deadline.cancel()
        for stream in streams:
            stream.interrupt()

    def _judge(self) -> None:
        """Add a connection while the last one made a difference."""
        pieces = self._next_out - self._judged_pieces
        if pieces < _JUDGE_PIECES or len(self._threads) >= CONNECTIONS_MAX:
            return
        now = time.monotonic()
        rate = pieces / max(now - self._judged_at, 1e-9)
        self._judged_at, self._judged_pieces = now, self._next_out
        if rate >= self._best_rate * _GAIN:
            self._best_rate = rate
            self._add_connection()
            self._tell(len(self._threads))

    def _add_connection(self) -> None:
        thread = threading.Thread(target=self._work, name="modelcache-range", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(
                    lambda: self._next_in < self._next_out + _WINDOW_PIECES or self._closed or self._error
                )
                if self._closed or self._error or self._next_in == self._count:
                    return
                index = self._next_in
                self._next_in += 1
            try:
                piece = self._fetch(index)
            except Exception as error:  # noqa: BLE001  # Handed on to the thread that reads.
                with self._change:
                    if not self._closed:  # What being cut says is no news.
                        self._error = self._error or error
                    self._change.notify_all()
                return
            with self._change:
                self._pieces[index] = piece
                self._change.notify_all()

    def _fetch(self, index: int) -> bytes:
        assert self.total is not None
        start = self._request.start + index * PIECE_BYTES
        stop = min(start + PIECE_BYTES, self.total)
        stream = self._source.open(replace(self._request, start=start, stop=stop))
        with self._change:
            self._open.add(stream)
        try:
            if stream.start != start or stream.total != self.total or self.validators.contradicts(stream.validators):
                raise ProtocolError(ref=self._request.ref, detail="the content changed while its parts were fetched")
            parts = bytearray()
            while len(parts) < stop - start:
                chunk = stream.read(stop - start - len(parts))
                if not chunk or self._closed:
                    raise InterruptedTransferError(ref=self._request.ref, detail="a part ended before its length")
                parts += chunk
            stream.read(1)  # The end of the answer, so that the connection can serve the next piece.
            return bytes(parts)
        finally:
            with self._change:
                self._open.discard(stream)
            stream.close()
