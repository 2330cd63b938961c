"""A recording twin of the ``os`` module: it does what `modelcache.commit` asks for, and writes down each change.

`commit` is the only module that changes the root, so that the log is the whole story of an operation. Whoever runs one
inserts acknowledgements into the log: from there on a power cut may not take them back. The log is a file, and a change
and its line are made under a lock, so that forked processes record into one story, in the order in which it happened.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelcache import commit


@dataclass(frozen=True)
class Change:
    """One step. ``what`` says which of the other fields mean something; a handle is one opening of one file."""

    what: str
    path: str = ""
    target: str = ""
    handle: int = -1
    offset: int = 0
    data: bytes = b""
    mtime_ns: int = 0
    key: str = ""
    allowed: frozenset[str | None] = frozenset()


class Recorder:
    """Stands in for ``os`` in `commit`. Paths are relative to *base*; what lies elsewhere is done and not recorded."""

    def __init__(self, base: Path) -> None:
        self.base = f"{base}/"
        self._story = f"{base}.log"
        self._guard = threading.RLock()
        self._depth = 0
        self._descriptor: tuple[int, int] | None = None
        self._handles: dict[int, int] = {}
        self._directories: dict[int, str] = {}
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def expect(self, key: str, *allowed: str | None) -> None:
        """From here on *key* stands for one of *allowed* (digests; None: nothing), whatever happens."""
        with self._alone():
            self._append(Change("expect", key=key, allowed=frozenset(allowed)))

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        with self._alone():
            descriptor = os.open(path, flags, mode)
            if not self._is_ours(path):
                return descriptor
            if flags & os.O_DIRECTORY:
                self._directories[descriptor] = path
                return descriptor
            self._next += 1
            self._handles[descriptor] = handle = (os.getpid() << 20) + self._next
            self._note("create" if flags & os.O_CREAT else "open", path, handle=handle)
            self._note_mode(descriptor)
            return descriptor

    def fchmod(self, descriptor: int, mode: int) -> None:
        with self._alone():
            os.fchmod(descriptor, mode)
            self._note_mode(descriptor)

    def close(self, descriptor: int) -> None:
        with self._alone():
            self._handles.pop(descriptor, None)
            self._directories.pop(descriptor, None)
            os.close(descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        with self._alone():
            offset = os.lseek(descriptor, 0, os.SEEK_CUR)
            written = os.write(descriptor, data)
            if descriptor in self._handles:
                self._note("write", handle=self._handles[descriptor], offset=offset, data=bytes(data[:written]))
            return written

    def ftruncate(self, descriptor: int, length: int) -> None:
        with self._alone():
            os.ftruncate(descriptor, length)
            self._note("truncate", handle=self._handles[descriptor], offset=length)

    def fsync(self, descriptor: int) -> None:
        with self._alone():
            os.fsync(descriptor)
            if descriptor in self._directories:
                self._note("sync-directory", self._directories[descriptor])
            elif descriptor in self._handles:
                mtime_ns = os.fstat(descriptor).st_mtime_ns
                self._note("sync-file", handle=self._handles[descriptor], mtime_ns=mtime_ns)

    def fdatasync(self, descriptor: int) -> None:
        self.fsync(descriptor)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        with self._alone():
            os.mkdir(path, mode)
            self._note("mkdir", path)

    def rmdir(self, path: str, *, dir_fd: int | None = None) -> None:
        with self._alone():
            os.rmdir(path, dir_fd=dir_fd)
            self._note("rmdir", _full(path, dir_fd))

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:
        with self._alone():
            os.unlink(path, dir_fd=dir_fd)
            self._note("unlink", _full(path, dir_fd))

    def rename(self, source: str, target: str) -> None:
        with self._alone():
            os.rename(source, target)
            self._note("rename", source, target)

    replace = rename

    def link(self, source: str, target: str, **options: Any) -> None:
        with self._alone():
            os.link(source, target, **options)
            self._note("link", source, target)

    def _note_mode(self, descriptor: int) -> None:
        """Write down whether the file may be executed: the one bit of its mode that is content."""
        if descriptor in self._handles:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode) & stat.S_IXUSR
            self._note("mode", handle=self._handles[descriptor], offset=mode)

    def _note(self, what: str, path: str = "", target: str = "", **facts: Any) -> None:
        if not path or self._is_ours(path):
            self._append(Change(what, self._below(path), self._below(target), **facts))

    @property
    def log(self) -> list[Change]:
        """What has been written down so far, by this process and those that it forked."""
        found = []
        with open(self._story, "ab+") as file:
            file.seek(0)
            while file.peek(1):
                found.append(pickle.load(file))  # Our own.
        return found

    def _append(self, change: Change) -> None:
        data = pickle.dumps(change)
        assert os.write(self._own(), data) == len(data)

    def _own(self) -> int:
        """Return a descriptor of the log that is this process's own: a lock on an inherited one would be shared."""
        if self._descriptor is None or self._descriptor[0] != os.getpid():
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.getpid(), os.open(self._story, flags, 0o600)
        return self._descriptor[1]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let no other thread or process make a change between one that is made and its line in the log."""
        with self._guard:
            self._depth += 1
            if self._depth == 1:
                fcntl.flock(self._own(), fcntl.LOCK_EX)
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    fcntl.flock(self._own(), fcntl.LOCK_UN)

    def end(self) -> None:
        """Let go of the log."""
        if self._descriptor is not None:
            os.close(self._descriptor[1])

    def _is_ours(self, path: str) -> bool:
        return f"{path}/".startswith(self.base)

    def _below(self, path: str) -> str:
        return f"{path}/".removeprefix(self.base).removesuffix("/")


def _full(path: str, dir_fd: int | None) -> str:
    """Return *path*, in the directory behind *dir_fd* if there is one."""
    return path if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{path}"


@contextmanager
def recording(base: Path) -> Iterator[Recorder]:
    """Record what happens below *base*, whose content is taken for durable at this moment."""
    recorder = Recorder(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "os", recorder)
        yield recorder
    recorder.end()
