"""What a build is called with: its directory, and what it is to be made of. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self


class Patience(Protocol):
    """What knows how long a caller waits."""

    def check(self) -> None:
        """Raise if he does not wait any longer."""


class Workspace(str):
    """The path of the private, empty directory that a build fills: a ``str``, and more.

    What it leaves there is the product: one file, or one directory of files, under its own name.

    Attributes:
        inputs: The paths of the inputs in the cache, by name; to be read, never written.
        params: What the build was told.
    """

    __slots__ = ("_error", "_patience", "_until", "inputs", "params")
    inputs: Mapping[str, str]
    params: Mapping[str, Any]

    def __new__(cls, path: str, *, inputs: Mapping[str, str], params: Mapping[str, Any]) -> Self:
        """Return the workspace at *path*."""
        self = super().__new__(cls, path)
        self.inputs, self.params = dict(inputs), dict(params)
        self._patience, self._until, self._error = None, None, None
        return self

    _patience: Patience | None
    _until: float | None
    _error: Exception | None

    def until(self, patience: Patience, seconds: float | None, error: Exception) -> None:
        """Let `check` raise *error* once *seconds* are over, and what that of *patience* does."""
        self._patience, self._error = patience, error
        self._until = None if seconds is None else time.monotonic() + seconds

    def check(self) -> None:
        """Raise if nobody waits for the product any more: to be called now and then by a build that takes long.

        Raises:
            CancelledError: The cache was closed, or the task was cancelled.
            BuildTimeoutError: It has taken longer than it may.
        """
        if self._patience is not None:
            self._patience.check()
        if self._until is not None and self._error is not None and time.monotonic() >= self._until:
            raise self._error

    def __reduce__(self) -> tuple[Callable[..., Workspace], tuple[Any, ...]]:
        """Travel to another process, where it is ended from outside and has no patience of its own."""
        return _made, (str(self), dict(self.inputs), dict(self.params))


def _made(path: str, inputs: Mapping[str, str], params: Mapping[str, Any]) -> Workspace:
    return Workspace(path, inputs=inputs, params=params)
