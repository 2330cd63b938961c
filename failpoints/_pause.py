"""Both sides of a pause: the thread that waits, and whoever lets it go, in this process or another one.

A thread waits in a read of a pipe. If its process has a ``FAILPOINTS_DIR``, the pipe is a FIFO in that directory:

    <name>.paused-<pid>-<number>    a thread waits; a byte written to this FIFO lets it go
    <name>.release                  nobody waits at this point any more

  * A FIFO gets its name once it can be read, so that whoever sees it can let go of its thread.
  * A FIFO without a reader belonged to a process that died: it counts for nothing, and is removed.
  * A thread looks for ``.release`` after its FIFO is named; `release` looks for FIFOs after ``.release`` is made. One
    of the two sees the other.
  * The name goes before the byte is written: after `release` returned, `wait_paused` sees only new arrivals.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import threading
import time

from . import TYPE_CHECKING
from ._spec import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = re.compile(r"(?P<point>.+)\.paused-(?P<pid>[0-9]+)-[0-9]+", re.DOTALL)
_POLL_S = 0.002  # Only of the side that looks for arrivals; there is no portable wait for a new name in a directory.
_numbers = itertools.count(1)  # A name is used once, so that who removes a stale one cannot hit its successor.


class Gate:
    """Where one thread of one process waits, once."""

    def __init__(self, name: str, directory: str | None) -> None:
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._mark = self._released = ""
        if directory is None:
            self._reader, self._writer = os.pipe()
            return
        os.makedirs(directory, exist_ok=True)
        self._released = f"{directory}/{name}.release"
        suffix = f"{os.getpid()}-{next(_numbers)}"
        staged = f"{directory}/.{suffix}"
        os.mkfifo(staged)
        # A FIFO opens for writing without waiting only when it is open for reading.
        self._reader = os.open(staged, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer = os.open(staged, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._reader, True)
        self._mark = f"{directory}/{name}.paused-{suffix}"
        os.rename(staged, self._mark)

    def wait(self) -> None:
        """Wait until the gate is open, or forgotten. The thread sleeps in the kernel."""
        if self._is_ours() and not (self._released and os.path.exists(self._released)):
            os.read(self._reader, 1)

    def open(self) -> None:
        """Let the thread that waits, or is about to, go on."""
        if self._is_ours():
            _unlink(self._mark)
            os.write(self._writer, b"\n")

    def close(self) -> None:
        """Take the gate away, once its thread has passed."""
        if self._is_ours():
            _unlink(self._mark)
        os.close(self._reader)
        os.close(self._writer)

    def forget(self) -> None:
        """In a forked child: let go of the pipe, which is the parent's, and of the thread that waits if it is here."""
        os.close(self._writer)
        if self._thread != threading.get_ident():
            os.close(self._reader)
            return
        # It forked in the handler of a signal, and will read from the same number again. So that one stays taken until
        # `close`, by what has nothing to read: else it could become a file of the program, which would lose a byte.
        self._writer = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(self._writer, self._reader, inheritable=False)

    def _is_ours(self) -> bool:
        return self._process == os.getpid()


def wait_paused(directory: str, name: str, timeout: float, count: int) -> list[int]:
    """See `failpoints.wait_paused`."""
    check_name(name)
    end = time.monotonic() + timeout
    while True:
        paused = sorted(pid for mark, pid in _marks(directory, name) if _knock(mark, b""))
        if len(paused) >= count:
            return paused
        if time.monotonic() >= end:
            raise TimeoutError(
                f"{len(paused)} of {count} threads paused at {name} within {timeout:g} s (processes {paused}). "
                f"{directory} holds {_listing(directory)}. Do they have this FAILPOINTS_DIR, and reach the point?"
            )
        time.sleep(_POLL_S)


def release(directory: str, name: str, pid: int | None) -> list[int]:
    """See `failpoints.release`."""
    check_name(name)  # Before it becomes the name of a file.
    if pid is None:
        os.makedirs(directory, exist_ok=True)
        os.close(os.open(f"{directory}/{name}.release", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
    marks = list(_marks(directory, name))
    return sorted(owner for mark, owner in marks if pid in {None, owner} and _knock(mark, b"\n"))


def _marks(directory: str, name: str) -> Iterator[tuple[str, int]]:
    for entry in _listing(directory):
        mark = _MARK.fullmatch(entry)
        if mark is not None and mark["point"] == name and _is_fifo(f"{directory}/{entry}"):
            yield f"{directory}/{entry}", int(mark["pid"])


def _knock(mark: str, byte: bytes) -> bool:
    """Write *byte* to the thread that waits at *mark*, taking its name away; with none, only see whether it lives."""
    try:
        descriptor = os.open(mark, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        _unlink(mark)
        return False
    try:
        if byte:
            _unlink(mark)
            os.write(descriptor, byte)
    except BrokenPipeError:  # It has died, or been let go, since.
        return False
    finally:
        os.close(descriptor)
    return True


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except FileNotFoundError:  # Its thread has passed.
        return False


def _listing(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:  # It had no name, or another one took it away.
        pass
