"""Which entries a person wants to see, and in which order: ``size>1GB``, ``unused>30d``, ``ref=*.onnx``. No I/O."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .config import parse_bytes, parse_seconds
from .errors import ConfigurationError, UsageError
from .records import Entry

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
_TEXTS: dict[str, Callable[[Listed], str]] = {
    "ref": lambda one: one.entry.key,
    "name": lambda one: one.entry.name,
    "source": lambda one: one.entry.source,
    "digest": lambda one: one.entry.digest,
    "revision": lambda one: one.entry.revision or "",
}
_NUMBERS: dict[str, Callable[[Listed, float], float]] = {
    "size": lambda one, _: one.entry.size,
    "age": lambda one, now: now - one.entry.created,
    "unused": lambda one, now: now - one.used,
    "checked": lambda one, now: now - one.entry.checked,
}
_WORDS: dict[str, Callable[[Listed], bool]] = {
    "pinned": lambda one: one.pinned,
    "tree": lambda one: one.entry.digest.is_tree,
}
SORTS = tuple(_NUMBERS) + tuple(_TEXTS)
HELP = (
    f"{', '.join(_NUMBERS)} with > >= < <= (size>1GB, unused>30d), {', '.join(_TEXTS)} with = or != and a pattern "
    f"(ref=*.onnx), or {', '.join(_WORDS)}, not-pinned, not-tree"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry with what else there is to know of it: ``used`` is its last use, in Unix seconds."""

    entry: Entry
    used: float
    pinned: bool


def parse_filter(text: str, *, now: float) -> Callable[[Listed], bool]:
    """Return what tells whether an entry passes the filter *text*; *now* is in Unix seconds.

    Raises:
        UsageError: It makes no sense.
    """
    word = text.strip()
    if word.removeprefix("not-") in _WORDS:
        has, wanted = _WORDS[word.removeprefix("not-")], not word.startswith("not-")
        return lambda one: has(one) is wanted
    for sign in ("!=", *_COMPARE):
        field, found, value = (part.strip() for part in word.partition(sign))
        if not found:
            continue
        if field in _TEXTS and sign in {"=", "!="} and value:
            read, equal = _TEXTS[field], sign == "="
            return lambda one: fnmatchcase(read(one), value) is equal
        if field in _NUMBERS and sign in _COMPARE:
            number, compare, limit = _NUMBERS[field], _COMPARE[sign], _limit(field, value, text)
            return lambda one: compare(number(one, now), limit)
        break
    raise UsageError(problem=f"{text!r} is no filter", hint=f"Filters: {HELP}")


def arrange(listed: Iterable[Listed], *, sort: str, reverse: bool, now: float) -> list[Listed]:
    """Return *listed* by *sort*, one of `SORTS`: the largest and oldest first, texts from a to z; or the *reverse*."""
    found = sorted(listed, key=lambda one: one.entry.key)
    if sort in _TEXTS:
        return sorted(found, key=_TEXTS[sort], reverse=reverse)
    number = _NUMBERS[sort]
    return sorted(found, key=lambda one: -number(one, now), reverse=reverse)


def _limit(field: str, value: str, text: str) -> float:
    try:
        return parse_bytes(value, setting=field) if field == "size" else parse_seconds(value, setting=field)
    except ConfigurationError as error:
        raise UsageError(problem=f"{text!r} is no filter: {error.summary}", hint=f"Filters: {HELP}") from error
