"""A hub that speaks as the Hugging Face Hub does to clients that download, on two origins of this machine.

Repositories are dicts of files at commits. Small files come from the hub itself, by way of a redirect to an address of
their commit, as there; large ones by a redirect to a `FaultServer`, which plays the content network and can fail on
purpose. What huggingface_hub itself makes of it is a test of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from modelcache.testing import Fault, FaultServer

SIGNATURE = "Expires=1800000000&Signature=s1gned&Key-Pair-Id=K1"


def blob_id(content: bytes) -> str:
    """Return what git calls *content*."""
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


@dataclass
class Answer:
    """What the hub says to one request."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Asked:
    """One request, as the hub saw it."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repository:
    """Files by commit, and commits by revision."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    disabled: bool = False


class Hub:
    """Serves repositories until it is closed.

    Attributes:
        cdn: Where large files come from.
        token: Those who send another one are refused; None knows no token.
        large_bytes: From which size on a file comes from the content network.
        page_files: Files in one page of a listing.
        override: Called with each request; an answer that it gives is sent in place of the hub's own.
        lies: Headers put into each redirect to the content network, in place of the true ones.
    """

    def __init__(self) -> None:
        self.cdn = FaultServer()
        self.token: str | None = None
        self.large_bytes = 10_000
        self.page_files = 1000
        self.override: Callable[[Asked], Answer | None] = lambda asked: None
        self.lies: dict[str, str | None] = {}
        self._repositories: dict[str, Repository] = {}
        self._seen: list[Asked] = []
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self,
        repository: str,
        files: dict[str, bytes],
        *,
        revision: str = "main",
        token: str | None = None,
        gated: bool = False,
        disabled: bool = False,
        faults: Iterable[Fault] = (),
    ) -> str:
        """Commit *files* (all there are) to *revision* of *repository* (with ``datasets/`` if it is one).

        Returns the commit. *faults* are those of the content network, for each large file.
        """
        found = self._repositories.setdefault(repository, Repository())
        found.token, found.gated, found.disabled = token, gated, disabled
        text = json.dumps([len(found.commits), sorted((path, blob_id(content)) for path, content in files.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        found.commits[commit], found.revisions[revision] = dict(files), commit
        for content in files.values():
            if len(content) >= self.large_bytes:
                self.cdn.add(self.address(content), content, list(faults), etag=f'"cdn-{blob_id(content)}"')
        return commit

    @staticmethod
    def address(content: bytes) -> str:
        """Return where *content* is on the content network."""
        return f"/blobs/{hashlib.sha256(content).hexdigest()}?{SIGNATURE}"

    def seen(self, part: str = "") -> list[Asked]:
        """Return the requests so far whose path holds *part*."""
        with self._guard:
            return [asked for asked in self._seen if part in asked.path]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.cdn.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def answer(self, asked: Asked) -> Answer:
        with self._guard:
            self._seen.append(asked)
        return self.override(asked) or self._answer(asked)

    def _answer(self, asked: Asked) -> Answer:
        url = urlsplit(asked.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        given = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if given and given != self.token:
            return Answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if parts[:2] == ["api", "resolve-cache"]:
            kind, owner, name, commit, *path = parts[2:]
            found = self._repositories[_key(kind, owner, name)]
            return self._small(found.commits[commit]["/".join(path)], commit, asked)
        api = parts[0] == "api"
        kind = parts[1] if api else parts[0] if parts[0] in {"datasets", "spaces"} else "models"
        rest = parts[2:] if api else parts[1:] if kind != "models" else parts
        if len(rest) < 3:
            return Answer(404)
        owner, name, verb, revision, *path = [*rest, ""][: max(4, len(rest))]
        found = self._repositories.get(_key(kind, owner, name), Repository())
        refusal = _refusal(found, given)
        if refusal is not None:
            return refusal
        commit = revision if revision in found.commits else found.revisions.get(revision, "")
        if not commit:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        if api and verb == "revision":
            siblings = [{"rfilename": name} for name in found.commits[commit]]
            return _json({"id": f"{owner}/{name}", "_id": "1", "sha": commit, "siblings": siblings, "private": False})
        if api and verb == "tree":
            return self._tree(found.commits[commit], url.path, parse_qs(url.query))
        return self._resolve(found.commits[commit], kind, f"{owner}/{name}", commit, "/".join(path), asked)

    def _resolve(
        self, files: dict[str, bytes], kind: str, repository: str, commit: str, path: str, asked: Asked
    ) -> Answer:
        content = files.get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return Answer(404, {**headers, "X-Error-Code": "EntryNotFound"})
        if len(content) < self.large_bytes:
            headers["Location"] = f"/api/resolve-cache/{kind}/{repository}/{commit}/{quote(path)}"
            headers |= {"X-Linked-Etag": f'"{blob_id(content)}"', "X-Linked-Size": str(len(content))}
            return Answer(307, headers)
        headers["Location"] = self.cdn.url(self.address(content))
        headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        headers["X-Linked-Size"] = str(len(content))
        headers.update({name: value for name, value in self.lies.items() if value is not None})
        for name in [name for name, value in self.lies.items() if value is None]:
            del headers[name]
        return Answer(302, headers, b"Found. Redirecting")

    @staticmethod
    def _small(content: bytes, commit: str, asked: Asked) -> Answer:
        etag = f'"{blob_id(content)}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "Accept-Ranges": "bytes"}
        if asked.headers.get("if-none-match") == etag:
            return Answer(304, headers)
        span = asked.headers.get("range")
        if span is None or asked.headers.get("if-range", etag) != etag:
            return Answer(200, headers, content)
        first, _, last = span.removeprefix("bytes=").partition("-")
        start, stop = int(first), int(last) + 1 if last else len(content)
        if start >= len(content):
            return Answer(416, {**headers, "Content-Range": f"bytes */{len(content)}"})
        part = content[start:stop]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        return Answer(206, headers, part)

    def _tree(self, files: dict[str, bytes], path: str, query: dict[str, list[str]]) -> Answer:
        items: list[dict[str, Any]] = []
        directories = {name.rpartition("/")[0] for name in files if "/" in name}
        items += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(directories)]
        for name, content in sorted(files.items()):
            item: dict[str, Any] = {"type": "file", "oid": blob_id(content), "size": len(content), "path": name}
            if len(content) >= self.large_bytes:
                digest = hashlib.sha256(content).hexdigest()
                item["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
            items.append(item)
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + self.page_files < len(items):
            following = f"{self.endpoint}{path}?recursive=true&cursor={start + self.page_files}"
            headers["Link"] = f'<{following}>; rel="next"'
        return _json(items[start : start + self.page_files], headers)


def _key(kind: str, owner: str, name: str) -> str:
    return f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"


def _refusal(found: Repository, given: str) -> Answer | None:
    if found.disabled:
        return Answer(403, {"X-Error-Message": "Access to this resource is disabled."})
    if not found.commits:
        return Answer(404 if given else 401, {"X-Error-Code": "RepoNotFound"})
    if found.gated:
        return Answer(403 if given else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
    if found.token is not None and given != found.token:
        return Answer(401, {"X-Error-Code": "RepoNotFound"})
    return None


def _json(found: object, headers: dict[str, str] | None = None) -> Answer:
    return Answer(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(found).encode())


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            answer = hub.answer(asked)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command == "GET" and answer.status != 304:
                self.wfile.write(answer.body)

        do_HEAD = do_GET  # noqa: N815  # http.server's own name.

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    return Handler
