"""From counts in memory to counts on record, off the path of a hit: every so often, at `close`, and at the end.

A hit adds one to a number in its slot of `memory`, as it does in any case; what a slot has gained is looked at here. A
look, a miss and an event are counted under a lock, beside work that takes a hundred times as long. The thread that
writes exists while there is something to write: it ends after a turn without anything new, which is longer than a slot
is trusted, so that whatever comes next begins with a look, and that with a thread.

Nothing here fails a get. What cannot be written (a read-only root, a full disk) waits for the next write, is warned of
once, and counted (`failures`). A forked child begins at nothing: what its parent had not written is the parent's.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import time

from .. import layout, process
from ..archive import exits
from ..errors import ModelCacheError
from ..events import Event
from ..forks import renew_after_fork
from ..memory import MEMORY_S, Memory
from . import archive, store, tally
from .tally import Tally, Usage

# Seconds between two writes of a process: at first, and in the end. More than a slot of `memory` is trusted.
FLUSH_S, FLUSH_S_MAX = 15.0, 240.0
assert FLUSH_S > MEMORY_S
_EXIT_S = 5.0
_log = logging.getLogger("modelcache")


class Recorder:
    """Records the use of the cache at *root*, whose hits are in *memory*; *locations* of archives get it as well."""

    def __init__(self, root: str, memory: Memory, locations: tuple[str, ...]) -> None:
        self.failures = 0
        self._root, self._memory = root, memory
        self._archive = archive.Sender(root, locations) if locations else None
        self._host = os.uname().nodename
        memory.keep_leaving()
        renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. The child's first hit of each model is a look: that begins its thread, and its end."""
        # Of one thread both may be taken twice: a signal handler of the program may get a model.
        self._guard, self._writing = threading.RLock(), threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._fresh: Tally = {}
        self._day, self._name, self._today = "", "", dict[str, Usage]()
        self._unwritten = self._warned = False
        self._memory.distrust()

    # -- what is counted --

    def hit(self, key: str, digest: str, size: int) -> None:
        """Count a hit that was looked for on disk."""
        with self._counting(key) as one:
            one.hits, one.hit_bytes = one.hits + 1, one.hit_bytes + size
            one.digest, one.size = digest, size

    def miss(self, key: str) -> None:
        """Count a get that the cache could not answer."""
        with self._counting(key) as one:
            one.misses += 1

    def coalesced(self, key: str) -> None:
        """Count a get for which another thread has fetched."""
        with self._counting(key) as one:
            one.coalesced += 1

    def kept(self, key: str) -> None:
        """Count a get that asked a source in vain, and was answered by what is here."""
        with self._counting(key) as one:
            one.kept += 1

    def brought(self, key: str, digest: str, size: int) -> None:
        """Note what a get that was no hit came to: the next one is for this content, hit or not."""
        with self._counting(key) as one:
            one.digest, one.size = digest, size

    def warmed(self, key: str, digest: str, size: int, *, was_here: bool) -> None:
        """Count a prewarm, which is no get: what is brought to every node would look like what every node uses."""
        with self._counting(key) as one:
            one.prewarms, one.ahead = one.prewarms + 1, one.ahead + (not was_here)
            one.digest, one.size = digest, size

    def error(self, key: str, name: str) -> None:
        """Count a get, or a build, that raised an error of the class *name*."""
        with self._counting(key) as one:
            one.errors[name] = one.errors.get(name, 0) + 1

    def hear(self, event: Event) -> None:
        """Count what *event* says of the use of a model."""
        if event.kind not in _HEARD:
            return
        with self._counting(event.ref) as one:
            if event.kind == "received" and event.detail == "tier":
                one.tier_bytes += event.done
            elif event.kind == "received":
                one.source_bytes += event.done
            elif event.kind == "fetched":
                seconds = event.seconds or 0.0
                one.fetches, one.seconds = one.fetches + 1, one.seconds + seconds
                one.fetch_seconds = tally.thinned([*one.fetch_seconds, seconds])
            elif event.kind == "derived":
                one.builds, one.build_seconds = one.builds + 1, one.build_seconds + (event.seconds or 0.0)
            elif event.kind == "coalesced":
                one.coalesced += 1
            elif event.kind == "unchanged":
                one.kept += 1
            elif event.kind == "evicted":
                one.evictions, one.evicted_bytes = one.evictions + 1, one.evicted_bytes + event.done
            elif event.kind == "quarantined":
                one.quarantines += 1
            elif event.ref.startswith(layout.DERIVED_REF):  # ``failed``; that of a get is counted by who raises it.
                one.errors[event.error] = one.errors.get(event.error, 0) + 1

    # -- how it gets on record --

    def flush(self) -> bool:
        """Write what was counted since the last time; tell whether there was anything."""
        with self._writing:
            with self._guard:
                self._collect()
                fresh, self._fresh = self._fresh, {}
            if not fresh and not self._unwritten:
                return False
            now = time()
            day = store.day_of(now)
            if day != self._day:
                if self._unwritten and self._day >= store.day_of(now - 86_400):
                    self._write()  # What could not be written yesterday; later, others may have folded that day.
                self._day, self._today = day, {}
                self._name = f"{day}.{process.token()}"
                store.fold_if_many(self._root)
            tally.add(self._today, fresh)
            self._unwritten = not self._write()
            if self._archive is not None and fresh:
                self._archive.send(day, self._host, fresh)
            return bool(fresh)

    def close(self) -> None:
        """Write what was counted, and end. What is counted later begins anew."""
        with self._guard:
            self._stop.set()
            self._thread = None
        self.flush()
        exits.forget(self)
        if self._archive is not None:
            self._archive.close(_EXIT_S)

    def drain_at_exit(self) -> None:
        """See `exits`."""
        self.close()

    # -- inside --

    @contextmanager
    def _counting(self, key: str) -> Iterator[Usage]:
        """Give what counts for the model *key*, to be changed in the block."""
        with self._guard:
            yield tally.of(self._fresh, key)
            self._begin()

    def _begin(self) -> None:
        """Have a thread that writes, and be asked at the end. Under the guard."""
        if self._thread is not None:
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="modelcache-usage", daemon=True)
        exits.keep(self)
        exits.arm()
        try:
            self._thread.start()
        except RuntimeError:  # The interpreter ends, or has no thread left: it is written at the end alone.
            return

    def _run(self, stop: threading.Event) -> None:
        pause = FLUSH_S
        self._begin_archive(stop)
        while not stop.wait(pause):
            pause = min(pause * 2, FLUSH_S_MAX)
            if self.flush() or self._unwritten:
                continue
            with self._guard:
                if not self._fresh:
                    self._thread = None
                    if self._archive is None:  # Else what its queue holds is written at the end.
                        exits.forget(self)
                    return
        with self._guard:
            if self._thread is threading.current_thread():
                self._thread = None

    def _begin_archive(self, stop: threading.Event) -> None:
        with self._writing:  # As `flush`: one of them makes the archivist. After `close` nobody does.
            if self._archive is None or stop.is_set():
                return
            try:
                self._archive.begin()
            except (ModelCacheError, RuntimeError):
                return  # It is told when something is to be sent.

    def _collect(self) -> None:
        """Count the hits that slots have gained."""
        for slot in self._memory.slots():
            gained = slot.uses - slot.told
            if gained:
                slot.told += gained
                one = tally.of(self._fresh, slot.key)
                one.hits, one.hit_bytes = one.hits + gained, one.hit_bytes + gained * slot.content_bytes
                one.digest, one.size = str(slot.digest), slot.content_bytes

    def _write(self) -> bool:
        """Write what this process counted on its day; False if that cannot be."""
        if not os.path.isdir(f"{self._root}/{layout.STAGING}"):
            self.failures += 1  # There is no cache yet, and it is not made for this.
            return False
        try:
            store.write(self._root, self._name, self._host, self._today)
        except (OSError, ModelCacheError) as error:
            self.failures += 1
            if not self._warned:
                self._warned = True
                _log.warning("usage of %s cannot be recorded, and is dropped while that is so: %s", self._root, error)
            return False
        return True


_HEARD = {"received", "fetched", "derived", "coalesced", "unchanged", "evicted", "quarantined", "failed"}
