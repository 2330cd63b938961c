"""A lease of what a get has found: written first, then looked for (DESIGN.md section 4)."""

from __future__ import annotations

import logging
import os
from types import TracebackType
from typing import Self

from . import layout
from .digest import Digest
from .errors import CacheConfigError, StorageError
from .leases import Leases
from .objects import Objects

TRIES = 10  # Each after the first needs another process that removes the object at that very moment.
_log = logging.getLogger("modelcache")
_complained: set[str] = set()


class Lease:
    """An object that stays where it is until `release`, or until this process ends, however it does.

    Attributes:
        path: Of the content, as `get` returns it.
        protected: False in a cache that this user may not write, and for what a tier serves in place: then no lease can
            be written, and none is needed against this user's own collections; those of who may write there do not
            know of it.
    """

    __slots__ = ("_leases", "_name", "path", "protected")

    def __init__(self, path: str, leases: Leases | None, name: str) -> None:
        self.path, self.protected = path, leases is not None
        self._leases, self._name = leases, name

    def release(self) -> None:
        """Let go. A second release does nothing."""
        leases, self._leases = self._leases, None
        if leases is not None:
            leases.release(self._name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Lease({self.path!r})"


def take(root: str, leases: Leases, path: str) -> Lease | None:
    """Return a lease of the object that *path*, of a get from *root*, leads into; None if it is gone by now.

    Raises:
        StorageError, NoSpaceError: It could not be leased.
    """
    if not path.startswith(f"{root}/{layout.OBJECTS}/"):
        _warn(path, "it is served from a tier, where nothing can be leased; `promote` the tier to hold what it has")
        return Lease(path, None, "") if _stands(path) else None
    name = path[len(root) :].split("/", 3)[2]
    try:
        leases.hold(name)
    except (StorageError, CacheConfigError) as error:
        if os.access(f"{root}/{layout.STAGING}", os.W_OK):
            raise
        _warn(root, f"it cannot be written, so that what is in use there cannot be leased: {error.summary}")
        return Lease(path, None, name) if _stands(path) else None
    lease = Lease(path, leases, name)
    try:
        Objects(root).await_removal(Digest(name.replace("-", ":", 1)))
        there = _stands(path)
    except BaseException:
        lease.release()
        raise
    if there:
        return lease
    lease.release()
    return None


def _warn(place: str, why: str) -> None:
    if place not in _complained:
        _complained.add(place)
        _log.warning("%s: %s", place, why)


def _stands(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError:
        return False
    return True


def vanishing(path: str) -> StorageError:
    """Return the error for an object that others removed each time it was found."""
    return StorageError(path=path, action="lease", reason="other processes keep removing it")
