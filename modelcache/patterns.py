"""Which files of a repository are wanted: shell patterns, with the meaning that huggingface_hub gives them. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import quote, unquote

from .errors import UsageError

_ESCAPED = re.compile(r"\[([*?\[])\]")  # One character that would mean something else.
_SPECIAL = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Patterns:
    """A file is wanted if it matches any of *allow* (or that is None) and none of *ignore*.

    A pattern is matched against the whole path, ``*`` crosses ``/``, and one that ends in ``/`` means all below it.
    """

    allow: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()

    @classmethod
    def of(cls, allow: str | Iterable[str] | None, ignore: str | Iterable[str] | None) -> Patterns:
        """Return the patterns as users give them: one, several, or None.

        Raises:
            UsageError: Something is no pattern, or nothing is allowed.
        """
        return cls(
            None if allow is None else _listed(allow, "allow_patterns"), _listed(ignore or (), "ignore_patterns")
        )

    @classmethod
    def parse(cls, text: str) -> Patterns:
        """Return the patterns whose `text` that is; what is none of it counts as nothing."""
        found = {name: tuple(map(unquote, some.split(","))) for name, _, some in (
            part.partition("=") for part in text.split("&")
        ) if some}  # fmt: skip
        return cls(found.get("allow"), found.get("ignore", ()))

    def match(self, path: str) -> bool:
        """Tell whether the file at *path* is wanted."""
        wanted = self.allow is None or any(fnmatchcase(path, pattern) for pattern in self.allow)
        return wanted and not any(fnmatchcase(path, pattern) for pattern in self.ignore)

    @property
    def all(self) -> bool:
        """Whether every file is."""
        return self.allow is None and not self.ignore

    @property
    def literal(self) -> tuple[str, ...] | None:
        """The paths that can match, where each pattern means one path alone; None if only a listing tells."""
        if self.allow is None:
            return None
        if any(_SPECIAL.search(_ESCAPED.sub("", one)) for one in self.allow):
            return None
        return tuple(_ESCAPED.sub(r"\1", one) for one in self.allow)

    @property
    def text(self) -> str:
        """The one form that equal patterns have, as a part of a key; ``""`` if all files are wanted."""
        parts = [("allow", self.allow or ()), ("ignore", self.ignore)]
        return "".join(f"&{name}={','.join(quote(one, safe='*?[]!/') for one in some)}" for name, some in parts if some)


def _listed(patterns: str | Iterable[str], name: str) -> tuple[str, ...]:
    found = (
        [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Iterable) else [patterns]
    )
    if not all(isinstance(one, str) and one for one in found) or (name == "allow_patterns" and not found):
        raise UsageError(problem=f"{name}={patterns!r} makes no sense: one pattern or several, such as '*.json'")
    return tuple(sorted({f"{one}*" if one.endswith("/") else one for one in found}))
