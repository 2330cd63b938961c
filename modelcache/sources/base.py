"""What a source is: where originals come from. A third party adds a scheme by implementing `Source`.

A source opens one stream at a time, may say which files there are, and raises typed errors. It never retries (``retry``
does), never touches the cache root (``commit`` does), and keeps no state about models. Register a class by the
entry-point group ``modelcache.sources``, the entry point's name being the scheme, or give an instance to
``Cache(sources=[…])``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from urllib.parse import urlsplit

from .. import reference
from ..config import Timeout
from ..digest import Digest
from ..errors import InvalidReferenceError, ListingError, NotListableError
from ..listing import brief, clash
from ..policy import NONE, Policies
from ..reference import Ref
from ..retry import Deadline

FILES_MAX = 1_000_000  # In one listing.
TIER = "tier"  # The scheme of what a bucket below the cache has; no ref of a user has it.


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
        only: The paths that a listing is wanted of, None for all; a source may list more.
        policies: ``check_hop`` is asked before a connection is opened to any host, that of a redirect too.
    """

    url: str
    ref: str
    timeout: Timeout
    deadline: Deadline
    start: int = 0
    stop: int | None = None
    same_as: Validators | None = None
    unless: Validators | None = None
    only: tuple[str, ...] | None = None
    policies: Policies = NONE


class Stream(ABC):
    """Content on its way.

    Attributes:
        start: The offset of the first byte that `read` will return: ``request.start``, or 0 if the whole content comes.
        total: Size of the whole content in bytes, None if the source does not say.
        digest: What the source announced that the whole content hashes to, before it sent it; other content is refused.
        validators: Of this version of the content.
        ranges: Whether the source serves parts of this content.
        delimited: Whether the end of the content can be told from a connection that was cut.
        unchanged: The content is what ``request.unless`` describes; there is nothing to read.
    """

    start: int = 0
    total: int | None = None
    digest: Digest | None = None
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


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a listing.

    Attributes:
        path: Within what was listed: relative, with ``/`` between its parts.
        size: In bytes, None if the source does not say.
        digest: Of its content, None if the source does not say.
        blob: The id of its content in git (a SHA-1 over a header and the content), None if it has none.
        ref: By which this very version of it is had.
        executable: Whether it may be executed.
        stamp: What tells this version of it from another, where it has no digest: of a file of this machine.
    """

    path: str
    size: int | None
    digest: Digest | None
    blob: str | None
    ref: Ref
    executable: bool = False
    stamp: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteListing:
    """The files of one version of a repository or directory, in the order of their paths.

    Each path can be stored as a file under a directory, and all of them together: none is absolute or holds ``.``,
    ``..``, an empty part, a backslash or a control character; none is there twice, also not where capital letters and
    Unicode's ways to write an accent do not count (macOS), and none is a directory of another one.

    Attributes:
        ref: What was listed, as it was asked for.
        revision: The source's own name of the version that was listed; None if it has none.
        files: Which there are.

    Raises:
        ListingError: A path cannot be stored.
    """

    ref: Ref
    revision: str | None
    files: tuple[RemoteFile, ...]

    def __post_init__(self) -> None:
        _check_paths([file.path for file in self.files], self.ref.key)


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

    def is_for_all(self, request: Request, digest: Digest) -> bool:
        """Tell whether who sends no credentials gets the content with *digest* for *request*, too: it may be asked.

        False if nobody knows. Only asked of what `is_personal`.

        Raises:
            ModelCacheError: Nobody knows.
        """
        del request, digest
        return False

    def host(self, url: str) -> str:
        """Return whom a request for *url* goes to first: what asks its clients to wait, and is waited for, as one."""
        return urlsplit(url).netloc

    def listing(self, request: Request) -> RemoteListing:
        """Return which files there are at ``request.url``; ``start`` and what follows it in the request do not count.

        Raises:
            NotListableError: This source, or what is there, has no such list.
            ListingError: The list cannot be taken as it is.
            ModelCacheError: As for `open`.
        """
        raise NotListableError(ref=request.ref, problem="its source serves single files, and lists nothing")

    @abstractmethod
    def open(self, request: Request) -> Stream:
        """Return the content at ``request.url``, from ``request.start`` on where that is possible.

        Raises:
            ModelCacheError: RemoteNotFoundError, AccessDeniedError, NetworkError and its leaves; ``transient`` tells
                whether the same request may succeed later.
        """

    def close(self) -> None:  # noqa: B027  # Most sources hold nothing.
        """Let go of idle connections."""


def _check_paths(paths: list[str], ref: str) -> None:
    for path in paths:
        try:
            for part in path.split("/"):
                reference.check_name(part, ref=ref)
        except InvalidReferenceError as error:
            raise ListingError(ref=ref, problem=f"{brief(path)} is no path that is safe everywhere") from error
    problem = clash(paths)
    if problem is not None:
        raise ListingError(ref=ref, problem=problem)
