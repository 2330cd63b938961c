"""Locks and forks: a lock that another thread held at the fork stays locked in the child for ever.

So whoever guards a short passage by a lock, and may live in a process that forks, gets a new one in the child.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Guarded(Protocol):
    """What has a lock to be renewed."""

    def renew_guard(self) -> None:
        """Put a new lock in place of the old one, which nobody holds in this process."""


_owners: weakref.WeakSet[Guarded] = weakref.WeakSet()


def renew_after_fork(owner: Guarded) -> None:
    """Give *owner* its lock now, and a new one in each forked child."""
    owner.renew_guard()
    _owners.add(owner)


def _renew_all() -> None:
    for owner in list(_owners):
        owner.renew_guard()


os.register_at_fork(after_in_child=_renew_all)
