"""What is said of a backend when it is registered: its name, how it is written to, and what its failure means."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from ..config import RetryPolicy, is_seconds, is_whole
from ..errors import BackendSetupError, ConfigurationError, ModelCacheError, UsageError

OVERFLOWS = ("block", "drop-oldest", "drop-newest", "error")
REQUIRED, BEST_EFFORT = "required", "best-effort"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # It is the name of a directory, in the outbox.


@dataclass(frozen=True, slots=True)
class Direct:
    """Each write is made by the caller, who waits for it."""


@dataclass(frozen=True, slots=True)
class Queued:
    """Writes are queued, and made by a thread of the backend's own.

    Attributes:
        capacity: Events that may wait, and objects that may; as many again may be under way, `batch_max` at most.
        overflow: What becomes of a write that finds no room: ``block`` holds the sender back, ``drop-oldest`` and
            ``drop-newest`` drop and count, ``error`` raises QueueFullError.
        batch_window: How long the writer collects before it writes, in seconds.
        batch_max: Events that end the window at once, and the most that are written together.
        wait_max: How long ``block`` holds a sender back, in seconds: after that, or at once while the backend is down,
            or has moved nothing for another sender that long, a best-effort write is dropped and counted, and a
            required one raises QueueFullError.
        capacity_bytes: Bytes of events, as JSON in memory, that may wait; one event alone always may.
    """

    capacity: int = 10_000
    overflow: str = "block"
    batch_window: float = 0.05
    batch_max: int = 1_000
    wait_max: float = 30.0
    capacity_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_max", "capacity_bytes"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                _refuse(f"Queued.{name}", value, "a whole number from 1")
        if self.overflow not in OVERFLOWS:
            _refuse("Queued.overflow", self.overflow, f"one of {', '.join(OVERFLOWS)}")
        for name in ("batch_window", "wait_max"):
            value = getattr(self, name)
            if not is_seconds(value) or value < 0:
                _refuse(f"Queued.{name}", value, "seconds from 0")


@dataclass(frozen=True)
class Registration:
    """A backend, and how it is used.

    Attributes:
        name: Its own: letters, digits, ``.``, ``_`` and ``-``, 64 at most.
        backend: A backend, or what makes one when it is called without arguments, such as a class. Whatever has
            ``append_events(key, events)`` takes events.
        failure: ``required``: a failure is raised to whoever writes. ``best-effort``: it is counted and told by health.
        priority: For reads: the lowest number is asked first.
        enabled: Whether it is written to and read from.
        policy: `Direct` or `Queued`.
        retry: How often a call is tried before the backend counts as down.
        cooldown: For how long one that is down is left alone, in seconds; it doubles up to `cooldown_max`.
        cooldown_max: The longest of these times, in seconds.
        timeout: A call that takes longer, in seconds, counts as one that hangs: the backend is down until it returns.

    Raises:
        UsageError: Something makes no sense, such as ``required`` with a policy that drops.
        BackendSetupError: The backend could not be made.
    """

    name: str
    backend: Any
    failure: str = field(default=BEST_EFFORT, kw_only=True)
    priority: int = field(default=0, kw_only=True)
    enabled: bool = field(default=True, kw_only=True)
    policy: Direct | Queued = field(default_factory=Queued, kw_only=True)
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(attempts=3, base=0.1, cap=2.0), kw_only=True)
    cooldown: float = field(default=0.5, kw_only=True)
    cooldown_max: float = field(default=30.0, kw_only=True)
    timeout: float = field(default=30.0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            _refuse("Registration.name", self.name, "letters, digits, '.', '_' and '-', 64 at most")
        if self.failure not in {REQUIRED, BEST_EFFORT}:
            _refuse("Registration.failure", self.failure, f"{REQUIRED} or {BEST_EFFORT}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            _refuse("Registration.priority", self.priority, "a whole number")
        if not isinstance(self.enabled, bool):
            _refuse("Registration.enabled", self.enabled, "True or False")
        if not isinstance(self.policy, Direct | Queued):
            _refuse("Registration.policy", self.policy, "Direct() or Queued()")
        if not isinstance(self.retry, RetryPolicy):
            _refuse("Registration.retry", self.retry, "a RetryPolicy")
        for name in ("cooldown", "cooldown_max", "timeout"):
            value = getattr(self, name)
            if not is_seconds(value) or value <= 0:
                _refuse(f"Registration.{name}", value, "seconds above 0")
        if self.is_required and isinstance(self.policy, Queued) and self.policy.overflow.startswith("drop"):
            raise UsageError(
                problem=f"{self.name} is required, and {self.policy.overflow} would drop what it must have",
                hint="Take overflow='block' or 'error', or failure='best-effort'",
            )
        if not callable(getattr(self.backend, "append_events", None)) or isinstance(self.backend, type):
            object.__setattr__(self, "backend", self._made())

    @property
    def is_required(self) -> bool:
        """Whether a failure is raised to whoever writes."""
        return self.failure == REQUIRED

    def _made(self) -> object:
        """Return the backend that `backend` makes."""
        if not callable(self.backend):
            _refuse("Registration.backend", self.backend, "a backend: it has append_events(key, events)")
        try:
            made = self.backend()
        except ModelCacheError:
            raise
        except Exception as error:  # Whatever the constructor of somebody else's class raises.
            detail = f"its constructor raised {type(error).__name__}: {error}"
            raise BackendSetupError(backend=self.name, detail=detail) from error
        if not callable(getattr(made, "append_events", None)):
            _refuse("Registration.backend", made, "a backend: it has append_events(key, events)")
        return made


def check_timeout(timeout: float | None, default: float) -> float:
    """Return *timeout*, *default* if it is None; raise ConfigurationError if it makes no sense."""
    if timeout is None:
        return default
    if timeout != math.inf and (not is_seconds(timeout) or timeout < 0):
        _refuse("timeout", timeout, "seconds from 0")
    return timeout


def _refuse(setting: str, value: object, expected: str) -> None:
    raise ConfigurationError(setting=setting, value=f"{value!r:.100}", expected=expected)
