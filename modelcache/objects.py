"""The object store: immutable content under the name of its digest.

An object is one directory, ``objects-v1/sha256-<hex>/``, that holds the file under its own name; the same bytes under
another name are a hard link beside it. It appears by one rename and disappears by one rename (I1). The object of a tree
is ``objects-v1/tree-<hex>/``, with the directory under its own name and its listing; another name is one of hard links.

No object goes that somebody is about to name (I2), without a lock. Whoever will write a record *announces* the digest
first, by an empty file in ``staging/`` whose name says owner and digest, and waits for removals under way. Whoever
removes says so in the same manner, and then looks for announcements and records: so at least one of the two sees the
other one. That wait is bounded; for who was stopped for longer, the remover looks once more when the object is in
trash, and puts it back if it is wanted.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from . import commit, files, layout, process, trees
from .digest import ALGORITHM, TREE, Digest
from .errors import InvalidDigestError, ModelCacheError, storage_error

_REMOVAL_S = 1.0  # A removal takes milliseconds; nobody waits longer than this without being told (I11).
_POLL_S = 0.001
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # What says nothing of the file, but of this process or machine.
# A mark whose owner cannot be looked for (another machine, a container) counts so long: hashing an object of hundreds
# of gigabytes takes no longer, and one that its owner left costs who stores that content `_REMOVAL_S` at most.
_MARK_S = 3600.0
_HEX = frozenset("0123456789abcdef")
_TRIES = 5  # Each after the first needs another process that does the same at the same moment.


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of an object, or a tree, as it is found. ``size`` is in bytes, ``mtime_ns`` in nanoseconds since 1970."""

    digest: Digest
    path: str
    name: str
    size: int
    mtime_ns: int


class Objects:
    """The objects of the cache at *root*."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._directory = f"{root}/{layout.OBJECTS}"

    def path(self, digest: Digest) -> str:
        """Return the directory of the object with *digest*, whether it is there or not."""
        return f"{self._directory}/{layout.object_name(digest)}"

    def find(self, digest: Digest, name: str | None = None) -> Stored | None:
        """Return what the object has under *name*, under any of its names if that is None; None if there is nothing."""
        for found in [name] if name is not None else files.listing(self.path(digest)):
            try:
                return self._stored(digest, found)
            except OSError:
                continue
        return None

    def _stored(self, digest: Digest, name: str) -> Stored:
        """Return what the object has under *name*; raise OSError."""
        path = f"{self.path(digest)}/{name}"
        facts = os.lstat(path)
        if not stat.S_ISDIR(os.lstat(self.path(digest)).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is no directory of ours", self.path(digest))
        if not (stat.S_ISDIR if digest.is_tree else stat.S_ISREG)(facts.st_mode):
            raise FileNotFoundError(errno.ENOENT, "it is of another kind", path)
        size = facts.st_size
        if digest.is_tree:
            listing = trees.listing_on_record(self.path(digest), digest)
            if listing is None:
                raise FileNotFoundError(errno.ENOENT, "its listing is broken", path)
            size = listing.size
        return Stored(digest, path, name, size, facts.st_mtime_ns)

    def publish(self, staged: str, digest: Digest, name: str) -> Stored:
        """Make the directory *staged*, with the verified file or tree *name* in it, the object *digest*, durably.

        If the object was there already, its content is checked, and given the new name if it lacks it.

        Raises:
            StorageError, NoSpaceError: Nothing was published; *staged* is still the caller's.
        """
        final = self.path(digest)
        try:
            for _ in range(_TRIES):
                if commit.commit_object(staged, final):
                    return self._stored(digest, name)
                found = self.name(digest, name)
                seen = None
                if found is not None:
                    try:
                        actual, seen = trees.digest_of(found.path, digest)
                    except FileNotFoundError:
                        continue  # It was removed this moment.
                    except OSError as error:
                        if error.errno in _OURS:
                            raise
                        actual = None  # A bad sector, or a file that nobody may read any more.
                    if actual == digest:
                        commit.discard(staged)
                        return found
                if found is not None or os.path.lexists(final):
                    # What is there is not what its name says (another tool wrote through it). It goes, ours comes,
                    # under its names too: records name them.
                    names = files.listing(final)
                    self.quarantine(digest, "found altered when the same content was stored again", seen)
                    self._add_names(digest, staged, name, names)
            raise FileExistsError(errno.EEXIST, "other processes keep replacing it", final)
        except ModelCacheError:
            raise
        except OSError as error:
            raise storage_error(error, action="publish", path=final) from error

    def _add_names(self, digest: Digest, staged: str, name: str, others: list[str]) -> None:
        """Give what is *name* in *staged* the names *others* as well, where there are hard links."""
        for other in others:
            try:
                if not digest.is_tree:
                    commit.add_name(staged, name, other)
                elif other != layout.LISTING:
                    commit.add_tree(self._staging, f"{staged}/{name}", f"{staged}/{other}")
            except OSError as error:
                if commit.links_work(error):
                    raise
                return

    def name(self, digest: Digest, name: str) -> Stored | None:
        """Return the object under *name*, which it is given if it lacks it; None if there is no object.

        Object and name are durable then, whoever made them: another process may have died before it came to the sync.
        """
        stored = self.find(digest, name) or self.find(digest)
        if stored is None:
            return None
        try:
            if stored.name == name:
                commit.sync_directory(self.path(digest))
            else:
                try:
                    if digest.is_tree:
                        commit.add_tree(self._staging, stored.path, f"{self.path(digest)}/{name}")
                    else:
                        commit.add_name(self.path(digest), stored.name, name)
                except OSError as error:
                    if commit.links_work(error):
                        raise
                    name = stored.name  # Without hard links it keeps its first name: the right bytes, one copy.
            commit.sync_directory(self._directory)
        except FileNotFoundError:
            return None  # It was removed this moment.
        except OSError as error:
            raise storage_error(error, action="link", path=self.path(digest)) from error
        return self.find(digest, name)

    def quarantine(self, digest: Digest, reason: str, seen: os.stat_result | None = None) -> str:
        """Set the object aside, durably, with the reason beside it. It is not served again.

        Args:
            digest: Of the object.
            reason: For a person.
            seen: What ``stat`` said of the file that was found wrong. A whole one that another process has put in
                its place meanwhile stays.

        Returns:
            Where it is now, "" if it had been replaced.
        """
        target = f"{self._root}/{layout.QUARANTINE}/{digest.hex}.{time.time_ns()}"
        try:
            if seen is not None and not self._holds(self.path(digest), seen):
                return ""
            commit.move_durably(self.path(digest), target)
            if seen is not None and not self._holds(target, seen):  # Replaced between the look and the move.
                commit.put_back(target, self.path(digest))
                return ""
            note = json.dumps({"digest": digest, "reason": reason, "time": int(time.time())}) + "\n"
            # Somebody may have put a file there, or a link.
            is_ours = os.path.isdir(target) and not os.path.islink(target)
            beside = f"{target}/" if is_ours else f"{target}."
            commit.commit_record(self._staging, f"{beside}REASON.json", note.encode())
        except FileNotFoundError:
            pass  # Another process was faster: it is set aside all the same.
        except OSError as error:
            raise storage_error(error, action="set aside", path=self.path(digest)) from error
        return target

    @contextmanager
    def announced(self, digest: Digest) -> Iterator[None]:
        """Keep `remove`, of whatever process, from taking the object away while its record is written.

        Raises:
            StorageError, NoSpaceError: It could not be announced.
        """
        with self._marked(digest, "wanted"):
            self.await_removal(digest)
            yield

    def await_removal(self, digest: Digest) -> None:
        """Wait, bounded, while somebody removes the object: for who has said that it is in use, and will look next."""
        until = time.monotonic() + _REMOVAL_S
        while self._is_marked(digest, "removal") and time.monotonic() < until:
            time.sleep(_POLL_S)

    def remove(self, digest: Digest, *, is_named: Callable[[Digest], bool]) -> bool:
        """Take the object out of sight, then delete it, unless *is_named* or an announcement says that it is wanted.

        Returns:
            Whether it is gone now, by this call.

        Raises:
            StorageError, NoSpaceError
        """
        return bool(self.remove_all([digest], look=lambda: is_named))

    def remove_all(
        self,
        digests: Sequence[Digest],
        *,
        look: Callable[[], Callable[[Digest], bool]],
        first: Callable[[Digest], bool] = lambda _digest: True,
    ) -> list[Digest]:
        """Remove objects; return those that are gone now, by this call.

        Each step is done for all of them before the next one, so that *look* is asked twice, however many they are.
        Whoever announces one of them waits for all: they should be few enough for `_REMOVAL_S`.

        Args:
            digests: Of the objects.
            look: Returns what tells, of this very moment, whether an object must stay.
            first: Called once the removal of an object is announced, to forget its records; it stays if this says no.

        Raises:
            StorageError, NoSpaceError: Some may be gone; each of the others is where it was.
        """
        moved: dict[Digest, str] = {}
        with ExitStack() as marks:
            for digest in digests:
                marks.enter_context(self._marked(digest, "removal"))
            try:
                # In this order: who has taken back the announcement has written the record.
                free = [digest for digest in digests if not self._is_marked(digest, "wanted") and first(digest)]
                is_named = look() if free else None
                for digest in free:
                    if is_named is not None and not is_named(digest):
                        self._move_away(digest, moved)
                is_named = look() if moved else None
                gone = []
                while moved:
                    digest, trash = next(iter(moved.items()))
                    if is_named is not None and self._bury(trash, digest, is_named):
                        gone.append(digest)
                    del moved[digest]
                return gone
            except BaseException as error:
                # Whether they are wanted cannot be known. One that cannot be put back now is by the next get, or sweep.
                for digest, trash in moved.items():
                    with suppress(OSError):
                        if os.path.lexists(trash):
                            commit.put_back(trash, self.path(digest))
                if isinstance(error, OSError) and not isinstance(error, ModelCacheError):
                    raise storage_error(error, action="remove", path=str(error.filename or self._root)) from error
                raise

    def _move_away(self, digest: Digest, moved: dict[Digest, str]) -> None:
        """Move the object to trash, noting where in *moved* before that; one that is gone is not noted."""
        moved[digest] = f"{self._root}/{layout.TRASH}/{process.token()}.{layout.object_name(digest)}"
        try:
            commit.move_durably(self.path(digest), moved[digest])
        except FileNotFoundError:
            del moved[digest]

    def touch(self, digest: Digest) -> None:
        """Note that an entry is about to name another object: this one was promised until now, and is kept a while."""
        try:
            commit.touch(self.path(digest))
        except OSError:
            return

    def bury(self, name: str, *, is_named: Callable[[Digest], bool]) -> None:
        """End what a process that died in `remove` had begun: *name* is that of a directory in trash."""
        trash = f"{self._root}/{layout.TRASH}/{name}"
        try:
            self._bury(trash, Digest.parse(name.rpartition(".")[2].replace("-", ":", 1)), is_named)
        except InvalidDigestError:
            commit.discard(trash)
        except OSError:
            return  # Whether it is wanted cannot be known, or it cannot be put back: the next sweep looks again.

    def _bury(self, trash: str, digest: Digest, is_named: Callable[[Digest], bool]) -> bool:
        wanted = self._is_marked(digest, "wanted") or is_named(digest)
        if wanted and commit.put_back(trash, self.path(digest)):
            return False
        commit.discard(trash)
        return not wanted

    @contextmanager
    def _marked(self, digest: Digest, what: str) -> Iterator[None]:
        mark = f"{self._staging}/{process.token()}.{digest.hex}.{what}"
        try:
            commit.make_mark(mark)
        except OSError as error:
            commit.remove_quietly(mark)  # Its close may be what failed; it would speak for us as long as we live.
            raise storage_error(error, action="announce", path=mark) from error
        try:
            yield
        finally:
            commit.remove_quietly(mark)

    def _is_marked(self, digest: Digest, what: str) -> bool:
        """Tell whether a process that may live says *what* of *digest*."""
        marks = (name for name in files.listing(self._staging) if name.endswith(f".{digest.hex}.{what}"))
        return any(self._counts(mark) for mark in marks)

    def _counts(self, mark: str) -> bool:
        """Tell whether the process that made *mark* may live. Of another machine or container only its age tells."""
        return not process.is_dead(mark) and not self.is_void(mark)

    def is_void(self, name: str) -> bool:
        """Tell whether *name*, in staging, is a mark that counts no more although nobody can look for its owner."""
        is_mark = name.endswith((".wanted", ".removal"))
        return is_mark and process.is_dead(name) is None and files.age(f"{self._staging}/{name}") > _MARK_S

    def _holds(self, directory: str, seen: os.stat_result) -> bool:
        """Tell whether one of the files in *directory* is the one that was *seen*."""
        for name in files.listing(directory):
            try:
                if os.path.samestat(os.lstat(f"{directory}/{name}"), seen):
                    return True
            except OSError:
                continue
        return False

    def all(self) -> Iterator[Digest]:
        """Yield the digest of each object; other names in the directory are not objects and are passed over."""
        for name in files.listing(self._directory):
            algorithm, _, digits = name.partition("-")
            if algorithm in {ALGORITHM, TREE} and len(digits) == 64 and _HEX.issuperset(digits):
                yield Digest(f"{algorithm}:{digits}")

    @property
    def _staging(self) -> str:
        return f"{self._root}/{layout.STAGING}"
