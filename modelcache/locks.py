"""Mutual exclusion between processes, threads and forks. The only module that opens lock files.

A lock here saves work; correctness never rests on it (I9). It stands on fasteners, whose ``InterProcessLock`` uses
POSIX record locks (fcntl(2)). These have three traps, each measured: two lock objects on one path in one process both
succeed; any close of any descriptor of the file drops the process's lock; a forked child's copy says "acquired" and
owns nothing. So:

  * One `_Slot` per path and process, with a thread lock above the record lock; a fork starts with an empty registry.
  * Only this module opens a lock file, and while a slot is in use only its owner does.
  * After each acquire the inode of the path is compared with the descriptor's, so that the holder may unlink the
    file when it lets go: none remain when all are done.

fasteners waits by polling (50 ms from hand to hand). Here a waiter blocks in the kernel instead, in a helper thread,
and asks for the lock *shared*: the moment the holder lets go (or dies) all waiters wake together, look whether what
they wait for is there, and mostly need no lock at all. Their wait is bounded and can be interrupted, which a plain
F_SETLKW is not. A holder that failed may leave a note in the file for those who wait for it, so that sixty-four
processes do not fail one after the other.

A *sign* is another use of a record lock: a file that a process holds for as long as it lives (`leases`). The same traps
hold: its own process never opens it a second time, and a forked child has none until it makes its own.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from failpoints import fail_point

from . import commit, process, sharing
from .errors import LockTimeoutError

if TYPE_CHECKING:
    import fasteners

_POLL_S = 0.005
_SAY_AFTER_S = 1.0  # I11: whoever waits longer than this is told for whom.
_CHECK_S = 0.2  # How soon a wait notices that its caller has given up; being handed the lock takes no such while.
_NOTE_BYTES_MAX = 1 << 16
_OPEN_TRIES = 1000  # Each after the first needs another process that makes, or removes, the file at that moment.


class LockUnavailableError(Exception):
    """There are no locks here (the file system has none, or nothing may be written): go on without (I9)."""


class Turn:
    """What came of waiting for a lock.

    Attributes:
        held: Whether the lock is held now; False if ``done()`` said that it is no longer needed, or for a note.
        note: What the process that was waited for left behind, ``b""`` if it left nothing that was heeded.
    """

    def __init__(self, lock: fasteners.InterProcessLock | None, note: bytes = b"") -> None:
        self._lock = lock
        self._pid = os.getpid()
        self.held = lock is not None
        self.note = note

    def leave_note(self, note: bytes) -> None:
        """Leave *note* for the processes that wait now; they take it in place of a turn of their own."""
        if self._lock is not None and len(note) < _NOTE_BYTES_MAX // 2:
            _write(self._lock.lockfile, note)

    def release(self, path: str) -> None:
        """Let go of the lock, if it is held, and remove its file."""
        # A child that was forked inside the block owns nothing, and must not take the parent's file away.
        if self._lock is None or self._pid != os.getpid():
            return
        fail_point("locks.before-unlink")
        commit.remove_quietly(path)
        fail_point("locks.before-release")
        self._lock.release()


class _KernelWait:
    """A blocking request for a shared lock, made by a thread of its own, so that its caller can give up."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.ended = threading.Event()
        self.refused = False
        self.note = b""
        threading.Thread(target=self._run, name="modelcache-lock-wait", daemon=True).start()

    def _run(self) -> None:
        try:
            fcntl.lockf(self.file, fcntl.LOCK_SH)
            self.note = _read(self.file)[1]
        except OSError:
            # EDEADLK is the kernel's guess over whole processes: wrong where each of two processes holds one lock in
            # one thread and waits for the other's in another one. ENOLCK: no locks here.
            self.refused = True
        # The close lets go of the shared lock. No other descriptor of the file is open in this process: the slot
        # sees to that.
        self.file.close()
        self.ended.set()

    def holder(self) -> str:
        """Return who holds the lock, as far as the file tells."""
        try:
            return _read(self.file)[0].decode(errors="replace") or "an unnamed process"
        except (OSError, ValueError):  # Closed by now: the wait has just ended.
            return "a process that has just let go"


class _Slot:
    """What this process does with one lock file: at most one thread at a time does anything."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.users = 0
        # A wait that its caller gave up still sits in the kernel; the next thread joins it instead of opening the file.
        self.wait: _KernelWait | None = None


_registry: dict[str, _Slot] = {}
_registry_guard = threading.Lock()


# The names of the files that this process holds for as long as it lives. To open one of them drops its lock.
_held: set[str] = set()


def _after_fork() -> None:
    """Forget everything: record locks are not inherited, and the threads that held guards do not exist here."""
    global _registry_guard
    _registry_guard = threading.Lock()
    _registry.clear()
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def exclusive(
    path: str,
    *,
    timeout: float,
    what: str,
    done: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str], object] = lambda _holder: None,
    heed: Callable[[bytes], bool] = lambda _note: True,
    check: Callable[[], object] = lambda: None,
) -> Iterator[Turn]:
    """Hold the lock file *path* for the block.

    Args:
        path: The lock file; made if it is missing, gone when the last holder lets go.
        timeout: Longest wait, in seconds.
        what: What is locked, for the error.
        done: Asked before and after each wait: whether the lock is no longer needed.
        on_wait: Told the holder, once, when the wait has lasted a second.
        heed: Tells whether a note that was left is for this caller too; else it goes on trying for the lock.
        check: Called several times a second during the wait; what it raises ends it.

    Raises:
        LockTimeoutError: Another process, or thread, held it all the time.
        LockUnavailableError: There are no locks here.
    """
    wait = _Patience(timeout, what, on_wait, check)
    directory, name = os.path.split(path)
    key = f"{_real(directory)}/{name}"
    with _registry_guard:
        slot = _registry.setdefault(key, _Slot())
        slot.users += 1
    try:
        holder = f"another thread of process {os.getpid()}"
        wait.until(lambda seconds: slot.guard.acquire(timeout=seconds), lambda: holder)
        try:
            turn = Turn(None) if done() else _take(path, slot, wait, done, heed)
            try:
                yield turn
            finally:
                turn.release(path)
        finally:
            slot.guard.release()
    finally:
        with _registry_guard:
            slot.users -= 1
            if slot.users == 0 and (slot.wait is None or slot.wait.ended.is_set()):
                _registry.pop(key, None)


def probe(path: str) -> bool:
    """Tell whether the lock file *path* can be had right now; if so, it is removed."""
    try:
        with exclusive(path, timeout=0, what=path) as turn:
            return turn.held
    except LockTimeoutError:
        return False


class Sign:
    """A file that tells others that this process lives: the kernel lets go of its lock when the process ends."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def write(self, offset: int, data: bytes) -> None:
        """Write *data* at *offset*; raise OSError if not all of it was written."""
        if os.pwrite(self._descriptor, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)  # What stops a write short, mostly.

    @property
    def is_there(self) -> bool:
        """Whether the file still has a name: somebody may have deleted the whole cache."""
        return os.fstat(self._descriptor).st_nlink > 0

    def withdraw(self) -> None:
        """Remove the file and let go of its lock, in this order: it is never seen without."""
        commit.remove_quietly(self.path)
        self.abandon()

    def abandon(self) -> None:
        """Close the file alone: in a forked child, where it is the parent's."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError:
                pass  # It is closed, whatever it says (close(2)), and it only informs.
        _held.discard(os.path.basename(self.path))


def sign(staged: str, path: str) -> Sign:
    """Make the file *path*, whose name is a token of this process, and hold its lock until it is withdrawn.

    It is locked while it is called *staged*, so that nobody ever sees it without its lock. Where there are no locks,
    its name alone tells whether this process lives.

    Raises:
        OSError: It could not be made.
    """
    name = os.path.basename(path)
    _held.add(name)  # Before another thread can find it.
    descriptor = -1
    try:
        descriptor = commit.create_file(staged, reading=True)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # I9.
        fail_point("locks.before-sign")
        commit.rename(staged, path)
    except BaseException:
        if descriptor >= 0:
            os.close(descriptor)
            commit.remove_quietly(staged)
        _held.discard(name)
        raise
    return Sign(path, descriptor)


def is_abandoned(path: str) -> bool:
    """Tell whether the process that made the file *path* by `sign` is certainly gone.

    Its name tells, if it is of this machine; of another one, or of another container, its lock does. In doubt it lives.
    """
    name = os.path.basename(path)
    if name in _held:
        return False
    dead = process.is_dead(name)
    if dead is not None:
        return dead
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return error.errno == errno.ENOENT
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False  # Held; or there are no locks here.
    finally:
        os.close(descriptor)
    return True


_excluding: set[int] = set()  # The file systems where this process has seen that a lock keeps another one out.
# Standard library alone: it takes 10 ms. It must not be this process, which never finds its own locks in its way.
_RIVAL = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_NOFOLLOW)
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("refused")
"""


def check_excludes(path: str) -> None:
    """Check, once for a file system, that the lock file *path*, which this process holds, keeps another one out.

    Raises:
        LockUnavailableError: It does not, or that could not be tried.
    """
    import subprocess
    import sys

    try:
        device = os.stat(path).st_dev
        if device in _excluding:
            return
        command = [sys.executable, "-I", "-S", "-c", _RIVAL, path]
        said = subprocess.run(command, capture_output=True, timeout=60, check=False)  # noqa: S603  # Ourselves.
    except (OSError, subprocess.SubprocessError) as error:
        raise LockUnavailableError(f"a second process, to try the lock, could not be started ({error})") from error
    if said.stdout.strip() != b"refused":
        raise LockUnavailableError(
            "two processes got one lock" if said.returncode == 0 else "a second process could not try the lock"
        )
    _excluding.add(device)


@functools.lru_cache(maxsize=64)
def _real(directory: str) -> str:
    """Return *directory* without symbolic links: one lock file may be asked for by several spellings of its path."""
    return os.path.realpath(directory)


class _Patience:
    """A bounded wait that can be given up, and that says for whom, once, after a second."""

    def __init__(
        self, timeout: float, what: str, on_wait: Callable[[str], object], check: Callable[[], object]
    ) -> None:
        self.started = time.monotonic()
        self.timeout, self.what, self.on_wait, self.check = timeout, what, on_wait, check
        self.said = False

    def until(self, attempt: Callable[[float], bool], holder: Callable[[], str]) -> None:
        """Call *attempt* with the seconds it may take until it is true; raise LockTimeoutError when time is up."""
        while True:
            waited = time.monotonic() - self.started
            if attempt(max(0.0, min(self.timeout - waited, _CHECK_S))):
                return
            self.look_up(holder)

    def look_up(self, holder: Callable[[], str]) -> None:
        """Ask whether to go on waiting, and say for whom; raise LockTimeoutError when time is up."""
        self.check()
        waited = time.monotonic() - self.started
        if waited >= self.timeout:
            raise LockTimeoutError(what=self.what, holder=holder(), seconds=round(waited, 3))
        if not self.said and waited >= _SAY_AFTER_S:
            self.said = True
            self.on_wait(holder())


def _take(path: str, slot: _Slot, patience: _Patience, done: Callable[[], bool], heed: Callable[[bytes], bool]) -> Turn:
    """Return the turn: the lock held, or the reason why it need not be."""
    while True:
        if slot.wait is None or slot.wait.ended.is_set():
            lock = _try(path)
            if lock.acquired:
                return Turn(lock)
            if patience.timeout <= 0:
                holder = _read(lock.lockfile)[0].decode(errors="replace")
                lock.lockfile.close()
                raise LockTimeoutError(what=patience.what, holder=holder, seconds=0)
            slot.wait = _KernelWait(lock.lockfile)
        wait = slot.wait
        fail_point("locks.before-wait")
        patience.until(wait.ended.wait, wait.holder)
        slot.wait = None
        if done():
            return Turn(None)
        if wait.note and heed(wait.note):
            return Turn(None, wait.note)
        if wait.refused:
            # Rare, so plain polling will do; drawn, so that two processes do not stay in step.
            _nap(_POLL_S)
            patience.look_up(lambda: "another process")


def _nap(seconds_max: float) -> None:
    time.sleep(random.uniform(0, seconds_max))  # noqa: S311  # Not a secret.


def _try(path: str) -> fasteners.InterProcessLock:
    """Return the lock, acquired if nobody has it; else its file stays open for a wait."""
    import fasteners  # 5 ms, which who only leases, or sweeps, does not need.

    lock = fasteners.InterProcessLock(path)
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            raise LockUnavailableError(str(error)) from error
        lock.lockfile = os.fdopen(descriptor, "r+b", buffering=0)
        fail_point("locks.before-acquire")
        try:
            lock.trylock()  # Not acquire(): it makes directories and an object to wait with, for four times the price.
            lock.acquired = True
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:  # Held by another (fcntl(2), F_SETLK).
                return lock
            lock.lockfile.close()
            raise LockUnavailableError(str(error)) from error
        try:
            current = _is_current(descriptor, path)
        except OSError as error:
            lock.release()
            raise LockUnavailableError(str(error)) from error
        if current:
            fail_point("locks.after-acquire")
            _write(lock.lockfile, f"process {os.getpid()} on {os.uname().nodename}".encode() + b"\n", anew=True)
            return lock
        # Its last holder unlinked the file between our open and our lock: we hold a lock that nobody else will meet.
        lock.release()


def _open(path: str) -> int:
    """Return a descriptor of the lock file *path*, which is made if it is missing; raise OSError."""
    sharing.guard(path)
    for _ in range(_OPEN_TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
                raise
        else:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        if os.path.lexists(path):
            # Nobody holds a link, a FIFO or a socket: it is in everybody's way, and was put there by somebody else.
            commit.remove_odd(path)
        try:
            return commit.make_lock(path)
        except FileExistsError:
            continue
    raise OSError(errno.EBUSY, "others keep making and removing it", path)


def _is_current(descriptor: int, path: str) -> bool:
    """Tell whether *path* still names the file behind *descriptor*."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def _write(file: IO[bytes], data: bytes, *, anew: bool = False) -> None:
    """Append to the lock file; it only informs, so a full disk or a short write does not matter."""
    try:
        found = os.fstat(file.fileno())
        if found.st_nlink > 1:
            return  # Another user may have put a second name of somebody's file here.
        size = found.st_size
        # ext4 flushes a file that was cut to nothing when it is closed: ten times the price of all else.
        if anew and size:
            os.ftruncate(file.fileno(), size := 0)
        os.pwrite(file.fileno(), data, size)
    except OSError:
        return


def _read(file: IO[bytes]) -> tuple[bytes, bytes]:
    """Return (holder, note) from the open lock file. Opening it again would drop the locks of this process."""
    try:
        holder, _, note = os.pread(file.fileno(), _NOTE_BYTES_MAX, 0).partition(b"\n")
    except OSError:
        return b"", b""  # It only informs.
    return holder, note
