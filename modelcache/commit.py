"""Durable changes to a cache root.

Every path under the root is created, synced, renamed and removed here; other modules only fill the staged files that
they are handed. So what a crash can leave behind is decided in this file. See DESIGN.md for I1 to I11.

Relied on by every store:
  * A committed path is absent or whole, at every instant and after any crash (I1).
  * When a commit function returns, its effect survives power loss (I3).
  * A commit function that raises has promised nothing; the staged path is still the caller's to discard.
  * After a failed fsync the file is given up, never synced again: the kernel may have dropped the pages and would
    report the next fsync as done.

Who may read and write what is made follows from the cache's own config (`sharing`), whatever the umask: it is made for
its owner alone, given to the group, and opened last. Nothing goes through a link that another user has put here.

Not promised: durability on file systems that ignore fsync; ``modelcache doctor`` measures and reports them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable

from failpoints import fail_point

from . import layout, process, sharing
from .errors import GroupError, LinkError

_FILE_MODE = 0o666  # The umask narrows it.
_DIRECTORY_MODE = 0o777
_OBJECT_MODE = 0o444
_EXECUTABLE = 0o111
_OWN_FILE, _OWN_DIRECTORY = 0o600, 0o700  # Until the group is right: nobody else's for a moment.
_CREATE = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
# rename(2) over a directory that holds files: POSIX allows either of the first two; the third, over a file.
_WRITABLE = 0o222
_COPY_BYTES = 1 << 20
_ALREADY_THERE = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


def make_own_directory(path: str) -> None:
    """Make the directory *path*, durably, for nobody but its owner: others are let in when all is in place."""
    try:
        os.mkdir(path, _OWN_DIRECTORY)
        set_access(path, os.lstat(path), _OWN_DIRECTORY, None)  # The umask may take from its owner too.
    except FileExistsError:
        if not os.path.isdir(path):  # Another `init` was faster.
            raise
    fail_point("commit.before-sync-own-root")
    sync_directory(os.path.dirname(path))


def make_bucket(path: str, rule: sharing.Rule | None) -> None:
    """Make a directory right under the root; where others share it, it appears with its mode and group."""
    root, name = os.path.split(path)
    if rule is None or name == layout.STAGING:
        _make_directory(path)
        return
    staged = f"{root}/{layout.STAGING}/{process.token()}"
    _mkdir(staged)
    fail_point("commit.before-rename-bucket")
    try:
        os.rename(staged, path)  # Over an empty one too, which somebody else has made meanwhile.
    except OSError as error:
        discard(staged)
        if error.errno not in _ALREADY_THERE:
            raise


_settled: set[tuple[str, int]] = set()  # The directories whose own names this process knows to be durable.


def settle(directory: str) -> None:
    """Make the name of *directory* durable, once in this process: what is promised below hangs on it.

    Whoever made it may have died, or not have come to the sync yet.
    """
    identity = directory, os.stat(directory).st_ino
    if identity in _settled:
        return
    try:
        sync_directory(os.path.dirname(directory))
    except PermissionError:
        pass  # Not ours to read: then we have not made a name in it either.
    _settled.add(identity)


def stage_directory(root: str) -> str:
    """Return a new directory in ``staging/`` that belongs to this process alone."""
    path = f"{root}/{layout.STAGING}/{process.token()}"
    fail_point("commit.before-stage")
    _mkdir(path)
    return path


def make_probe(parent: str) -> str:
    """Return a new, hidden directory of ours in *parent*, for a look at what its file system can do."""
    path = f"{parent.rstrip('/')}/.modelcache-{process.token()}"
    os.mkdir(path, _DIRECTORY_MODE)
    return path


def make_partial(path: str) -> None:
    """Make the directory of a new partial, with the inner directory that will become the object."""
    fail_point("commit.before-make-partial")
    _mkdir(path)
    _mkdir(f"{path}/object")


def create_file(path: str, *, executable: bool = False, reading: bool = False) -> int:
    """Return a descriptor, open for writing (and *reading*), of the new file *path*; it must not exist.

    Raises:
        GroupError: It must belong to a group that this user is not in.
        OSError
    """
    fail_point("commit.before-create-file")
    return _create(path, os.O_RDWR if reading else os.O_WRONLY, executable=executable)


def _create(path: str, access: int, *, executable: bool = False) -> int:
    rule = sharing.of(path)
    if rule is None:
        return os.open(path, access | _CREATE, _FILE_MODE | (_EXECUTABLE if executable else 0))
    descriptor = os.open(path, access | _CREATE, _OWN_FILE)
    try:
        _open_to_others(descriptor, path, rule, rule.file | (rule.content(executable=True) if executable else 0))
    except BaseException:
        os.close(descriptor)
        remove_quietly(path)
        raise
    return descriptor


def _mkdir(path: str) -> None:
    """Make the directory *path* with the mode and the group that it must have."""
    rule = sharing.of(path)
    if rule is None:
        os.mkdir(path, _DIRECTORY_MODE)
        return
    os.mkdir(path, _OWN_DIRECTORY)
    try:
        set_access(path, os.lstat(path), rule.directory, rule.gid)
    except BaseException as error:
        os.rmdir(path)
        if isinstance(error, PermissionError) and rule.gid is not None and not sharing.is_member(rule.gid):
            raise GroupError(path=sharing.root_of(path) or path, group=rule.group, user=os.geteuid()) from error
        raise


def _open_to_others(descriptor: int, path: str, rule: sharing.Rule, mode: int) -> None:
    """Give what was just made to the group of *rule*, then let others in: never the wrong ones, not for a moment."""
    if rule.gid is not None and os.fstat(descriptor).st_gid != rule.gid:
        try:
            os.fchown(descriptor, -1, rule.gid)
        except PermissionError as error:
            root = sharing.root_of(path) or path
            raise GroupError(path=root, group=rule.group, user=os.geteuid()) from error
    fail_point("commit.before-mode")
    os.fchmod(descriptor, mode)


def make_lock(path: str) -> int:
    """Return a descriptor, open for reading and writing, of the new lock file *path*.

    Others may open it the moment it has its name: where they share the cache, it has its mode and its group by then.

    Raises:
        FileExistsError: Another process has made it.
        OSError
    """
    if sharing.of(path) is None:
        return os.open(path, os.O_RDWR | _CREATE, _FILE_MODE)
    staged = f"{sharing.root_of(path)}/{layout.STAGING}/{process.token()}"
    descriptor = _create(staged, os.O_RDWR)
    made = False
    try:
        fail_point("commit.before-link-lock")
        try:
            os.link(staged, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.rename(staged, path)  # Without hard links two may get one lock each, which costs work alone (I9).
        made = True
    finally:
        if not made:
            os.close(descriptor)
        remove_quietly(staged)
    return descriptor


def make_executable(path: str) -> None:
    """Let the staged file *path* be executed."""
    fail_point("commit.before-make-executable")
    rule = sharing.of(path)
    descriptor = os.open(path, _LOOK)
    try:
        os.fchmod(descriptor, _FILE_MODE | _EXECUTABLE if rule is None else rule.file | rule.content(executable=True))
    finally:
        os.close(descriptor)


def may_change(descriptor: int) -> bool:
    """Tell whether this process may set the mode of the file: of another user's it may not, and cannot seal it."""
    found = os.fstat(descriptor)
    if found.st_uid == os.geteuid():
        return True
    try:
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
    except PermissionError:
        return False
    return True


def make_staged(directory: str) -> None:
    """Make *directory*, and its parents, below a staged directory of ours."""
    fail_point("commit.before-make-staged")
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for path in reversed(missing):
        _make_directory(path)


def share(existing: str, path: str) -> bool:
    """Make *path*, below a staged directory, another name of the file *existing*; False without hard links."""
    fail_point("commit.before-share")
    try:
        os.link(existing, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    if stat.S_ISREG(os.lstat(path).st_mode):
        return True
    remove_quietly(path)  # Somebody has put a link, or a FIFO, in its place.
    return False


def make_mark(path: str) -> None:
    """Make the empty file *path*, which says something by its name; a crash of the machine may lose it."""
    fail_point("commit.before-mark")
    os.close(_create(path, os.O_WRONLY))


def open_existing(path: str) -> int:
    """Return a descriptor, open for reading and writing, of the staged file *path*."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags)
    except PermissionError:
        # Its owner died between making it read-only and renaming it; it was never visible.
        descriptor = os.open(path, _LOOK)
        try:
            os.fchmod(descriptor, _OWN_FILE)
        finally:
            os.close(descriptor)
        return os.open(path, flags)


def write(descriptor: int, data: bytes) -> None:
    """Put all of *data* into the file; one system call may stop short of it."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def truncate(descriptor: int, length: int) -> None:
    """Shorten the staged file to *length* bytes."""
    fail_point("commit.before-truncate")
    os.ftruncate(descriptor, length)


def commit_object(staged: str, final: str) -> bool:
    """Make the directory *staged*, with all that is in it, visible as the object *final*, durably.

    A crash after each step leaves:
      1 fsync files         garbage in staging/, or a partial that is resumed.
      2 fsync directories   the same.
      3 rename              *final* absent or whole. Nothing was promised yet.
      4 fsync parent        *final* whole. This is the commit point.

    Returns:
        False if *final* was there already: then *staged* still belongs to the caller, and *final* is durable.
    """
    parent = os.path.dirname(final)
    sharing.guard(final)
    assert os.stat(staged).st_dev == os.stat(parent).st_dev, "a rename, never a copy"
    seal(staged)
    fail_point("commit.before-rename-object")
    try:
        os.rename(staged, final)
    except OSError as error:
        if error.errno not in _ALREADY_THERE:
            raise
        # Whoever renamed it may not have come to the fsync yet, and our caller is about to promise it.
        sync_directory(parent)
        return False
    fail_point("commit.before-sync-objects")
    sync_directory(parent)
    fail_point("commit.after-object")
    return True


def commit_record(staging: str, final: str, data: bytes) -> None:
    """Replace the small file *final* by one that holds *data*, atomically and durably.

    A crash leaves the old content or the new one, and perhaps a file in the directory *staging*.
    """
    staged = f"{staging}/{process.token()}"
    descriptor = create_file(staged)
    try:
        try:
            rule = sharing.of(staged)
            if rule is not None and os.path.dirname(os.path.dirname(staged)) == os.path.dirname(final):
                os.fchmod(descriptor, rule.fixed)  # Right in the root: what only its owner writes.
            fail_point("commit.before-write-record", on_torn=lambda size: write(descriptor, data[:size]))
            write(descriptor, data)
            fail_point("commit.before-sync-record")
            _sync(descriptor)
        finally:
            os.close(descriptor)
        fail_point("commit.before-rename-record")
        os.replace(staged, final)
    except BaseException:
        remove_quietly(staged)
        raise
    fail_point("commit.before-sync-records")
    sync_directory(os.path.dirname(final))
    fail_point("commit.after-record")


def commit_file(staged: str, final: str) -> None:
    """Make the file *staged* visible as *final*, in a directory of the same file system, durably: what is exported.

    Both are outside the root, and the user's. A crash leaves *final* as it was, or whole; and perhaps *staged*.
    """
    descriptor = os.open(staged, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fail_point("commit.before-sync-export")
        _sync(descriptor)
    finally:
        os.close(descriptor)
    fail_point("commit.before-rename-export")
    os.replace(staged, final)
    fail_point("commit.before-sync-exports")
    sync_directory(os.path.dirname(final))


def publish_once(staged: str, final: str) -> bool:
    """Make the file *staged* visible as *final*, durably, unless something is there: outside the root, for a backend.

    Of several that try, on one machine or many, just one makes it. A crash leaves *final* absent or whole; and perhaps
    *staged*, which is still the caller's to remove.

    Returns:
        Whether this call made it. If not, *final* is durable too: who made it may not have come to the sync.

    Raises:
        OSError: Also where there are no hard links, without which nobody could tell who was first.
    """
    descriptor = os.open(staged, _LOOK)
    try:
        fail_point("commit.before-sync-replica")
        _sync(descriptor)
    finally:
        os.close(descriptor)
    fail_point("commit.before-link-replica")
    try:
        os.link(staged, final, follow_symlinks=False)
        made = True
    except FileExistsError:
        # A network disk says so, too, of a link that it has made itself, when its first answer was lost.
        made = os.path.samestat(os.lstat(staged), os.lstat(final))
    fail_point("commit.before-sync-replicas")
    sync_directory(os.path.dirname(final))
    return made


def replace_hint(staging: str, final: str, data: bytes) -> None:
    """Replace the small file *final* atomically, not durably: for facts that only save work and die with the boot."""
    staged = f"{staging}/{process.token()}"
    try:
        descriptor = create_file(staged)
        try:
            write(descriptor, data)
        finally:
            os.close(descriptor)
        fail_point("commit.before-rename-hint")
        os.replace(staged, final)
    except BaseException:
        remove_quietly(staged)
        raise


def add_name(directory: str, existing: str, name: str) -> None:
    """Give the file *existing* of an object a second *name* in the same directory, durably."""
    fail_point("commit.before-link")
    try:
        _link(f"{directory}/{existing}", f"{directory}/{name}")
    except FileExistsError:
        pass
    fail_point("commit.before-sync-link")
    sync_directory(directory)


def add_tree(staging: str, existing: str, path: str) -> None:
    """Give the tree *existing* of an object a second name, *path* in the same directory, durably, by links.

    Raises:
        OSError: Without hard links there is none; nothing has changed then.
    """
    staged = f"{staging}/{process.token()}"
    make_staged(staged)
    try:
        for directory, _, names in os.walk(existing):
            copy = f"{staged}/tree{directory[len(existing) :]}"
            make_staged(copy)
            for name in names:
                _link(f"{directory}/{name}", f"{copy}/{name}")
        seal(staged)
        fail_point("commit.before-rename-tree")
        try:
            os.rename(f"{staged}/tree", path)
        except OSError as error:
            if error.errno not in _ALREADY_THERE:
                raise
    finally:
        discard(staged)
    fail_point("commit.before-sync-tree")
    sync_directory(os.path.dirname(path))


def _link(existing: str, path: str) -> None:
    """Make *path* another name of the file *existing*; a copy of it where that may not be linked: it is another user's.

    Linux lets nobody link a file that he could not write (proc(5), protected_hardlinks).
    """
    found = os.lstat(existing)
    if not stat.S_ISREG(found.st_mode):
        raise LinkError(path=existing)
    root = sharing.guard(path)
    try:
        os.link(existing, path, follow_symlinks=False)
    except PermissionError as error:
        if error.errno != errno.EPERM or found.st_uid == os.geteuid() or root is None:
            raise
    else:
        return
    staged = f"{root}/{layout.STAGING}/{process.token()}"
    try:
        _copy(existing, staged)
        os.link(staged, path, follow_symlinks=False)
    finally:
        remove_quietly(staged)


def _copy(existing: str, staged: str) -> None:
    """Make *staged* a durable copy of the file *existing*, with its mtime, sealed.

    The bits of the other user's file are not taken over: a program of his that is setuid would run as us.
    """
    source = os.open(existing, _LOOK)
    try:
        found = os.fstat(source)
        descriptor = create_file(staged)
        try:
            while chunk := os.read(source, _COPY_BYTES):
                write(descriptor, chunk)
            os.fchmod(descriptor, _sealed_mode(staged, found.st_mode))
            os.utime(descriptor, ns=(found.st_atime_ns, found.st_mtime_ns))
            _sync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        os.close(source)


def links_work(error: OSError) -> bool:
    """Tell whether *error*, raised by `add_name`, is something else than a file system without hard links."""
    return error.errno not in _NO_LINKS


def rename(source: str, target: str) -> None:
    """Rename within the root, atomically, not durably: claims, and the way to trash and quarantine."""
    fail_point("commit.before-rename")
    sharing.guard(source)
    os.rename(source, target)


def move_durably(source: str, target: str) -> None:
    """Rename *source* out of its bucket; when it returns, it stays gone after a power cut.

    Its new name is synced first: where nothing orders the two, a cut in between must not leave it without any.
    """
    ensure_bucket(os.path.dirname(target))
    rename(source, target)
    fail_point("commit.before-sync-move")
    sync_directory(os.path.dirname(target))
    sync_directory(os.path.dirname(source))


def put_back(source: str, target: str) -> bool:
    """Undo a `move_durably`; False if something else has taken the place meanwhile."""
    fail_point("commit.before-put-back")
    try:
        if os.path.isdir(source) and not os.path.islink(source):
            os.rename(source, target)
        else:
            _link(source, target)  # A rename would replace what is there.
            os.unlink(source)
    except OSError as error:
        if error.errno not in _ALREADY_THERE:
            raise
        return False
    sync_directory(os.path.dirname(target))
    return True


def remove_record(path: str) -> bool:
    """Remove a record, durably; False if there is none."""
    fail_point("commit.before-remove-record")
    sharing.guard(path)
    try:
        os.unlink(path)
        found = True
    except FileNotFoundError:
        found = False  # It may have been there a moment ago: that it is gone is promised all the same.
    fail_point("commit.before-sync-removal")
    sync_directory(os.path.dirname(path))
    return found


def remove_quietly(path: str) -> None:
    """Remove a file that nobody relies on; one that cannot be removed is found by the next sweep."""
    try:
        sharing.guard(path)
        os.unlink(path)
    except OSError:
        return


def remove_odd(path: str) -> None:
    """Remove what stands in a file's place and is none: a link, a FIFO, a socket. A file, or a directory, stays.

    Raises:
        OSError: It could not be removed, or is a directory.
    """
    sharing.guard(path)
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            os.unlink(path)
    except FileNotFoundError:
        return


def discard(path: str) -> None:
    """Remove a directory in staging, partials or trash with all that is in it; what cannot go is swept later.

    By descriptors: a link that somebody puts in place of a directory meanwhile leads nowhere.
    """
    fail_point("commit.before-discard")
    try:
        sharing.guard(path)
        for _, directories, names, inside in os.fwalk(path, topdown=False, follow_symlinks=False):
            for name in names:
                _try(os.unlink, name, inside)
            for name in directories:
                if not _try(os.rmdir, name, inside):
                    _try(os.unlink, name, inside)  # A link to a directory counts among them.
    except OSError:
        pass  # Gone, or not ours to read; perhaps it is empty all the same.
    try:
        os.rmdir(path)
    except NotADirectoryError:
        remove_quietly(path)
    except OSError:
        return


def _try(remove: Callable[..., None], name: str, directory: int) -> bool:
    try:
        remove(name, dir_fd=directory)
    except OSError:
        return False
    return True


def ensure_bucket(path: str, *, durable: bool = True) -> None:
    """Make a directory right under the root if it is missing; for hints, which die with the boot, not *durable*."""
    if not os.path.isdir(path):
        make_bucket(path, sharing.of(path))
    else:
        sharing.guard(f"{path}/")
    if durable:
        settle(path)


def touch(path: str) -> None:
    """Set the mtime of a record to now: the use stamp of an entry."""
    sharing.guard(path)
    os.utime(path, follow_symlinks=False)


def stamp(path: str, mtime_ns: int) -> None:
    """Give a verified object file back the mtime on record, which a tool had changed."""
    sharing.guard(path)
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def set_access(path: str, seen: os.stat_result, mode: int, gid: int | None) -> None:
    """Give *path* a *mode*, and the group *gid* before that; only to the very file or directory that was *seen*.

    It is not opened for reading: that would let go of a lock that this process has on it.

    Raises:
        FileNotFoundError: It is gone, or another one.
        OSError
    """
    fail_point("commit.before-set-access")
    descriptor = -1
    try:
        if sys.platform == "linux":
            # The root itself may be named by a link: the inode tells.
            kind = os.O_DIRECTORY if stat.S_ISDIR(seen.st_mode) else os.O_NOFOLLOW
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | kind)
            place, found = f"/proc/self/fd/{descriptor}", os.fstat(descriptor)
        else:
            place, found = path, os.lstat(path)
        # Of a directory the links only count what others make in it meanwhile.
        is_same = os.path.samestat(found, seen) and (stat.S_ISDIR(seen.st_mode) or found.st_nlink == seen.st_nlink)
        if not is_same or stat.S_ISLNK(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "it is another one by now", path)
        if gid is not None and found.st_gid != gid:
            os.chown(place, -1, gid)
        os.chmod(place, mode)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def sync_data(descriptor: int) -> None:
    """Write the file's bytes and length to the disk; other metadata may lag (fdatasync(2))."""
    if sys.platform == "darwin":
        _sync(descriptor)
    else:
        os.fdatasync(descriptor)


def sync_directory(path: str) -> None:
    """Write the names in the directory *path* to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def seal(staged: str) -> None:
    """Make all below the directory *staged*, and itself, durable; files read-only. What is further down comes first."""
    for directory, _, names in os.walk(staged, topdown=False):
        for name in names:
            _seal_file(f"{directory}/{name}")
        fail_point("commit.before-sync-object-directory")
        sync_directory(directory)


def _seal_file(path: str) -> None:
    """Make a staged file read-only and durable."""
    descriptor = os.open(path, _LOOK)
    try:
        found = stat.S_IMODE(os.fstat(descriptor).st_mode)
        mode = _sealed_mode(path, found)
        if found != mode:
            try:
                os.fchmod(descriptor, mode)
            except PermissionError:
                if found & _WRITABLE:
                    raise
                # Another name of a file of another user, which nobody can write either: `mending` is its owner's.
        fail_point("commit.before-sync-file")
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sealed_mode(path: str, mode: int) -> int:
    """Return the mode that the staged file *path*, with *mode* now, is published with."""
    rule, executable = sharing.of(path), bool(mode & stat.S_IXUSR)
    return _OBJECT_MODE | (_EXECUTABLE if executable else 0) if rule is None else rule.content(executable=executable)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        # fsync(2) on macOS leaves the bytes in the drive's cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _make_directory(path: str) -> None:
    try:
        _mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):  # A file where a directory should be.
            raise


def make_directories(path: str) -> None:
    """Make *path* and its missing parents, durably: each name is synced into its parent."""
    missing: list[str] = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        _make_directory(path)
        fail_point("commit.before-sync-root")
        sync_directory(os.path.dirname(path))
