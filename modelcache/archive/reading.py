"""Reading objects from backends into a place of the caller's: verified, resumed, visible by one rename.

What has come lies beside the target, under a name that says whose it is; the next read of the same object there, of
this process or of one that outlives it, goes on with it.
"""

from __future__ import annotations

import os
from typing import Self

from failpoints import fail_point

from .. import commit, files, process
from ..backends import contents
from ..backends.base import Backend
from ..backends.contents import Manifest
from ..errors import UsageError, storage_error

_in_use: set[str] = set()


class Landing:
    """Where the object of *manifest* is put together, to become *target*; a context that leaves no use behind."""

    def __init__(self, manifest: Manifest, target: str) -> None:
        self._manifest, self._target = manifest, os.path.abspath(target)
        directory, name = os.path.split(self._target)
        self._head, self._tail = f"{directory}/.{name}.", f".{manifest.digest.hex[:16]}.partial"
        if manifest.digest.is_tree and os.path.lexists(self._target):
            raise UsageError(problem=f"{self._target} is there already, and a tree replaces nothing")
        self.path = self._claimed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _in_use.discard(self.path)

    def fill(self, backend: Backend) -> int:
        """Bring what is missing from *backend*; return the bytes that came.

        Raises:
            DamagedReplicaError, NotInArchiveError, BackendError: What had come, and is right, stays.
            StorageError, NoSpaceError: The place cannot be written.
        """
        try:
            if not self._manifest.digest.is_tree:
                return contents.fetch_blob(backend, self._manifest.files[0], self.path)
            came = 0
            commit.make_staged(self.path)
            for leaf in self._manifest.files:
                path = f"{self.path}/{leaf.path}"
                commit.make_staged(os.path.dirname(path))
                came += contents.fetch_blob(backend, leaf, path)
                if leaf.executable:
                    commit.make_executable(path)
            return came
        except OSError as error:
            raise storage_error(error, action="write", path=self.path) from error

    def publish(self) -> str:
        """Make what is there visible as the target, durably; return its path."""
        try:
            fail_point("archive.reading.before-publish")
            if self._manifest.digest.is_tree:
                if not commit.commit_object(self.path, self._target):
                    commit.discard(self.path)
                    raise UsageError(problem=f"{self._target} came to be there meanwhile")
            else:
                commit.commit_file(self.path, self._target)
        except OSError as error:
            raise storage_error(error, action="write", path=self._target) from error
        return self._target

    def _claimed(self) -> str:
        """Return the path of what nobody works on any more, by our own name; of nothing yet if there is none."""
        ours = f"{self._head}{process.token()}{self._tail}"
        _in_use.add(ours)  # Before it has its name: another thread may look for one to claim.
        directory = os.path.dirname(self._target)
        for name in files.listing(directory):
            path = f"{directory}/{name}"
            if not (path.startswith(self._head) and path.endswith(self._tail)) or path in _in_use:
                continue
            owner = path[len(self._head) : -len(self._tail)]
            if process.is_dead(owner) or owner.rpartition("-")[0] == process.token().rpartition("-")[0]:
                try:
                    commit.rename(path, ours)
                except OSError:
                    continue  # Another one was faster.
                break
        return ours
