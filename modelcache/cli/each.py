"""Doing one thing to each of several refs: `rm`, `pin` and `unpin` go on after a failure, and tell all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import BatchError, ModelCacheError
from ..reference import parse
from .console import Console


def do_each(refs: Sequence[str], act: Callable[[str], object], done: str, console: Console) -> int:
    """Call *act* with the key of each ref, and say that it is *done*; return the exit code 0.

    Raises:
        ModelCacheError: The failure of an only ref, else a BatchError with each one.
    """
    keys = [parse(ref).key for ref in refs]
    failures: dict[str, ModelCacheError] = {}
    for key in keys:
        try:
            act(key)
            console.note(f"{done} {key}")
        except ModelCacheError as error:
            failures[key] = error
    if console.json:
        console.data_json({done: [key for key in keys if key not in failures]})
    if failures and len(keys) == 1:
        raise failures[keys[0]]
    if failures:
        raise BatchError(failures=failures, total=len(keys))
    return 0
