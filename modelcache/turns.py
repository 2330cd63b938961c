"""One at a time, for a key, of all processes: who comes first does the work, the others wait for what he brings.

A lock saves work and nothing else (I9): where none can be had, or the wait for it has lasted too long, the work is done
without, twice perhaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from . import layout, locks
from .errors import LockTimeoutError
from .retry import Deadline


@contextmanager
def turn(
    root: str,
    key: str,
    *,
    timeout: float,
    deadline: Deadline,
    done: Callable[[], bool],
    heed: Callable[[bytes], bool],
    doing: str,
    tell: Callable[[str], object],
) -> Iterator[locks.Turn | None]:
    """Hold the lock of *key* for the block; yield None where it is done without.

    Args:
        root: Of the cache.
        key: What the work is for.
        timeout: Longest wait, in seconds.
        deadline: Of the caller: its end, or its giving up, ends the wait.
        done: Tells whether what is wanted is here by now, so that no turn is needed.
        heed: Tells whether a note that was left is for this caller too.
        doing: What the holder does, for who waits: ``fetching``.
        tell: Told, in a sentence, for whom it waits, and why it goes on without.
    """
    with ExitStack() as stack:
        held: locks.Turn | None = None
        try:
            held = stack.enter_context(
                locks.exclusive(
                    f"{root}/{layout.LOCKS}/{layout.key_id(key)}.lock",
                    timeout=deadline.left(timeout),
                    what=key,
                    done=done,
                    on_wait=lambda holder: tell(f"{holder} is {doing} it"),
                    heed=heed,
                    check=deadline.check,
                )
            )
        except LockTimeoutError as error:
            deadline.check()
            tell(f"{error.summary}; going on without the lock")
        except locks.LockUnavailableError as error:
            tell(f"no lock can be had ({error}); going on without")
        yield held
