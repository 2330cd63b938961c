"""The breaker of a backend: what its calls came to, and whether it is asked at all."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from . import forks, retry
from .config import RetryPolicy
from .errors import BackendAccessError, BackendDownError, BackendError, ModelCacheError, RejectedError
from .retry import Deadline

T = TypeVar("T")
HEALTHY, DEGRADED, DOWN = "healthy", "degraded", "down"
_BYTES_A_SECOND = 1 << 20  # Of a call that moves many: slower, and it counts as one that hangs.


class Breaker:
    """What each call to one backend goes through: it is tried again, counted, timed, and kept from one that is down.

    After the last try of a call the breaker opens: calls are refused at once for the cooldown. Then one call is let
    through (half-open), once; if it succeeds the breaker closes, else the cooldown doubles.

    Args:
        name: What errors call it.
        policy: How often a call is tried before the backend counts as down.
        cooldown: For how long one that is down is left alone, in seconds; it doubles up to `cooldown_max`.
        cooldown_max: The longest of these times, in seconds.
        timeout: A call that takes longer, in seconds, counts as one that hangs: the backend is down until it returns.
    """

    def __init__(self, name: str, *, policy: RetryPolicy, cooldown: float, cooldown_max: float, timeout: float) -> None:
        self.name, self._policy, self._timeout = name, policy, timeout
        self._cooldown_min, self._cooldown_max = cooldown, cooldown_max
        self._numbers = itertools.count()
        self._last: str | None = None
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. A child has no calls under way, and finds out for itself how the backend is."""
        self._guard = threading.RLock()  # What interrupts its owner may come here, too: a signal handler.
        self._callers: set[int] = set()
        self._under_way: dict[int, float] = {}  # When each call began; later, if it may take longer.
        self._failures = 0
        self._cooldown = 0.0  # 0: the breaker is closed.
        self._until = 0.0
        self._probing = False

    @property
    def last_error(self) -> str | None:
        """What its last failure was, also after it has recovered; None if there was none."""
        if self.is_hanging:
            return f"a call has not returned for {self._timeout:g} s"
        return self._last

    @property
    def failures(self) -> int:
        """Calls that failed since one succeeded."""
        return self._failures

    @property
    def state(self) -> str:
        """``healthy``; ``degraded``: the last call failed, and is tried again; ``down``: it is left alone."""
        if self._cooldown or self.is_hanging:
            return DOWN
        return DEGRADED if self._failures else HEALTHY

    def hangs_in(self) -> float:
        """Return the seconds until the oldest call under way counts as hanging; the whole timeout if there is none."""
        oldest = min(list(self._under_way.values()), default=monotonic())
        return max(0.0, oldest + self._timeout - monotonic())

    def closed_in(self) -> float:
        """Return the seconds until a call is let through; 0 if one is now."""
        return max(0.0, self._until - monotonic()) if self._cooldown else 0.0

    def call(
        self, work: Callable[[], T], *, patience: Deadline, probe: bool = False, once: bool = False, size: int = 0
    ) -> T:
        """Return ``work()``, tried again as the policy says.

        Args:
            work: One call to the backend.
            patience: Ends the waits between tries when it is cancelled.
            probe: Ask now, once, also if the cooldown is not over.
            once: Do not try again.
            size: Bytes that *work* moves: for each MiB it may take a second longer, before it counts as one that hangs.

        Raises:
            RejectedError: The backend is well, and refuses this.
            BackendDownError: It was not asked.
            BackendError: It failed; or what else of modelcache *work* raises, which says nothing of the backend.
            CancelledError
        """
        me = threading.get_ident()
        if me in self._callers:
            # What the backend's own lock would make hang for ever.
            detail = "this thread is in a call to it already: a signal handler or a finalizer has interrupted that"
            raise BackendError(backend=self.name, detail=detail)
        self._callers.add(me)
        try:
            return self._call(work, patience, size, probe=probe, once=once)
        finally:
            self._callers.discard(me)

    def _call(self, work: Callable[[], T], patience: Deadline, size: int, *, probe: bool, once: bool) -> T:
        policy = self._policy
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
                lambda: self._attempt(work, size),
                policy=policy,
                deadline=patience,
                progress=lambda: 0,
                on_retry=lambda _error, _seconds: None,
            )
        except RejectedError:
            raise
        except BackendError:
            self._open()
            raise
        finally:
            if half_open:
                self._probing = False

    def trip(self, error: BackendError, seconds: float | None = None) -> None:
        """Count *error* of a call that was made elsewhere, and open: for *seconds*, or as after a last try."""
        self._failed(error)
        self._open()
        if seconds is not None:
            with self._guard:
                self._until = monotonic() + seconds

    def _attempt(self, work: Callable[[], T], size: int) -> T:
        number = next(self._numbers)
        self._under_way[number] = monotonic() + size / _BYTES_A_SECOND
        try:
            result = work()
        except RejectedError:
            self._succeeded()  # It has answered.
            raise
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
        self._succeeded()
        return result

    def _succeeded(self) -> None:
        with self._guard:
            self._failures, self._cooldown, self._until = 0, 0.0, 0.0

    def _failed(self, error: BackendError) -> None:
        with self._guard:
            self._failures += 1
            self._last = error.detail if not isinstance(error, BackendAccessError) else error.summary

    def _open(self) -> None:
        with self._guard:
            longer = self._cooldown * 2 or self._cooldown_min
            self._cooldown = min(longer, self._cooldown_max)
            self._until = monotonic() + self._cooldown

    @property
    def is_hanging(self) -> bool:
        """Whether a call has been under way for longer than it may."""
        return bool(self._under_way) and self.hangs_in() == 0.0
