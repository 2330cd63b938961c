"""The processes of a measurement, from their parent's side: workers that ask, and the server that they ask."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .measure import MissingError

MB = 1_000_000
_TOLD_WITHIN_S = 0.3


class Worker:
    """A process that asks one subject (`bench.worker`)."""

    def __init__(self, subject: str, root: Path, server: str = "", digests: dict[str, str] | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "bench.worker", subject, str(root), server, json.dumps(digests or {})]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def wait(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            MissingError: The peer is not here, or failed; with the reason.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise MissingError("its process died")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise MissingError(answer["missing"])
        return answer

    def tell(self, do: str, **arguments: Any) -> None:
        """Let it do something, and do not wait."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `wait` says what it died of.

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Let it do something; return the answer."""
        self.tell(do, **arguments)
        return self.wait()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait()


class Server:
    """The server's process; ``url`` is where it is."""

    def __init__(self, directory: Path, latency_s: float = 0.0) -> None:
        command = [sys.executable, "-m", "bench.server", str(directory), str(latency_s)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().strip()}"

    def stats(self) -> dict[str, Any]:
        """Return the counts so far: ``GET``, ``HEAD``, ``bytes`` and ``cpu`` in seconds."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/stats") as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def serving(directory: Path, latency_s: float = 0.0) -> Iterator[Server]:
    """Serve *directory* for the block."""
    server = Server(directory, latency_s)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def workers(
    subject: str, count: int, root: Path, server: str = "", digests: dict[str, str] | None = None
) -> Iterator[list[Worker]]:
    """Start *count* workers that share *root*, wait until all are ready, and end them after the block."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            worker = Worker(subject, root, server, digests)
            stack.callback(worker.close)
            made.append(worker)
        for worker in made:
            worker.wait()
        yield made


def together(asked: list[Worker], do: str, arguments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let all of *asked* do something, each with its *arguments*; return their answers."""
    for worker, own in zip(asked, arguments, strict=True):
        worker.tell(do, **own)
    return [worker.wait() for worker in asked]


def in_a_moment() -> float:
    """Return the moment at which all workers that are told now can begin at once, by the monotonic clock."""
    return time.monotonic() + _TOLD_WITHIN_S


def model(directory: Path, name: str, size: int) -> str:
    """Make the file *name* with *size* bytes that do not compress; return its sha256."""
    directory.mkdir(parents=True, exist_ok=True)
    source, hasher = random.Random(name), hashlib.sha256()
    with (directory / name).open("wb") as file:
        block = source.randbytes(min(size, 4 * MB))
        for start in range(0, size, len(block) or 1):
            piece = block[: size - start]
            file.write(piece)
            hasher.update(piece)
    return hasher.hexdigest()


def run_process(command: list[str], environ: dict[str, str] | None = None) -> None:
    """Run *command* to its end, its output thrown away.

    Raises:
        MissingError: There is no such program, or it failed.
    """
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    try:
        child = os.posix_spawnp(command[0], command, {**os.environ, **(environ or {})}, file_actions=quiet)
    except FileNotFoundError:
        raise MissingError(f"{command[0]} is not installed") from None
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise MissingError(f"{command[0]} ended with {os.waitstatus_to_exitcode(status)}")
