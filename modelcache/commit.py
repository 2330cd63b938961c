"""Durable changes to a cache root.

Every path under the root is created, synced, renamed and removed here; other modules only fill the staged files that
they are handed. So what a crash can leave behind is decided in this file. See DESIGN.md for I1 to I11.

Relied on by every store:
  * A committed path is absent or whole, at every instant and after any crash (I1).
  * When a commit function returns, its effect survives power loss (I3).
  * A commit function that raises has promised nothing; the staged path is still the caller's to discard.
  * After a failed fsync the file is given up, never synced again: the kernel may have dropped the pages and would
    report the next fsync as done.

Not promised: durability on file systems that ignore fsync; ``modelcache doctor`` measures and reports them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from failpoints import fail_point

from . import layout, process
from .errors import FormatError, RootError

_FILE_MODE = 0o666  # The umask narrows it.
_DIRECTORY_MODE = 0o777
_OBJECT_MODE = 0o444
_EXECUTABLE = 0o111
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
# rename(2) over a directory that holds files: POSIX allows either of the first two; the third, over a file.
_ALREADY_THERE = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


def prepare_root(root: str) -> None:
    """Make *root* ready for what is promised in it: `make_root`, and its own name is durable.

    Raises:
        FormatError, RootError: See `make_root`.
    """
    make_root(root)
    try:
        _settle(root)
    except OSError as error:
        raise _root_error(root, error) from error


def make_root(root: str) -> None:
    """Make *root* and its directories where they are missing, and mark it as a cache of this format.

    Enough for who only waits for another process: it syncs nothing that was there.

    Raises:
        FormatError: A newer modelcache wrote the root; nothing is touched.
        RootError: The root is a file, read-only, or not ours to write.
    """
    check_format(root)
    try:
        missing = [name for name in _BUCKETS if not os.path.isdir(f"{root}/{name}")]
        if missing or not os.path.exists(f"{root}/format"):
            make_directories(root)
            for name in missing:
                _make_directory(f"{root}/{name}")
            for name, content in (("CACHEDIR.TAG", layout.CACHEDIR_TAG), ("format", b"%d\n" % layout.FORMAT)):
                if not os.path.exists(f"{root}/{name}"):
                    commit_record(f"{root}/{layout.STAGING}", f"{root}/{name}", content)
        if not os.access(f"{root}/{layout.STAGING}", os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), root)
    except OSError as error:
        raise _root_error(root, error) from error


_settled: set[tuple[str, int]] = set()  # The directories whose own names this process knows to be durable.


def _settle(directory: str) -> None:
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


# Trash too: a removal must be possible where there is no inode left for it.
_BUCKETS = (layout.OBJECTS, layout.ENTRIES, layout.PARTIALS, layout.STAGING, layout.LOCKS, layout.TRASH)


def check_format(root: str) -> None:
    """Check that *root* is no newer than this code; a root that does not exist yet is fine.

    Raises:
        FormatError: It is newer.
        RootError: It is not a directory, or may not be searched.
    """
    try:
        with open(f"{root}/format", "rb", buffering=0) as file:
            found = file.read(32).strip().decode(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _root_error(root, error) from error
    if not (found.isascii() and found.isdigit()) or int(found) > layout.FORMAT:
        raise FormatError(path=root, found=found or "(empty)", known=layout.FORMAT)


def stage_directory(root: str) -> str:
    """Return a new directory in ``staging/`` that belongs to this process alone."""
    path = f"{root}/{layout.STAGING}/{process.token()}"
    fail_point("commit.before-stage")
    os.mkdir(path, _DIRECTORY_MODE)
    return path


def make_probe(parent: str) -> str:
    """Return a new, hidden directory of ours in *parent*, for a look at what its file system can do."""
    path = f"{parent.rstrip('/')}/.modelcache-{process.token()}"
    os.mkdir(path, _DIRECTORY_MODE)
    return path


def make_partial(path: str) -> None:
    """Make the directory of a new partial, with the inner directory that will become the object."""
    fail_point("commit.before-make-partial")
    os.mkdir(path, _DIRECTORY_MODE)
    os.mkdir(f"{path}/object", _DIRECTORY_MODE)


def create_file(path: str, *, executable: bool = False) -> int:
    """Return a descriptor, open for writing, of the new file *path*; it must not exist."""
    fail_point("commit.before-create-file")
    return os.open(path, _CREATE, _FILE_MODE | (_EXECUTABLE if executable else 0))


def make_executable(path: str) -> None:
    """Let the staged file *path* be executed."""
    fail_point("commit.before-make-executable")
    os.chmod(path, _FILE_MODE | _EXECUTABLE, follow_symlinks=False)


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
    return True


def make_mark(path: str) -> None:
    """Make the empty file *path*, which says something by its name; a crash of the machine may lose it."""
    fail_point("commit.before-mark")
    os.close(os.open(path, _CREATE, _FILE_MODE))


def open_existing(path: str) -> int:
    """Return a descriptor, open for reading and writing, of the staged file *path*."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except PermissionError:
        # Its owner died between making it read-only and renaming it; it was never visible.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchmod(descriptor, 0o600)
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
        os.link(f"{directory}/{existing}", f"{directory}/{name}", follow_symlinks=False)
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
                os.link(f"{directory}/{name}", f"{copy}/{name}", follow_symlinks=False)
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


def links_work(error: OSError) -> bool:
    """Tell whether *error*, raised by `add_name`, is something else than a file system without hard links."""
    return error.errno not in _NO_LINKS


def rename(source: str, target: str) -> None:
    """Rename within the root, atomically, not durably: claims, and the way to trash and quarantine."""
    fail_point("commit.before-rename")
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
        if os.path.isdir(source):
            os.rename(source, target)
        else:
            os.link(source, target, follow_symlinks=False)  # A rename would replace what is there.
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
        os.unlink(path)
    except OSError:
        return


def discard(path: str) -> None:
    """Remove a directory in staging, partials or trash with all that is in it; what cannot go is swept later."""
    fail_point("commit.before-discard")
    for directory, _, files in os.walk(path, topdown=False):
        for name in files:
            remove_quietly(f"{directory}/{name}")
        try:
            os.rmdir(directory)
        except OSError:
            return


def ensure_bucket(path: str) -> None:
    """Make a directory right under the root, durably, if it is missing."""
    if not os.path.isdir(path):
        _make_directory(path)
    _settle(path)


def touch(path: str) -> None:
    """Set the mtime of a record to now: the use stamp of an entry."""
    os.utime(path)


def stamp(path: str, mtime_ns: int) -> None:
    """Give a verified object file back the mtime on record, which a tool had changed."""
    os.utime(path, ns=(mtime_ns, mtime_ns))


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
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = stat.S_IMODE(os.fstat(descriptor).st_mode)
        mode = _OBJECT_MODE | (_EXECUTABLE if found & stat.S_IXUSR else 0)
        if found != mode:
            os.fchmod(descriptor, mode)
        fail_point("commit.before-sync-file")
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        # fsync(2) on macOS leaves the bytes in the drive's cache.
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def _make_directory(path: str) -> None:
    try:
        os.mkdir(path, _DIRECTORY_MODE)
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


def _root_error(root: str, error: OSError) -> Exception:
    path = str(error.filename or root)
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
            hint="Cached models are still served; ask the owner for write access, or set MODELCACHE_DIR",
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
