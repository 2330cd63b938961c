"""What a level offers, and how it is: values, and what both kinds of level have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..breaker import Breaker
from ..config import RetryPolicy
from ..digest import Digest
from ..records import Entry
from ..reference import Ref
from ..sources.base import RemoteFile, RemoteListing
from ..tier import Tier

COOLDOWN_S, COOLDOWN_MAX_S = 5.0, 300.0
_log = logging.getLogger("modelcache")
_complained: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Offer:
    """What a tier has for a question.

    Attributes:
        tier: Which.
        entry: What is known of it, its path in the tier; None of a snapshot, which is no tree yet.
        listing: The files of a tree, each with the ref of where it is.
        in_place: Whether ``entry`` may be used where it is.
        checked: When its source said so, as far as the tier knows, in Unix seconds.
        place: Of a file: where its bytes are had.
    """

    tier: Tier
    entry: Entry | None
    listing: RemoteListing | None
    in_place: bool
    checked: int = 0
    place: Ref | None = None


Found = Callable[[], "Offer | None"]  # Looks at the content, as far as it must, and says what is offered then.


@dataclass(frozen=True, slots=True)
class TierState:
    """How a tier is now.

    Attributes:
        path: Where it is.
        kind: ``modelcache``, ``huggingface_hub``, or ``unknown``: there is nothing in it that says so; of a bucket
            ``s3``, ``gs``, ``az``, ``directory``, or the class of its backend.
        promote: Whether what it has is copied here.
        problem: What keeps it from being used, or its records from being believed; empty if nothing does.
        name: Of it.
        write: How new content is brought to it: ``""`` not at all, ``queued`` or ``direct``.
        state: ``healthy``; ``degraded``: it failed just now; ``down``: it is left alone for a while.
        last_error: What its last failure was in this process; None if there was none.
        waiting: Objects that are still to be brought there, by whatever process.
        lag: For how long the oldest of them has been waiting, in seconds.
    """

    path: str
    kind: str
    promote: bool
    problem: str
    name: str = ""
    write: str = ""
    state: str = "healthy"
    last_error: str | None = None
    waiting: int = 0
    lag: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        return asdict(self)


class Level(ABC):
    """One tier at work.

    Attributes:
        tier: As it was given.
        breaker: What its looks go through. A call that takes longer than the tier's timeout counts as one that hangs.
    """

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.breaker = Breaker(
            tier.name, policy=RetryPolicy(attempts=1), cooldown=COOLDOWN_S, cooldown_max=COOLDOWN_MAX_S,
            timeout=tier.timeout,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """That of the tier."""
        return self.tier.name

    @property
    def is_remote(self) -> bool:
        """Whether a look opens a connection."""
        return False

    @abstractmethod
    def prepare(self) -> None:
        """Make ready what is no matter of the tier's own time to answer, such as a library.

        Raises:
            ModelCacheError: It cannot be used as it is configured.
        """

    @abstractmethod
    def find(self, ref: Ref, digest: Digest | None) -> Found | None:
        """Return what tells the offer for *ref*, or for anything with *digest*; None if there is nothing.

        Raises:
            BackendError: It failed.
        """

    @abstractmethod
    def copy_of(self, file: RemoteFile) -> Ref | None:
        """Return where the tier has the content of *file*, None if it has not; raise BackendError."""

    @abstractmethod
    def state(self) -> TierState:
        """Return how it is, looked at now; raise BackendError."""

    def holds(self, entry: Entry, verify: str) -> bool:
        """Tell whether *entry*, which is to be served in place, holds what it says, looked at as *verify* says."""
        del entry, verify
        return True

    def answered(self, seconds: float) -> None:
        """Take note that a look took *seconds*; say once that it is slow, because it is not left alone for that."""
        if seconds > 2 / 3 * self.tier.timeout and (self.name, "slow") not in _complained:
            _complained.add((self.name, "slow"))
            _log.warning(
                "the tier %s is slow: a look took %.2f s; each get of what is not here waits for one (timeout=%g s)",
                self.tier.path, seconds, self.tier.timeout,
            )  # fmt: skip

    def complain(self, why: str) -> None:
        """Say once why it is passed over."""
        if (self.name, why) not in _complained:
            _complained.add((self.name, why))
            _log.warning("the tier %s is passed over: %s", self.tier.path, why)
