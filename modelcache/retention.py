"""What stays and what goes by a user's word: pins and removals. What goes by policy is `gc`'s."""

from __future__ import annotations

import os

from . import layout, roots
from .errors import EntryNotFoundError, LeasedError, PinnedError
from .leases import Leases
from .objects import Objects
from .partials import Partials
from .pins import Pins
from .records import Entries, Entry
from .sweep import is_needed


def remove(root: str, key: str, leases: Leases, *, force: bool) -> bool:
    """Do what `Cache.remove` says of *key*."""
    pins, entries = Pins(root), Entries(root)
    if pins.has(key) and not force:
        raise PinnedError(ref=key)
    if not os.path.isdir(root):
        return False
    entry = entries.read(key)
    derived = [] if entry is None else _derived(entries, entry)
    in_use = leases.in_use()
    for one in [*([] if entry is None else [entry]), *derived]:
        if not force and in_use.covers(layout.object_name(one.digest)):
            raise LeasedError(ref=one.key)
        if not force and pins.has(one.key):
            raise PinnedError(ref=one.key)
    roots.prepare_root(root)
    for one in reversed(derived):  # It goes before what it was derived from, and with it.
        _remove(root, one.key, one)
    return _remove(root, key, entry)


def _derived(entries: Entries, entry: Entry) -> list[Entry]:
    """Return the entries of what was derived from *entry*, unless another one stands for the same content."""
    found = entries.derived_from(entry.digest)
    if found and any(other.digest == entry.digest and other.key != entry.key for other in entries.all()):
        return []
    return found


def _remove(root: str, key: str, entry: Entry | None) -> bool:
    pins, entries = Pins(root), Entries(root)
    # The pin first: what is pinned is there (I4). Then the record, then what it names (I2).
    pins.remove(key)
    removed = entries.remove(key)
    pins.remove(key)  # One that was set meanwhile, on the record that was still there.
    partials = Partials(root).remove(key)
    if entry is not None:
        Objects(root).remove(entry.digest, is_named=is_needed(root))
    return removed or partials > 0


def pin(root: str, entry: Entry) -> None:
    """Do what `Cache.pin` says of *entry*."""
    roots.prepare_root(root)
    pins = Pins(root)
    pins.add(entry.key)
    Objects(root).await_removal(entry.digest)  # A gc that has not seen the pin has seen no use either.
    if Entries(root).read(entry.key) is None:
        pins.remove(entry.key)  # It was removed between the look and the pin.
        raise EntryNotFoundError(ref=entry.key, root=root)
