"""A FUSE layer that forgets: only bytes that were synced, under names whose directory was synced, reach its store.

``python -m tests.crash.forgetful STORE MOUNTPOINT`` serves until it is killed. Everything lives in memory; a sync
copies to STORE what POSIX says that it must, and nothing else. It is stricter than any real disk.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from typing import Any

import mfusepy


class _Node:
    def __init__(self, mode: int) -> None:
        self.mode, self.links = mode, 1
        self.data = bytearray()
        self.names: dict[str, _Node] = {}
        self.time = time.time_ns()
        self.synced = b""  # The bytes at the last sync.
        self.durable: dict[str, _Node] = {}  # The names at the last sync.


class Forgetful(mfusepy.Operations):  # type: ignore[misc]
    """Files in memory over *store*."""

    use_ns = True

    def __init__(self, store: str) -> None:
        self._store = store
        self._root = _Node(stat.S_IFDIR | 0o755)

    def _find(self, path: str) -> _Node:
        node = self._root
        for part in filter(None, path.split("/")):
            if part not in node.names:
                raise mfusepy.FuseOSError(errno.ENOENT)
            node = node.names[part]
        return node

    def _parent(self, path: str) -> tuple[_Node, str]:
        directory, _, name = path.rpartition("/")
        return self._find(directory), name

    def init_with_config(self, *_: Any) -> None:
        print("mounted", flush=True)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        node = self._find(path)
        return {
            "st_mode": node.mode, "st_nlink": node.links, "st_size": len(node.data), "st_uid": os.getuid(),
            "st_gid": os.getgid(), "st_mtime": node.time, "st_atime": node.time, "st_ctime": node.time,
        }  # fmt: skip

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bfree": 1 << 20, "f_bavail": 1 << 20}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._find(path).names]

    def mkdir(self, path: str, mode: int) -> int:
        parent, name = self._parent(path)
        parent.names[name] = _Node(stat.S_IFDIR | mode)
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        parent, name = self._parent(path)
        parent.names[name] = _Node(stat.S_IFREG | mode)
        return 0

    def open(self, path: str, flags: int) -> int:
        self._find(path)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._find(path).data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        node = self._find(path)
        node.data[offset : offset + len(data)] = data
        node.time = time.time_ns()
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        del self._find(path).data[length:]
        return 0

    def chmod(self, path: str, mode: int) -> int:
        node = self._find(path)
        node.mode = stat.S_IFMT(node.mode) | mode
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._find(path).time = times[1] if times else time.time_ns()
        return 0

    def unlink(self, path: str) -> int:
        parent, name = self._parent(path)
        self._find(path).links -= 1
        del parent.names[name]
        return 0

    def rmdir(self, path: str) -> int:
        parent, name = self._parent(path)
        if parent.names[name].names:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        del parent.names[name]
        return 0

    def link(self, target: str, source: str) -> int:
        parent, name = self._parent(target)
        node = self._find(source)
        node.links += 1
        parent.names[name] = node
        return 0

    def rename(self, old: str, new: str) -> int:
        parent, name = self._parent(old)
        target, new_name = self._parent(new)
        there = target.names.get(new_name)
        if there is not None and there.names:
            raise mfusepy.FuseOSError(errno.ENOTEMPTY)
        target.names[new_name] = parent.names.pop(name)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        node = self._find(path)
        node.synced = bytes(node.data)
        self._write_if_named(path, node)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        """Make the names in *path* those in the store; a file among them holds what it held at its last sync."""
        node, place = self._find(path), f"{self._store}{path}".rstrip("/")
        node.durable = dict(node.names)
        if os.path.isdir(place):  # Else its own name is not synced yet; the sync that does it brings these along.
            self._save(place, node)
        return 0

    def _save(self, place: str, node: _Node) -> None:
        if stat.S_ISDIR(node.mode):
            os.makedirs(place, exist_ok=True)
            for name in os.listdir(place):
                if name not in node.durable:
                    _remove(f"{place}/{name}")
            for name, child in node.durable.items():
                self._save(f"{place}/{name}", child)
            return
        with open(place, "wb") as file:
            file.write(node.synced)
        os.utime(place, ns=(node.time, node.time))

    def _write_if_named(self, path: str, node: _Node) -> None:
        if os.path.exists(f"{self._store}{path}"):
            self._save(f"{self._store}{path}", node)


def _remove(place: str) -> None:
    if os.path.isdir(place):
        for name in os.listdir(place):
            _remove(f"{place}/{name}")
        os.rmdir(place)
    else:
        os.unlink(place)


if __name__ == "__main__":
    mfusepy.FUSE(Forgetful(sys.argv[1]), sys.argv[2], foreground=True, nothreads=True)
