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
    """A hit in memory. ``pinned_digest`` is what the caller asked for, if it was the full text."""

    __slots__ = ("digest", "follow", "key", "mtime_ns", "path", "size", "until")

    def __init__(self, entry: Entry) -> None:
        self.key, self.digest, self.path = entry.key, entry.digest, entry.path
        # A tier that is not ours may be made of links; here one is not what was stored.
        self.follow = f"/{OBJECTS}/" not in entry.path
        self.size = _directory_size(entry.path) if entry.digest.is_tree else entry.size
        self.mtime_ns = entry.mtime_ns
        left = MEMORY_S if entry.ttl is None else min(MEMORY_S, entry.expires - time())
        self.until = monotonic() + left


class Memory(dict[RefLike, Warm]):
    """The hits, by ref as it was given. Any thread may use it. One that does not keep asks for each hit anew."""

    def __init__(self, *, keeps: bool = True) -> None:
        super().__init__()
        self._keeps = keeps

    def remember(self, ref: RefLike, entry: Entry) -> str:
        """Remember that *ref* is *entry*; return its path."""
        text = os.fspath(ref)
        if not self._keeps:
            return entry.path
        if text[:1] in {"~", "."} or (text is not ref and not os.path.isabs(text)):
            return entry.path  # What it means changes with the working directory, or with HOME.
        if len(self) >= _REFS_MAX:
            self.clear()
        self[ref] = Warm(entry)
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
            self.pop(ref, None)


def _directory_size(path: str) -> int:
    """Return what ``stat`` says is the size of a tree's directory; -1, which none has, if it has gone by now."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
