"""The root of a cache: made, marked, and shared; and why it cannot be used, with whose it is and who can help."""

from __future__ import annotations

import errno
import os
import stat

from . import commit, layout, sharing
from .errors import FormatError, LinkError, ModelCacheError, RootError

# Trash too: a removal must be possible where there is no inode left for it.
_BUCKETS = (layout.OBJECTS, layout.ENTRIES, layout.PARTIALS, layout.STAGING, layout.LOCKS, layout.TRASH)


def prepare_root(root: str) -> None:
    """Make *root* ready for what is promised in it: `make_root`, and its own name is durable.

    Raises:
        FormatError, RootError: See `make_root`.
    """
    make_root(root)
    try:
        commit.settle(root)
    except OSError as error:
        raise _root_error(root, error) from error


def make_root(root: str) -> None:
    """Make *root* and its directories where they are missing, and mark it as a cache of this format.

    Enough for who only waits for another process: it syncs nothing that was there.

    Raises:
        FormatError: A newer modelcache wrote the root; nothing is touched.
        RootError: The root is a file, read-only, or not ours to write.
        LinkError: A symbolic link lies in place of a directory.
        CacheConfigError, GroupError: Its config cannot be understood, or asks for a group that this user is not in.
    """
    check_format(root)
    try:
        rule = sharing.refresh(root)
        missing = sharing.check_buckets(root)
        if rule is None:  # Of a shared cache all of them now, because only its owner may make one later.
            missing = [name for name in missing if name in _BUCKETS]
        if missing or not os.path.lexists(f"{root}/format"):
            commit.make_directories(root)
            for name in sorted(missing, key=lambda name: name != layout.STAGING):
                commit.make_bucket(f"{root}/{name}", rule)
            for name, content in (("CACHEDIR.TAG", layout.CACHEDIR_TAG), ("format", b"%d\n" % layout.FORMAT)):
                if not os.path.lexists(f"{root}/{name}"):
                    commit.commit_record(f"{root}/{layout.STAGING}", f"{root}/{name}", content)
        if not os.access(f"{root}/{layout.STAGING}", os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root)
        if rule is not None:
            rule.check_member(root)
    except OSError as error:
        raise _root_error(root, error) from error


def write_config(root: str, rule: sharing.Rule) -> None:
    """Make *rule* what decides who may use the cache at *root*, durably. A root that is not there yet is made.

    What is there already keeps its modes: `mending` brings them into line.

    Raises:
        FormatError, RootError, LinkError, GroupError: Nothing was changed.
    """
    check_format(root)
    rule.check_member(root)
    try:
        missing = sharing.check_buckets(root)
        if not os.path.isdir(root):
            commit.make_directories(os.path.dirname(root))
            commit.make_own_directory(root)
        elif not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root)  # A member may write in staging alone.
        elif rule.gid is None and rule.directory & stat.S_IRGRP:
            # What is made will have the group of the directory: only a member can let it have that, and share it.
            rule._replace(group=str(gid := os.stat(root).st_gid), gid=gid).check_member(root)
        sharing.adopt(root, rule)
        if layout.STAGING in missing:
            commit.make_bucket(f"{root}/{layout.STAGING}", rule)
        commit.commit_record(f"{root}/{layout.STAGING}", f"{root}/{sharing.CONFIG}", sharing.text(rule).encode())
    except BaseException as error:
        sharing.forget(root)
        if isinstance(error, OSError):
            raise _root_error(root, error) from error
        raise


def check_format(root: str) -> None:
    """Check that *root* is no newer than this code; a root that does not exist yet is fine.

    Raises:
        FormatError: It is newer.
        RootError: It is not a directory, or may not be searched.
    """
    try:
        descriptor = os.open(f"{root}/format", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.read(descriptor, 32).strip().decode(errors="replace")
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _root_error(root, error) from error
    if not (found.isascii() and found.isdigit()) or int(found) > layout.FORMAT:
        raise FormatError(path=root, found=found or "(empty)", known=layout.FORMAT)


def _root_error(root: str, error: OSError) -> ModelCacheError:
    """Return the typed error for *error*, which a call met that makes *root*, or something right in it."""
    path = str(error.filename or root)
    if isinstance(error, ModelCacheError):
        raise error  # As in `storage_error`.
    if error.errno == errno.ELOOP:
        return LinkError(path=path)
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return RootError(
            path=root,
            reason=f"{path} is in the way: it is not a directory",
            hint="Set MODELCACHE_DIR to another place",
        )
    if error.errno == errno.EROFS:
        return RootError(
            path=root,
            reason="its file system is mounted read-only",
            hint="Cached models are still served; set MODELCACHE_DIR to fetch new ones",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return RootError(
            path=root,
            reason=f"no permission to write ({_owner(path)})",
            hint=f"Cached models are still served; {_who_can_help(root)}, or set MODELCACHE_DIR",
        )
    return RootError(path=root, reason=error.strerror or str(error), hint="`modelcache doctor` examines it")


def _owner(path: str) -> str:
    """Return who owns the nearest part of *path* that exists, as a person would say it."""
    while path and not os.path.lexists(path):
        path = os.path.dirname(path)
    try:
        found = os.stat(path)
    except OSError:
        return f"{path} cannot be examined"
    return f"{path} belongs to user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}; this is user {os.geteuid()}"


def _who_can_help(root: str) -> str:
    try:
        rule = sharing.read(root)
    except ModelCacheError:
        rule = None
    if rule is None or not rule.directory & stat.S_IWGRP:
        return "ask the owner for write access"
    group = rule.group or "the group of the directory"
    if rule.gid is None or not sharing.is_member(rule.gid):
        return f"those in {group} may write: have yourself added to it and log in again"
    return f"you are in {group}: what lies right in the root only its owner changes, and its owner mends modes"
