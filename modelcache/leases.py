"""Leases: which objects are in use by processes that live.

One file a process and root, ``leases/<token>``, with one descriptor and one record lock however many objects are held,
so that the kernel itself lets go when the process dies. It is a table of slots of one width: ``+`` and the name of an
object (its directory under ``objects-v1``), or ``-``. A slot is taken, and given back, by one write that touches no
other one, so that no reader ever misses a name that is held, nothing grows but with what is held at one time, and
nothing needs to be compacted. A slot that was half written is of a lease that was never given.

The order that keeps a leased object (I4): the holder writes its lease, waits for removals of the object that are under
way, and then looks whether it is there. Who removes says so, and then looks for leases (`objects`). Each writes before
it looks, so that one of the two sees the other. Nothing is synced: a lease is over when the machine stops.

The file is kept until the process ends, because it costs many times as much as a slot. One that a dead process left is
swept. A forked child has none of its parent's locks; it makes a file of its own at the fork, before anything else runs
in it, and the parent's fork returns after that.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import threading
from dataclasses import dataclass

from failpoints import fail_point

from . import commit, files, layout, locks, process, sharing
from .errors import CacheConfigError, storage_error

_SLOT_BYTES = 80  # A sign, a name of 71 bytes at most, spaces, and a line end.
_FORK_WAIT_MS = 5_000  # For a child to lease what it inherits; it takes a tenth of a millisecond.
_log = logging.getLogger("modelcache")


@dataclass(frozen=True, slots=True)
class InUse:
    """What live processes hold. ``unread`` are lease files of live processes that say nothing to this user."""

    names: frozenset[str]
    unread: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Tell whether the object *name* is in use, or may be."""
        return name in self.names or bool(self.unread)


class Leases:
    """The leases of the cache at *root*: those of this process, and a look at all."""

    def __init__(self, root: str) -> None:
        self._directory = f"{root}/{layout.LEASES}"
        self._own = _holder(root)

    def hold(self, name: str) -> None:
        """Hold the object *name* once more. Whether it is there is looked for afterwards.

        Raises:
            StorageError, NoSpaceError: It is not held.
        """
        try:
            self._own.hold(name)
        except OSError as error:
            raise storage_error(error, action="lease", path=self._directory) from error

    def release(self, name: str) -> None:
        """Give back one `hold` of *name*; the last one ends the lease."""
        self._own.release(name)

    def in_use(self) -> InUse:
        """Return what live processes hold.

        Raises:
            StorageError: The directory cannot be read.
        """
        names: set[str] = set()
        unread = []
        for token in files.listing(self._directory):
            mine = _tokens.get(token)
            if mine is not None:
                names.update(tuple(mine.names))  # Our own file is never opened.
                continue
            path = f"{self._directory}/{token}"
            if locks.is_abandoned(path):
                continue
            try:
                names.update(decode(files.read(path) or b""))
            except OSError:
                unread.append(path)
        return InUse(frozenset(names), tuple(unread))

    def abandoned(self) -> list[str]:
        """Return the names of the lease files whose processes are gone."""
        return [name for name in files.listing(self._directory) if locks.is_abandoned(f"{self._directory}/{name}")]

    def sweep(self) -> int:
        """Remove the lease files of the dead; return how many there were.

        Where only a lock could tell who lives, gc does it, which has seen that locks work.
        """
        dead = [name for name in files.listing(self._directory) if process.is_dead(name)]
        for name in dead:
            commit.remove_quietly(f"{self._directory}/{name}")
        return len(dead)


def decode(data: bytes) -> set[str]:
    """Return the names that the lease file with the content *data* holds."""
    slots = (data[start : start + _SLOT_BYTES] for start in range(0, len(data), _SLOT_BYTES))
    return {slot[1:].decode(errors="replace").rstrip() for slot in slots if slot[:1] == b"+"}


class _Holder:
    """What this process holds in one root."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.guard = threading.Lock()
        self.names: dict[str, _Slot] = {}
        self.sign: locks.Sign | None = None
        self._free: list[int] = []
        self._slots = 0

    def hold(self, name: str) -> None:
        with self.guard:
            slot = self.names.get(name)
            if slot is not None and self.sign is not None and self.sign.is_there:
                slot.count += 1
                return
            if self.sign is None or not self.sign.is_there:
                self._begin()
            slot = self.names.get(name)
            if slot is None:
                # Known before it is written: a child that is forked in between holds one too many, never too few.
                slot = self.names[name] = _Slot(self._free.pop() if self._free else self._take_slot())
                try:
                    self._write(slot.number, name)
                except BaseException:
                    del self.names[name]
                    self._give_back(slot.number)
                    raise
            slot.count += 1

    def release(self, name: str) -> None:
        with self.guard:
            slot = self.names.get(name)
            if slot is None:
                return
            slot.count -= 1
            if slot.count > 0:
                return
            fail_point("leases.before-release")
            if self._give_back(slot.number):
                del self.names[name]

    def renew(self) -> None:
        """Lease in this process, a forked child, what the parent held."""
        self.guard = threading.Lock()
        inherited, self.sign = self.sign, None
        if inherited is not None:
            inherited.abandon()
        try:
            if self.names:
                self._begin()
        except (OSError, CacheConfigError) as error:
            _log.warning("a forked process could not lease what it inherited, which its parent protects: %s", error)

    def end(self) -> None:
        sign, self.sign = self.sign, None
        if sign is not None:
            sign.withdraw()

    def _begin(self) -> None:
        """Make the lease file of this process, with all that is held by now."""
        if self.sign is not None:
            self.sign.abandon()  # Its file was deleted, with the cache, by somebody else.
            self.sign = None
        sharing.refresh(self.root)  # A hit has not looked, and who may read it may have changed.
        token = process.token()
        _tokens[token] = self  # Before another thread can find the file, which must not be opened.
        paths = f"{self.root}/{layout.STAGING}/{token}", f"{self.root}/{layout.LEASES}/{token}"
        try:
            self.sign = locks.sign(*paths)
        except FileNotFoundError:
            commit.ensure_bucket(f"{self.root}/{layout.LEASES}")
            self.sign = locks.sign(*paths)
        self._free, self._slots = [], 0
        try:
            for name, slot in tuple(self.names.items()):
                slot.number = self._take_slot()
                self._write(slot.number, name)
        except BaseException:
            self.end()  # A file that lacks a name would speak for none; the next `hold` makes another one.
            raise

    def _take_slot(self) -> int:
        self._slots += 1
        return self._slots - 1

    def _give_back(self, number: int) -> bool:
        """Empty a slot; False if it cannot be: then what stands there is held until this process ends."""
        try:
            if self.sign is not None:
                self.sign.write(number * _SLOT_BYTES, b"-")
        except OSError:
            return False
        self._free.append(number)
        return True

    def _write(self, number: int, name: str) -> None:
        assert self.sign is not None
        line = f"+{name}".ljust(_SLOT_BYTES - 1).encode() + b"\n"
        assert len(line) == _SLOT_BYTES, name
        fail_point("leases.before-write")
        self.sign.write(number * _SLOT_BYTES, line)


class _Slot:
    """Where a name stands in the file, and how often it is held."""

    __slots__ = ("count", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0


_holders: dict[str, _Holder] = {}
_tokens: dict[str, _Holder] = {}  # By the name of the lease file, so that it is known under any spelling of its path.
_holders_guard = threading.Lock()
_forking = threading.local()
_pipes: set[int] = set()  # The ends of the pipes of forks that are under way.


def _holder(root: str) -> _Holder:
    """Return what this process holds in *root*, whatever the spelling of its path."""
    with _holders_guard:
        return _holders.setdefault(os.path.realpath(root), _Holder(root))


def _before_fork() -> None:
    _forking.pipe = None
    if any(holder.names for holder in tuple(_holders.values())):
        try:
            _forking.pipe = os.pipe()
        except OSError:
            return  # No descriptor is free: then nobody waits.
        _pipes.update(_forking.pipe)


def _after_fork_in_parent() -> None:
    """Wait until the child holds what it inherits: only then may this process let go of it."""
    pipe, _forking.pipe = getattr(_forking, "pipe", None), None
    if pipe is None:
        return
    reading, writing = pipe
    _pipes.difference_update(pipe)  # Before they are closed: their numbers may be those of other files then.
    os.close(writing)
    try:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        if not poll.poll(_FORK_WAIT_MS):
            _log.warning("a forked process has not leased what it inherited after %d ms", _FORK_WAIT_MS)
    finally:
        os.close(reading)


def _after_fork_in_child() -> None:
    global _holders_guard
    _holders_guard = threading.Lock()
    _tokens.clear()
    for holder in tuple(_holders.values()):
        holder.renew()
    pipe, _forking.pipe = getattr(_forking, "pipe", None), None
    if pipe is not None:
        os.write(pipe[1], b"+")
    for descriptor in _pipes:
        os.close(descriptor)
    _pipes.clear()


def _at_exit() -> None:
    for holder in tuple(_holders.values()):
        holder.end()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
