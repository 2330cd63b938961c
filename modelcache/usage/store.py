"""What is on record of the use of a cache: ``usage-v1/``, a file a process and day, and what they are folded into.

A process replaces its file of the day, whole and atomically, by one that counts all of that day so far: so nothing is
ever counted twice, and a file is small however often it is written. It is not synced. What a crash loses, therefore: a
killed process what it has counted since its last write, a power cut perhaps all that it counted that day. A file that
is torn is worth nothing, and harms nobody.

The bucket stays small because files are folded: those of processes that are gone, and of days that are over, into one
a day. What is older than `KEEP_DAYS` goes into one for all earlier days, so that sums never shrink. Whoever folds first
takes each file for himself, by a rename that only one can win; the fold names the files that it holds, so that
whoever reads before these are removed, or after a crash, counts them once. No lock is needed for that (I9).

Looks (`looks`) are folded with the rest: those of a day that is over, and of today once they are many.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass, field
from typing import Any

from failpoints import fail_point

from .. import commit, files, layout, looks, process
from ..errors import ModelCacheError
from ..sealed import seal, unseal
from . import tally
from .tally import Tally, Usage

KEEP_DAYS = 90
EARLIER = "0000-00-00"  # The day of all days that are older.
FOLD_AT = 32  # Files of processes that are gone; so many are no burden to a reader.
LOOKS_BYTES_MAX = 1 << 20
_TAKEN = ".taken"
_VERSION = 1
_SETTLED_S = 60.0  # Who had the file open when it was taken has written by then.
_DAY_S = 86_400
_TRIES = 10
_FOR_GOOD = {errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR}  # Another try would read it no better.
_LAST_S = 253_402_300_799  # Of the last year with four digits.


@dataclass(frozen=True, slots=True)
class Part:
    """What some processes of one host counted on one day (``YYYY-MM-DD``, UTC; `EARLIER`)."""

    day: str
    host: str
    tally: Tally


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the bucket, by its name: ``<day>.<owner>``, behind it ``.looks``, and ``.taken`` while it is folded."""

    name: str
    day: str
    owner: str
    is_looks: bool
    is_taken: bool

    @classmethod
    def of(cls, name: str) -> _File | None:
        day, _, owner = name.partition(".")
        is_taken = owner.endswith(_TAKEN)
        owner = owner.removesuffix(_TAKEN)
        is_looks = owner.endswith(looks.SUFFIX)
        owner = owner.removesuffix(looks.SUFFIX)
        known = len(day) == len(EARLIER) and day[4:5] == day[7:8] == "-" and owner and "." not in owner
        return cls(name, day, owner, is_looks, is_taken) if known else None

    @property
    def is_live(self) -> bool:
        """Whether it is one of looks, under the name that these are appended to."""
        return self.is_looks and "-" not in self.owner


@dataclass(slots=True)
class _Content:
    """What is in a file. One that ``is_left`` (a later modelcache's, or unreadable) is neither counted nor folded."""

    hosts: dict[str, Tally] = field(default_factory=dict)
    of: tuple[str, ...] = ()
    is_left: bool = False


def day_of(now: float) -> str:
    """Return the day of *now*, in Unix seconds."""
    return time.strftime("%Y-%m-%d", time.gmtime(max(0.0, min(now, _LAST_S))))


def write(root: str, name: str, host: str, counted: Tally) -> None:
    """Replace the file *name* (``<day>.<token>``) of this process by one that says what was *counted* on that day.

    Raises:
        OSError
    """
    commit.ensure_bucket(f"{root}/{layout.USAGE}", durable=False)
    data = seal({"version": _VERSION, "hosts": {host: _as_dict(counted)}})
    fail_point("usage.store.before-write")
    commit.replace_hint(f"{root}/{layout.STAGING}", f"{root}/{layout.USAGE}/{name}", data)


def read(root: str) -> list[Part]:
    """Return all that is on record, each count once; what cannot be read counts for nothing."""
    found: dict[str, _Content] = {}
    for _ in range(_TRIES):  # Files that are folded meanwhile are under other names: then it is read again.
        names = _names(root)
        found = _contents(root)
        if names == _names(root):
            break
    folded = {name for content in found.values() for name in content.of}
    return [
        Part(name.partition(".")[0], host, counted)
        for name, content in found.items()
        if name not in folded
        for host, counted in content.hosts.items()
    ]


def fold_if_many(root: str) -> None:
    """Fold if that is worth while: the first write of each process looks."""
    if len(_names(root)) > FOLD_AT:
        fold_quietly(root)


def fold_quietly(root: str) -> None:
    """Fold as far as that can be done: what cannot be folded, or written, waits for the next time."""
    try:
        fold(root)
    except (OSError, ModelCacheError):
        return


def fold(root: str, *, now: float | None = None) -> int:
    """Fold files of *root* that nobody writes to any more; return how many there were.

    Raises:
        OSError, ModelCacheError: What was not folded by then waits for the next time.
    """
    now = time.time() if now is None else now
    today, over, old = day_of(now), day_of(now - 2 * _DAY_S), day_of(now - KEEP_DAYS * _DAY_S)
    groups: dict[str, list[_File]] = {}
    for file in _names(root):
        path = f"{root}/{layout.USAGE}/{file.name}"
        if file.is_taken:
            if not _is_abandoned(file, path):
                continue
        elif file.is_looks:
            if file.is_live and file.day <= today and (file.day < today or _size(path) > LOOKS_BYTES_MAX):
                # To be folded when all who had it open have written. Durable: its old name will be another file's.
                if _rename(root, file, looks.SUFFIX) is not None:
                    commit.sync_directory(f"{root}/{layout.USAGE}")
                continue
            if file.is_live or files.age(path) < _SETTLED_S:
                continue
        elif not (file.day <= over or process.is_dead(file.owner)):
            continue
        groups.setdefault(file.day if file.day >= old else EARLIER, []).append(file)
    # Looked for after it was seen that their owners are gone: who dies has written its fold by then, or never will.
    contents = _contents(root, strict=True)
    held = {name for content in contents.values() for name in content.of}
    left = {name for name, content in contents.items() if content.is_left}
    for name in held:
        commit.remove_quietly(f"{root}/{layout.USAGE}/{name}")  # A fold that was cut off had come so far.
    folded = 0
    for day, group in groups.items():
        mine = [file for file in group if file.name not in held | left]
        if len(mine) > 1 or any(file.is_looks or file.day != day for file in mine):
            folded += _fold(root, day, mine)
    return folded


def _fold(root: str, day: str, group: list[_File]) -> int:
    """Put what is in the files *group* into one file of *day*; return how many there were."""
    directory = f"{root}/{layout.USAGE}"
    moved = [(file.name, one) for file in group if (one := _take(root, file)) is not None]
    taken = [file for _, file in moved]
    if not taken:
        return 0
    sums: dict[str, Tally] = {}
    left: list[str] = []
    for file in list(taken):
        content = _read(root, file) or _Content()  # What is torn goes; what cannot be read now stays, as it was taken.
        if content.is_left:
            taken.remove(file)
        for name in content.of:  # They must be gone before the file that says that they do not count.
            commit.remove_quietly(f"{directory}/{name}")
            left += [name] if os.path.lexists(f"{directory}/{name}") else []
        for host, counted in content.hosts.items():
            tally.add(sums.setdefault("" if day == EARLIER else host, {}), counted)
    names = [file.name for file in taken]
    # By their old names too: a power cut may take the renames back, which nobody has synced.
    before = [name for name, one in moved if one in taken]
    facts = {
        "version": _VERSION,
        "of": names + before + left,
        "hosts": {host: _as_dict(counted) for host, counted in sums.items()},
    }
    fail_point("usage.store.before-fold")
    commit.commit_record(f"{root}/{layout.STAGING}", f"{directory}/{day}.{process.token()}", seal(facts))
    fail_point("usage.store.before-forget")
    for name in names:
        commit.remove_quietly(f"{directory}/{name}")
    return len(names)


def _take(root: str, file: _File) -> _File | None:
    """Give *file* a name of ours, so that nobody else folds it; None if somebody else was faster."""
    fail_point("usage.store.before-take")
    return _rename(root, file, f"{looks.SUFFIX if file.is_looks else ''}{_TAKEN}")


def _rename(root: str, file: _File, suffix: str) -> _File | None:
    name = f"{file.day}.{process.token()}{suffix}"
    try:
        commit.rename(f"{root}/{layout.USAGE}/{file.name}", f"{root}/{layout.USAGE}/{name}")
    except FileNotFoundError:
        return None
    return _File.of(name)


def _is_abandoned(file: _File, path: str) -> bool:
    """Tell whether who took *file* does not fold it any more; of another machine's process time alone tells."""
    try:
        age = abs(time.time() - os.lstat(path).st_ctime)  # A rename sets it.
    except OSError:
        return False
    dead = process.is_dead(file.owner)
    return dead is True or (dead is None and age > _DAY_S)


def _contents(root: str, *, strict: bool = False) -> dict[str, _Content]:
    """Return what is in each file that can be read, by name; raise OSError if *strict*.

    Who folds must know all: a fold that he overlooks holds what he would count again.
    """
    found: dict[str, _Content] = {}
    for file in _names(root):
        try:
            content = _read(root, file)
        except OSError:
            if strict:
                raise
            continue
        if content is not None:
            found[file.name] = content
    return found


def _names(root: str) -> list[_File]:
    """Return the files of the bucket; others that lie there are none of ours."""
    try:
        names = files.listing(f"{root}/{layout.USAGE}")
    except ModelCacheError:  # Not ours to list.
        return []
    return [file for file in map(_File.of, names) if file is not None]


def _read(root: str, file: _File) -> _Content | None:
    """Return what is in *file*; None if it is gone, or torn; raise OSError if it cannot be read now."""
    try:
        data = files.read(f"{root}/{layout.USAGE}/{file.name}")
    except OSError as error:
        if error.errno not in _FOR_GOOD:
            raise
        return _Content(is_left=True)
    if data is None:
        return None
    content = _Content()
    if file.is_looks:
        for _, size, host, key in looks.lines(data):
            one = tally.of(content.hosts.setdefault(tally.name(host), {}), tally.name(key))
            one.hits, one.hit_bytes, one.size = one.hits + 1, one.hit_bytes + size, size
        return content
    facts = unseal(data)
    if facts is None:
        return None
    if facts.get("version") != _VERSION:
        return _Content(is_left=True)
    if not isinstance(facts.get("hosts"), dict):
        return None
    of = facts.get("of", [])
    content.of = tuple(str(name) for name in of if _File.of(str(name))) if isinstance(of, list) else ()
    for host, counted in facts["hosts"].items():
        if not isinstance(counted, dict):
            continue
        sums = content.hosts.setdefault(tally.name(host) if host else "", {})
        for key, facts_of_one in counted.items():
            usage = Usage.from_dict(facts_of_one)
            if usage is not None:
                tally.of(sums, tally.name(key)).add(usage)
    return content


def _as_dict(counted: Tally) -> dict[str, Any]:
    return {key: usage.as_dict() for key, usage in counted.items()}


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
