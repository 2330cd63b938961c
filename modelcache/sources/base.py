"""What a source is: where originals come from. A third party adds a scheme by implementing `Source`.

A source opens one stream at a time and raises typed errors. It never retries (``retry`` does), never touches the cache
root (``commit`` does), and keeps no state about models. Register a class by the entry-point group
``modelcache.sources``, the entry point's name being the scheme, or give an instance to ``Cache(sources=[…])``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..config import Timeout
from ..retry import Deadline


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one version of some content from another (RFC 9110, 8.8).

    Attributes:
        etag: The entity tag, quotes and weakness mark included.
        last_modified: The HTTP date, as sent.
        strong_date: Whether ``last_modified`` is old enough to count as a strong validator (RFC 9110, 8.8.2.2).
        revision: The upstream's own name of the version (a commit, an object generation), if it has one.
    """

    etag: str | None = None
    last_modified: str | None = None
    strong_date: bool = False
    revision: str | None = None

    @property
    def for_range(self) -> str | None:
        """The value of an ``If-Range`` header: a strong validator (RFC 9110, 13.1.5), or None."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified if self.strong_date else None

    def contradicts(self, other: Validators) -> bool:
        """Tell whether both have an entity tag, or both only a date, and these differ."""
        if self.etag and other.etag:
            return self.etag != other.etag
        return bool(self.last_modified and other.last_modified and self.last_modified != other.last_modified)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a source.

    Attributes:
        url: The address, with credentials if it has any.
        ref: How errors and events name it, without credentials.
        timeout: Limits on connecting and reading, in seconds.
        deadline: When the whole get ends.
        start: First byte wanted.
        stop: One past the last byte wanted; None for all.
        same_as: What the bytes before ``start`` belong to; content that no longer matches comes from byte 0.
        unless: Validators of what is cached: content that still matches them need not come at all.
    """

    url: str
    ref: str
    timeout: Timeout
    deadline: Deadline
    start: int = 0
    stop: int | None = None
    same_as: Validators | None = None
    unless: Validators | None = None


class Stream(ABC):
    """Content on its way.

    Attributes:
        start: The offset of the first byte that `read` will return: ``request.start``, or 0 if the whole content comes.
        total: Size of the whole content in bytes, None if the source does not say.
        validators: Of this version of the content.
        ranges: Whether the source serves parts of this content.
        delimited: Whether the end of the content can be told from a connection that was cut.
        unchanged: The content is what ``request.unless`` describes; there is nothing to read.
    """

    start: int = 0
    total: int | None = None
    validators: Validators = Validators()
    ranges: bool = False
    delimited: bool = True
    unchanged: bool = False

    @abstractmethod
    def read(self, limit: int) -> bytes:
        """Return the next bytes, at most *limit*, as soon as some are there; ``b""`` at the end of the content.

        Raises:
            NetworkError: Or another error of ``modelcache.errors`` that says why no more can come.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection; called by the thread that reads."""

    def interrupt(self) -> None:  # noqa: B027  # A read that cannot block needs none.
        """Make a blocked `read` of another thread return or raise soon."""


class Source(ABC):
    """Opens streams for the schemes that it serves.

    Attributes:
        schemes: Of the URLs that it opens.
        one_version: Whether all bytes of a stream are of one version, even if the original is written meanwhile. Where
            that is not sure, the stream's end raises if it was, and bytes that were all received before a crash are
            not used before the source was asked once more.
    """

    schemes: tuple[str, ...]
    one_version: bool = False

    def is_personal(self, url: str) -> bool:
        """Tell whether the answer for *url* may depend on who asks: whether credentials are sent."""
        del url
        return False

    @abstractmethod
    def open(self, request: Request) -> Stream:
        """Return the content at ``request.url``, from ``request.start`` on where that is possible.

        Raises:
            ModelCacheError: RemoteNotFoundError, AccessDeniedError, NetworkError and its leaves; ``transient`` tells
                whether the same request may succeed later.
        """

    def close(self) -> None:  # noqa: B027  # Most sources hold nothing.
        """Let go of idle connections."""
