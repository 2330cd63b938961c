"""Who may read and write a cache that several users share: what its own ``config.toml`` says, and for which paths.

The file lies in the root, belongs to the cache and not to a user, and is as small as it looks::

    [sharing]
    access = "group"
    group = "ml"

From these two words follow the mode and the group of everything that is made below the root, whatever the umask of who
makes it (`commit` obeys). Without the file the umask decides, as it does everywhere. A file that cannot be understood
is an error, and nothing is made: a guess could open a cache to everybody, or close it to its team.

Whoever may write below the root could put a symbolic link in place of one of its directories. No bucket may be a link;
that is looked at before each change. Nothing here is on the path of a warm hit.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from . import layout
from .errors import CacheConfigError, GroupError, UsageError

CONFIG = "config.toml"
BUCKETS = (
    layout.OBJECTS, layout.ENTRIES, layout.DERIVED, layout.FAILURES, layout.PARTIALS,
    layout.STAGING, layout.LOCKS, layout.TRASH, layout.PINS,
    layout.QUARANTINE, layout.BACKOFF, layout.LEASES, layout.OUTBOX, layout.USAGE,
)  # fmt: skip
_NAMES = frozenset(BUCKETS)
_BYTES_MAX = 1 << 16
_SETGID = 0o2000
_GID_MAX, _DIGITS_MAX = (1 << 32) - 2, 32  # The one above says "leave it" to chown(2).
_READ, _WRITE = 0o444, 0o222
# Whose bits count beside the owner's: the group's may be 070 or 050, others' 005.
_ACCESS = {
    "private": 0o700,
    "group-read": 0o750,
    "group": 0o770,
    "everyone-read": 0o755,
    "group-everyone-read": 0o775,
}
ACCESS = tuple(_ACCESS)


class Rule(NamedTuple):
    """The mode and the group of what is made in one cache.

    Attributes:
        access: One of `ACCESS`.
        group: As it is written, "" for none.
        gid: Of the group; None: whatever the file system gives.
    """

    access: str
    group: str
    gid: int | None

    @property
    def directory(self) -> int:
        """Of a directory; new files in it belong to its group."""
        mode = _ACCESS[self.access]
        return mode | (_SETGID if mode & 0o070 else 0)

    @property
    def file(self) -> int:
        """Of a record, a lock, a mark and what is being written."""
        return _ACCESS[self.access] & (_READ | _WRITE)

    @property
    def root(self) -> int:
        """Of the root: only its owner adds to it, so that no member can replace a bucket, or the config."""
        return self.directory & ~0o022

    @property
    def fixed(self) -> int:
        """Of the files right in the root."""
        return self.file & ~0o022

    def content(self, *, executable: bool) -> int:
        """Return that of a published file, which nobody writes to."""
        mode = _ACCESS[self.access] & _READ
        return mode | (mode >> 2 if executable else 0)

    def check_member(self, root: str) -> None:
        """Raise GroupError if this user cannot give files to the group."""
        if self.gid is not None and not is_member(self.gid):
            raise GroupError(path=root, group=self.group, user=os.geteuid())


def is_member(gid: int) -> bool:
    """Tell whether this process may give its files to the group *gid*."""
    return os.geteuid() == 0 or gid == os.getegid() or gid in os.getgroups()


def rule(access: str, group: str) -> Rule:
    """Return the rule for *access*, for the *group* with that name or number (``""``: as the root has it).

    Raises:
        UsageError: There is no such access, or this machine has no such group.
    """
    if access not in _ACCESS:
        raise UsageError(problem=f"access {access!r} makes no sense: one of {', '.join(ACCESS)}")
    if group and not _ACCESS[access] & 0o070:
        raise UsageError(problem=f"access {access!r} gives nothing to a group: leave {group!r} out")
    gid = _gid(group)
    return Rule(access, str(gid) if group.isascii() and group.isdigit() else group, gid)


def _gid(group: str) -> int | None:
    if not group:
        return None
    if group.isascii() and group.isdigit():
        if len(group) > _DIGITS_MAX or int(group) > _GID_MAX:
            raise UsageError(problem=f"no group has the number {group[: _DIGITS_MAX + 1]}: {_GID_MAX} is the last one")
        return int(group)
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):  # ValueError: what no name can hold, a NUL.
        problem = f"this machine has no group {group!r}: give its number where names differ between machines"
        raise UsageError(problem=problem) from None


def text(rule: Rule) -> str:
    """Return the config that says *rule*."""
    # As JSON writes it: a name may hold a backslash (`DOMAIN\\team`), a number no leading zeros.
    group = str(rule.gid) if rule.group.isascii() and rule.group.isdigit() else json.dumps(rule.group)
    lines = ["# Who may use this cache: docs/sharing.md. `modelcache init` writes it.", "[sharing]"]
    lines += [f'access = "{rule.access}"', *([f"group = {group}"] if rule.group else [])]
    return "\n".join(lines) + "\n"


def parse(path: str, data: bytes) -> Rule | None:
    """Return the rule in the config *data* of the file *path*; None if it says nothing of sharing.

    Raises:
        CacheConfigError: It cannot be understood. It names the file and the line.
    """
    from . import tomltext  # 10 ms, which who shares nothing does not pay.

    try:
        content = data.decode()
        document = tomltext.parse(content)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CacheConfigError(file=path, line=line, problem=f"not UTF-8: {error.reason}") from error
    except tomltext.TomlError as error:
        raise CacheConfigError(file=path, line=error.line, problem=error.problem) from None

    def wrong(table: str, key: str, problem: str) -> CacheConfigError:
        return CacheConfigError(file=path, line=tomltext.line_of(content, table, key), key=key, problem=problem)

    for key in document:
        if key != "sharing":
            raise wrong("", key, "unknown: it knows [sharing] alone")
    table = document.get("sharing", {"access": None})
    if not isinstance(table, dict):
        raise wrong("", "sharing", "a table is expected: [sharing]")
    for key in table:
        if key not in {"access", "group"}:
            raise wrong("sharing", key, "unknown: it knows access and group")
    if "sharing" not in document:
        return None
    access, group = table.get("access"), table.get("group", "")
    if not isinstance(access, str):
        raise wrong("sharing", "access", f"one of {', '.join(ACCESS)} is expected")
    if isinstance(group, bool) or not isinstance(group, str | int) or (isinstance(group, int) and group < 0):
        raise wrong("sharing", "group", "the name or the number of a group is expected")
    try:
        return rule(access, str(group))
    except UsageError as error:
        raise wrong("sharing", "access" if access not in _ACCESS else "group", error.problem) from error  # type: ignore[attr-defined]


def read(root: str) -> Rule | None:
    """Return the rule of the cache at *root*, None if its config says nothing, or is not there.

    Raises:
        CacheConfigError: It cannot be read or understood.
    """
    path = f"{root}/{CONFIG}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        what = "it is a symbolic link" if error.errno == errno.ELOOP else f"it cannot be read: {error.strerror}"
        raise CacheConfigError(file=path, problem=what) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CacheConfigError(file=path, problem="it is no regular file")
        data = os.read(descriptor, _BYTES_MAX + 1)
    except OSError as error:
        raise CacheConfigError(file=path, problem=f"it cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    if len(data) > _BYTES_MAX:
        raise CacheConfigError(file=path, problem=f"it has more than {_BYTES_MAX} bytes")
    return parse(path, data)


class _Known(NamedTuple):
    rule: Rule | None
    seen: tuple[int, int, int] | None  # What tells that the config is still the file that was read.


_known: dict[str, _Known] = {}
_checked: set[str] = set()  # The roots that this process has seen, whose buckets were directories then.


def of(path: str) -> Rule | None:
    """Return the rule for what is made at *path*; None if the umask decides, or *path* is in no cache.

    Raises:
        CacheConfigError: See `read`.
        OSError: See `check_buckets`.
    """
    root = guard(path)
    if root is None:
        return None
    return _known[root].rule if root in _known else refresh(root)


def refresh(root: str) -> Rule | None:
    """Return the rule of the cache at *root*, which is read if it has not been, or has been written since.

    Raises:
        CacheConfigError: See `read`.
    """
    try:
        found = os.lstat(f"{root}/{CONFIG}")
        seen = found.st_ino, found.st_mtime_ns, found.st_size
    except OSError:
        seen = None
    known = _known.get(root)
    if known is None or known.seen != seen:
        known = _known[root] = _Known(read(root), seen)
    return known.rule


def adopt(root: str, rule: Rule) -> None:
    """Let *rule* hold in this process from now on: it is about to be written."""
    check_buckets(root)
    _known[root] = _Known(rule, None)


def forget(root: str) -> None:
    """Read the config of the cache at *root* anew when it is next needed."""
    _known.pop(root, None)


def guard(path: str) -> str | None:
    """Return the root of the cache that *path* is in, whose buckets are directories; None if it is in none.

    Before each change: another user may have put a link there a moment ago.

    Raises:
        OSError: See `check_buckets`.
    """
    root = root_of(path)
    if root is None:
        return None
    if root not in _checked:
        check_buckets(root)
    bucket = path[len(root) + 1 :].partition("/")[0]
    if bucket in _NAMES:
        with suppress(FileNotFoundError):
            _check_directory(f"{root}/{bucket}")
    return root


def root_of(path: str) -> str | None:
    """Return the root of the cache that *path* is in, None if it is in none: most of what is exported.

    Content may look like a cache itself (a tree with ``staging/``, ``format`` and a ``config.toml``), and must not
    decide about modes: a root that this process knows comes first, then the outermost.
    """
    found, place = None, path
    while (above := os.path.dirname(place)) != place:
        if os.path.basename(place) in _NAMES:
            if above in _checked:
                return above
            if os.path.lexists(f"{above}/format"):
                found = above
        place = above
    return found


def check_buckets(root: str) -> list[str]:
    """Return which buckets are not there.

    Raises:
        OSError: One is no directory, but a link (``ELOOP``), or a file (``ENOTDIR``).
    """
    missing = []
    for name in BUCKETS:
        try:
            _check_directory(f"{root}/{name}")
        except FileNotFoundError:
            missing.append(name)
    _checked.add(root)
    return missing


def _check_directory(path: str) -> None:
    """Raise OSError if *path* is no directory; a link to one is none."""
    try:
        mode = os.lstat(path).st_mode
    except NotADirectoryError as error:  # The root itself is a file.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, "it is a symbolic link", path)
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
