"""Trying again: the only module that imports tenacity.

Full jitter, ``Retry-After``, a total deadline, and a count of attempts that starts anew whenever there was progress;
the numbers are those of `RetryPolicy` and `Timeout`, which state the formula.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import tenacity

from .config import RetryPolicy
from .errors import CancelledError, DeadlineError, ModelCacheError

T = TypeVar("T")


class Deadline:
    """A moment after which nothing more is tried, and the caller's way to give up earlier.

    One object goes through a whole get: every wait in it asks here how long it may take.
    """

    def __init__(self, seconds: float | None, *, ref: str) -> None:
        self.seconds, self.ref = seconds, ref
        self._cancelled = threading.Event()
        self._end = None if seconds is None else time.monotonic() + seconds
        self._interrupts: set[Callable[[], object]] = set()
        self._pid = os.getpid()

    def left(self, at_most: float) -> float:
        """Return the seconds that a wait may take, no more than *at_most*; never negative."""
        return at_most if self._end is None else max(0.0, min(at_most, self._end - time.monotonic()))

    @property
    def is_over(self) -> bool:
        """Whether `check` would raise."""
        return self._cancelled.is_set() or (self._end is not None and time.monotonic() >= self._end)

    def check(self) -> None:
        """Raise CancelledError or DeadlineError if there is no time left."""
        if self._cancelled.is_set():
            raise CancelledError(ref=self.ref)
        if self._end is not None and time.monotonic() >= self._end:
            raise self.error()

    def error(self, last: BaseException | None = None) -> DeadlineError:
        """Return the error of a get that ran out of time."""
        limit = "in the time allowed" if self.seconds is None else f"within {self.seconds:g} s"
        after = f"; the last attempt: {getattr(last, 'detail', last)}" if last else ""
        return DeadlineError(ref=self.ref, detail=f"not done {limit}{after}")

    @contextmanager
    def part(self) -> Iterator[Deadline]:
        """Yield a deadline of the same end for some of the work: it ends with this one, and can be given up alone."""
        part = Deadline(None, ref=self.ref)
        part.seconds, part._end = self.seconds, self._end
        with self.cutting(part.cancel):
            yield part

    def sleep(self, seconds: float) -> None:
        """Wait *seconds*, less if the caller gives up."""
        self._cancelled.wait(seconds)
        self.check()

    def cancel(self) -> None:
        """Give up, from any thread: sleeps end, blocked reads are cut, `check` raises."""
        if self._pid != os.getpid():
            return  # To cut a connection that a fork has copied would cut it for the parent too.
        self._cancelled.set()
        for interrupt in tuple(self._interrupts):
            interrupt()

    @contextmanager
    def cutting(self, interrupt: Callable[[], object], *, within: float = threading.TIMEOUT_MAX) -> Iterator[None]:
        """Call *interrupt* from another thread if the block still runs after *within* seconds, or when time is up.

        The same when the caller gives up. It may be called more than once.
        """
        self._interrupts.add(interrupt)
        at_most = self.left(within)
        timer = None if at_most >= threading.TIMEOUT_MAX else threading.Timer(at_most, interrupt)
        if timer is not None:
            timer.daemon = True
            timer.start()
        if self._cancelled.is_set():
            interrupt()  # `cancel` may have looked just before.
        try:
            yield
        finally:
            self._interrupts.discard(interrupt)
            if timer is not None:
                timer.cancel()


def call(
    attempt: Callable[[], T],
    *,
    policy: RetryPolicy,
    deadline: Deadline,
    progress: Callable[[], int],
    on_retry: Callable[[ModelCacheError, float], object],
) -> T:
    """Return ``attempt()``, tried again while its error is transient.

    Args:
        attempt: One try; raises a ModelCacheError whose ``transient`` says whether another may help.
        policy: How often and how far apart.
        deadline: When to give up whatever the policy says.
        progress: Bytes that are here by now; an attempt that added some does not count.
        on_retry: Told the error and the seconds until the next try, before the wait.
    """
    here = progress()

    def is_transient(state: tenacity.RetryCallState) -> bool:
        nonlocal here
        error = _error(state)
        now = progress()
        if now > here:
            state.attempt_number = 1
        here = now
        return isinstance(error, ModelCacheError) and error.transient

    def wait(state: tenacity.RetryCallState) -> float:
        drawn = tenacity.wait_random_exponential(multiplier=policy.base, max=policy.cap)(state)
        return max(drawn, _retry_after(state))

    def stop(state: tenacity.RetryCallState) -> bool:
        return state.attempt_number >= policy.attempts or _retry_after(state) > policy.retry_after_max

    def tell(state: tenacity.RetryCallState) -> None:
        error = _error(state)
        assert isinstance(error, ModelCacheError)  # is_transient saw to it.
        if deadline.left(state.upcoming_sleep) < state.upcoming_sleep:
            raise deadline.error(error) from error
        on_retry(error, state.upcoming_sleep)

    return tenacity.Retrying(
        retry=is_transient, wait=wait, stop=stop, before_sleep=tell, sleep=deadline.sleep, reraise=True
    )(attempt)


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _retry_after(state: tenacity.RetryCallState) -> float:
    return getattr(_error(state), "retry_after", None) or 0.0
