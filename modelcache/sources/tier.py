"""``tier://``: a content in a bucket below the cache. No ref of a user names one; `tiers` does, for its own offers.

It is read ahead, and handed on in order. What does not come in time is told as a stall, whatever
the backend waits for: the next place is asked then.
"""

from __future__ import annotations

from collections.abc import Callable

from ..backends.ahead import Brisk
from ..backends.base import Backend
from ..digest import Digest
from ..errors import (
    DamagedReplicaError,
    InterruptedTransferError,
    NotInArchiveError,
    RemoteNotFoundError,
    StalledError,
)
from ..reference import Ref
from .base import TIER, Request, Source, Stream, Validators


def place(tier: str, blob: str, size: int) -> Ref:
    """Return the ref of the file *blob*, of *size* bytes, in the tier called *tier*.

    Its key leaves out the tier, so that what has come from one is gone on with from another: the digest names it.
    """
    return Ref(f"{TIER}:///{blob}", f"{TIER}://{tier}/{blob}?{size}", TIER)


class TierSource(Source):
    """Reads from the buckets that *backend_of* opens, by the names of their tiers."""

    schemes = (TIER,)
    one_version = True  # A blob has the name of its digest.

    def __init__(self, backend_of: Callable[[str], Backend]) -> None:
        self._backend_of = backend_of

    def host(self, url: str) -> str:
        """See `Source.host`."""
        return "/".join(url.split("/")[:3])

    def open(self, request: Request) -> Stream:
        """See `Source.open`."""
        tier, _, rest = request.url.removeprefix(f"{TIER}://").partition("/")
        blob, _, size = rest.rpartition("?")
        return _TierStream(self._backend_of(tier), blob, int(size), request)


class _TierStream(Stream):
    ranges = False  # It has several under way already.

    def __init__(self, backend: Backend, blob: str, size: int, request: Request) -> None:
        self.start, self.total = request.start, size
        self.digest = Digest.parse(blob.rpartition("/")[2])
        self.validators = Validators()
        self._ref, self._timeout = request.ref, request.timeout.stall
        self._backend, self._blob, self._size, self._came = backend, blob, size, request.start
        self._ahead = Brisk(backend, blob, size, request.start)
        self._piece, self._at = b"", 0
        self._interrupted = False

    def read(self, limit: int) -> bytes:
        """See `Stream.read`."""
        if self._at == len(self._piece):
            self._piece, self._at = self._next(), 0
            if len(self._piece) <= 2 * limit:  # To cut it costs a copy.
                self._at = len(self._piece)
                return self._piece
        chunk = self._piece[self._at : self._at + limit]
        self._at += len(chunk)
        return chunk

    def _next(self) -> bytes:
        try:
            piece = self._ahead.take(self._timeout)
        except NotInArchiveError as error:
            raise RemoteNotFoundError(ref=self._ref, detail="the tier has no such blob") from error
        if piece is None and self._interrupted:
            raise InterruptedTransferError(ref=self._ref, detail="it was closed")
        if piece is None:
            raise StalledError(ref=self._ref, detail=f"no byte came for {self._timeout:g} s", transient=False)
        self._came += len(piece)
        if self._came > self._size:  # What is on record is wrong: no sign of a tier that is down.
            detail = f"it has more than the {self._size} bytes that are on record"
            raise DamagedReplicaError(backend=self._backend.location, name=self._blob, detail=detail)
        return piece

    def interrupt(self) -> None:
        """See `Stream.interrupt`."""
        self._interrupted = True
        self._ahead.close()

    def close(self) -> None:
        """See `Stream.close`."""
        self._ahead.close()
