"""What could not be had: not there, refused, or not reached. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

from .base import ModelCacheError, shown


class NotFoundError(ModelCacheError, FileNotFoundError):
    """What was asked for does not exist."""

    exit_code = 4


class RemoteNotFoundError(NotFoundError):
    """The source answers that there is no such content (RFC 9110, 15.5.5 and 15.5.11)."""

    def __init__(self, *, ref: str, detail: str) -> None:
        super().__init__(ref=ref, detail=detail)
        self.summary = f"{ref} does not exist at its source ({detail}); nothing was stored"
        self.hint = "Check the address; a private model can answer 404 to a client without a token"
        if ref.startswith(("file:", "/")):
            self.hint = "Check the path"
        if ref.startswith("hf:"):
            self.hint = "Check the path within the repository, capital letters too, and the revision"


class RepositoryNotFoundError(RemoteNotFoundError):
    """The hub has no such repository, or does not show it to this client: it answers both in the same way."""

    def __init__(self, *, ref: str, repository: str, detail: str, with_token: bool) -> None:
        ModelCacheError.__init__(self, ref=ref, repository=repository, detail=detail, with_token=with_token)
        whom = "this token" if with_token else "a client without a token"
        self.summary = f"{ref}: the hub shows {whom} no repository {repository} ({detail}); nothing was stored"
        self.hint = "Check the name, which has two parts, and whether it is hf://datasets/ or hf://spaces/. "
        self.hint += (
            "If it is private, its owner must give the token's user access"
            if with_token
            else "If it is private, give a token: set HF_TOKEN, or HfSource(token=...)"
        )


class RevisionNotFoundError(RemoteNotFoundError):
    """The repository has no such branch, tag or commit."""

    def __init__(self, *, ref: str, repository: str, revision: str, detail: str) -> None:
        ModelCacheError.__init__(self, ref=ref, repository=repository, revision=revision, detail=detail)
        self.summary = f"{ref}: {repository} has no revision {shown(revision)} ({detail}); nothing was stored"
        self.hint = "Check the branch, tag or commit after the @; a slash in it is written %2F"


class NothingMatchesError(NotFoundError):
    """No file of a repository is wanted by the patterns. ``files`` is how many it has."""

    def __init__(self, *, ref: str, files: int) -> None:
        super().__init__(ref=ref, files=files)
        self.summary = f"none of the {files} files of {ref} matches the patterns; nothing was fetched"
        self.hint = "A pattern is matched against the whole path: '*.json', 'onnx/*'; in a shell, quote it"


class EntryNotFoundError(NotFoundError):
    """Nothing of that name is in the cache."""

    def __init__(self, *, ref: str, root: str) -> None:
        super().__init__(ref=ref, root=root)
        self.summary = f"{shown(ref)} is not in the cache at {root}"
        self.hint = "`modelcache ls` lists what is there; `modelcache get` fetches"


class NoSourceError(NotFoundError):
    """What is lost was put here by a program, and no source has it."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"{shown(ref)} was put here, and there is no source to fetch it from again"
        self.hint = "Put it again: Cache.put(content, name=...)"


class NotInBundleError(NotFoundError):
    """A bundle does not hold what was to be imported from it."""

    def __init__(self, *, ref: str, path: str) -> None:
        super().__init__(ref=ref, path=path)
        self.summary = f"{shown(ref)} is not in the bundle {path}; nothing was imported"
        self.hint = "`modelcache import PATH --dry-run` lists what is in it"


class AccessDeniedError(ModelCacheError, PermissionError):
    """The source refuses to serve this client."""

    exit_code = 5

    def __init__(self, *, ref: str, detail: str, hint: str = "") -> None:
        super().__init__(ref=ref, detail=detail, hint=hint)
        self.summary = f"access to {ref} was denied ({detail}); nothing was stored"
        self.hint = hint or "Give credentials: HttpSource(headers=...), user:password@ in the URL, or ~/.netrc"
        if ref.startswith("file:"):
            self.hint = "Ask the owner of the file for the right to read it"


class GatedRepositoryError(AccessDeniedError):
    """The repository is there, and is served only to those who accepted its terms. ``page`` is where that is done."""

    def __init__(self, *, ref: str, repository: str, page: str, detail: str, with_token: bool) -> None:
        ModelCacheError.__init__(self, ref=ref, repository=repository, page=page, detail=detail, with_token=with_token)
        whom = "the token's user is not on its list" if with_token else "no token was given"
        self.summary = f"access to {ref} was denied: {repository} is gated, and {whom} ({detail}); nothing was stored"
        self.hint = f"Accept its terms at {page}" + (
            ", or wait for its owner's consent; a fine-grained token must also allow gated repositories"
            if with_token
            else ", then give a token: set HF_TOKEN, or HfSource(token=...)"
        )


class NetworkError(ModelCacheError, ConnectionError):
    """The content could not be transferred."""

    exit_code = 6
    transient = True
    hint = "What had arrived is kept: the next get resumes it"

    def __init__(self, *, ref: str, detail: str, transient: bool | None = None) -> None:
        super().__init__(ref=ref, detail=detail)
        self.ref, self.detail = ref, detail
        self.summary = f"could not fetch {ref}: {detail}"
        if transient is not None:
            self.facts["transient"] = self.transient = transient


class UnreachableError(NetworkError):
    """No connection, or none that can be trusted."""

    hint = "Check the network, the proxy variables and, for TLS, SSL_CERT_FILE; what is cached is still served"


class InterruptedTransferError(NetworkError):
    """The connection was cut before the end of the content."""


class StalledError(NetworkError, TimeoutError):
    """Fewer bytes than the least progress arrived in the time allowed."""

    hint = "What had arrived is kept. For a slow link raise Timeout(stall=...) or MODELCACHE_HTTP_TIMEOUT"


class DeadlineError(NetworkError, TimeoutError):
    """The total time allowed is over."""

    transient = False
    hint = "What had arrived is kept. Raise Timeout(total=...) or MODELCACHE_DEADLINE, or call again to resume"


class HttpStatusError(NetworkError):
    """A status that has no class of its own. ``retry_after`` is in seconds, None if the server named no time."""

    hint = "Ask again later, or name a mirror; what had arrived before is kept"

    def __init__(self, *, ref: str, status: int, reason: str = "", retry_after: float | None = None) -> None:
        detail = f"the server answered {status} {reason}".rstrip()
        ModelCacheError.__init__(self, ref=ref, status=status, reason=reason, retry_after=retry_after)
        self.ref, self.status, self.detail, self.retry_after = ref, status, detail, retry_after
        # RFC 9110 15.5.9 (408) and 15.6, RFC 8470 (425), RFC 6585 (429): asking later may help.
        self.transient = status in {408, 425, 429, 500, 502, 503, 504}
        asked = f" and asks to wait {retry_after:g} s" if retry_after is not None else ""
        self.summary = f"could not fetch {ref}: {detail}{asked}"


class RedirectError(NetworkError):
    """A redirect that is not followed: a loop, too many, to another kind of scheme, or from https to http."""

    transient = False
    hint = "Give the final address as the ref, if you trust it"


class ProtocolError(NetworkError):
    """An answer that contradicts itself or the request: nothing of it was kept."""

    hint = "A proxy or server in between alters answers; try a mirror"


class MirrorsExhaustedError(NetworkError):
    """Several places were asked and none could serve. ``errors`` holds one error for each, in order."""

    transient = False

    def __init__(self, *, ref: str, errors: tuple[ModelCacheError, ...]) -> None:
        ModelCacheError.__init__(self, ref=ref, errors=errors)
        self.ref, self.errors = ref, errors
        self.exit_code = errors[0].exit_code if len({e.exit_code for e in errors}) == 1 else 6
        listed = "; ".join(f"({n}) {error.summary}" for n, error in enumerate(errors, 1))
        self.summary = f"none of {len(errors)} places could serve {ref}: {listed}"
        self.hint = errors[0].hint


class LocalNotFoundError(ModelCacheError, FileNotFoundError):
    """Not in the cache, and no network may be used."""

    exit_code = 10

    def __init__(self, *, ref: str, root: str, reason: str) -> None:
        super().__init__(ref=ref, root=root, reason=reason)
        self.summary = f"{ref} is not in the cache at {root}, and {reason}; no connection was tried"
        self.hint = "Fetch it once with a network: `modelcache get REF` or `modelcache prewarm MANIFEST`"
