"""Why a root cannot be used, as an error that says whose it is and who can help. It looks, and changes nothing."""

from __future__ import annotations

import errno
import os
import stat

from . import sharing
from .errors import LinkError, ModelCacheError, RootError


def root_error(root: str, error: OSError) -> ModelCacheError:
    """Return the typed error for *error*, which a call met that makes *root*, or something right in it."""
    path = str(error.filename or root)
    if isinstance(error, ModelCacheError):
        return error
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
            reason=f"no permission to write ({owner(path)})",
            hint=f"Cached models are still served; {_who_can_help(root)}, or set MODELCACHE_DIR",
        )
    return RootError(path=root, reason=error.strerror or str(error), hint="`modelcache doctor` examines it")


def owner(path: str) -> str:
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
    return f"you are in {group}, whose modes its owner mends by `modelcache doctor --fix`"
