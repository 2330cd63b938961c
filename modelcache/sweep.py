"""Clearing up after the dead: what crashed processes left behind (DESIGN.md section 5).

Only what belongs to a process that is certainly gone is touched (`process.is_dead`). It runs once when a cache first
writes, and costs a listing of directories that are empty as a rule.
"""

from __future__ import annotations

from collections.abc import Callable

from . import commit, files, layout, locks, outbox, process
from .digest import Digest
from .failures import Failures
from .leases import Leases
from .objects import Objects
from .records import Entries


def needed(root: str) -> Callable[[Digest], bool]:
    """Return what tells, of this moment, whether an object must stay.

    An entry names it, a live process holds it, or it waits for a tier.
    """
    in_use, named, waits = Leases(root).in_use(), Entries(root).named(), outbox.waiting(root)
    return lambda digest: in_use.covers(layout.object_name(digest)) or named(digest) or waits(digest)


def is_needed(root: str) -> Callable[[Digest], bool]:
    """Return what looks anew each time whether an object must stay."""

    def now(digest: Digest) -> bool:
        return needed(root)(digest)

    return now


def sweep(root: str) -> int:
    """Delete the left-overs of dead processes under *root*; return how many there were."""
    objects = Objects(root)
    swept = 0
    for name in files.listing(f"{root}/{layout.STAGING}"):
        if process.is_dead(name) or objects.is_void(name):
            commit.discard(f"{root}/{layout.STAGING}/{name}")
            commit.remove_quietly(f"{root}/{layout.STAGING}/{name}")
            swept += 1
    for name in files.listing(f"{root}/{layout.TRASH}"):
        if process.is_dead(name):
            objects.bury(name, is_named=is_needed(root))
            swept += 1
    for name in files.listing(f"{root}/{layout.LOCKS}"):
        try:
            swept += locks.probe(f"{root}/{layout.LOCKS}/{name}")  # Whoever can have a lock removes its file.
        except locks.LockUnavailableError:
            continue  # No file, and not ours to remove; or there are no locks here.
    return swept + Leases(root).sweep() + Failures(root).sweep()
