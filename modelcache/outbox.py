"""The outbox: which objects, and records of refs, still have to go to which tier. It survives who filled it (I8).

One sealed file a filing: ``outbox-v1/<tier>/<object>`` of an object alone, ``<object>.<key id>`` of an object with the
record of a ref. Each is committed before the call that asked for it returns, and removed once the tier has both. So
what a crash leaves is delivered by the next process that knows the tier, and two processes that file one object never
write to one file, unless it is to say the same. An object that waits is *needed*: gc leaves it alone, for a week at
most, because a tier that nobody knows any more must not fill the disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from failpoints import fail_point

from . import commit, files, layout
from .digest import Digest
from .errors import InvalidDigestError, storage_error
from .sealed import seal, unseal

KEEP_S = 7 * 24 * 3600.0


class Filing(NamedTuple):
    """One thing that waits: the object ``digest``, since ``since`` (Unix seconds), in the file ``name``.

    ``record`` is that of a ref, to be written when the object is there, or None. ``wrong`` are the files of the object
    that the tier has, and that are not what their names say.
    """

    name: str
    digest: Digest
    since: float
    record: dict[str, Any] | None
    wrong: tuple[Digest, ...]


class Outbox:
    """The objects in the cache at *root* that wait for *tier*, a name that can be a file's."""

    def __init__(self, root: str, tier: str) -> None:
        self._root = root
        self._directory = f"{root}/{layout.OUTBOX}/{tier}"
        self.lock = f"{root}/{layout.LOCKS}/outbox-{tier}.lock"

    def add(self, digest: Digest, *, record: dict[str, Any] | None = None, wrong: Iterable[Digest] = ()) -> None:
        """Let the object wait, and the *record* of a ref with its ``key``, durably.

        Args:
            digest: Of the object. One that waits already goes on doing so.
            record: What is to be on record there, without credentials.
            wrong: Files of the object that are to be brought though the tier has something by their names.

        Raises:
            StorageError, NoSpaceError: It does not wait.
        """
        name = layout.object_name(digest) + ("" if record is None else f".{layout.key_id(record['key'])}")
        facts: dict[str, Any] = {"digest": digest, "time": int(time.time())}
        facts |= {} if record is None else {"record": record}
        facts |= {"wrong": sorted(wrong)} if wrong else {}
        try:
            commit.ensure_bucket(os.path.dirname(self._directory))
            commit.make_directories(self._directory)
            commit.settle(self._directory)  # Who made it may not have come to that.
            fail_point("outbox.before-record")
            commit.commit_record(f"{self._root}/{layout.STAGING}", f"{self._directory}/{name}", seal(facts))
        except OSError as error:
            raise storage_error(error, action="write", path=self._directory) from error

    def forget(self, filing: Filing) -> None:
        """Let *filing* wait no more, durably.

        Raises:
            StorageError: It may be delivered once more, which changes nothing.
        """
        try:
            fail_point("outbox.before-forget")
            commit.remove_record(f"{self._directory}/{filing.name}")
        except OSError as error:
            raise storage_error(error, action="remove", path=self._directory) from error

    def remove(self, digest: Digest) -> None:
        """Let the object wait no more, with all records; raise StorageError, as `forget` does."""
        for filing in self.filings():
            if filing.digest == digest:
                self.forget(filing)

    def has(self, digest: Digest) -> bool:
        """Tell whether the object waits."""
        return digest in self.digests()

    def count(self) -> int:
        """Return how many objects wait."""
        return len(self.digests())

    def all(self) -> list[Digest]:
        """Return the objects that wait, what came first before the others."""
        return list(dict.fromkeys(filing.digest for filing in self.filings()))

    def digests(self) -> set[Digest]:
        """Return the objects that wait; no record is read."""
        return {digest for name in files.listing(self._directory) if (digest := _object_of(name)) is not None}

    def filings(self) -> list[Filing]:
        """Return what waits, what came first before the others. A broken one is of the object that its name says."""
        found = []
        for name in files.listing(self._directory):
            digest = _object_of(name)
            content = files.content(f"{self._directory}/{name}") if digest is not None else None
            if digest is None or content is None:
                continue  # Nothing of ours, or no file; or it was delivered this moment.
            facts = unseal(content) or {}
            since, record, wrong = facts.get("time"), facts.get("record"), facts.get("wrong")
            found.append(
                Filing(
                    name,
                    digest,
                    since if isinstance(since, int | float) else 0,
                    record if isinstance(record, dict) else None,
                    tuple(Digest(one) for one in wrong if isinstance(one, str)) if isinstance(wrong, list) else (),
                )
            )
        return sorted(found, key=lambda filing: (filing.since, filing.digest, filing.name))


def _object_of(name: str) -> Digest | None:
    """Return whose record is called *name*, None if it is nothing of ours: also another spelling of a digest."""
    head = name.partition(".")[0]
    try:
        digest = Digest.parse(head.replace("-", ":", 1))
    except InvalidDigestError:
        return None
    return digest if layout.object_name(digest) == head else None


def waiting(root: str) -> Callable[[Digest], bool]:
    """Return what tells, of this moment, whether an object waits for any tier; what waits too long does not count."""
    top = f"{root}/{layout.OUTBOX}"
    found = {
        name.partition(".")[0]
        for tier in files.listing(top)
        for name in files.listing(f"{top}/{tier}")
        if files.age(f"{top}/{tier}/{name}") < KEEP_S
    }
    return lambda digest: layout.object_name(digest) in found


def counts(root: str, tiers: Iterable[str]) -> dict[str, int]:
    """Return how many objects wait for which of *tiers*, of those that something waits for."""
    found = {tier: Outbox(root, tier).count() for tier in tiers}
    return {tier: count for tier, count in found.items() if count}
