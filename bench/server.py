"""``python -m bench.server DIRECTORY [LATENCY_S]``: serves files as a model hub does, by sendfile(2), and counts.

The standard library's server, so that nothing of ours decides a comparison. Its processor time is asked for by
``/stats``, because it shares the machine with what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .peers import REVISION


class Server(ThreadingHTTPServer):
    """Serves the files in *directory*, each answer *latency_s* late."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, directory: Path, latency_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory, self.latency_s = directory, latency_s
        self.counts = {"GET": 0, "HEAD": 0, "bytes": 0}
        self.guard = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that goes in the middle, as some do, is no fault of the server."""

    def count(self, what: str, number: int = 1) -> None:
        """Add *number* to a count."""
        with self.guard:
            self.counts[what] += number


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        if self.path == "/stats":
            self._stats()
        else:
            self._file()

    def do_HEAD(self) -> None:
        self._file()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _stats(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with self.server.guard:
            data = json.dumps({**self.server.counts, "cpu": used.ru_utime + used.ru_stime}).encode()
        self._head(200, len(data))
        self.wfile.write(data)

    def _file(self) -> None:
        time.sleep(self.server.latency_s)  # A link's latency is what is simulated.
        self.server.count(self.command)
        path = self.server.directory / self.path.rpartition("/")[2]
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            self._head(404, 0)
            return
        try:
            size = os.fstat(descriptor).st_size
            first, last = self._range(size)
            partial = (first, last) != (0, size)
            extra = {"ETag": f'"{path.name}-{size}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
            if partial:
                extra["Content-Range"] = f"bytes {first}-{last - 1}/{size}"
            self._head(206 if partial else 200, last - first, **extra)
            if self.command == "GET":
                self._body(descriptor, first, last)
        except OSError:
            self.close_connection = True  # The client has gone.
        finally:
            os.close(descriptor)

    def _body(self, descriptor: int, first: int, last: int) -> None:
        while first < last:
            sent = os.sendfile(self.connection.fileno(), descriptor, first, min(1 << 20, last - first))
            first += sent
            self.server.count("bytes", sent)

    def _range(self, size: int) -> tuple[int, int]:
        unit, _, span = self.headers.get("Range", "").partition("=")
        if unit != "bytes":
            return 0, size
        first, _, last = span.partition("-")
        return int(first or 0), min(size, int(last) + 1) if last else size

    def _head(self, status: int, length: int, **extra: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in extra.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()


if __name__ == "__main__":
    serving = Server(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    print(serving.server_address[1], flush=True)
    serving.serve_forever()
