"""Partials: unverified bytes of a download, so that the next process can go on where this one was killed.

A partial is a directory, ``partial-v1/<id>.<owner>/``, with ``state`` (sealed) and ``object/<name>``. The inner
directory becomes the object by one rename once its bytes are verified: a crash before that costs nothing, not even
the tail.

Which bytes count when a partial is taken over:
  * All that were written, if the machine has not booted since: a kill loses no page of the kernel's cache.
  * Else only those known to be synced. The state holds their number and the digest of that prefix, and the prefix is
    hashed again in any case: a tail of zeros after a power cut is never taken for content.

Who may take one over: its owner's name is in its own (`process`). One whose owner let go of it, or is certainly dead,
is claimed by a rename, which has one winner. One whose owner may live (another machine, a container) is copied: the
inode that is published later must not be open for writing anywhere else. One of a live process is left alone (I9).
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from failpoints import fail_point

from . import commit, files, hit, layout, process
from .digest import ALGORITHM, Digest
from .errors import StorageError, storage_error
from .objects import Objects, Stored
from .sealed import seal, unseal

_FREE = "free-"
_STATE_KEYS = {"machine", "boot", "total", "synced", "digest", "facts"}


class Partial:
    """The partial that this process is filling.

    Attributes:
        length: Bytes in the file. A partial is always one prefix of the content: no holes.
        total: Bytes of the whole content, None while the source has not said.
        facts: What its writer noted about the source, JSON-ready; empty in a new one.
        hashed: Bytes that went into the digest; behind ``length`` while bytes stream in.
    """

    def __init__(self, root: str, directory: str, name: str, descriptor: int) -> None:
        self._root, self._directory, self._name, self._descriptor = root, directory, name, descriptor
        self.length = 0
        self.total: int | None = None
        self.facts: dict[str, Any] = {}
        self.hashed = 0
        self._gone = False
        self._lost = self._is_named = False
        self._hasher = hashlib.sha256()
        self._synced = 0
        self._synced_digest = self._hasher.hexdigest()

    @property
    def path(self) -> str:
        """Where its file is."""
        return f"{self._directory}/object/{self._name}"

    @property
    def complete(self) -> bool:
        """Whether every byte is here, by the size that the source announced."""
        return self.total is not None and self.length == self.total

    def describe(self, facts: dict[str, Any], total: int | None) -> None:
        """Note what the bytes belong to, before the first of them is written."""
        if facts != self.facts or total != self.total:
            self.facts, self.total = facts, total
            self._write_state(durably=False)

    def append(self, chunk: bytes) -> None:
        """Write *chunk* at the end. It must be given to `hash` too, in order; another thread may do that."""
        fail_point("partials.before-append", on_torn=lambda size: commit.write(self._descriptor, chunk[:size]))
        commit.write(self._descriptor, chunk)
        self.length += len(chunk)

    def hash(self, chunk: bytes) -> None:
        """Add *chunk* to the digest."""
        self._hasher.update(chunk)
        self.hashed += len(chunk)

    def journal(self, length: int, digest: Digest) -> None:
        """Sync the file and record that its first *length* bytes, with this *digest*, survive a power cut.

        Raises:
            OSError: The sync failed: the partial must be discarded, not synced again.
        """
        fail_point("partials.before-sync")
        try:
            commit.sync_data(self._descriptor)
        except OSError:
            self._lost = True  # The kernel may have dropped pages: the bytes that are read back may be others.
            raise
        self._synced, self._synced_digest = length, digest.hex
        fail_point("partials.before-journal")
        self._write_state(durably=True)
        if not self._is_named:
            # The names too, once: the file in its directory, and the directory in its bucket.
            commit.sync_directory(f"{self._directory}/object")
            commit.sync_directory(os.path.dirname(self._directory))
            self._is_named = True

    def restart(self) -> None:
        """Forget all bytes: the source has other content now, or can only send it from the start.

        Raises:
            StorageError: It could not be emptied.
        """
        try:
            commit.truncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        except OSError as error:
            raise storage_error(error, action="empty", path=self._directory) from error
        self.length = self.hashed = self._synced = 0
        self._hasher = hashlib.sha256()
        self._synced_digest = self._hasher.hexdigest()
        self.facts, self.total = {}, None

    def publish(self, objects: Objects) -> Stored:
        """Make the content the object of its digest, durably; the partial is gone then.

        Raises:
            StorageError, NoSpaceError: Nothing was published.
        """
        self._close()
        self.check()
        fail_point("partials.before-publish")
        stored = objects.publish(f"{self._directory}/object", self.digest, self._name)
        fail_point("partials.after-publish")
        self.discard()
        return stored

    def close(self) -> None:
        """Write no more: all of the content is here. It stays ours, and can be given away, released or discarded."""
        self._close()

    def give(self, path: str) -> None:
        """Make *path*, below a staged directory of ours, the content. Where there are hard links it stays here as well.

        Raises:
            StorageError: What was written may not be there.
            OSError
        """
        self.check()
        fail_point("partials.before-give")
        if not commit.share(self.path, path):
            commit.rename(self.path, path)

    def check(self) -> None:
        """Raise StorageError if what was written may not be there."""
        if self._lost:
            raise StorageError(path=self._directory, action="close", reason="what was written may not be there")

    @property
    def digest(self) -> Digest:
        """Of the bytes given to `hash`."""
        return Digest(f"{ALGORITHM}:{self._hasher.hexdigest()}")

    def release(self) -> None:
        """Let go: the next process may resume at once. What holds nothing of use is deleted.

        One that is gone already is no error.
        """
        if self._gone:
            return
        try:
            if self._descriptor >= 0 and self.hashed == self.length > 0 and not self._lost:
                self.journal(self.length, self.digest)
        except OSError:
            pass  # A full disk, mostly. What was synced before is still on record.
        if self.length == 0 or self._lost:
            self.discard()
            return
        self._close()
        identity = os.path.basename(self._directory).partition(".")[0]
        try:
            fail_point("partials.before-release")
            commit.rename(
                self._directory, f"{os.path.dirname(self._directory)}/{identity}.{_FREE}{os.urandom(8).hex()}"
            )
            self._gone = True
        except OSError:
            return  # It stays ours by name, and is claimed when we are dead.

    def discard(self) -> None:
        """Delete it: its bytes are of no use to anyone."""
        self._close()
        if not self._gone:
            self._gone = True
            commit.discard(self._directory)

    def unname(self) -> None:
        """Delete it, because what it holds was given away and is about to be visible.

        Raises:
            StorageError: It is still there: another name, which can be written to, of what would be published (I1).
        """
        self.discard()
        if os.path.lexists(self.path):
            reason = "it would be another name, which can be written to, of what is published"
            raise StorageError(path=self.path, action="remove", reason=reason)

    def resume(self, facts: dict[str, Any]) -> bool:
        """Go on after the bytes in our file that *facts*, the state that was found, vouches for; False if none are."""
        try:
            size = os.fstat(self._descriptor).st_size
            if not self._take_over(facts, size if _same_boot(facts) else min(size, facts["synced"]), self._descriptor):
                return False
            if size > self.length:
                commit.truncate(self._descriptor, self.length)
        except OSError:
            return False  # What cannot be read is of no use.
        if not _same_boot(facts):
            self._write_state_if_possible()
        return True

    def copy_from(self, source: int, facts: dict[str, Any], trusted: int) -> bool:
        """Copy the first *trusted* bytes from the descriptor *source*; False if they are not what *facts* says."""
        try:
            if not self._take_over(facts, trusted, source):
                return False
        except OSError:  # No room for a copy: the download starts anew, or fails with that very reason.
            return False
        self._synced, self._synced_digest = 0, hashlib.sha256().hexdigest()  # There, but not here.
        self._write_state_if_possible()
        return True

    def _take_over(self, facts: dict[str, Any], trusted: int, source: int) -> bool:
        """Adopt the first *trusted* bytes behind the descriptor *source*; False if they are not what was synced.

        If *source* is another file than ours, they are copied.
        """
        synced = facts["synced"]
        for chunk in files.chunks(source, length=trusted):
            # The prefix ends within a chunk, mostly.
            head = max(0, min(len(chunk), synced - self.length))
            self.hash(chunk[:head])
            if self.hashed == synced and self.digest.hex != facts["digest"]:
                return False
            self.hash(chunk[head:])
            if source != self._descriptor:
                commit.write(self._descriptor, chunk)
            self.length += len(chunk)
        if self.length < synced:
            return False
        os.lseek(self._descriptor, self.length, os.SEEK_SET)
        self.total, self.facts = facts["total"], facts["facts"]
        self._synced, self._synced_digest = synced, facts["digest"]
        return True

    def _write_state(self, *, durably: bool) -> None:
        state = {
            "machine": process.machine_id(),
            "boot": process.boot_id(),
            "total": self.total,
            "synced": self._synced,
            "digest": self._synced_digest,
            "facts": self.facts,
        }
        write = commit.commit_record if durably else commit.replace_hint
        write(f"{self._root}/{layout.STAGING}", f"{self._directory}/state", seal(state))

    def _write_state_if_possible(self) -> None:
        """Say that the bytes which were taken over are of this boot: all of them count if we are killed now."""
        try:
            self._write_state(durably=False)
        except OSError:
            return  # What is on record still holds; it only vouches for less.

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)  # Once, whatever it says: the number may be that of another file by then.
            except OSError:
                # What close(2) tells of is a write that failed (NFS, quotas). Nothing is believed without a sync.
                self._lost = True


class Partials:
    """The partials of the cache at *root*."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._directory = f"{root}/{layout.PARTIALS}"

    def create(self, key: str, name: str) -> Partial:
        """Return a new, empty partial for *key*, whose file will be called *name*.

        Raises:
            StorageError, NoSpaceError: It could not be made.
        """
        directory = f"{self._directory}/{layout.key_id(key)}.{process.token()}"
        try:
            commit.make_partial(directory)
            return Partial(self._root, directory, name, commit.create_file(f"{directory}/object/{name}"))
        except OSError as error:
            commit.discard(directory)
            raise storage_error(error, action="create", path=directory) from error

    def claim(self, key: str, name: str) -> Partial | None:
        """Return the longest usable partial of *key* that no live process owns; None if there is none.

        The other ones of dead owners are deleted. Its bytes have been read and hashed when this returns.
        """
        best: Partial | None = None
        for found in self.of(key):
            owner = found.partition(".")[2]
            dead = owner.startswith(_FREE) or process.is_dead(owner)
            if dead is False:
                continue
            partial = self._adopt(f"{self._directory}/{found}", key, name) if dead else self._copy(found, key, name)
            if partial is None:
                continue
            if best is None or partial.length > best.length:
                best, partial = partial, best
            if partial is not None:
                partial.discard()
        return best

    def of(self, key: str) -> list[str]:
        """Return the names of the partials of *key*, whoever owns them."""
        identity = layout.key_id(key)
        return [name for name in files.listing(self._directory) if name.startswith(f"{identity}.")]

    def remove(self, key: str) -> int:
        """Delete the partials of *key* that no live process owns; return how many."""
        removed = 0
        for found in self.of(key):
            owner = found.partition(".")[2]
            if owner.startswith(_FREE) or process.is_dead(owner):
                commit.discard(f"{self._directory}/{found}")
                removed += 1
        return removed

    def bytes_of(self, key: str) -> int:
        """Return how many bytes the largest partial of *key* has, whoever owns it."""
        places = [f"{self._directory}/{name}/object" for name in self.of(key)]
        return max((_size(f"{place}/{file}") for place in places for file in files.listing(place)), default=0)

    def size(self) -> tuple[int, int]:
        """Return how many partials there are, of whatever owner, and their bytes."""
        found = files.listing(self._directory)
        total = 0
        for name in found:
            for file in files.listing(f"{self._directory}/{name}/object"):
                total += _size(f"{self._directory}/{name}/object/{file}")
        return len(found), total

    def _adopt(self, found: str, key: str, name: str) -> Partial | None:
        """Claim the partial directory *found*: ours from the rename on, by name."""
        ours = f"{self._directory}/{layout.key_id(key)}.{process.token()}"
        try:
            fail_point("partials.before-claim")
            commit.rename(found, ours)
        except OSError:
            return None  # Somebody else was faster.
        fail_point("partials.after-claim")
        facts = _state(ours) if _is_ours(ours) else None
        try:
            if facts is not None and os.lstat(f"{ours}/object/{name}").st_nlink > 1:
                return self._copy_of_another(ours, key, name)  # What is written to it would be elsewhere too.
            descriptor = -1 if facts is None else commit.open_existing(f"{ours}/object/{name}")
        except PermissionError:
            return self._copy_of_another(ours, key, name)
        except OSError:
            descriptor = -1
        try:
            changeable = descriptor < 0 or commit.may_change(descriptor)
        except OSError:
            os.close(descriptor)
            descriptor, changeable = -1, True  # What cannot even be looked at is given up.
        if not changeable:
            os.close(descriptor)
            return self._copy_of_another(ours, key, name)
        partial = Partial(self._root, ours, name, descriptor)
        if facts is None or descriptor < 0 or not partial.resume(facts):
            partial.discard()
            return None
        return partial

    def _copy_of_another(self, claimed: str, key: str, name: str) -> Partial | None:
        """Copy what counts out of *claimed*, which another user has made: only who made a file can seal it."""
        try:
            return self._copy(os.path.basename(claimed), key, name, dead=True)
        finally:
            commit.discard(claimed)

    def _copy(self, found: str, key: str, name: str, *, dead: bool = False) -> Partial | None:
        """Copy what is known to be synced out of a partial whose owner may live; all that counts if it is *dead*."""
        directory = f"{self._directory}/{found}"
        facts = _state(directory) if _is_ours(directory) else None
        if facts is None or (facts["synced"] == 0 and not dead):
            return None
        try:
            source = os.open(
                f"{self._directory}/{found}/object/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            )
        except OSError:
            return None
        try:
            size = os.fstat(source).st_size
            trusted = size if dead and _same_boot(facts) else facts["synced"]
            partial = self.create(key, name)
            if not partial.copy_from(source, facts, trusted):
                partial.discard()
                return None
            return partial
        finally:
            os.close(source)


def _is_ours(directory: str) -> bool:
    """Tell whether the partial is made of directories: a link could lead to another cache, whose files would move."""
    return hit.is_directory(directory) and hit.is_directory(f"{directory}/object")


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0  # Published or discarded meanwhile.


def _state(directory: str) -> dict[str, Any] | None:
    facts = unseal(files.content(f"{directory}/state") or b"")
    return facts if facts is not None and facts.keys() >= _STATE_KEYS else None


def _same_boot(facts: dict[str, Any]) -> bool:
    return bool(facts["boot"] == process.boot_id() and facts["machine"] == process.machine_id())
