"""The root of the tree, and what its branches have in common. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any


class ModelCacheError(Exception):
    """The root of all errors of modelcache."""

    exit_code = 1
    transient = False
    summary = "modelcache failed"
    hint = ""

    def __init__(self, **facts: Any) -> None:
        # No positional argument: OSError, a base of many leaves, would take it for an errno.
        super().__init__()
        self.facts = facts
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return f"{self.summary}. {self.hint}".removesuffix(". ")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.facts.items())})"

    def __reduce__(self) -> Any:
        return partial(type(self), **self.facts), ()


class BatchError(ModelCacheError):
    """Some of many models failed; with the others all went well.

    ``failures`` maps each ref that failed to its error.
    """

    exit_code = 3

    def __init__(self, *, failures: Mapping[Any, ModelCacheError], total: int) -> None:
        super().__init__(failures=failures, total=total)  # By ref as it was given: it may hold credentials.
        self.failures, self.total = failures, total
        first = next(iter(failures.values()), None)
        self.summary = f"{len(failures)} of {total} models failed; the other ones are done. First: {first}"
        self.hint = "Run it again: what is done is not done again, what is half there is resumed"

    def __repr__(self) -> str:
        return f"BatchError({list(self.failures.values())!r}, total={self.total})"


def shown(text: object) -> str:
    """Return *text* as it may be printed: escaped, and cut where it is very long."""
    shown = repr(text)
    return shown if len(shown) <= 200 else f"{shown[:120]}… ({len(shown)} characters)"
