"""How a tier is, and what a look at it may cost: a bounded time once, then nothing until it answers again.

A look runs in a thread of its own, and whoever asked waits for it for the tier's timeout at most. One that fails, or
does not answer, opens the tier's breaker: nobody asks it then for the cooldown, which doubles. After that the next get
starts one look in the background, and does not wait for it. What a process has found so is a hint for the others of
this boot, so that not each of them pays. At most `_SLOTS` threads are ever held by a tier that hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from .. import forks, layout
from ..breaker import DOWN
from ..errors import BackendAccessError, BackendDownError, BackendError, BackendSetupError, ModelCacheError
from ..hints import Hints
from ..retry import Deadline
from .base import COOLDOWN_MAX_S, COOLDOWN_S, Level

_SLOTS = 8


class Look:
    """A look that is under way, in a thread."""

    def __init__(self) -> None:
        self.began = self.until = 0.0  # When its time began, and when it must have answered.
        self.seconds = 0.0  # That it took, when it is done.
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def wait(self, seconds: float) -> bool:
        """Wait for it for so many *seconds*; tell whether it has answered."""
        return self._done.wait(max(0.0, seconds))

    def result(self) -> Any:
        """Return what it came to; raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result

    def run(self, work: Callable[[], Any]) -> None:
        """Do *work*, and keep what it comes to."""
        try:
            self._result = work()
        except Exception as error:  # noqa: BLE001  # Handed on to the thread that waits.
            self._error = error
        self.seconds = monotonic() - self.began
        self._done.set()


class Health:
    """That of one *level*, of the cache at *root*."""

    def __init__(self, level: Level, root: str) -> None:
        self._level, self._hints, self._hint = (
            level,
            Hints(root, layout.BACKOFF),
            layout.key_id(f"tier {level.tier.path}"),
        )
        self._timeout = level.tier.timeout
        self.breaker = level.breaker
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. A child finds out for itself how it is; that it is configured rightly, its parent has seen."""
        self._guard = threading.Lock()
        self._slots = threading.BoundedSemaphore(_SLOTS)
        self._proved = getattr(self, "_proved", False)
        self._heard = self._noted = False
        self._longer: float | None = None  # Than others have left it alone, so that each new process pays less often.
        self._refused: ModelCacheError | None = None

    @property
    def is_refused(self) -> bool:
        """Whether it cannot be used as it is configured, and could not be before in this process."""
        return self._refused is not None

    def start(self, work: Callable[[], Any], since: float | None = None, *, anyhow: bool = False) -> Look | None:
        """Start *work*, one look at the level; None if it is not to be asked, or nobody should wait for it.

        Its time runs from *since* on, a moment of the monotonic clock, but half of it is left in any case. *anyhow*:
        ask now, whatever is known of it: somebody wants to know how it is.

        Raises:
            ModelCacheError: It cannot be used as it is configured, and could not be before in this process.
        """
        self._hear(silent=anyhow)
        if self.breaker.state == DOWN and not (anyhow and not self.breaker.is_hanging):
            if self._refused is not None:
                raise self._refused
            if not self.breaker.is_hanging and self.breaker.closed_in() == 0.0:
                self._begin(work, slot=0.0)
            return None
        try:
            self._level.prepare()
        except (BackendSetupError, BackendAccessError) as error:
            self.breaker.trip(error)
            self._after(error)
            if self.is_refused:
                raise
            return None
        return self._begin(work, slot=self._timeout, since=since, probe=anyhow)

    def _begin(
        self, work: Callable[[], Any], *, slot: float, since: float | None = None, probe: bool = False
    ) -> Look | None:
        slots, began = self._slots, monotonic()
        if not slots.acquire(timeout=slot):
            return None
        look = Look()
        look.began = began if since is None else since
        look.until = max(look.began + self._timeout, began + self._timeout / 2)

        def run() -> None:
            try:
                look.run(lambda: self._asked(work, probe=probe))
            finally:
                slots.release()

        threading.Thread(target=run, name="modelcache-tier", daemon=True).start()
        return look

    def _asked(self, work: Callable[[], Any], *, probe: bool) -> Any:
        try:
            found = self.breaker.call(work, patience=Deadline(None, ref=self._level.name), probe=probe)
        except BackendDownError:
            raise
        except BackendError as error:
            self._after(error, silent=probe)
            raise
        self._proved, self._refused = True, None
        if self._noted or self._heard:
            self._noted = self._heard = False
            self._hints.remove(self._hint)
        return found

    def overdue(self) -> None:
        """Take note that a look has not answered in its time."""
        for_s = self.breaker.closed_in()
        if self.breaker.is_hanging and for_s:
            return  # Another one has said so.
        detail = f"it has not answered for {self._timeout:g} s"
        self.breaker.trip(BackendError(backend=self._level.name, detail=detail), self._longer)
        self._note()
        self._level.complain(f"{detail}, and is left alone for {self.breaker.closed_in():.0f} s")

    def failed(self, error: ModelCacheError) -> None:
        """Take note that it has failed elsewhere, such as in the middle of a content."""
        found = error
        if not isinstance(found, BackendError):
            found = BackendError(backend=self._level.name, detail=str(getattr(error, "detail", "") or error.summary))
        self.breaker.trip(found)
        self._after(found)

    def _after(self, error: BackendError, *, silent: bool = False) -> None:
        if isinstance(error, BackendSetupError | BackendAccessError) and not self._proved:
            self._refused = error  # Nobody gets by that: it is a mistake, and not an outage.
            return
        if not isinstance(error, BackendSetupError):  # Such as obstore in a forked child: no matter of the others.
            self._note()
        if not silent:
            self._level.complain(error.detail)

    def _hear(self, *, silent: bool) -> None:
        """Take over, once, what another process has found; say so, unless it is *silent*."""
        if self._proved or self._heard:
            return
        with self._guard:
            if self._heard:
                return
            self._heard = True
        facts = self._hints.read(self._hint)
        until, detail = facts.get("until"), facts.get("detail")
        if isinstance(until, int | float) and isinstance(detail, str):
            cooldown = facts.get("cooldown")
            self._longer = min(2.0 * cooldown, COOLDOWN_MAX_S) if isinstance(cooldown, int | float) else None
            seconds = min(until - monotonic(), COOLDOWN_MAX_S)
            if seconds <= 0:  # We look, and the others need not do so at the same time.
                self._hints.write(self._hint, {**facts, "until": monotonic() + COOLDOWN_S})
            else:
                self.breaker.trip(BackendError(backend=self._level.name, detail=detail), seconds)
                self._noted = True
                if not silent:
                    self._level.complain(f"{detail} (another process has found that)")

    def note_outage(self) -> None:
        """Tell the other processes that it is down, if it is and that could not be told before."""
        if not self._noted and self.breaker.state == DOWN and self._refused is None:
            self._note()

    def _note(self) -> None:
        """Tell the other processes of this boot how long it is left alone."""
        seconds = self.breaker.closed_in()
        if seconds <= 0:
            return
        self._noted = self._hints.write(
            self._hint,
            {"until": monotonic() + seconds, "cooldown": seconds, "detail": self.breaker.last_error or ""},
        )
