"""What the disk, or another process, does not allow. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

import errno as _errno
from collections.abc import Mapping

from .base import ModelCacheError


class NoSpaceError(ModelCacheError, OSError):
    """The disk has no room. ``needed`` and ``free`` are in bytes, None where they are not known."""

    exit_code = 8

    def __init__(self, *, what: str, needed: int | None, free: int | None) -> None:
        super().__init__(what=what, needed=needed, free=free)
        self.errno = _errno.ENOSPC
        facts = f": {needed} bytes are needed, {free} are free" if needed is not None else ""
        self.summary = f"no space left for {what}{facts}; the cache is whole"
        self.hint = "Free some space (`modelcache gc`, `modelcache rm`) and call again: what had arrived is used"


class CapacityError(NoSpaceError):
    """The cache may not use as much of the disk as this would need, whatever may go for it. All in bytes.

    Attributes:
        what: What was asked for.
        needed: What it needs, beside what is here of it.
        capacity: What the cache may use.
        used: What it uses.
        kept: Why what is here may not go, and how much that is.
    """

    def __init__(self, *, what: str, needed: int, capacity: int, used: int, kept: Mapping[str, int]) -> None:
        ModelCacheError.__init__(self, what=what, needed=needed, capacity=capacity, used=used, kept=dict(kept))
        self.errno = _errno.ENOSPC
        listed = ", ".join(f"{size} {why}" for why, size in kept.items() if size)
        stays = f" ({listed})" if listed else ""
        self.summary = (
            f"{what} does not fit: {needed} bytes are needed, and of the {capacity} that the cache may use {used} are "
            f"used{stays}; nothing was evicted for it"
        )
        self.hint = "Raise MODELCACHE_CAPACITY, or free some of it: `modelcache unpin`, `modelcache gc --grace 0`"


class LockTimeoutError(ModelCacheError, TimeoutError):
    """Another live process held a lock for longer than the time allowed (seconds)."""

    exit_code = 9

    def __init__(self, *, what: str, holder: str, seconds: float) -> None:
        super().__init__(what=what, holder=holder, seconds=seconds)
        self.summary = f"waited {seconds:g} s for {what}, held by {holder}; nothing was changed"
        self.hint = "Wait for that process, or raise MODELCACHE_LOCK_TIMEOUT"


class PinnedError(ModelCacheError, PermissionError):
    """A pinned entry is not removed."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"{ref} is pinned and was not removed"
        self.hint = "`modelcache rm --force` removes it with its pin"


class LeasedError(ModelCacheError, PermissionError):
    """An entry that a live process uses is not removed."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"{ref} is in use by a live process, and was not removed"
        self.hint = "`modelcache rm --force` forgets it; its content stays until the last lease is over"


class StorageError(ModelCacheError, OSError):
    """The file system under the root failed a call."""

    def __init__(self, *, path: str, action: str, reason: str, number: int | None = None) -> None:
        super().__init__(path=path, action=action, reason=reason, number=number)
        self.errno = number
        self.summary = f"could not {action} {path}: {reason}; nothing was promised and nothing is half-written"
        self.hint = "`modelcache doctor` examines the file system"


class NoLocksError(StorageError):
    """Locks keep no other process out here, so that nobody can tell what others use."""

    def __init__(self, *, path: str, reason: str) -> None:
        ModelCacheError.__init__(self, path=path, reason=reason)
        self.summary = f"gc does not run at {path}: {reason}; nothing was removed"
        self.hint = "`modelcache doctor` examines the file system; `modelcache rm` removes single models"


class RootError(StorageError):
    """The root directory cannot be used."""

    def __init__(self, *, path: str, reason: str, hint: str) -> None:
        ModelCacheError.__init__(self, path=path, reason=reason, hint=hint)
        self.summary = f"the cache root {path} cannot be used: {reason}"


class LinkError(StorageError):
    """A symbolic link lies where the cache has a file or a directory of its own; nothing goes through it."""

    def __init__(self, *, path: str) -> None:
        ModelCacheError.__init__(self, path=path)
        self.errno = _errno.ELOOP
        self.summary = (
            f"{path} is a symbolic link, which modelcache never makes; nothing was read or written through it"
        )
        self.hint = "Find out who made it (`ls -l`), remove it, and run `modelcache doctor` and `modelcache verify`"


class GroupError(StorageError):
    """Files of the cache belong to a group, and this user cannot give any to it."""

    def __init__(self, *, path: str, group: str, user: int) -> None:
        ModelCacheError.__init__(self, path=path, group=group, user=user)
        self.errno = _errno.EPERM
        self.summary = f"the cache {path} is shared by group {group}, and user {user} is not in it; nothing was made"
        self.hint = "Have yourself added to the group and log in again; cached models are served if you may read them"


class FormatError(StorageError):
    """The root was written by a newer modelcache."""

    def __init__(self, *, path: str, found: str, known: int) -> None:
        ModelCacheError.__init__(self, path=path, found=found, known=known)
        self.summary = (
            f"the cache root {path} has layout {found}, this modelcache knows up to {known}; nothing was touched"
        )
        self.hint = "Upgrade modelcache, or use another root: MODELCACHE_DIR=..."


def storage_error(error: OSError, *, action: str, path: str) -> ModelCacheError:
    """Return the typed error for a failed system call, so that no bare OSError leaves the stores.

    One that is typed already is raised again: ``raise error from error`` would make it its own cause, and who follows
    causes (tblib does, when dask pickles an error) would never come to an end.
    """
    if isinstance(error, ModelCacheError):
        raise error
    where = str(error.filename or path)
    if error.errno in {_errno.ENOSPC, _errno.EDQUOT}:
        return NoSpaceError(what=where, needed=None, free=None)
    if error.errno == _errno.ELOOP:
        return LinkError(path=where)
    return StorageError(path=where, action=action, reason=error.strerror or str(error), number=error.errno)
