"""``python -m bench.lock_worker KIND PATH``: a process that takes a lock and lets go, as its parent commands.

``time N`` takes and releases it N times and prints the seconds of each; ``take`` prints when it had the lock, by the
monotonic clock that all processes share; ``release`` lets go, and prints when it began to.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def kernel(path: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what locks by a blocking fcntl(2) alone: the floor."""

    @contextmanager
    def locked() -> Iterator[None]:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)

    return locked


def ours(path: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what locks as a fetch does."""
    from modelcache import locks

    return lambda: locks.exclusive(path, timeout=60, what="bench")


def filelock(path: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what locks by filelock, at its default poll interval."""
    made = importlib.import_module("filelock").FileLock(path)
    return lambda: made


def fasteners(path: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what locks by fasteners, at its default delays."""
    made = importlib.import_module("fasteners").InterProcessLock(path)
    return lambda: made


KINDS = {"fcntl(2)": kernel, "modelcache": ours, "filelock": filelock, "fasteners": fasteners}


def main(kind: str, path: str) -> None:
    """Do what each line says."""
    try:
        lock = KINDS[kind](path)
    except ImportError:
        print("missing", flush=True)
        return
    print("ready", flush=True)
    held: AbstractContextManager[Any] | None = None
    for line in sys.stdin:
        command, _, count = line.strip().partition(" ")
        if command == "time":
            started = time.perf_counter()
            for _ in range(int(count)):
                with lock():
                    pass
            print((time.perf_counter() - started) / int(count), flush=True)
        elif command == "take":
            held = lock()
            held.__enter__()
            print(time.monotonic(), flush=True)
        elif held is not None:
            now = time.monotonic()
            held.__exit__(None, None, None)
            print(now, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
