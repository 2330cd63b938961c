"""The floor of a verified, durable download: the least work that gives the same promise, stage by stage.

Received alone, hashed alone, written and synced alone, each in one thread over 1 MiB buffers. Whoever overlaps them
perfectly needs as long as the slowest stage, or as all their processor time (the server's too, which shares the
machine) spread over all processors: whichever is longer.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from .actors import Server

_BUFFER = 1 << 20
_SYNC_EVERY = 32


def download_floor(server: Server, url: str, directory: Path) -> float:
    """Return the floor in seconds for the content at *url*."""
    before = float(server.stats()["cpu"])
    size, *receiving = _timed(lambda: _receive(url))
    serving = float(server.stats()["cpu"]) - before
    stages = [receiving, _timed(lambda: _hash(size))[1:], _timed(lambda: _write(directory / "floor", size))[1:]]
    (directory / "floor").unlink()
    processors = os.cpu_count() or 1
    return max(*(wall for wall, _ in stages), (sum(used for _, used in stages) + serving) / processors)


def _timed(stage: Callable[[], int]) -> tuple[int, float, float]:
    """Return what *stage* returns, its wall time and its processor time."""
    wall, used = time.perf_counter(), time.process_time()
    size = stage()
    return size, time.perf_counter() - wall, time.process_time() - used


def _receive(url: str) -> int:
    parts = urlsplit(url)
    assert parts.hostname is not None
    size, buffer = 0, bytearray(_BUFFER)
    with socket.create_connection((parts.hostname, parts.port or 80)) as connection:
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        announced = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        total = int(announced.partition(b":")[2])
        while size < total:  # Whole buffers: a receiver that is faster than its sender would wake up for each piece.
            size += connection.recv_into(buffer, min(_BUFFER, total - size), socket.MSG_WAITALL)
    return size


def _hash(size: int) -> int:
    hasher, buffer = hashlib.sha256(), bytes(_BUFFER)
    for _ in range(size // _BUFFER):
        hasher.update(buffer)
    hasher.update(buffer[: size % _BUFFER])
    return size


def _write(path: Path, size: int) -> int:
    buffer = os.urandom(_BUFFER)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with ThreadPoolExecutor(1) as early:  # The disk is busy while more is written, as in any good downloader.
            for number, start in enumerate(range(0, size, _BUFFER), 1):
                os.write(descriptor, buffer[: size - start])
                if number % _SYNC_EVERY == 0:
                    early.submit(os.fdatasync, descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size
