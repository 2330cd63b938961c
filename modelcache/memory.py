"""What a Cache remembers of its hits, so that the next one costs one ``stat``.

It is trusted for `MEMORY_S` seconds, then the record is read again, so that what another process refreshed or removed
is seen here soon; an object that is gone or altered is seen at once.
"""

from __future__ import annotations

import os
from time import monotonic, time

from . import hit
from .layout import OBJECTS
from .question import RefLike
from .records import Entry

MEMORY_S = 10.0
_REFS_MAX = 65_536


class Warm:
    """A hit in memory: a slot. ``uses`` is how often it was one, ``told`` how many of these are on record."""

    __slots__ = ("content_bytes", "digest", "follow", "key", "mtime_ns", "path", "size", "told", "until", "uses")

    def __init__(self, entry: Entry) -> None:
        self.key, self.digest, self.path = entry.key, entry.digest, entry.path
        # A tier that is not ours may be made of links; here one is not what was stored.
        self.follow = f"/{OBJECTS}/" not in entry.path
        self.size = _directory_size(entry.path) if entry.digest.is_tree else entry.size
        self.mtime_ns = entry.mtime_ns
        left = MEMORY_S if entry.ttl is None else min(MEMORY_S, entry.expires - time())
        self.until = monotonic() + left
        self.uses = self.told = 0
        self.content_bytes = entry.size

    def renewed(self, by: Warm) -> bool:
        """Trust it as long as *by*, if that is the same; another thread may be counting a use of it at this moment."""
        mine = self.key, self.digest, self.path, self.follow, self.size, self.mtime_ns
        if mine != (by.key, by.digest, by.path, by.follow, by.size, by.mtime_ns):
            return False
        self.until = by.until
        return True


class Memory(dict[RefLike, Warm]):
    """The hits, by ref as it was given. Any thread may use it. One that does not keep asks for each hit anew."""

    def __init__(self, *, keeps: bool = True) -> None:
        super().__init__()
        self._keeps = keeps
        self._uses = 0  # Of slots that are not here any more.
        self._leaving: list[Warm] | None = None

    @property
    def uses(self) -> int:
        """How many hits there were."""
        return self._uses + sum(slot.uses for slot in list(self.values()))

    def keep_leaving(self) -> None:
        """Keep slots that leave until `slots` has shown them: somebody records their uses."""
        self._leaving = []

    def slots(self) -> list[Warm]:
        """Return the slots, and those that have left since the last time."""
        leaving, self._leaving = self._leaving or [], []
        return [*list(self.values()), *leaving]

    def distrust(self) -> None:
        """Look for each at its next hit; the uses until now are another process's to record."""
        for slot in self.slots():
            slot.told, slot.until = slot.uses, 0.0

    def remember(self, ref: RefLike, entry: Entry) -> str:
        """Remember that *ref* is *entry*; return its path."""
        text = os.fspath(ref)
        if not self._keeps:
            return entry.path
        if text[:1] in {"~", "."} or (text is not ref and not os.path.isabs(text)):
            return entry.path  # What it means changes with the working directory, or with HOME.
        if len(self) >= _REFS_MAX:
            self.clear()
        new = Warm(entry)
        slot = self.setdefault(ref, new)  # One slot for all threads, or some count where nobody looks.
        if slot is not new and not slot.renewed(new):
            self[ref] = new
            self._leave(slot)
        return entry.path

    def standing(self, ref: RefLike, digest: str | None) -> Warm | None:
        """Return the hit for *ref* if it is trusted and has *digest*, and is there: what `Cache.get` does inline."""
        warm = self.get(ref)
        if warm is None or digest not in {None, warm.digest} or monotonic() >= warm.until:
            return None
        try:
            return (
                warm if hit.is_same(os.stat(warm.path, follow_symlinks=warm.follow), warm.size, warm.mtime_ns) else None
            )
        except OSError:
            return None

    def forget(self, key: str) -> None:
        """Forget every ref of *key*."""
        for ref in [ref for ref, warm in tuple(self.items()) if warm.key == key]:
            slot = self.pop(ref, None)
            if slot is not None:
                self._leave(slot)

    def clear(self) -> None:
        """Forget all."""
        for ref in list(self):
            slot = self.pop(ref, None)
            if slot is not None:
                self._leave(slot)

    def _leave(self, slot: Warm) -> None:
        self._uses += slot.uses
        if self._leaving is not None:
            self._leaving.append(slot)


def _directory_size(path: str) -> int:
    """Return what ``stat`` says is the size of a tree's directory; -1, which none has, if it has gone by now."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
