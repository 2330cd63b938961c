"""A backend in a directory, on a shared disk as well: files as they are, events as JSON lines.

::

    events/<time>.<owner>.jsonl   one writer's, closed for good when it is large enough, or when a write failed
    files/<name>                  appear by one link, or one rename, whole and durable
    staging/<owner>               private to one writer

Each process writes to files of its own, so that nothing rests on locks, or on how a network disk appends. An append is
one write and one fdatasync(2). A file that somebody has deleted meanwhile gets no more: what was written to it comes
again in a new one. A write that failed half-way leaves a torn last line, which no reader takes; it comes
again in a new file, and what had landed of it is recognised by the ids of its events.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from failpoints import fail_point

from .. import commit, files, forks, process, sharing
from ..config import is_whole
from ..errors import BackendError, BackendSetupError, ConfigurationError, ModelCacheError, NotInArchiveError
from .base import Archived, Backend, Batch, check_name, decode, failing_as

_ABSENT = {errno.ENOENT, errno.ENOTDIR}


class DirectoryBackend(Backend):
    """A backend in the directory *path*, which is made if it is missing.

    Args:
        path: Absolute, or from the working directory; not in a cache.
        rotate_bytes: A file of events that has as many gets no more. Old ones may be deleted at any time.
        read_only: Make and write nothing, so that a disk without the right to write will do. One that is not there,
            such as a disk that is not mounted, is a BackendError of each call.

    Raises:
        BackendSetupError: It is no directory, cannot be made or written, or is that of a cache.
        ConfigurationError: *rotate_bytes* makes no sense.
    """

    def __init__(self, path: str | os.PathLike[str], *, rotate_bytes: int = 64 << 20, read_only: bool = False) -> None:
        if not is_whole(rotate_bytes) or rotate_bytes < 1:
            raise ConfigurationError(setting="rotate_bytes", value=str(rotate_bytes), expected="a whole number from 1")
        self.location = os.path.abspath(os.fspath(path))
        if sharing.root_of(f"{self.location}/x") is not None or os.path.isdir(f"{self.location}/objects-v1"):
            raise BackendSetupError(backend=self.location, detail="it is in a cache, and would be a tier of itself")
        if os.path.exists(self.location) and not os.path.isdir(self.location):
            raise BackendSetupError(backend=self.location, detail="it is there, and is no directory")
        self._rotate = rotate_bytes
        self._log: _Log | None = None
        self._last = 0  # The time in the name of our last file: a clock that is set back must not put one before it.
        self._read_only = read_only
        forks.renew_after_fork(self)
        if read_only:
            return
        try:
            for name in ("events", "files", "staging"):
                commit.make_directories(f"{self.location}/{name}")
            for name in files.listing(f"{self.location}/staging"):
                if process.is_dead(name):
                    commit.remove_quietly(f"{self.location}/staging/{name}")
            commit.remove_quietly(self._stage(b""))
        except (OSError, ModelCacheError) as error:
            detail = getattr(error, "strerror", None) or str(error)
            raise BackendSetupError(backend=self.location, detail=f"it cannot be written: {detail}") from error

    def renew_guard(self) -> None:
        """See `forks`. A child writes to a file of its own."""
        self._guard = threading.RLock()

    def append_events(self, key: str, events: Sequence[Any]) -> None:
        """See `Backend`."""
        self.append_batches([Batch.of(key, events)])

    def append_batches(self, batches: Sequence[Batch]) -> None:
        """See `LandsBatches`."""
        data = "".join(f"{line}\n" for batch in batches for line in batch.records()).encode()
        with self._guard, failing_as(self.location):
            log = self._log
            if log is None or log.pid != os.getpid() or log.size >= self._rotate:
                self._close()
                self._last = max(self._last + 1, time.time_ns())
                log = self._log = _Log(f"{self.location}/events", self._last)
            try:
                log.append(data)
            except BaseException:
                self._close()  # After a torn line, or a sync that failed, nothing more is written to it.
                raise

    def read_events(self, key: str | None = None, *, since: float = 0.0) -> Iterator[Archived]:
        """See `Backend`."""
        seen: set[str] = set()
        with failing_as(self.location):
            for name in files.listing(f"{self.location}/events"):
                if not name.endswith(".jsonl"):
                    continue
                try:
                    descriptor = files.open_regular(f"{self.location}/events/{name}", follow=False)
                except FileNotFoundError:
                    continue  # Deleted this moment.
                with os.fdopen(descriptor, "rb") as lines:
                    for line in lines:
                        found = decode(line) if line.endswith(b"\n") else None
                        if found is None or found.id in seen:
                            continue
                        seen.add(found.id)
                        if key in {None, found.key} and found.time >= since:
                            yield found

    def create(self, name: str, data: bytes) -> bool:
        """See `Backend`."""
        with failing_as(self.location):
            final = self._place(name)
            staged = self._stage(data)
            try:
                fail_point("backends.directory.before-create")
                return commit.publish_once(staged, final)
            finally:
                commit.remove_quietly(staged)

    def put(self, name: str, data: bytes) -> None:
        """See `Backend`."""
        with failing_as(self.location):
            final = self._place(name)
            staged = self._stage(data)
            try:
                fail_point("backends.directory.before-put")
                commit.commit_file(staged, final)
            except BaseException:
                commit.remove_quietly(staged)
                raise

    def upload(self, name: str, path: str, size: int) -> None:
        """See `Backend`."""
        with failing_as(self.location):
            final, staged = self._place(name), f"{self.location}/staging/{process.token()}"
            try:
                source = files.open_regular(path, follow=False)
                try:
                    descriptor = commit.create_file(staged)
                    try:
                        fail_point("backends.directory.before-copy")
                        for chunk in files.chunks(source, length=size):
                            commit.write(descriptor, chunk)
                        copied = os.fstat(descriptor).st_size
                    finally:
                        os.close(descriptor)
                finally:
                    os.close(source)
                if copied != size:
                    raise BackendError(backend=self.location, detail=f"{path} has {copied} bytes and not {size}")
                commit.commit_file(staged, final)
            except BaseException:
                commit.remove_quietly(staged)
                raise

    def _check_there(self) -> None:
        """Raise BackendError if nothing is found because there is no backend."""
        if self._read_only and not os.path.isdir(f"{self.location}/files"):
            raise BackendError(backend=self.location, detail="it is not there")

    def size(self, name: str) -> int | None:
        """See `Backend`."""
        try:
            return os.lstat(self._path(name)).st_size
        except OSError as error:
            if error.errno in _ABSENT:
                self._check_there()
                return None
            raise BackendError(backend=self.location, detail=error.strerror or str(error)) from error

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Backend`."""
        try:
            descriptor = files.open_regular(self._path(name), follow=False)
        except OSError as error:
            if error.errno in _ABSENT:
                self._check_there()
                raise NotInArchiveError(what=name, asked=(self.location,)) from error
            raise BackendError(backend=self.location, detail=error.strerror or str(error)) from error
        try:
            with failing_as(self.location):
                return b"".join(files.chunks(descriptor, start=start, length=length))
        finally:
            os.close(descriptor)

    def names(self, prefix: str = "") -> Iterator[str]:
        """See `Backend`."""
        top = f"{self.location}/files"
        start = f"{top}/{prefix}".rpartition("/")[0]
        for directory, inside, names in os.walk(start):
            inside.sort()
            for name in sorted(names):
                found = f"{directory}/{name}"[len(top) + 1 :]
                if found.startswith(prefix):
                    yield found

    def delete(self, name: str) -> None:
        """See `Backend`."""
        path = self._path(name)
        with failing_as(self.location):
            if os.path.isdir(os.path.dirname(path)):
                commit.remove_record(path)

    def close(self) -> None:
        """See `Backend`."""
        with self._guard:
            self._close()

    def _close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()

    def _path(self, name: str) -> str:
        return f"{self.location}/files/{check_name(name)}"

    def _place(self, name: str) -> str:
        """Return the path of the file *name*, whose directory is there, durably."""
        path = self._path(name)
        directory = os.path.dirname(path)
        commit.make_directories(directory)
        while directory != self.location:
            commit.settle(directory)  # Who made it, on this machine or another one, may not have come to that.
            directory = os.path.dirname(directory)
        return path

    def _stage(self, data: bytes) -> str:
        staged = f"{self.location}/staging/{process.token()}"
        descriptor = commit.create_file(staged)
        try:
            commit.write(descriptor, data)
        finally:
            os.close(descriptor)
        return staged


class _Log:
    """A new file of events, open for appending."""

    def __init__(self, directory: str, number: int) -> None:
        self.pid, self.size = os.getpid(), 0
        commit.settle(directory)
        path = f"{directory}/{number:020d}.{process.token()}.jsonl"
        self._descriptor = commit.create_file(path)
        try:
            commit.sync_directory(directory)
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes) -> None:
        """Write *data*, durably."""
        fail_point("backends.directory.before-append", on_torn=lambda size: commit.write(self._descriptor, data[:size]))
        commit.write(self._descriptor, data)
        self.size += len(data)
        fail_point("backends.directory.before-sync-events")
        commit.sync_data(self._descriptor)
        if not os.fstat(self._descriptor).st_nlink:
            raise OSError(errno.ESTALE, "the file of events was deleted while it was written to")

    def close(self) -> None:
        """Close it; in a forked child that is the child's descriptor alone."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError:
                pass  # What was promised has been synced.
