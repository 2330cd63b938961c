"""An HTTP/1.1 server that fails on purpose, in a fixed sequence, and counts what it does.

The k-th request for a path meets the k-th `Fault` of that path; after the last one all is well. Nothing is drawn and
nothing is timed: a test says what happens and in which order. Loopback only.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from io import BufferedReader
from types import TracebackType
from typing import Self

SLICE_BYTES = 64 * 1024
_DRIP_S = 0.25
_FRAMINGS = ("length", "chunked", "broken-chunks", "close")


@dataclass(frozen=True)
class Fault:
    """How one request is answered. The default is a correct answer.

    Attributes:
        status: Sent in place of 200 or 206, with an empty body, if given.
        headers: Added to the answer, or put in place of what it would hold, whatever the case of their names.
        hang_up: Close the connection before a byte is sent.
        abort_after: Close it after so many bytes of the body; a ``reset`` sends RST. As for ``stall_after`` and
            ``hold_after``: nothing happens at the end of the body, or beyond it.
        stall_after: Send so many bytes of the body, then nothing until the client goes.
        hold_after: Send so many, then wait for `FaultServer.release`. What is on its way by then is little: the
            kernel's buffer on this side is kept small.
        hold_head: Wait for `FaultServer.release` before the first byte of the answer.
        drip_head: Send one more header line now and then, without an end, until the client goes.
        rate: Bytes per second, at most.
        body: Sent in place of the content.
        corrupt_at: The byte at this offset is inverted.
        etag: In place of the content's own.
        ignore_range: Answer 200 with the whole content.
        shift_range: Added to the offsets in Content-Range.
        framing: ``length``, ``chunked``, ``broken-chunks`` or ``close`` (the end is the end of the connection).
        extra: Bytes sent beyond the content, within what the framing announces.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False
    reset: bool = False
    abort_after: int | None = None
    stall_after: int | None = None
    hold_after: int | None = None
    hold_head: bool = False
    drip_head: bool = False
    rate: int | None = None
    body: bytes | None = None
    corrupt_at: int | None = None
    etag: str | None = None
    ignore_range: bool = False
    shift_range: int = 0
    framing: str = "length"
    extra: int = 0

    def __post_init__(self) -> None:
        if self.reset and not self.hang_up and self.abort_after is None:
            raise ValueError("reset says how a connection ends: give hang_up or abort_after too")
        if self.framing not in _FRAMINGS:
            raise ValueError(f"framing={self.framing!r} makes no sense: one of {', '.join(_FRAMINGS)}")


OK = Fault()


@dataclass(frozen=True)
class Seen:
    """One request, as the server saw it. ``sent`` is a list of one: the bytes of the body handed to the kernel."""

    method: str
    path: str
    headers: dict[str, str]
    sent: list[int]
    protocol: str = "HTTP/1.1"


@dataclass
class _Page:
    content: bytes | str
    etag: str | None
    size: int
    faults: list[Fault]
    last_modified: str | None = None


class FaultServer:
    """Serves what it is given, on a port of 127.0.0.1, until it is closed; over TLS if it is given a context."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._pages: dict[str, _Page] = {}
        self._change = threading.Condition()
        self._seen: list[Seen] = []
        self._released = threading.Event()
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.plug()

    def add(
        self,
        path: str,
        content: bytes | os.PathLike[str],
        faults: Iterable[Fault] = (),
        *,
        etag: str | None = "",
        last_modified: str | None = None,
    ) -> str:
        """Serve *content* (bytes, or a file that is read as it is sent) at *path*; return its URL.

        An empty *etag* means a strong one made from the content, None means that none is sent.
        """
        if isinstance(content, bytes):
            size, mark = len(content), hashlib.sha256(content).hexdigest()[:16]
            page = _Page(content, etag, size, list(faults), last_modified)
        else:
            facts = os.stat(content)
            size, mark = facts.st_size, f"{facts.st_ino}-{facts.st_mtime_ns}"
            page = _Page(os.fspath(content), etag, size, list(faults), last_modified)
        if etag == "":
            page.etag = f'"{mark}"'
        with self._change:
            self._pages[path] = page
        return self.url(path)

    def url(self, path: str) -> str:
        """Return the URL of *path*."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{path}"

    def seen(self, path: str | None = None) -> list[Seen]:
        """Return the requests so far, for *path* if it is given."""
        with self._change:
            return [seen for seen in self._seen if path is None or seen.path == path]

    def methods(self, path: str | None = None) -> list[str]:
        """Return the methods of the requests so far."""
        return [seen.method for seen in self.seen(path)]

    def sent(self, path: str | None = None) -> int:
        """Return the bytes of bodies sent so far."""
        return sum(seen.sent[0] for seen in self.seen(path))

    def wait_for_sent(self, count: int, timeout: float = 30.0) -> None:
        """Wait until *count* bytes of bodies have been sent."""
        with self._change:
            enough = self._change.wait_for(lambda: sum(seen.sent[0] for seen in self._seen) >= count, timeout)
        if not enough:  # Not an assert statement: with -O it would say nothing.
            raise AssertionError(f"only {self.sent()} of {count} bytes were sent")

    def wait_for_requests(self, count: int, timeout: float = 30.0) -> None:
        """Wait until *count* requests have come."""
        with self._change:
            if not self._change.wait_for(lambda: len(self._seen) >= count, timeout):
                raise AssertionError(f"{len(self._seen)} of {count} requests came")

    def release(self) -> None:
        """Let go on what a ``hold_after`` holds, now and later."""
        self._released.set()

    def unplug(self) -> None:
        """Stop listening and cut every connection: from now on connections are refused."""
        with self._change:
            listener, self._listener = self._listener, None
            connections = tuple(self._connections)
        if listener is not None:
            # A blocked accept ends with a shutdown, not with a close.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # Gone already.

    def plug(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def close(self) -> None:
        """Stop, and wait for every thread."""
        self._closing.set()
        self.unplug()
        self.release()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, target: Callable[[socket.socket], None], connection: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(connection,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._change:
                if self._listener is not listener:  # Unplugged between the accept and here.
                    connection.close()
                    return
                self._connections.add(connection)
                self._start(self._serve, connection)

    def _serve(self, plain: socket.socket) -> None:
        connection = plain
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(plain, server_side=True)
                with self._change:
                    self._connections.add(connection)
            with connection.makefile("rb") as reader:
                while self._answer(connection, reader):
                    pass
        except OSError:
            pass  # The client has gone, does not trust us, or was cut off on purpose.
        finally:
            with self._change:
                self._connections -= {plain, connection}
            connection.close()
            plain.close()

    def _answer(self, connection: socket.socket, reader: BufferedReader) -> bool:
        """Answer one request; False if the connection must end."""
        line = reader.readline().decode("latin-1").split()
        if len(line) != 3:
            return False
        headers: dict[str, str] = {}
        while text := reader.readline().decode("latin-1").strip():
            name, _, value = text.partition(":")
            name = name.lower()
            # RFC 9110, 5.3: several lines of one name mean one list.
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        length = headers.get("content-length", "")
        reader.read(int(length) if length.isascii() and length.isdigit() else 0)  # A body, which nobody here wants.
        seen = Seen(line[0], line[1], headers, [0], line[2])
        with self._change:
            self._seen.append(seen)
            self._change.notify_all()
            page = self._pages.get(line[1])
            fault = page.faults.pop(0) if page is not None and page.faults else OK
        if page is None:
            fault = Fault(status=404) if fault is OK else fault
            page = _Page(b"", None, 0, [])
        if fault.hang_up:
            if fault.reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if fault.hold_after is not None or fault.rate is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SLICE_BYTES)
        if fault.hold_head:
            self._released.wait()
        if fault.drip_head:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self._closing.wait(_DRIP_S):  # What is simulated is a slow server; no test waits for this.
                connection.sendall(b"X-Drip: 1\r\n")
            return False
        return self._send(connection, seen, page, fault)

    def _send(self, connection: socket.socket, seen: Seen, page: _Page, fault: Fault) -> bool:
        etag = fault.etag or page.etag
        size = page.size if fault.body is None else len(fault.body)
        status, start, stop = 200, 0, size
        answer: dict[str, str] = {"Accept-Ranges": "bytes"}
        if etag:
            answer["ETag"] = etag
        if page.last_modified:
            answer["Last-Modified"] = page.last_modified
            answer["Date"] = "Fri, 20 Nov 2026 12:00:00 GMT"
        span = None if fault.ignore_range else _span(seen.headers.get("range", ""), size)
        if span is not None and seen.headers.get("if-range") in {None, etag, page.last_modified}:
            start, stop = span
            if start >= size:
                status, start, stop = 416, 0, 0
                answer["Content-Range"] = f"bytes */{size}"
            else:
                status = 206
                shift = fault.shift_range
                answer["Content-Range"] = f"bytes {start + shift}-{stop - 1 + shift}/{size}"
        elif etag and seen.headers.get("if-none-match") == etag:
            status, stop = 304, 0
        if fault.status is not None:
            status, start, stop = fault.status, 0, 0
        self._frame(answer, seen, fault, None if status == 304 else stop - start + fault.extra)
        reason = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
        head = f"HTTP/1.1 {status} {reason}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in answer.items() if value) + "\r\n"
        connection.sendall(head.encode("latin-1"))
        if seen.method == "HEAD" or status == 304:
            return True
        if not self._send_body(connection, seen, page, fault, start, stop):
            return False
        return fault.framing != "close" and answer.get("Connection") != "close"

    @staticmethod
    def _frame(answer: dict[str, str], seen: Seen, fault: Fault, length: int | None) -> None:
        """Complete the head in *answer*: how the body of *length* is framed, and what *fault* says of headers."""
        if fault.framing in {"chunked", "broken-chunks"}:
            answer["Transfer-Encoding"] = "chunked"
        elif fault.framing == "length" and length is not None:
            answer["Content-Length"] = str(length)
        else:
            answer["Connection"] = "close"
        if "close" in seen.headers.get("connection", "").lower() or seen.protocol == "HTTP/1.0":
            answer["Connection"] = "close"
        replaced = {name.lower() for name in fault.headers}
        for name in [name for name in answer if name.lower() in replaced]:
            del answer[name]
        answer.update(fault.headers)

    def _send_body(
        self, connection: socket.socket, seen: Seen, page: _Page, fault: Fault, start: int, stop: int
    ) -> bool:
        """Send the bytes from *start* to *stop*, as far as *fault* lets it; False if the connection must end."""
        at, end = start, stop + fault.extra
        with _opened(page, fault) as read:
            while at < end:
                if not self._may_go_on(connection, fault, at - start):
                    return False
                limit = _limit(fault, at - start, end - at)
                piece = read(at, min(limit, stop - at)) if at < stop else bytes(limit)  # Beyond the content: zeros.
                _write(connection, fault, piece)
                at += len(piece)
                with self._change:
                    seen.sent[0] += len(piece)
                    self._change.notify_all()
                # What is simulated is a slow link; no test waits for this to have happened.
                if fault.rate is not None and self._closing.wait(len(piece) / fault.rate):
                    return False
        if fault.framing == "chunked":
            connection.sendall(b"0\r\n\r\n")
        return True

    def _may_go_on(self, connection: socket.socket, fault: Fault, done: int) -> bool:
        """Do what *fault* does once *done* bytes of the body have been sent; False if that was the end."""
        if fault.abort_after is not None and done >= fault.abort_after:
            if fault.reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if fault.stall_after is not None and done >= fault.stall_after:
            connection.recv(1)  # Nothing comes until the client has gone, or the server is unplugged.
            return False
        if fault.hold_after is not None and done >= fault.hold_after:
            self._released.wait()
        if fault.framing == "broken-chunks" and done > 0:
            connection.sendall(b"not a number\r\n")
            return False
        return True


def _span(header: str, size: int) -> tuple[int, int] | None:
    """Return (start, stop) of the one range that *header* asks for (RFC 9110, 14.1.2); None: the whole content."""
    matched = re.fullmatch(r"bytes=(\d*)-(\d*)", header, re.ASCII)
    if matched is None or not any(matched.groups()):
        return None  # Malformed, or several ranges, which a server may answer with everything.
    first, last = matched.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


@contextmanager
def _opened(page: _Page, fault: Fault) -> Iterator[Callable[[int, int], bytes]]:
    """Yield a function from (offset, length) to the bytes of the content there."""

    def corrupted(at: int, piece: bytes) -> bytes:
        if fault.corrupt_at is None or not at <= fault.corrupt_at < at + len(piece):
            return piece
        index = fault.corrupt_at - at
        return piece[:index] + bytes([piece[index] ^ 0xFF]) + piece[index + 1 :]

    content = page.content if fault.body is None else fault.body
    if isinstance(content, bytes):
        yield lambda at, length: corrupted(at, content[at : at + length])
        return
    with open(content, "rb") as file:
        yield lambda at, length: corrupted(at, os.pread(file.fileno(), length, at))


def _limit(fault: Fault, done: int, left: int) -> int:
    """Return how many bytes are sent next, so that every mark of *fault* is met exactly."""
    limits = [SLICE_BYTES, left]
    if fault.rate is not None:
        limits.append(max(1, fault.rate // 20))
    limits += [m - done for m in (fault.abort_after, fault.stall_after, fault.hold_after) if m is not None and done < m]
    return min(limits)


def _write(connection: socket.socket, fault: Fault, piece: bytes) -> None:
    if fault.framing in {"chunked", "broken-chunks"}:
        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
    connection.sendall(piece)
