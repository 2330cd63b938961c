"""Modes and groups of a cache that several users share: what differs from its config, and bringing it into line.

Nothing is followed and nothing is opened: a link is told and left, and what is changed is the very inode that was
looked at. Nothing gets wider than the config says. It may run beside a cache that is in use, by any of its users; what
belongs to another one stays, and is told with whose it is, because only its owner, or root, can change it.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import commit, files, layout, process, roots, sharing
from .errors import ModelCacheError, UsageError
from .sharing import Rule

_UNSEALED = {layout.STAGING, layout.PARTIALS, layout.TRASH, layout.QUARANTINE}  # Files of either kind are in there.
_IN_ROOT = ("format", "CACHEDIR.TAG", sharing.CONFIG)
_FREE = "free-"
Found = tuple[str, str, os.stat_result]  # The bucket, "" for the root itself; the path; what lstat says.


@dataclass(frozen=True, slots=True)
class Difference:
    """A file or a directory that is not as the config says.

    Attributes:
        path: Absolute.
        what: As ``mode 0600 -> 0660, group 0 -> 2000``, or what else is wrong.
        owner: The user who owns it, by number.
        mended: Whether it is in line now.
        why: Why it was left, "" if it was not tried.
    """

    path: str
    what: str
    owner: int
    mended: bool = False
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the difference as a JSON-ready dict."""
        return {"path": self.path, "what": self.what, "owner": self.owner, "mended": self.mended, "why": self.why}


def init(root: str, *, access: str, group: str = "") -> list[Difference]:
    """Let *access* and *group* decide who may use the cache at *root*, which is made if it is missing.

    The config is durable before anything else is changed; then all that is there is brought into line, where this user
    can.

    Args:
        root: The directory.
        access: One of `sharing.ACCESS`.
        group: Its name or number; "" for the one that the directory has.

    Returns:
        What was changed, or left.

    Raises:
        UsageError: They make no sense, or this machine has no such group.
        StorageError: It could not be done. `GroupError`: This user is not in the group.
    """
    rule = sharing.rule(access, group)
    if os.path.lexists(root) and not os.path.lexists(f"{root}/format") and os.path.isdir(root):
        strange = set(files.listing(root)) - {*sharing.BUCKETS, *_IN_ROOT, "lost+found"}
        if strange:
            raise UsageError(problem=f"{root} is no cache: it holds {min(strange)!r}", hint="Give an empty directory")
    roots.write_config(root, rule)
    roots.prepare_root(root)
    return list(mend(root, rule))


def mend(root: str, rule: Rule, *, dry_run: bool = False) -> Iterator[Difference]:
    """Bring what is under *root* into line with *rule*; yield each difference, mended or left.

    Args:
        root: The directory.
        rule: What its config says.
        dry_run: Change nothing.
    """
    told: set[str] = set()
    again = True
    while again:  # What is in a directory that could not be looked into is seen when that has been mended.
        again = False
        for one in _mend(root, rule, dry_run=dry_run):
            if one.path not in told:
                told.add(one.path)
                again = again or (one.mended and os.path.isdir(one.path))
                yield one


def _mend(root: str, rule: Rule, *, dry_run: bool) -> Iterator[Difference]:
    found = list(_walk(root))
    links = Counter((facts.st_dev, facts.st_ino) for _, _, facts in found if stat.S_ISREG(facts.st_mode))
    gid = rule.gid
    if gid is None and rule.directory & stat.S_IRGRP:
        gid = os.lstat(root).st_gid if not os.path.islink(root) else os.stat(root).st_gid
    for bucket, path, facts in found:
        if stat.S_ISLNK(facts.st_mode) and bucket:
            yield Difference(path, "it is a symbolic link", facts.st_uid, why="remove it, if you know who made it")
            continue
        if not (stat.S_ISDIR(facts.st_mode) or stat.S_ISREG(facts.st_mode)):
            if bucket:
                yield Difference(path, "it is no file of a cache", facts.st_uid, why="nothing of the kind belongs here")
            continue
        if _may_be_in_use(root, bucket, path):
            continue
        mode = _wanted(rule, bucket, facts)
        what = _difference(facts, mode, gid)
        if not what:
            continue
        if stat.S_ISREG(facts.st_mode) and facts.st_nlink > links[facts.st_dev, facts.st_ino]:
            yield Difference(path, what, facts.st_uid, why="the same file has a name outside the cache")
        elif dry_run:
            yield Difference(path, what, facts.st_uid)
        else:
            yield _mended(path, what, facts, mode, gid)


def differences(root: str, rule: Rule) -> list[Difference]:
    """Return what is not as *rule* says; nothing is changed."""
    return list(mend(root, rule, dry_run=True))


def _mended(path: str, what: str, facts: os.stat_result, mode: int, gid: int | None) -> Difference:
    try:
        commit.set_access(path, facts, mode, gid)
        left = _difference(os.stat(path), mode, gid)
    except FileNotFoundError:
        return Difference(path, what, facts.st_uid, mended=True, why="it is gone, or another one, by now")
    except PermissionError:
        if facts.st_uid == os.geteuid():
            return Difference(
                path, what, facts.st_uid, why=f"you are not in group {gid}: somebody who is, or root, can"
            )
        return Difference(path, what, facts.st_uid, why=f"it belongs to user {facts.st_uid}: they, or root, can")
    except ModelCacheError:
        raise
    except OSError as error:
        return Difference(path, what, facts.st_uid, why=error.strerror or str(error))
    if left:
        why = f"the system took the change and did not make it ({left}): who is not in its group cannot set setgid"
        return Difference(path, what, facts.st_uid, why=why)
    return Difference(path, what, facts.st_uid, mended=True)


def _difference(facts: os.stat_result, mode: int, gid: int | None) -> str:
    """Return in what a file differs, "" if it does not."""
    found, told = stat.S_IMODE(facts.st_mode), []
    if found != mode:
        told.append(f"mode {found:04o} -> {mode:04o}")
    if gid is not None and facts.st_gid != gid:
        told.append(f"group {facts.st_gid} -> {gid}")
    return ", ".join(told)


def _wanted(rule: Rule, bucket: str, facts: os.stat_result) -> int:
    if not bucket:
        return rule.root if stat.S_ISDIR(facts.st_mode) else rule.fixed
    if stat.S_ISDIR(facts.st_mode):
        return rule.directory
    if bucket == layout.OBJECTS or (bucket in _UNSEALED and not facts.st_mode & 0o222):
        return rule.content(executable=bool(facts.st_mode & stat.S_IXUSR))
    return rule.file


def _may_be_in_use(root: str, bucket: str, path: str) -> bool:
    """Tell whether a process that may live is at work on it: it sets the modes itself, and seals what it publishes."""
    if bucket not in {layout.STAGING, layout.PARTIALS}:
        return False
    name = path.removeprefix(f"{root}/{bucket}").lstrip("/").partition("/")[0]
    owner = name.partition(".")[2] if bucket == layout.PARTIALS else name
    return bool(name) and not owner.startswith(_FREE) and not process.is_dead(owner)


def _walk(root: str) -> Iterator[Found]:
    """Yield the root, what is the cache's own right in it, and all that is below its buckets. No link is followed."""
    yield "", root, os.stat(root)  # The root may be a link: that is its user's choice.
    for name in _IN_ROOT:
        yield from _looked("", f"{root}/{name}")
    for bucket in sharing.BUCKETS:
        place = f"{root}/{bucket}"
        yield from _looked(bucket, place)
        for directory, names, plain, descriptor in _inside(place):
            for name in (*names, *plain):
                yield from _looked(bucket, f"{directory}/{name}", name, descriptor)


def _inside(place: str) -> Iterator[tuple[str, list[str], list[str], int]]:
    try:
        yield from os.fwalk(place, follow_symlinks=False)
    except OSError:
        return  # It went meanwhile, or is not ours to look into: what can be seen of it is told.


def _looked(bucket: str, path: str, name: str = "", directory: int | None = None) -> Iterator[Found]:
    try:
        yield bucket, path, os.stat(name or path, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return
