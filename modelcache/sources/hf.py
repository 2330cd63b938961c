"""``hf://``: files of the Hugging Face Hub, and of what speaks like it, without its client.

How the hub serves a file: ``GET {endpoint}/{repository}/resolve/{revision}/{path}`` names the commit
(``X-Repo-Commit``) and either sends the file or redirects; for a large file (LFS, Xet) to a content network, and says
before it does what will come from there: ``X-Linked-Etag`` is its SHA-256, ``X-Linked-Size`` its size.

What this module decides:
  * The announced digest and size are those of the stream, so that other bytes are never visible. They also tell one
    version from another: such content is asked for by its name, and needs no ``If-Range``.
  * The token goes to the endpoint's origin and nowhere else; netrc is not asked. No text made here holds it.
  * An answer that names no commit is not the hub's, but that of a login page or a proxy in between, and is refused; so
    is one for another commit than the ref names.
  * A listing resolves its revision once, and every ref in it names that commit.

The environment is read when the source is made: ``HF_ENDPOINT``; ``HF_TOKEN``, else ``HUGGING_FACE_HUB_TOKEN``, else
the file ``HF_TOKEN_PATH`` or ``HF_HOME/token``; none of them with ``HF_HUB_DISABLE_IMPLICIT_TOKEN``.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urljoin, urlsplit

from .. import reference
from ..digest import Digest
from ..errors import (
    AccessDeniedError,
    ConfigurationError,
    GatedRepositoryError,
    InvalidDigestError,
    InvalidReferenceError,
    ListingError,
    NotListableError,
    ProtocolError,
    RemoteNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SizeMismatchError,
)
from ..reference import HubPlace
from .base import FILES_MAX, RemoteFile, RemoteListing, Request, Stream, Validators
from .connections import Answer
from .http import HttpSource, HttpStream

ENDPOINT = "https://huggingface.co"
PAGE_BYTES_MAX = 64 * 1024 * 1024
PAGES_MAX = 20_000
_READ_BYTES = 256 * 1024
# Signed addresses are good for an hour or so; parts of one file need not ask the hub for a new one each.
_LOCATION_S = 300.0
_LOCATIONS_MAX = 64
_COMMIT = re.compile("[0-9a-f]{40}")
_LINK = re.compile(r"<([^<>]*)>([^<]*)")  # RFC 8288, 3.
_REL_NEXT = re.compile(r";\s*rel\s*=\s*(?:\"(?:[^\"]*\s)?next(?:\s[^\"]*)?\"|next\s*(?:[;,]|$))", re.IGNORECASE)
_TRUE = {"1", "ON", "YES", "TRUE"}  # As huggingface_hub reads its variables.
_log = logging.getLogger("modelcache")


class HfSource(HttpSource):
    """Opens and lists ``hf`` refs.

    Args:
        token: Sent to the endpoint; None takes what the environment has, False sends none.
        endpoint: The address of the hub; None takes that of ``HF_ENDPOINT``, or else https://huggingface.co.
    """

    schemes = ("hf",)
    heeds_netrc = False

    def __init__(self, token: str | Literal[False] | None = None, *, endpoint: str | None = None) -> None:
        self.endpoint = _endpoint(endpoint, os.environ)
        found = _token(token, os.environ)
        self._with_token = found is not None
        super().__init__(None if found is None else {"Authorization": f"Bearer {found}"})
        self._stranger: HfSource | None = None  # Who asks without the token.
        self._shown: dict[str, tuple[bool, float]] = {}
        self._locations: dict[tuple[str, str], _Location] = {}

    def __repr__(self) -> str:
        return f"HfSource(endpoint={self.endpoint!r}, {'with a token' if self._with_token else 'without a token'})"

    def host(self, url: str) -> str:
        """See `Source.host`: all repositories are on one."""
        del url
        return urlsplit(self.endpoint).netloc

    def is_personal(self, url: str) -> bool:
        """See `Source.is_personal`."""
        del url
        return self._with_token

    def is_for_all(self, request: Request, digest: Digest) -> bool:
        """See `Source.is_for_all`: the hub is asked without the token. Rights are those of a whole repository."""
        place = reference.parse(request.url).hub
        repository = f"{place.prefix}{place.repository}"
        known = self._shown.get(repository)
        if known is not None and not known[0] and time.monotonic() < known[1]:
            return False  # But that a repository is shown does not say of what content.
        if self._stranger is None:
            self._stranger = HfSource(token=False, endpoint=self.endpoint)
        try:
            found = self._stranger.shows(request, digest)
        except (AccessDeniedError, RemoteNotFoundError):
            found = False
        self._shown[repository] = found, time.monotonic() + _LOCATION_S
        return found

    def close(self) -> None:
        """See `Source.close`."""
        super().close()
        if self._stranger is not None:
            self._stranger.close()

    def shows(self, request: Request, digest: Digest) -> bool:
        """Tell whether it gets what has *digest* for *request*; a tree is of one commit, and any file tells for all."""
        if digest.is_tree:
            files = self.listing(request).files
            if not files:
                return True
            request = replace(request, url=files[0].ref.url, unless=None)
        stream = self.open(request)
        try:
            return digest.is_tree or stream.unchanged or stream.digest == digest
        finally:
            stream.close()

    def open(self, request: Request) -> Stream:
        """See `Source.open`."""
        place = reference.parse(request.url).hub
        if not place.path:
            problem = "it names a whole repository, and one file is asked for"
            raise InvalidReferenceError(
                ref=request.ref, problem=problem, hint="Name a file: hf://org/name/path/to/file"
            )
        revision = quote(place.revision or "main", safe="")
        address = f"{self.endpoint}/{place.prefix}{place.repository}/resolve/{revision}/{quote(place.path)}"
        request = replace(request, url=address)
        part = self._part(request)
        if part is not None:
            return part
        said = _Said(request)
        answer, url, asked = self.answer(request, said.on_redirect)
        try:
            if said.unchanged:
                stream: Stream = _Unchanged(said)
                answer.settle(request)
                return stream
            self._check(answer, url.url, request, place)
            said.note(answer.response.headers)
            said.check(answer.response.status, place.revision, self.endpoint)
            stream = _HfStream(asked, answer, url, said)
        except BaseException:
            answer.close()
            raise
        if said.digest is not None and not self._is_ours(url.url):
            if len(self._locations) >= _LOCATIONS_MAX:
                self._locations.clear()
            self._locations[address, said.etag] = _Location(url.url, said, time.monotonic() + _LOCATION_S)
        return stream

    def listing(self, request: Request) -> RemoteListing:
        """See `Source.listing`: the files of a whole repository, at one commit."""
        ref = reference.parse(request.url)
        place = ref.hub
        if place.path:
            raise NotListableError(ref=request.ref, problem="it names one file, and whole repositories are listed")
        base = f"{self.endpoint}/api/{place.kind}/{place.repository}"
        commit = place.revision or ""
        if not _COMMIT.fullmatch(commit):
            found, _ = self._json(f"{base}/revision/{quote(place.revision or 'main', safe='')}", request, place)
            commit = str(found.get("sha", "")) if isinstance(found, dict) else ""
            if not _COMMIT.fullmatch(commit):
                raise ProtocolError(ref=request.ref, detail="the hub named no commit for the revision", transient=False)
        files: list[RemoteFile] = []
        url: str | None = f"{base}/tree/{commit}?recursive=true&expand=false"
        seen: set[str] = set()
        while url is not None:
            if url in seen or len(seen) >= PAGES_MAX:
                raise ProtocolError(ref=request.ref, detail="the pages of its listing have no end", transient=False)
            seen.add(url)
            page, headers = self._json(url, request, place)
            if headers.get("x-repo-commit", commit) != commit:
                raise ProtocolError(ref=request.ref, detail="a page of its listing is of another commit")
            if not isinstance(page, list):
                raise ProtocolError(ref=request.ref, detail="a page of its listing is no list", transient=False)
            files += [file for item in page if (file := _file(item, request.ref, place, commit)) is not None]
            if len(files) > FILES_MAX:
                raise ListingError(ref=request.ref, problem=f"there are more than {FILES_MAX} of them")
            url = self._next(headers.get("link", ""), url, request)
        return RemoteListing(ref, commit, tuple(sorted(files, key=lambda file: file.path)))

    def _part(self, request: Request) -> Stream | None:
        """Return a part of content whose place is known from a moment ago; None if the hub has to be asked."""
        if request.stop is None or request.same_as is None or request.same_as.etag is None:
            return None
        key = request.url, request.same_as.etag
        known = self._locations.get(key)
        if known is None or time.monotonic() > known.until:
            return None
        answer, url, asked = self.answer(replace(request, same_as=None), at=known.url)
        try:
            if answer.response.status == 206:
                return _HfStream(asked, answer, url, known.said)
            self._locations.pop(key, None)  # Signed for less long than thought, as a rule.
            answer.settle(request)
        except BaseException:
            answer.close()
            raise
        return None

    def _is_ours(self, url: str) -> bool:
        return _origin(url) == _origin(self.endpoint)

    def _check(self, answer: Answer, url: str, request: Request, place: HubPlace) -> None:
        """Raise the typed error of a refusal in the hub's own words; statuses mean more there than elsewhere.

        To a client without a token it answers 401 for what is private and for what is not there.
        """
        response = answer.response
        status, code = response.status, response.headers.get("x-error-code", "")
        message = response.headers.get("x-error-message", "")  # Not shown: nobody knows what it repeats.
        if status < 400:
            return
        ref, repository = request.ref, f"{place.prefix}{place.repository}"
        # What has no code and comes from elsewhere is not the hub's: no token helps with a content network.
        detail = f"{status} {code}".rstrip() if code.isalpha() and len(code) < 40 else str(status)
        detail += f" from {urlsplit(url).hostname}"
        missing = RepositoryNotFoundError(ref=ref, repository=repository, detail=detail, with_token=self._with_token)
        if status == 401 and self._with_token and (not code or message.startswith("Invalid credentials")):
            hint = f"The token is wrong, expired or revoked: make a new one at {self.endpoint}/settings/tokens"
            if self._is_ours(url):
                raise AccessDeniedError(ref=ref, detail=f"{detail}, with a token", hint=hint)
        if code == "EntryNotFound":
            raise RemoteNotFoundError(ref=ref, detail=detail)
        if code == "RevisionNotFound":
            revision = place.revision or "main"
            raise RevisionNotFoundError(ref=ref, repository=repository, revision=revision, detail=detail)
        if code == "GatedRepo":
            page = f"{self.endpoint}/{repository}"
            raise GatedRepositoryError(
                ref=ref, repository=repository, page=page, detail=detail, with_token=self._with_token
            )
        if code == "DisabledRepo" or message == "Access to this resource is disabled.":
            hint = "The hub has disabled this repository, and no token helps: name a mirror, or ask its owner"
            raise AccessDeniedError(ref=ref, detail=f"{detail}, disabled", hint=hint)
        if code == "RepoNotFound" or (status == 401 and self._is_ours(url)):
            raise missing
        if status == 403 and self._is_ours(url):
            hint = "Give a token: set HF_TOKEN, or HfSource(token=...)"
            if self._with_token:
                hint = f"Let the token read this repository: {self.endpoint}/settings/tokens"
            raise AccessDeniedError(ref=ref, detail=detail, hint=hint)

    def _json(self, url: str, request: Request, place: HubPlace) -> tuple[Any, Mapping[str, str]]:
        """Return what the API says at *url*, and the head of its answer."""
        asked = replace(request, url=url, start=0, stop=None, same_as=None, unless=None)
        answer, where, asked = self.answer(asked)
        try:
            self._check(answer, where.url, request, place)
            stream = HttpStream(asked, answer, where)
        except BaseException:
            answer.close()
            raise
        body = bytearray()
        try:
            with request.deadline.cutting(stream.interrupt, within=request.timeout.read + request.timeout.stall):
                while chunk := stream.read(_READ_BYTES):
                    body += chunk
                    if len(body) > PAGE_BYTES_MAX:
                        detail = f"an answer of the API has more than {PAGE_BYTES_MAX} bytes"
                        raise ProtocolError(ref=request.ref, detail=detail, transient=False)
        finally:
            stream.close()
        request.deadline.check()
        try:
            return json.loads(body), answer.response.headers
        except (ValueError, RecursionError) as error:
            detail = f"what {urlsplit(self.endpoint).netloc} answers is no JSON: not the API of a hub"
            raise ProtocolError(ref=request.ref, detail=detail, transient=False) from error

    def _next(self, link: str, url: str, request: Request) -> str | None:
        """Return the address of the page after *url*, None if that is the last one."""
        found: str | None = next(
            (target for target, parameters in _LINK.findall(link) if _REL_NEXT.search(parameters)), None
        )
        if found is None:
            return None
        try:
            found = urljoin(url, found)
            host = urlsplit(found).hostname
        except ValueError:
            found, host = "", None
        if not self._is_ours(found):
            detail = f"the next page of its listing is said to be at {host}, which is another host"
            raise ProtocolError(ref=request.ref, detail=detail, transient=False)
        return found


class _Said:
    """What the hub said of a file on the way to where its bytes are; the first to speak is believed.

    Attributes:
        commit: Which the revision stands for now.
        digest: Of a file in LFS or Xet.
        size: In bytes.
        unchanged: It is what the request has already.
    """

    def __init__(self, request: Request) -> None:
        self._ref = request.ref
        self.commit: str | None = None
        self.digest: Digest | None = None
        self.size: int | None = None
        self.unchanged = False

    @property
    def etag(self) -> str:
        """The entity tag that a digest makes: the same for the hub and for wherever the bytes come from."""
        assert self.digest is not None
        return f'"{self.digest.hex}"'

    def note(self, headers: Mapping[str, str]) -> None:
        """Take what *headers* add."""
        self.commit = self.commit or headers.get("x-repo-commit")
        etag, size = headers.get("x-linked-etag"), headers.get("x-linked-size", "")
        if self.digest is None and etag:
            try:
                self.digest = Digest.parse(etag.removeprefix("W/").strip('"'))
            except InvalidDigestError:
                pass  # The id of a small file in git: no digest of its content alone.
        if self.size is None and size.isascii() and size.isdigit() and len(size) < 19:
            self.size = int(size)

    def on_redirect(self, request: Request, headers: Mapping[str, str]) -> Request | None:
        """See `http.OnRedirect`."""
        self.note(headers)
        if self.digest is None:
            return request  # To another address at the hub: its conditions hold there too.
        if request.unless is not None and request.unless.etag == self.etag:
            self.unchanged = True
            return None
        if request.same_as is None or request.same_as.etag == self.etag:
            return replace(request, same_as=None, unless=None)
        return replace(request, start=0, stop=None, same_as=None, unless=None)

    def check(self, status: int, revision: str | None, endpoint: str) -> None:
        """Raise ProtocolError if this is no answer of a hub, or for another commit than *revision*."""
        if status in {200, 206} and self.commit is None:
            host = urlsplit(endpoint).netloc
            detail = (
                f"{host} names no commit, so that no hub answers there: a proxy, a login page or a wrong HF_ENDPOINT"
            )
            raise ProtocolError(ref=self._ref, detail=detail, transient=False)
        pinned = revision is not None and _COMMIT.fullmatch(revision)
        if pinned and self.commit not in {None, revision}:
            detail = f"the hub answers for the commit {self.commit!r:.60}, which is another one"
            raise ProtocolError(ref=self._ref, detail=detail, transient=False)


@dataclass(frozen=True, slots=True)
class _Location:
    """Where some content is until the monotonic clock reads *until*; the address is signed, and kept in memory only."""

    url: str
    said: _Said
    until: float


class _HfStream(HttpStream):
    def __init__(self, request: Request, answer: Answer, url: Any, said: _Said) -> None:
        super().__init__(request, answer, url)
        self.validators = replace(self.validators, revision=said.commit)
        if said.digest is not None:
            # Whatever the content network calls it: one version has one name.
            self.digest, self.validators = said.digest, Validators(etag=said.etag, revision=said.commit)
        if said.size is not None and not self.unchanged:
            if self.total not in {None, said.size}:
                assert self.total is not None
                raise SizeMismatchError(ref=request.ref, expected=said.size, actual=self.total, announced=True)
            self.total, self.delimited = said.size, True


class _Unchanged(Stream):
    unchanged = True

    def __init__(self, said: _Said) -> None:
        self.validators = Validators(etag=said.etag, revision=said.commit)
        self.digest = said.digest

    def read(self, limit: int) -> bytes:
        """See `Stream.read`."""
        del limit
        return b""

    def close(self) -> None:
        """See `Stream.close`."""


def _file(item: Any, ref: str, place: HubPlace, commit: str) -> RemoteFile | None:
    """Return the file that *item* of a listing describes, None for a directory."""
    try:
        kind, path, lfs = item["type"], item["path"], item.get("lfs")
        if kind == "directory":
            return None
        blob, size, digest = item["oid"], item["size"], None
        if lfs is not None:
            blob, size, digest = None, lfs["size"], Digest.parse(lfs["oid"])
        elif size == 0:
            digest = Digest.of_bytes([])
        sound = isinstance(path, str) and type(size) is int and size >= 0
        if kind != "file" or not sound or not (blob is None or _COMMIT.fullmatch(blob)):
            raise ValueError(f"a {kind!r:.40}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # InvalidDigestError is a ValueError.
        detail = f"its listing holds what is neither a file nor a directory ({item!r:.200})"
        raise ProtocolError(ref=ref, detail=detail, transient=False) from error
    try:
        return RemoteFile(path, size, digest, blob, place.at(commit, path))
    except InvalidReferenceError as error:
        raise ListingError(ref=ref, problem=f"{path!r:.200} is no path that is safe everywhere") from error


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None


def _endpoint(given: str | None, environ: Mapping[str, str]) -> str:
    text = given if given is not None else environ.get("HF_ENDPOINT") or ENDPOINT
    setting = "HfSource.endpoint" if given is not None else "HF_ENDPOINT"
    scheme, host, _ = _origin(text)
    plain = text.isascii() and text.isprintable() and not set(" @?#\\").intersection(text)
    if scheme not in {"http", "https"} or not host or not plain:
        # It may hold a password.
        value = "(not shown)" if "@" in text or "?" in text else text
        raise ConfigurationError(setting=setting, value=value, expected="https://host, without user or query")
    return text.rstrip("/")


def _token(given: str | Literal[False] | None, environ: Mapping[str, str]) -> str | None:
    """Return the token to send; a file that cannot be read is told once and left alone."""
    if given is False:
        return None
    setting, text = "HfSource.token", given
    if text is None:
        if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in _TRUE:
            return None
        setting = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if environ.get(name, "").strip()), "")
        text = environ[setting] if setting else None
    if text is None:
        setting = path = _token_path(environ)
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(65536)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("the token in %s is not used: %s", path, type(error).__name__)
            return None
    text = text.strip() if isinstance(text, str) else "\0"
    if not (text.isascii() and text.isprintable()) or " " in text:
        # Not even a part of it is shown.
        raise ConfigurationError(setting=setting, value="(not shown)", expected="a token in one line: hf_...")
    return text or None


def _token_path(environ: Mapping[str, str]) -> str:
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or f"{cache}/huggingface"
    path = environ.get("HF_TOKEN_PATH") or f"{home}/token"
    return os.path.expandvars(os.path.expanduser(path))
