"""The object store: immutable content under the name of its digest.

An object is one directory, ``objects-v1/sha256-<hex>/``, that holds the file under its own name; the same bytes under
another name are a hard link beside it. It appears by one rename and disappears by one rename (I1).
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from . import commit, files, layout, process
from .digest import Digest
from .errors import ModelCacheError, storage_error

_TRIES = 5  # Each after the first needs another process that does the same at the same moment.


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of an object, as ``stat`` finds it. ``size`` is in bytes, ``mtime_ns`` in nanoseconds since 1970."""

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
        """Return the file *name* of the object, any of its files if *name* is None; None if there is no such file."""
        for found in [name] if name is not None else files.listing(self.path(digest)):
            try:
                facts = os.stat(f"{self.path(digest)}/{found}")
            except OSError:
                continue
            if not stat.S_ISREG(facts.st_mode):
                continue
            return Stored(digest, f"{self.path(digest)}/{found}", found, facts.st_size, facts.st_mtime_ns)
        return None

    def publish(self, staged: str, digest: Digest, name: str) -> Stored:
        """Make the verified file *name* in the directory *staged* the object *digest*, durably.

        If the object was there already, its content is checked, and given the new name if it lacks it.

        Raises:
            StorageError, NoSpaceError: Nothing was published; *staged* is still the caller's.
        """
        final = self.path(digest)
        try:
            for _ in range(_TRIES):
                if commit.commit_object(staged, final):
                    facts = os.stat(f"{final}/{name}")
                    return Stored(digest, f"{final}/{name}", name, facts.st_size, facts.st_mtime_ns)
                found = self.name(digest, name)
                if found is not None and files.digest_of(found.path) == digest:
                    commit.discard(staged)
                    return found
                if found is not None or os.path.lexists(final):
                    # What is there is not what its name says (another tool wrote through it). It goes, ours comes.
                    self.quarantine(digest, "found altered when the same content was stored again")
                # Else it was removed this moment.
            raise FileExistsError(errno.EEXIST, "other processes keep replacing it", final)
        except ModelCacheError:
            raise
        except OSError as error:
            raise storage_error(error, action="publish", path=final) from error

    def name(self, digest: Digest, name: str) -> Stored | None:
        """Return the object's file under *name*, which it is given if it lacks it; None if there is no object."""
        stored = self.find(digest, name)
        if stored is not None:
            return stored
        other = self.find(digest)
        if other is None:
            return None
        try:
            commit.add_name(self.path(digest), other.name, name)
        except FileNotFoundError:
            return None  # It was removed this moment.
        except OSError as error:
            if commit.links_work(error):
                raise storage_error(error, action="link", path=self.path(digest)) from error
            return other  # Without hard links the object keeps its first name: the right bytes, one copy.
        return self.find(digest, name)

    def quarantine(self, digest: Digest, reason: str) -> str:
        """Set the object aside, durably, with the reason beside it; return where it is now. It is not served again."""
        target = f"{self._root}/{layout.QUARANTINE}/{digest.hex}.{time.time_ns()}"
        try:
            commit.move_durably(self.path(digest), target)
            note = json.dumps({"digest": digest, "reason": reason, "time": int(time.time())}) + "\n"
            beside = f"{target}/" if os.path.isdir(target) else f"{target}."  # Somebody may have put a file there.
            commit.commit_record(self._staging, f"{beside}REASON.json", note.encode())
        except FileNotFoundError:
            pass  # Another process was faster: it is set aside all the same.
        except OSError as error:
            raise storage_error(error, action="set aside", path=self.path(digest)) from error
        return target

    def remove(self, digest: Digest) -> int:
        """Take the object out of sight, then delete it; return its bytes. Only for an object that no record names."""
        stored = self.find(digest)
        trash = f"{self._root}/{layout.TRASH}/{process.token()}"
        try:
            commit.move_durably(self.path(digest), trash)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise storage_error(error, action="remove", path=self.path(digest)) from error
        commit.discard(trash)
        return stored.size if stored else 0

    def all(self) -> Iterator[Digest]:
        """Yield the digest of each file object; other names in the directory are not objects and are passed over."""
        for name in files.listing(self._directory):
            algorithm, _, digits = name.partition("-")
            if algorithm == "sha256" and len(digits) == 64:
                yield Digest(f"{algorithm}:{digits}")

    @property
    def _staging(self) -> str:
        return f"{self._root}/{layout.STAGING}"
