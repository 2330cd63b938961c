"""Examining a cache directory: what a person needs to know when something is wrong, by real probes.

Each check does, in a directory of its own, what the cache itself will do there (rename, link, fsync, lock between two
processes) and says what follows if it cannot. Nothing of the cache's content is touched, and a root that does not exist
is not made: then the directory above it is examined.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import commit, files, layout, locks, mending, process, roots, sharing
from .errors import ModelCacheError, StorageError, UsageError, storage_error
from .promises import check_cache, check_is_cache
from .report import Health

_TRIES = 5
# Another process tries the lock that this one holds.
_CONTENDER = "import sys; from modelcache import locks; print('had' if locks.probe(sys.argv[1]) else 'refused')"
_SPACE_LEAST_BYTES = 1 << 20
_NAMED = 3  # Of what differs, so many are named.
_IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check. ``level`` is ``ok``, ``warning`` (the cache works, with less) or ``failed``."""

    name: str
    level: str
    detail: str


def examine(root: str, *, locking: bool = True, durability: bool = True) -> Iterator[Check]:
    """Yield the checks of the cache at *root*, one after the other; the later ones need the earlier ones.

    Args:
        root: The directory; it need not exist.
        locking: Whether a second process is started to see that a lock keeps it out.
        durability: Whether renames, links and syncs are tried and timed.
    """
    probes = [*((_rename, _links, _sync) if durability else ()), *((_locks,) if locking else ())]
    yield _format(root)
    exists = os.path.lexists(root)
    probe = ""
    try:
        if os.path.exists(f"{root}/format"):
            roots.prepare_root(root)
            probe = commit.stage_directory(root)
        else:
            probe = commit.make_probe(_nearest(root))  # Whatever is there, it is not made a cache by a look at it.
        yield Check("writable", "ok", f"{root} can be {'written' if exists else 'made: it does not exist yet'}")
    except ModelCacheError as error:
        yield Check("writable", "failed", f"{error.summary}. {error.hint}")
    except OSError as error:
        hint = "Cached models are still served" if exists else "Set MODELCACHE_DIR to another place"
        what = f"{root} cannot be {'written' if exists else 'made'}"
        yield Check("writable", "failed", f"{what}: {error.filename}: {error.strerror}. {hint}")
    try:
        yield _safely(_owner, root)
        yield _safely(_sharing, root)
        yield _safely(_space, _nearest(root))
        for check in probes if probe else ():
            yield _safely(check, probe)
    finally:
        if probe:
            commit.discard(probe)
    yield _safely(_leftovers, root)
    yield _safely(_promises, root)
    yield _environment()


def health(root: str, *, offline: bool) -> Health:
    """Return whether the cache at *root* can do its work, by looking alone: nothing is written."""
    where = _nearest(root)
    problems = []
    free = 0
    # Of a shared cache only its owner writes to the root itself.
    staging = f"{root}/{layout.STAGING}"
    place = staging if where == root and os.path.isdir(staging) else where
    writable = os.access(place, os.W_OK | os.X_OK) and os.path.isdir(where)
    if not os.path.isdir(where):
        problems.append(f"{where} is not a directory")
    else:
        facts = os.statvfs(where)
        free = facts.f_bavail * facts.f_frsize
        if free < _SPACE_LEAST_BYTES:
            problems.append(f"the disk is full: {free} bytes are free")
    if not writable:
        problems.append(f"{where} cannot be written: hits are served, nothing new is stored")
    try:
        roots.check_format(root)
    except ModelCacheError as error:
        problems.append(error.summary)
    return Health(root, os.path.isdir(root), writable, offline, free, tuple(problems))


def _nearest(path: str) -> str:
    """Return *path*, or the last directory above it that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path) or "."
    return path


def _safely(check: Callable[[str], Check], place: str) -> Check:
    try:
        return check(place)
    except (OSError, ModelCacheError, subprocess.TimeoutExpired) as error:
        name = "left-overs" if check is _leftovers else check.__name__.strip("_")
        return Check(name, "failed", str(error))


def _format(root: str) -> Check:
    try:
        roots.check_format(root)
    except ModelCacheError as error:
        return Check("format", "failed", f"{error.summary}. {error.hint}")
    try:
        check_is_cache(root)
    except ModelCacheError as error:
        return Check("format", "warning", f"{error.summary}. {error.hint}")
    return Check("format", "ok", f"layout {layout.FORMAT}" if os.path.exists(f"{root}/format") else "a new cache")


def _owner(root: str) -> Check:
    try:
        found = os.stat(root)
    except FileNotFoundError:
        return Check("owner", "ok", f"it will be that of user {os.geteuid()}")
    mode = stat.S_IMODE(found.st_mode)
    detail = f"user {found.st_uid}, group {found.st_gid}, mode {mode:04o}"
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return Check("owner", "warning", f"{detail}: every user of this machine can put models in place of yours")
    if found.st_uid != os.geteuid():
        return Check("owner", "warning", f"{detail}; you are user {os.geteuid()}: what you store belongs to you")
    return Check("owner", "ok", detail)


def _sharing(root: str) -> Check:
    """Look at modes and groups, by the cache's own config."""
    rule = sharing.read(root)
    if rule is None:
        return Check("sharing", "ok", "modes follow the umask of each user; `modelcache init` shares a cache")
    what = f"{rule.access}{f', group {rule.group}' if rule.group else ''}"
    if rule.gid is not None and rule.directory & stat.S_IWGRP and not sharing.is_member(rule.gid):
        what += " (you are not in it)"
    found = mending.differences(root, rule)
    if not found:
        return Check("sharing", "ok", f"{what}: all modes and groups are as they should be")
    named = "; ".join(f"{one.path}: {one.what}" for one in found[:_NAMED])
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return Check(
        "sharing", "warning", f"{what}: {len(found)} differ: {named}{more}. `modelcache doctor --fix` mends them"
    )


def fix(root: str, *, dry_run: bool = False) -> list[mending.Difference]:
    """Bring modes and groups into line with the cache's own config; with *dry_run* only say what would be done.

    Raises:
        UsageError: It has no config that says who may use it.
        StorageError: It cannot be looked at.
    """
    check_is_cache(root)
    rule = sharing.read(root)
    if rule is None:
        raise UsageError(
            problem=f"{root} has no {sharing.CONFIG} that says who may use it: its modes follow the umask of each user",
            hint="`modelcache init --access ...` decides that, and mends what is there",
        )
    if not os.path.isdir(root):
        return []
    try:
        found = list(mending.mend(root, rule, dry_run=dry_run))
        if not dry_run and os.access(root, os.W_OK | os.X_OK):
            try:
                roots.make_root(root)  # A directory that is missing is its owner's to make: it needs staging.
            except StorageError:
                if all(one.mended for one in found):  # Else what is in the way is told with the others.
                    raise
        return found
    except ModelCacheError:
        raise
    except OSError as error:
        raise storage_error(error, action="mend", path=root) from error


def _space(root: str) -> Check:
    found = os.statvfs(root)
    free = found.f_bavail * found.f_frsize
    full = free < _SPACE_LEAST_BYTES or (found.f_files and not found.f_favail)
    detail = f"{free / 1e9:.1f} GB are free, {found.f_favail} inodes"
    if full:
        return Check("space", "failed", f"the disk is full ({detail}): hits are served, nothing new is stored")
    return Check("space", "ok" if free > 1 << 30 else "warning", detail)


def _rename(probe: str) -> Check:
    os_path = f"{probe}/a"
    commit.make_partial(os_path)
    started = time.perf_counter()
    commit.rename(f"{os_path}/object", f"{probe}/b")
    taken = (time.perf_counter() - started) * 1e3
    if not os.path.isdir(f"{probe}/b") or os.path.exists(f"{os_path}/object"):
        return Check("rename", "failed", "a directory that was renamed is not where it should be")
    return Check("rename", "ok", f"a directory is renamed in one step, in {taken:.3f} ms")


def _links(probe: str) -> Check:
    os.close(commit.create_file(f"{probe}/one"))
    started = time.perf_counter()
    try:
        commit.add_name(probe, "one", "two")
    except OSError as error:
        return Check("links", "warning", f"no hard links ({error.strerror}): a second name of a model is its first one")
    taken = (time.perf_counter() - started) * 1e3
    return Check("links", "ok", f"hard links work: a second name of a model costs {taken:.2f} ms and no space")


def _sync(probe: str) -> Check:
    kind = _file_system(probe)
    if kind in _IN_MEMORY:
        return Check("sync", "warning", f"this is {kind}, in memory: what is stored is gone when the machine stops")
    times = []
    for number in range(_TRIES):
        started = time.perf_counter()
        commit.commit_record(probe, f"{probe}/record-{number}", b"x" * 512)
        times.append(time.perf_counter() - started)
    median = sorted(times)[_TRIES // 2] * 1e3
    if median < 0.02:
        return Check("sync", "warning", f"a durable write took {median:.3f} ms: fsync does nothing here (a RAM disk?)")
    return Check("sync", "ok", f"a durable small write takes {median:.2f} ms")


def _locks(probe: str) -> Check:
    path = f"{probe}/probe.lock"
    try:
        with locks.exclusive(path, timeout=5, what="the probe"):
            # -P: nothing that lies in the current directory is run. What this process can import, that one can too.
            places = [place for place in sys.path if place] + [os.path.dirname(os.path.dirname(__file__))]
            said = subprocess.run(  # noqa: S603  # Ourselves.
                [sys.executable, "-P", "-c", _CONTENDER, path],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
                check=False,
                timeout=60,
                capture_output=True,
                text=True,
            )
    except locks.LockUnavailableError as error:
        return Check("locks", "warning", f"there are none ({error}): processes may repeat each other's downloads")
    if said.returncode != 0:
        why = said.stderr.strip().rpartition("\n")[2] or f"it ended with {said.returncode}"
        return Check("locks", "failed", f"the second process did not run: {why}")
    if said.stdout.strip() != "refused":
        return Check("locks", "warning", "two processes got one lock: they may repeat each other's downloads")
    return Check("locks", "ok", "a lock keeps another process out")


def _file_system(path: str) -> str:
    """Return the type of the file system of *path*, "" where it cannot be known (proc(5), mountinfo)."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (files.content("/proc/self/mountinfo") or b"").decode(errors="replace").splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split(" ")[2:3] == [wanted]:
            return kind.partition(" ")[0]
    return ""


def _leftovers(root: str) -> Check:
    dead = sum(bool(process.is_dead(name)) for name in files.listing(f"{root}/{layout.STAGING}"))
    partials = len(files.listing(f"{root}/{layout.PARTIALS}"))
    set_aside = len(files.listing(f"{root}/{layout.QUARANTINE}"))
    detail = f"{partials} partials, {dead} staging directories of dead processes, {set_aside} objects in quarantine"
    return Check("left-overs", "warning" if set_aside else "ok", detail)


def _promises(root: str) -> Check:
    """Look at names, sizes and records; content is what ``modelcache verify`` reads."""
    if not os.path.exists(f"{root}/format"):
        return Check("promises", "ok", "nothing is stored yet")
    found = check_cache(root, hashing=False)
    broken = [str(violation) for violation in found if violation.kind != "garbage"]
    if broken:
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        return Check("promises", "failed", f"{broken[0]}{more}. `modelcache verify --repair` mends what can be fetched")
    spare = sum(violation.promise == "I7" for violation in found)
    return Check("promises", "ok", f"every record is whole and names what is there; {spare} objects that none names")


def _environment() -> Check:
    names = [
        "MODELCACHE_DIR",
        "MODELCACHE_HOME",
        "MODELCACHE_OFFLINE",
        "HF_HUB_OFFLINE",
        "MODELCACHE_HTTP_RETRIES",
        "MODELCACHE_HTTP_TIMEOUT",
        "MODELCACHE_DEADLINE",
        "MODELCACHE_LOCK_TIMEOUT",
        "MODELCACHE_CONCURRENCY",
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "NO_PROXY",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "NETRC",
    ]
    # Names only: a proxy's address may hold a password.
    found = [name for name in names if os.environ.get(name)]
    return Check("environment", "ok", f"set: {', '.join(found)}" if found else "no variable is set")
