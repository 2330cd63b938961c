"""The outbox: which objects still have to go to which tier. It survives the process that filled it (I8).

One sealed file an object, ``outbox-v1/<tier>/<object>``, committed before the call that asked for it returns, and
removed once the tier has the object. So what a crash leaves is delivered by the next process that knows the tier. An
object that waits is *needed*: gc leaves it alone, for a week at most, because a tier that nobody knows any more must
not fill the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from failpoints import fail_point

from . import commit, files, layout
from .digest import Digest
from .errors import InvalidDigestError, storage_error
from .sealed import seal, unseal

KEEP_S = 7 * 24 * 3600.0


class Outbox:
    """The objects in the cache at *root* that wait for *tier*, a name that can be a file's."""

    def __init__(self, root: str, tier: str) -> None:
        self._root = root
        self._directory = f"{root}/{layout.OUTBOX}/{tier}"
        self.lock = f"{root}/{layout.LOCKS}/outbox-{tier}.lock"

    def add(self, digest: Digest) -> None:
        """Let the object wait, durably; one that waits already goes on doing so.

        Raises:
            StorageError, NoSpaceError: It does not wait.
        """
        try:
            commit.ensure_bucket(os.path.dirname(self._directory))
            commit.make_directories(self._directory)
            commit.settle(self._directory)  # Who made it may not have come to that.
            data = seal({"digest": digest, "time": int(time.time())})
            fail_point("outbox.before-record")
            commit.commit_record(f"{self._root}/{layout.STAGING}", self._path(digest), data)
        except OSError as error:
            raise storage_error(error, action="write", path=self._directory) from error

    def remove(self, digest: Digest) -> None:
        """Let the object wait no more, durably.

        Raises:
            StorageError: It may be delivered once more, which changes nothing.
        """
        try:
            fail_point("outbox.before-forget")
            commit.remove_record(self._path(digest))
        except OSError as error:
            raise storage_error(error, action="remove", path=self._directory) from error

    def has(self, digest: Digest) -> bool:
        """Tell whether the object waits."""
        return os.path.lexists(self._path(digest))

    def all(self) -> list[Digest]:
        """Return what waits, what came first before the others. A broken record is of the object that its name says."""
        waiting = []
        for digest in self.digests():
            content = files.content(self._path(digest))
            if content is None:
                continue  # Delivered this moment; or no file, and nothing of ours.
            facts = unseal(content) or {}
            since = facts.get("time")
            waiting.append((since if isinstance(since, int) else 0, digest))
        return [digest for _, digest in sorted(waiting)]

    def digests(self) -> set[Digest]:
        """Return what waits; no record is read."""
        found = set()
        for name in files.listing(self._directory):
            try:
                digest = Digest.parse(name.replace("-", ":", 1))
            except InvalidDigestError:
                continue  # Nothing of ours.
            # Another spelling of a digest is nothing of ours either: it would never be removed.
            if layout.object_name(digest) == name:
                found.add(digest)
        return found

    def _path(self, digest: Digest) -> str:
        return f"{self._directory}/{layout.object_name(digest)}"


def waiting(root: str) -> Callable[[Digest], bool]:
    """Return what tells, of this moment, whether an object waits for any tier; what waits too long does not count."""
    top = f"{root}/{layout.OUTBOX}"
    found = {
        name
        for tier in files.listing(top)
        for name in files.listing(f"{top}/{tier}")
        if files.age(f"{top}/{tier}/{name}") < KEEP_S
    }
    return lambda digest: layout.object_name(digest) in found
