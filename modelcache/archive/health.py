"""How a backend is: what its calls came to, and whether it is asked at all (the breaker)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from .. import forks, retry
from ..errors import BackendAccessError, BackendDownError, BackendError, ModelCacheError
from ..retry import Deadline
from .registration import Registration

T = TypeVar("T")
HEALTHY, DEGRADED, DOWN = "healthy", "degraded", "down"


class Dropped(NamedTuple):
    """A write that was not made.

    ``what`` is the event, or the digest of the object; ``reason`` is ``full``, ``down``, ``shutdown``, ``gone`` (the
    object is not in the cache any more) or ``corrupt``.
    """

    key: str
    what: Any
    reason: str


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """How a backend is now.

    Attributes:
        state: ``healthy``; ``degraded``: its last call failed, and is tried again; ``down``: it failed as often as the
            policy allows, or a call hangs, and it is left alone but for a try now and then.
        last_error: What its last failure was, also after it has recovered; None if there was none.
        consecutive_failures: Calls that failed since one succeeded.
        depth: Events and objects that wait, or are under way.
        lag: For how long the oldest of them has been waiting, in seconds.
        dropped: Events and objects that were not written; `Archivist.dropped` tells which.
        dispatched: Events and objects that were.
        coalesced: Writes that shared a call with an earlier one.
        enabled: Whether it is written to and read from.
    """

    state: str
    last_error: str | None
    consecutive_failures: int
    depth: int
    lag: float
    dropped: int
    dispatched: int
    coalesced: int
    enabled: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        return asdict(self)


class Gate:
    """What each call to one backend goes through: it is tried again, counted, timed, and kept from one that is down.

    After the last try of a call the breaker opens: calls are refused at once for the cooldown. Then one call is let
    through (half-open), once; if it succeeds the breaker closes, else the cooldown doubles.
    """

    def __init__(self, registration: Registration) -> None:
        self.name = registration.name
        self._registration = registration
        self._numbers = itertools.count()
        self._last: str | None = None
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. A child has no calls under way, and finds out for itself how the backend is."""
        self._guard = threading.Lock()
        self._under_way: dict[int, float] = {}
        self._failures = 0
        self._cooldown = 0.0  # 0: the breaker is closed.
        self._until = 0.0
        self._probing = False

    @property
    def last_error(self) -> str | None:
        """See `BackendHealth`."""
        if self.is_hanging:
            return f"a call has not returned for {self._registration.timeout:g} s"
        return self._last

    @property
    def failures(self) -> int:
        """See `BackendHealth.consecutive_failures`."""
        return self._failures

    @property
    def state(self) -> str:
        """See `BackendHealth`."""
        if self._cooldown or self.is_hanging:
            return DOWN
        return DEGRADED if self._failures else HEALTHY

    def hangs_in(self) -> float:
        """Return the seconds until the oldest call under way counts as hanging; the whole timeout if there is none."""
        oldest = min(list(self._under_way.values()), default=monotonic())
        return max(0.0, oldest + self._registration.timeout - monotonic())

    def closed_in(self) -> float:
        """Return the seconds until a call is let through; 0 if one is now."""
        return max(0.0, self._until - monotonic()) if self._cooldown else 0.0

    def call(self, work: Callable[[], T], *, patience: Deadline, probe: bool = False, once: bool = False) -> T:
        """Return ``work()``, tried again as the policy says.

        Args:
            work: One call to the backend.
            patience: Ends the waits between tries when it is cancelled.
            probe: Ask now, once, also if the cooldown is not over.
            once: Do not try again.

        Raises:
            BackendDownError: It was not asked.
            BackendError: It failed; or what else of modelcache *work* raises, which says nothing of the backend.
            CancelledError
        """
        policy = self._registration.retry
        with self._guard:
            half_open = bool(self._cooldown)
            if half_open:
                if self._probing or (self._until > monotonic() and not probe):
                    seconds = max(0.0, self._until - monotonic())
                    raise BackendDownError(backend=self.name, detail=self._last or "", seconds=round(seconds, 3))
                self._probing = True
        if half_open or probe or once:
            policy = type(policy)(attempts=1)
        try:
            return retry.call(
                lambda: self._attempt(work),
                policy=policy,
                deadline=patience,
                progress=lambda: 0,
                on_retry=lambda _error, _seconds: None,
            )
        except BackendError:
            self._open()
            raise
        finally:
            if half_open:
                self._probing = False

    def _attempt(self, work: Callable[[], T]) -> T:
        number = next(self._numbers)
        self._under_way[number] = monotonic()
        try:
            result = work()
        except ModelCacheError as error:
            if isinstance(error, BackendError):
                self._failed(error)
            raise
        except Exception as error:
            found = BackendError(backend=self.name, detail=f"{type(error).__name__}: {error}"[:500])
            self._failed(found)
            raise found from error
        finally:
            self._under_way.pop(number, None)
        with self._guard:
            self._failures, self._cooldown, self._until = 0, 0.0, 0.0
        return result

    def _failed(self, error: BackendError) -> None:
        with self._guard:
            self._failures += 1
            self._last = error.detail if not isinstance(error, BackendAccessError) else error.summary

    def _open(self) -> None:
        with self._guard:
            longer = self._cooldown * 2 or self._registration.cooldown
            self._cooldown = min(longer, self._registration.cooldown_max)
            self._until = monotonic() + self._cooldown

    @property
    def is_hanging(self) -> bool:
        """Whether a call has been under way for longer than it may."""
        return bool(self._under_way) and self.hangs_in() == 0.0
