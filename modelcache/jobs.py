"""Many items, so many at a time, in threads, with a deadline each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from .retry import Deadline

T = TypeVar("T")
R = TypeVar("R")


def run_all(
    items: Sequence[T], work: Callable[[T, Deadline], R], *, jobs: int, deadline: Callable[[T], Deadline]
) -> list[R]:
    """Return ``work(item, limit)`` for all *items*, *jobs* at a time, in their order.

    The limit of an item is made by *deadline* when its work begins. What interrupts the caller meanwhile (SIGINT, or a
    SIGTERM made one) is raised once the work under way, which is cancelled then, has come to its end.
    """
    guard = threading.Lock()
    begun: list[Deadline] | None = []

    def one(item: T) -> R:
        limit = deadline(item)
        with guard:
            if begun is None:
                limit.cancel()
            else:
                begun.append(limit)
        return work(item, limit)

    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="modelcache-job") as pool:
        futures = [pool.submit(one, item) for item in items]
        try:
            wait(futures)
        except BaseException:
            with guard:
                limits, begun = begun or [], None
            for limit in limits:
                limit.cancel()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]
