"""A bucket as the fleet asks it: requests are bounded, tried again for a while, and given up with their caller."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from .. import layout
from ..backends.base import Backend
from ..breaker import Breaker
from ..config import RetryPolicy
from ..errors import BackendDownError, BackendError, NoConditionalWritesError
from ..hints import Hints
from ..retry import Deadline

T = TypeVar("T")
_PAUSE_S, _PAUSE_MAX_S = 0.1, 2.0
_FIRST = RetryPolicy(attempts=6, base=0.2, cap=1.0)
_DOWN_S = 60.0
TIMEOUT_S, PATIENCE_S = 10.0, 30.0
_probed: set[str] = set()  # Locations where claims can be made, for the whole process.


class Bucket:
    """The backend of one tier, for all flights of a process.

    It has a breaker of its own: a look at a tier is given up at its first failure, because the origin is there; here a
    machine that gives up too early costs a download. So the first request is tried a few times, which takes a second or
    two when the bucket is down, once in a minute; all later ones have the patience.

    Args:
        name: Of the tier.
        backend: Opens it, or returns it open.
        timeout: The longest that one request may take, in seconds.
        patience: For how long a request that fails is tried again, in seconds.
        hints: Where it is remembered that claims can be made.
    """

    def __init__(
        self,
        name: str,
        backend: Callable[[], Backend],
        *,
        timeout: float = TIMEOUT_S,
        patience: float = PATIENCE_S,
        hints: Hints | None = None,
    ) -> None:
        self.name = name
        self._backend, self._timeout, self._patience, self._hints = backend, timeout, patience, hints
        self._breaker = Breaker(name, policy=_FIRST, cooldown=_DOWN_S, cooldown_max=_DOWN_S, timeout=timeout)

    @property
    def backend(self) -> Backend:
        """The backend itself; raise BackendError if it cannot be opened."""
        return self._backend()

    def enter(self, deadline: Deadline) -> Backend:
        """Return the backend once it is known to answer, and to make what is there only once.

        Raises:
            NoConditionalWritesError: Any claim on it would be worth nothing.
            BackendError: It does not answer, or cannot be used.
            CancelledError, DeadlineError
        """
        if self._breaker.is_hanging:
            raise BackendDownError(backend=self.name, detail=self._breaker.last_error or "", seconds=0.0)

        def first() -> Backend:
            backend = self._backend()
            backend.size("claims/first")  # Of which there is none.
            return backend

        # Several tries, but for one that hangs.
        backend = self._within(lambda: self._breaker.call(first, patience=deadline), deadline, self._timeout)
        location = backend.location
        hint = layout.key_id(f"conditional {location}")
        if location in _probed or (self._hints is not None and self._hints.read(hint).get("location") == location):
            return backend
        try:
            self.ask(backend.check_conditional, deadline)
        except NoConditionalWritesError as error:
            raise NoConditionalWritesError(backend=self.name, detail=error.detail) from error
        _probed.add(location)
        if self._hints is not None:
            self._hints.write(hint, {"location": location})
        return backend

    def ask(self, work: Callable[[], T], deadline: Deadline, *, patience: float | None = None) -> T:
        """Return ``work()``, a few requests, tried again while it fails, for the patience.

        Raises:
            BackendError: It went on failing.
            CancelledError, DeadlineError
        """
        until = monotonic() + (self._patience if patience is None else patience)
        pause = _PAUSE_S
        while True:
            try:
                return self._within(work, deadline, self._timeout)
            except BackendError as error:
                if not error.transient or monotonic() + pause > until:
                    raise
            deadline.sleep(deadline.left(pause * random.uniform(0.5, 1.0)))  # noqa: S311  # Not a secret.
            pause = min(2 * pause, _PAUSE_MAX_S)

    def _within(self, work: Callable[[], T], deadline: Deadline, seconds: float) -> T:
        """Return ``work()``, done in a thread of its own that is left behind if it takes longer than *seconds*."""
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001  # It is raised again, in the thread of who asked.
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=run, name="modelcache-fleet", daemon=True).start()
        with deadline.cutting(done.set):
            done.wait(seconds)
        if results:
            return results[0]
        if errors:
            raise errors[0]
        deadline.check()
        raise BackendError(backend=self.name, detail=f"it has not answered for {seconds:g} s")
