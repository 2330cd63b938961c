"""How far one file is that is shared while it comes: what is here, on the way to the bucket, there, and named there.

Nothing here asks anybody, or waits. `parts` guards it by its lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import layout
from ..digest import Digest
from ..partials import Partial

PIECE_BYTES, PIECE_BYTES_MAX = 8 << 20, 32 << 20
_PIECES = 100  # So many a content has, as long as each is within these bounds.


@dataclass(slots=True)
class Content:
    """One file that is shared while it comes.

    Attributes:
        key: Of the file.
        partial: What is here of it.
        facts: What its source has said of the version, as the index has it.
        total: Bytes of the whole.
        active: Whether what comes is shared.
        turn: Rises when all begins anew: what is under way then is of no use.
        begun: Up to here its pieces are in the bucket, or on the way.
        again: Where pieces begin whose upload has failed.
        ahead: Pieces that are there, and one before them is not yet.
        pieces: Those there without a hole, from the first byte on.
        joined: Where the last of them ends.
        shared: Up to here the index in the bucket names them.
        indexing: Whether the index is on its way.
    """

    key: str
    partial: Partial | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    total: int | None = None
    active: bool = False
    turn: int = 0
    begun: int = 0
    again: list[int] = field(default_factory=list)
    ahead: dict[int, tuple[str, int, str]] = field(default_factory=dict)
    pieces: list[tuple[str, int, str]] = field(default_factory=list)
    joined: int = 0
    shared: int = 0
    indexing: bool = False

    @property
    def length(self) -> int:
        """The bytes that are here."""
        return 0 if self.partial is None else self.partial.length

    @property
    def piece(self) -> int:
        """The bytes of one piece."""
        return piece_bytes(self.total)

    @property
    def backlog(self) -> int:
        """The bytes, in whole pieces, that are here and not shared. The last one stays: who has it has all."""
        end = self.length if self.total is None else min(self.length, self.total - 1)
        return max(0, end - self.shared) // self.piece * self.piece if self.active else 0

    @property
    def is_due(self) -> bool:
        """Whether a piece of it is to be brought now."""
        reached = self.begun + self.piece
        fits = self.length >= reached and (self.total is None or reached < self.total)
        return self.active and (bool(self.again) or fits)

    @property
    def index_is_due(self) -> bool:
        """Whether there are more pieces than the index names."""
        return self.joined > self.shared and not self.indexing

    def begin_anew(self) -> None:
        """Forget what was brought: it is of another version, or wrong."""
        self.pieces, self.ahead, self.again = [], {}, []
        self.begun = self.joined = self.shared = 0
        self.turn += 1

    def take(self) -> int:
        """Return where the piece begins that is due; it is under way then."""
        if self.again:
            return self.again.pop()
        start = self.begun
        self.begun += self.piece
        return start

    def join(self, piece: tuple[str, int, str], start: int) -> None:
        """Take in that *piece*, from *start* on, is there."""
        self.ahead[start] = piece
        while self.joined in self.ahead:
            self.pieces.append(self.ahead.pop(self.joined))
            self.joined += self.pieces[-1][1]

    def index(self) -> dict[str, Any]:
        """Return what the index says of it now."""
        identity = layout.key_id(self.key)
        return {"key": identity, "facts": self.facts, "total": self.total, "pieces": list(self.pieces)}


@dataclass(slots=True)
class Whole:
    """A file of a tree, all of which is here, and so much of it was not shared as parts."""

    path: str
    digest: Digest
    size: int
    backlog: int


def piece_bytes(total: int | None) -> int:
    """Return how many bytes a piece has of a content of *total* bytes, None if nobody knows."""
    return min(PIECE_BYTES_MAX, max(PIECE_BYTES, (total or 0) // _PIECES))
