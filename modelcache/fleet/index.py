"""The index of what a claimer has shared: which pieces there are, and of what. Anybody may have written it.

What it says is checked for its form alone. What it leads to is verified as all content is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..digest import Digest
from ..errors import InvalidDigestError
from ..sealed import unseal
from ..sources.base import Validators

_TEXT_MAX = 8192
_PIECE_BYTES_MAX = 64 << 20  # More than anybody shares: one is read into memory.
FACTS = {"place", "announced", *Validators.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Offered:
    """A prefix in the bucket. ``facts`` and ``total`` are those of the partial that it was, ``pieces`` its parts."""

    facts: dict[str, Any]
    total: int | None
    pieces: tuple[tuple[str, int, str], ...]

    @property
    def length(self) -> int:
        """The bytes of it."""
        return sum(size for _, size, _ in self.pieces)

    @property
    def validators(self) -> Validators:
        """What its source has said of the version."""
        return Validators(**{name: self.facts[name] for name in Validators.__dataclass_fields__})


def decode(data: bytes, identity: str) -> Offered | None:
    """Return what the index *data* says of the content *identity*; None if it cannot be believed."""
    index = unseal(data)
    if index is None or index.get("key") != identity:
        return None
    facts, total, pieces = index.get("facts"), index.get("total"), index.get("pieces")
    if not isinstance(facts, dict) or facts.keys() != FACTS or not isinstance(facts["place"], str):
        return None
    texts = (value for name, value in facts.items() if name != "strong_date")
    if not all(value is None or _is_told(value) for value in texts) or not isinstance(facts["strong_date"], bool):
        return None
    try:
        if facts["announced"] is not None:
            Digest.parse(facts["announced"])
    except InvalidDigestError:
        return None
    if not isinstance(total, int | None) or isinstance(total, bool):
        return None
    found = []
    at = 0
    for piece in pieces if isinstance(pieces, list) else ():
        fits = isinstance(piece, list) and [type(one) for one in piece] == [str, int, str]
        if (
            not fits
            or not 0 < piece[1] <= _PIECE_BYTES_MAX
            or not piece[0].startswith(f"{identity}.")
            or "/" in piece[0]
        ):
            return None
        at += piece[1]
        found.append((piece[0], piece[1], piece[2]))
    if not found or (total is not None and at >= total):
        return None
    return Offered(facts, total, tuple(found))


def _is_told(value: object) -> bool:
    """Tell whether *value* is what a source may have said: it goes into the head of the next request."""
    return isinstance(value, str) and len(value) <= _TEXT_MAX and value.isprintable() and value.isascii()
