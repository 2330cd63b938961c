"""``http://`` and ``https://`` over urllib3 (HTTP semantics: RFC 9110; HTTP/1.1: RFC 9112).

What this module decides, and urllib3 does not:
  * Only GET is sent. Ranges carry ``If-Range``; a 200 in answer to one means "from byte 0".
  * ``Accept-Encoding: identity``, because lengths and offsets must mean the bytes that are stored; an answer that is
    encoded all the same is refused.
  * Redirects are followed by hand, at most ten: never from https to http, never to another kind of scheme, and no
    credential or custom header crosses to another origin (scheme, host and port; RFC 6454).
  * Credentials: those in the URL win over ``HttpSource(headers=…)``, and these over netrc.
  * Statuses become typed errors that say whether asking again can help.

The environment is read when the source is made: ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` (else ``REQUESTS_CA_BUNDLE``,
``CURL_CA_BUNDLE``), the proxy variables with ``NO_PROXY``, and ``NETRC``.
"""

from __future__ import annotations

import email.utils
import logging
import netrc
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import unquote, urljoin

from urllib3 import HTTPHeaderDict
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Url, make_headers, parse_url

from .. import reference
from ..errors import (
    AccessDeniedError,
    ConfigurationError,
    HttpStatusError,
    InterruptedTransferError,
    ModelCacheError,
    ProtocolError,
    RedirectError,
    RemoteNotFoundError,
)
from .base import Request, Source, Stream, Validators
from .connections import Answer, Connections, network_error

REDIRECTS_MAX = 10
_REDIRECTS = {301, 302, 303, 307, 308}
_DENIED = {401, 403, 407, 451}
_GONE = {404, 410}
_OURS = {"range", "if-range", "if-none-match", "if-modified-since", "accept-encoding"}
_log = logging.getLogger("modelcache")

# What a redirect makes of the request that met it; None: the redirect itself is the answer that was wanted.
OnRedirect = Callable[[Request, Mapping[str, str]], Request | None]


class HttpSource(Source):
    """Opens http and https URLs.

    Args:
        headers: Sent with each request to the origin that the ref names; never to where it redirects elsewhere.
        hosts: Send ``headers`` only to these host names; None means to every origin that a ref names.
    """

    schemes: tuple[str, ...] = ("http", "https")
    one_version = True
    heeds_netrc = True

    def __init__(self, headers: Mapping[str, str] | None = None, *, hosts: tuple[str, ...] | None = None) -> None:
        self._headers = _checked(headers or {})
        if isinstance(hosts, str):
            expected = "a tuple of host names, such as ('models.example.org',)"
            raise ConfigurationError(setting="HttpSource.hosts", value=hosts, expected=expected)
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._user_agent = f"modelcache/{_version()} python/{platform.python_version()}"
        self._netrc = _load_netrc(os.environ) if self.heeds_netrc else {}
        self._connections = Connections(os.environ)

    def open(self, request: Request) -> Stream:
        """See `Source.open`."""
        answer, url, asked = self.answer(request)
        try:
            return HttpStream(asked, answer, url)
        except BaseException:
            answer.close()
            raise

    def answer(
        self, request: Request, on_redirect: OnRedirect | None = None, *, at: str | None = None
    ) -> tuple[Answer, Url, Request]:
        """Return the answer to *request* after redirects, the URL that gave it, and what that was asked for in the end.

        Args:
            request: With an http or https URL; what is sent to its origin is sent nowhere else.
            on_redirect: Asked at each redirect how to go on.
            at: Begin there, as if ``request.url`` had redirected to it.
        """
        answer, url, asked = self._follow(request, on_redirect, at)
        if answer.response.status == 416 and asked.start > 0:
            # RFC 9110 15.5.17: what we have is no prefix of what is there now. Begin again.
            answer.settle(request)
            answer, url, asked = self._follow(replace(request, start=0, stop=None, same_as=None), on_redirect, at)
        return answer, url, asked

    def is_personal(self, url: str) -> bool:
        """See `Source.is_personal`. A signature in the query counts."""
        parsed = parse_url(url)
        same = url == reference.parse(url).key
        return bool(self._headers) or not same or parsed.auth is not None or (parsed.host or "") in self._netrc

    def close(self) -> None:
        """See `Source.close`."""
        self._connections.close()

    def _follow(self, request: Request, on_redirect: OnRedirect | None, at: str | None) -> tuple[Answer, Url, Request]:
        first = self._parse(request.url, request)
        url = first if at is None else self._parse(at, request)
        seen = set()
        for _ in range(REDIRECTS_MAX + 1):
            headers = self._request_headers(request, url, first)
            answer = self._connections.send(url, headers, request)
            response = answer.response
            if response.status not in _REDIRECTS:
                return answer, url, request
            try:
                further = on_redirect(request, response.headers) if on_redirect is not None else request
            except BaseException:
                answer.close()
                raise
            if further is None:
                return answer, url, request
            request = further
            location = response.headers.get("location")
            answer.settle(request)
            if not location:
                raise ProtocolError(ref=request.ref, detail=f"a {response.status} without a Location", transient=False)
            try:
                target = self._parse(urljoin(url.url, _as_text(location)), request)
            except ValueError as error:
                raise RedirectError(ref=request.ref, detail=f"it redirects to no URL ({error})") from error
            _check_redirect(url, target, request)
            if target.url in seen:
                raise RedirectError(ref=request.ref, detail=f"it redirects in a circle ({_shown(target)})")
            seen.add(target.url)
            url = target
        raise RedirectError(ref=request.ref, detail=f"more than {REDIRECTS_MAX} redirects")

    def _request_headers(self, request: Request, url: Url, first: Url) -> HTTPHeaderDict:
        # A name is set once, whatever its case: two Authorization headers are a 400 at many servers.
        headers = HTTPHeaderDict({"User-Agent": self._user_agent, "Accept": "*/*", "Accept-Encoding": "identity"})
        if _is_ranged(request):
            headers["Range"] = f"bytes={request.start}-{'' if request.stop is None else request.stop - 1}"
            condition = request.same_as.for_range if request.same_as else None
            if condition:
                headers["If-Range"] = condition
        elif request.unless is not None:
            if request.unless.etag:
                headers["If-None-Match"] = request.unless.etag
            elif request.unless.last_modified:
                headers["If-Modified-Since"] = request.unless.last_modified
        known = self._netrc.get(url.host or "")
        if known:
            headers["Authorization"] = make_headers(basic_auth=known)["authorization"]
        if origin(url) == origin(first):
            if self._hosts is None or (first.host or "").lower() in self._hosts:
                headers.update(self._headers)
            if first.auth:
                user, _, password = first.auth.partition(":")
                basic = make_headers(basic_auth=f"{unquote(user)}:{unquote(password)}")
                headers["Authorization"] = basic["authorization"]
        return headers

    @staticmethod
    def _parse(url: str, request: Request) -> Url:
        try:
            parsed = parse_url(url)
        except LocationParseError as error:
            # The error holds all of it, signatures included.
            raise RedirectError(ref=request.ref, detail="it leads to what is no URL that can be asked for") from error
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise RedirectError(
                ref=request.ref, detail=f"it leads to {_shown(parsed)}, which is neither http nor https"
            )
        return parsed


class HttpStream(Stream):
    """The body of *answer*, which *url* gave to *request*."""

    def __init__(self, request: Request, answer: Answer, url: Url) -> None:
        ranged = _is_ranged(request)
        self._ref, self._answer = request.ref, answer
        response = answer.response
        self._ended = False
        self._to_come: int | None = None  # Of a part: what its Content-Range announced.
        headers = response.headers
        self.validators = _validators(headers)
        self.ranges = "bytes" in headers.get("accept-ranges", "").lower()
        if response.status == 304 and request.unless is not None:
            self.unchanged = True
            # RFC 9112, 6.1: it may announce the framing of a body that does not come; http.client would wait for that.
            if "transfer-encoding" not in headers:
                response.drain_conn()
                self._ended = True
            return
        check_status(response, request, url)
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            detail = f"it came with the content encoding {encoding!r}, which was not asked for"
            raise ProtocolError(ref=request.ref, detail=detail, transient=False)
        # RFC 9112, 6.1: none but chunked was offered (TE), and http.client would hand out the framing of any other.
        transfer = headers.get("transfer-encoding", "").strip().lower()
        if transfer not in {"", "chunked"}:
            detail = f"it came with the transfer encoding {transfer!r}, which was not asked for"
            raise ProtocolError(ref=request.ref, detail=detail, transient=False)
        if response.status == 206:
            self.ranges = True
            self.start, stop, self.total = _content_range(headers.get("content-range", ""), request)
            asked = ranged and self.start == request.start and request.stop in {None, stop}
            if not asked or stop <= self.start or (self.total is not None and stop > self.total):
                wanted = f"bytes from {request.start}" if ranged else "the whole content"
                detail = f"asked for {wanted}, got Content-Range {headers.get('content-range')!r}"
                raise ProtocolError(ref=request.ref, detail=detail)
            self._to_come = stop - self.start
            self.delimited = self.total is not None  # Else nothing says that the part is the last one.
        elif not transfer:
            self.total = response.length_remaining
            self.delimited = self.total is not None  # RFC 9112, 6.3: else the end is where the connection closes.

    def read(self, limit: int) -> bytes:
        """See `Stream.read`."""
        try:
            # Not read(): that waits for all of *limit*, so that a slow stream would look like a dead one.
            chunk = self._answer.response.read1(limit) or b""
        except (HTTPError, OSError, ValueError) as error:
            raise network_error(error, self._ref) from error
        if self._to_come is not None:
            self._to_come -= len(chunk)
            if self._to_come < 0:
                raise ProtocolError(ref=self._ref, detail="more came than its Content-Range announced")
            if not chunk and self._to_come > 0:
                detail = f"it ended {self._to_come} bytes before what its Content-Range announced"
                raise InterruptedTransferError(ref=self._ref, detail=detail)
        self._ended = not chunk
        return chunk

    def close(self) -> None:
        """See `Stream.close`."""
        if self._ended:
            self._answer.release()
        else:
            self._answer.close()

    def interrupt(self) -> None:
        """See `Stream.interrupt`."""
        self._answer.cut()


def parse_retry_after(value: str | None, date: str | None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks to wait (RFC 9110, 10.2.3), None if it names none.

    A date is compared with the server's own ``Date``, where there is one: the clocks may differ.
    """
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    until = _timestamp(value)
    if until is None:
        return None
    return max(0.0, until - (_timestamp(date) or time.time()))


def parse_rate_limit(value: str | None) -> float | None:
    """Return the seconds until a ``RateLimit`` header grants requests again; None if it does not say that none is left.

    The form is that of draft-ietf-httpapi-ratelimit-headers: ``"name";r=<left>;t=<seconds>``, several with commas.
    """
    waits = []
    for item in (value or "").split(","):
        pairs = (parameter.strip().partition("=") for parameter in item.split(";")[1:])
        numbers = {name: text for name, _, text in pairs if text.isascii() and text.isdigit() and len(text) < 10}
        if numbers.get("r", "").strip("0") == "" and {"r", "t"} <= numbers.keys():
            waits.append(float(numbers["t"]))
    return max(waits, default=None)


def check_status(response: BaseHTTPResponse, request: Request, url: Url) -> None:
    """Raise the typed error of a status that brings no content."""
    status = response.status
    if status in {200, 203, 206}:
        return
    reason = str(getattr(response, "reason", "") or "")
    detail = f"{status} {reason}".strip() + (f" from {url.host}" if url.host else "")
    if status in _GONE:
        raise RemoteNotFoundError(ref=request.ref, detail=detail)
    if status in _DENIED:
        raise AccessDeniedError(ref=request.ref, detail=detail)
    retry_after = parse_retry_after(response.headers.get("retry-after"), response.headers.get("date"))
    if retry_after is None and status == 429:
        retry_after = parse_rate_limit(response.headers.get("ratelimit"))
    raise HttpStatusError(ref=request.ref, status=status, reason=reason, retry_after=retry_after)


def _check_redirect(url: Url, target: Url, request: Request) -> None:
    if url.scheme == "https" and target.scheme != "https":
        raise RedirectError(ref=request.ref, detail=f"it redirects from https to {_shown(target)}, unprotected")


def _content_range(value: str, request: Request) -> tuple[int, int, int | None]:
    """Return (start, stop, total) of a ``Content-Range`` header (RFC 9110, 14.4)."""
    unit, _, rest = value.strip().partition(" ")
    span, _, total = rest.partition("/")
    first, _, last = span.partition("-")
    numbers = [first, last] if total == "*" else [first, last, total]
    # Python takes other scripts' digits for digits too, and refuses very long numbers.
    if unit.lower() != "bytes" or not all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers):
        raise ProtocolError(ref=request.ref, detail=f"a 206 with the Content-Range {value!r}")
    return int(first), int(last) + 1, None if total == "*" else int(total)


def _validators(headers: Mapping[str, str]) -> Validators:
    modified, date = _timestamp(headers.get("last-modified")), _timestamp(headers.get("date"))
    return Validators(
        etag=headers.get("etag"),
        last_modified=headers.get("last-modified"),
        strong_date=modified is not None and date is not None and date - modified >= 1,
        revision=headers.get("x-repo-commit") or headers.get("x-amz-version-id") or headers.get("x-goog-generation"),
    )


def _load_netrc(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``user:password`` by host from the netrc file; a broken file is told once and left alone."""
    path = environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        hosts = netrc.netrc(path).hosts
    except FileNotFoundError:
        return {}
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        _log.warning("%s is not used: %s", path, error)
        return {}
    return {host: f"{user}:{password}" for host, (user, _, password) in hosts.items() if host != "default"}


def _timestamp(text: str | None) -> float | None:
    """Return the Unix time of an HTTP date (RFC 9110, 5.6.7)."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* if each of them can be sent, and is not ours to set."""
    for name, value in headers.items():
        text = isinstance(name, str) and isinstance(value, str)
        if not text or not f"{name}{value}".replace("\t", " ").isprintable() or name.lower() in _OURS:
            # The value may be a secret.
            expected = f"text in one line, under a name other than {', '.join(sorted(_OURS))}"
            raise ConfigurationError(setting="HttpSource.headers", value=str(name), expected=expected)
    return dict(headers)


def _as_text(header: str) -> str:
    """Return a header that holds UTF-8, which is not allowed and not rare; http.client reads Latin-1."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def _is_ranged(request: Request) -> bool:
    return request.start > 0 or request.stop is not None


def origin(url: Url) -> tuple[str | None, str | None, int]:
    """Return what credentials are bound to (RFC 6454)."""
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _shown(url: Url) -> str:
    """Return *url* without credentials, for a message."""
    text = Url(url.scheme, None, url.host, url.port, url.path, url.query).url
    try:
        return reference.parse(text).key
    except ModelCacheError:
        return f"{url.scheme}://{url.host}"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("modelcache")
    except PackageNotFoundError:
        return "0"
