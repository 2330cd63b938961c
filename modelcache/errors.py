"""Every error that modelcache raises, in one tree.

::

    ModelCacheError                              exit code 1
    ├── UsageError (ValueError)                            2  the call itself makes no sense; raised before any I/O
    │   ├── InvalidReferenceError
    │   ├── InvalidDigestError
    │   ├── UnknownSchemeError
    │   ├── NotListableError                                  its source cannot say which files there are
    │   ├── ProviderNotInstalledError                         onnxruntime was built without it
    │   ├── NoInterpreterError                                what is built in a process of its own, and none starts
    │   ├── UnsupportedPlatformError                          it needs another system than this one
    │   ├── UnsupportedArchiveError                           no archive, or one that this Python cannot unpack
    │   ├── ConfigurationError
    │   │   └── ConfigFileError                               a mistake in a file with settings: file, line, key
    │   │       └── CacheConfigError                          the same in the config.toml of a cache itself
    │   └── ManifestError                                     a mistake in models.toml or models.lock: file, line, key
    ├── BatchError                                         3  some of many failed; each with its own error
    ├── NotFoundError (FileNotFoundError)                  4
    │   ├── RemoteNotFoundError                               404, 410, or a file that is not there
    │   │   ├── RepositoryNotFoundError                       the hub has none, or shows none to this client
    │   │   └── RevisionNotFoundError                         the repository has no such branch, tag or commit
    │   ├── NothingMatchesError                               no file of a repository matches the patterns
    │   ├── EntryNotFoundError                                nothing of that name in the cache
    │   ├── NoSourceError                                     it was put here: nothing to fetch it from again
    │   └── NotInBundleError                                  an import was asked for what the bundle does not hold
    ├── AccessDeniedError (PermissionError)                5  401, 403, 407, 451, or a file that may not be read
    │   └── GatedRepositoryError                              its terms were not accepted, or nobody said who asks
    ├── NetworkError (ConnectionError)                     6
    │   ├── UnreachableError                                  refused, no such host, TLS that cannot be trusted
    │   ├── InterruptedTransferError                          reset, or ended before the announced length
    │   ├── StalledError (TimeoutError)
    │   ├── DeadlineError (TimeoutError)
    │   ├── HttpStatusError                                   429, 5xx and every status without a class of its own
    │   ├── RedirectError
    │   ├── ProtocolError                                     an answer that contradicts itself or the request
    │   └── MirrorsExhaustedError                             several places were asked, none could serve
    ├── DerivationError                                   13  what was to be derived could not be built
    │   ├── BuildFailedError                                  the build raised an error
    │   ├── BuildDiedError                                    its process died
    │   ├── BuildTimeoutError (TimeoutError)
    │   ├── ProductError                                      it left nothing, a link, or something elsewhere
    │   ├── ProductRefusedError                               the product did not pass its check
    │   ├── NotReproducibleError                              built again, it was another one
    │   ├── ModelRefusedError                                 the runtime does not take the model
    │   └── RepeatedFailureError                              three times the same way: left alone for a while
    ├── IntegrityError (ValueError)                        7
    │   ├── DigestMismatchError
    │   ├── SizeMismatchError
    │   ├── EmptyContentError
    │   ├── ExternalDataError                                 a model's external data is missing, or elsewhere
    │   ├── ModelTooLargeError                                a model that is larger than its format can be
    │   ├── MissingCompanionError                             a file of a tree needs one that is not in it
    │   ├── ListingError                                      a list of files that cannot all be stored as such
    │   ├── ArchiveError                                      an archive that is damaged, or made to do damage
    │   │   └── ArchiveLimitError                             it unpacks to more than is allowed
    │   ├── PackageError                                      no Core ML package, or one that is not whole
    │   ├── BundleError                                       a bundle that cannot be imported as it is
    │   │   └── MissingContentsError                          it leaves out contents that are not in the cache
    │   └── CorruptObjectError
    ├── NoSpaceError (OSError, ENOSPC)                     8
    │   └── CapacityError                                     the cache may use no more of the disk
    ├── LockTimeoutError (TimeoutError)                    9
    ├── LocalNotFoundError (FileNotFoundError)            10  offline, and not in the cache
    ├── LockDriftError (ValueError)                       11  models.lock and models.toml or the source disagree
    ├── PolicyError (PermissionError)                     12  a policy in force refuses it
    │   └── SignatureError                                    not signed by whom the policy asks for
    ├── MissingLibraryError (ImportError)                  1  an extra that was not installed
    ├── ModelLoadError (RuntimeError)                      1  a runtime does not load what is whole
    ├── PinnedError (PermissionError)                      1
    ├── LeasedError (PermissionError)                      1  in use by a live process
    ├── ClosedError (RuntimeError)                         1
    ├── CancelledError                                     1  given up by its caller; what had arrived can be resumed
    ├── BackendError                                      14  a backend of the archive failed, or refused
    │   ├── BackendDownError                                  it failed before, and is left alone for a while
    │   ├── BackendSetupError                                 it cannot be used at all: no bucket, no database
    │   ├── BackendAccessError (PermissionError)           5  it does not let these credentials in
    │   ├── NoConditionalWritesError                          it overwrites where it was asked not to
    │   ├── QueueFullError                                    no room for more writes, and none may be dropped
    │   └── DamagedReplicaError (ValueError)               7  what it holds is not what its name says
    ├── NotInArchiveError (FileNotFoundError)              4  no backend that answers has it
    ├── ArchiveClosedError (RuntimeError)                  1  an archivist that was shut down
    └── StorageError (OSError)                             1  the root cannot be used, or the file system failed
        ├── NoLocksError                                      gc does not run without locks that work
        ├── RootError                                         missing, read-only, a file, or somebody else's
        ├── LinkError                                         a symbolic link where the cache has its own
        ├── GroupError                                        the cache belongs to a group that this user is not in
        └── FormatError                                       written by a newer modelcache

Each error carries its facts as attributes, survives pickling (it may be raised in a worker process), has an
``exit_code``, a ``summary`` (what happened, to what, what was done about it) and a ``hint`` (what to do now);
``str(error)`` is both. ``transient`` says whether asking the same source again can help.
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Mapping
from functools import partial
from typing import Any

_IN_BETWEEN = "A proxy or a content network in between alters or confuses files; try again later, or a mirror"


class ModelCacheError(Exception):
    """The root of all errors of modelcache."""

    exit_code = 1
    transient = False
    summary = "modelcache failed"
    hint = ""

    def __init__(self, **facts: Any) -> None:
        # No positional argument: OSError, a base of many leaves, would take it for an errno.
        super().__init__()
        self.facts = facts
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return f"{self.summary}. {self.hint}".removesuffix(". ")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.facts.items())})"

    def __reduce__(self) -> Any:
        return partial(type(self), **self.facts), ()


class UsageError(ModelCacheError, ValueError):
    """The call makes no sense; nothing was read or written."""

    exit_code = 2

    def __init__(self, *, problem: str, hint: str = "") -> None:
        super().__init__(problem=problem, hint=hint)
        self.summary = problem
        self.hint = hint or "Correct the call: nothing was read or written"


class InvalidReferenceError(UsageError):
    """A ref that cannot name a model."""

    def __init__(self, *, ref: str, problem: str, hint: str = "") -> None:
        ModelCacheError.__init__(self, ref=ref, problem=problem, hint=hint)
        self.summary = f"{_shown(ref)} is not a usable ref: {problem}"
        self.hint = hint or "Give a URL (https://host/model.onnx), a path, or a name that was put"


class InvalidDigestError(UsageError):
    """A digest that is neither ``sha256:`` nor ``tree:`` and 64 hexadecimal digits."""

    def __init__(self, *, text: str) -> None:
        ModelCacheError.__init__(self, text=text)
        self.summary = f"{_shown(text)} is not a digest"
        self.hint = "A digest is 'sha256:' (of a tree, 'tree:') and 64 hexadecimal digits; `sha256sum FILE` prints them"


class UnknownSchemeError(UsageError):
    """No source is registered for the scheme of a ref."""

    def __init__(self, *, ref: str, scheme: str, known: tuple[str, ...]) -> None:
        ModelCacheError.__init__(self, ref=ref, scheme=scheme, known=known)
        self.summary = f"no source serves {scheme}:// (asked for {_shown(ref)})"
        self.hint = f"Known schemes: {', '.join(known)}. A package adds one by the entry point modelcache.sources"


class NotListableError(UsageError):
    """The source of a ref cannot say which files there are."""

    def __init__(self, *, ref: str, problem: str) -> None:
        ModelCacheError.__init__(self, ref=ref, problem=problem)
        self.summary = f"{_shown(ref)} cannot be listed: {problem}"
        self.hint = (
            "Whole repositories can: hf://org/name, hf://org/name@revision; archives (.tar.gz, .zip) are unpacked"
        )


class UnsupportedArchiveError(UsageError):
    """What was to be unpacked is no archive by its name, or needs a library that is not installed."""

    def __init__(self, *, ref: str, problem: str, hint: str = "") -> None:
        ModelCacheError.__init__(self, ref=ref, problem=problem, hint=hint)
        self.summary = f"{_shown(ref)} cannot be unpacked: {problem}; nothing was fetched"
        self.hint = (
            hint or "Unpacked are .tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst and .zip; get() serves a file as it is"
        )


class ConfigurationError(UsageError):
    """A setting with a senseless value."""

    def __init__(self, *, setting: str, value: str, expected: str) -> None:
        ModelCacheError.__init__(self, setting=setting, value=value, expected=expected)
        self.summary = f"{setting}={value!r} makes no sense: expected {expected}"
        self.hint = f"Correct or unset {setting}"


class ConfigFileError(ConfigurationError):
    """A mistake in a file with settings. ``line`` and ``key`` are None where they are not known."""

    def __init__(self, *, file: str, problem: str, line: int | None = None, key: str | None = None) -> None:
        ModelCacheError.__init__(self, file=file, problem=problem, line=line, key=key)
        where = f"{file}:{line}" if line else file
        self.summary = f"{where}: {f'{key}: ' if key else ''}{problem}"
        self.hint = "docs/configuration.md lists every key; `MODELCACHE_CONFIG=` (empty) reads no file"


class CacheConfigError(ConfigFileError):
    """A mistake in the ``config.toml`` of a cache, which says who may use it; nothing was made."""

    def __init__(self, *, file: str, problem: str, line: int | None = None, key: str | None = None) -> None:
        super().__init__(file=file, problem=problem, line=line, key=key)
        self.summary += "; nothing was made"
        self.hint = "Cached models are still served; `modelcache init` writes it anew (docs/sharing.md)"


class ManifestError(UsageError):
    """A mistake in a manifest or a lock file."""

    def __init__(self, *, file: str, problem: str, line: int | None = None, key: str | None = None) -> None:
        ModelCacheError.__init__(self, file=file, problem=problem, line=line, key=key)
        where = f"{file}:{line}" if line else file
        self.summary = f"{where}: {f'{key}: ' if key else ''}{problem}"
        self.hint = "docs/manifest.md lists every key and its form"


class BatchError(ModelCacheError):
    """Some of many models failed; with the others all went well.

    ``failures`` maps each ref that failed to its error.
    """

    exit_code = 3

    def __init__(self, *, failures: Mapping[Any, ModelCacheError], total: int) -> None:
        super().__init__(failures=failures, total=total)  # By ref as it was given: it may hold credentials.
        self.failures, self.total = failures, total
        first = next(iter(failures.values()), None)
        self.summary = f"{len(failures)} of {total} models failed; the other ones are done. First: {first}"
        self.hint = "Run it again: what is done is not done again, what is half there is resumed"

    def __repr__(self) -> str:
        return f"BatchError({list(self.failures.values())!r}, total={self.total})"


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
        self.summary = f"{ref}: {repository} has no revision {_shown(revision)} ({detail}); nothing was stored"
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
        self.summary = f"{_shown(ref)} is not in the cache at {root}"
        self.hint = "`modelcache ls` lists what is there; `modelcache get` fetches"


class NoSourceError(NotFoundError):
    """What is lost was put here by a program, and no source has it."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"{_shown(ref)} was put here, and there is no source to fetch it from again"
        self.hint = "Put it again: Cache.put(content, name=...)"


class NotInBundleError(NotFoundError):
    """A bundle does not hold what was to be imported from it."""

    def __init__(self, *, ref: str, path: str) -> None:
        super().__init__(ref=ref, path=path)
        self.summary = f"{_shown(ref)} is not in the bundle {path}; nothing was imported"
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


class DerivationError(ModelCacheError):
    """What was to be derived could not be built; nothing of it is cached.

    ``ref`` is what it would have been called, ``model`` what it is made from, ``detail`` what went wrong.
    """

    exit_code = 13
    hint = "The next call builds it from the beginning; `modelcache info` shows what a derived artefact depends on"

    def __init__(self, *, ref: str, model: str, detail: str) -> None:
        super().__init__(ref=ref, model=model, detail=detail)
        self._say(ref, model, detail)

    def _say(self, ref: str, model: str, detail: str) -> None:
        self.ref, self.model, self.detail = ref, model, detail
        self.summary = f"could not build {ref} of {model}: {detail}; nothing was cached"

    @property
    def way(self) -> str:
        """In which way it failed: what tells whether it fails the same way again."""
        return type(self).__name__


class BuildFailedError(DerivationError):
    """The build raised an error. ``error`` is the name of its class, ``reason`` what it says."""

    def __init__(self, *, ref: str, model: str, error: str, reason: str) -> None:
        ModelCacheError.__init__(self, ref=ref, model=model, error=error, reason=reason)
        self.error = error
        self._say(ref, model, f"it raised {error}: {reason}")

    @property
    def way(self) -> str:
        """See `DerivationError`."""
        return f"{type(self).__name__} {self.error}"


class BuildDiedError(DerivationError):
    """The process that built, or looked at the product, died.

    ``how`` is the signal or the exit code, ``said`` what it printed last, ``moved_to`` where the product is now if it
    was set aside.
    """

    hint = "The next call builds it from the beginning; report a crash to the makers of what crashed"

    def __init__(self, *, ref: str, model: str, how: str, said: str = "", moved_to: str = "") -> None:
        ModelCacheError.__init__(self, ref=ref, model=model, how=how, said=said, moved_to=moved_to)
        self.how, self.said, self.moved_to = how, said, moved_to
        last = f" (it said last: {said})" if said else ""
        kept = f"; the product is set aside at {moved_to}" if moved_to else ""
        self._say(ref, model, f"its process died of {how}{last}{kept}")

    @property
    def way(self) -> str:
        """See `DerivationError`."""
        return f"{type(self).__name__} {self.how}"


class BuildTimeoutError(DerivationError, TimeoutError):
    """The build took longer than it may. ``seconds`` is how long that is."""

    hint = "Raise timeout=; a build that hangs is ended only with isolate=True"

    def __init__(self, *, ref: str, model: str, seconds: float) -> None:
        ModelCacheError.__init__(self, ref=ref, model=model, seconds=seconds)
        self._say(ref, model, f"it was not done within {seconds:g} s")


class ProductError(DerivationError):
    """What the build left is no product: nothing, a link, something outside its directory."""

    hint = "A build writes one file, or one directory of files, into the directory that it is called with"


class ProductRefusedError(DerivationError):
    """The product did not pass its check."""

    hint = "What was made is not what was wanted; what it was made from is not affected"


class NotReproducibleError(DerivationError):
    """Built a second time from the same, it was another one: the key leaves out something that matters.

    ``before`` and ``now`` are the digests, ``differs`` the files.
    """

    hint = "Add what differs to params or platform, or make the build independent of it; what was cached still is"

    def __init__(self, *, ref: str, model: str, before: str, now: str, differs: str) -> None:
        ModelCacheError.__init__(self, ref=ref, model=model, before=before, now=now, differs=differs)
        self._say(ref, model, f"on record is {before}, built anew it is {now} ({differs})")
        self.summary = f"{ref} of {model} is not reproducible: {self.detail}; nothing was changed"


class RepeatedFailureError(DerivationError):
    """It has failed the same way ``count`` times, and is not tried again for ``retry_after`` seconds."""

    hint = "derive(force=True), or `modelcache derive --force`, tries at once"

    def __init__(self, *, ref: str, model: str, count: int, retry_after: float, last: str) -> None:
        ModelCacheError.__init__(self, ref=ref, model=model, count=count, retry_after=retry_after, last=last)
        self.count, self.retry_after, self.last = count, retry_after, last
        left = f"is left alone for {retry_after:.0f} s more"
        self._say(ref, model, f"it has failed the same way {count} times, and {left}; last: {last}")
        self.summary = f"{ref} of {model} was not built: {self.detail}"


class ModelRefusedError(DerivationError):
    """The runtime does not take the model, or the product. ``reason`` is what it says.

    ``providers`` are those that it was to run on, first choice first.
    """

    hint = "It is the runtime that refuses: check the model with its makers' tools, or take other providers"

    def __init__(self, *, ref: str, model: str, providers: tuple[str, ...], reason: str) -> None:
        ModelCacheError.__init__(self, ref=ref, model=model, providers=providers, reason=reason)
        self.providers, self.reason = providers, reason
        self._say(ref, model, f"onnxruntime refuses it for {', '.join(providers)}: {reason}")


class ProviderNotInstalledError(UsageError):
    """This onnxruntime was built without the provider. ``installed`` are those that it has."""

    def __init__(self, *, provider: str, installed: tuple[str, ...]) -> None:
        ModelCacheError.__init__(self, provider=provider, installed=installed)
        self.summary = f"onnxruntime has no provider {_shown(provider)} here; nothing was built"
        self.hint = f"Installed are {', '.join(installed) or 'none'}; another build of onnxruntime may have it"


class NoInterpreterError(UsageError):
    """What is built in a process of its own cannot be, where no Python can be started. ``reason`` says why not."""

    hint = "Build it before, with `modelcache derive` into the same cache: it is found there"

    def __init__(self, *, ref: str, model: str, reason: str) -> None:
        ModelCacheError.__init__(self, ref=ref, model=model, reason=reason)
        self.summary = (
            f"{ref} of {model} is built in a process of its own, and {reason}: there is no Python to start; "
            "nothing was built"
        )


class UnsupportedPlatformError(UsageError):
    """It needs another system than this one; nothing was written."""

    def __init__(self, *, what: str, needs: str, here: str) -> None:
        ModelCacheError.__init__(self, what=what, needs=needs, here=here)
        self.summary = f"{what} needs {needs}, and this is {here}; nothing was written"
        self.hint = f"Do it on {needs}"


class IntegrityError(ModelCacheError, ValueError):
    """Bytes that are not the bytes asked for."""

    exit_code = 7


class DigestMismatchError(IntegrityError):
    """The bytes received are not the bytes asked for. Nothing was stored; the same source is not asked again.

    ``announced`` says that the source itself named the digest expected, so that its own answers disagree.
    """

    def __init__(self, *, ref: str, expected: str, actual: str, announced: bool = False) -> None:
        super().__init__(ref=ref, expected=expected, actual=actual, announced=announced)
        self.expected, self.actual = expected, actual
        wanted = f"its source announced {expected}" if announced else f"expected {expected}"
        self.summary = f"digest mismatch for {ref}: {wanted}, got {actual}; nothing was stored"
        self.hint = f"If the publisher replaced the file on purpose, pass digest={actual!r}"
        if announced:
            self.hint = _IN_BETWEEN


class SizeMismatchError(IntegrityError):
    """The content has another size, in bytes, than was locked, or ``announced`` by its source itself."""

    def __init__(self, *, ref: str, expected: int, actual: int, announced: bool = False) -> None:
        super().__init__(ref=ref, expected=expected, actual=actual, announced=announced)
        wanted = f"its source announced {expected} bytes" if announced else f"expected {expected} bytes"
        self.summary = f"size mismatch for {ref}: {wanted}, got {actual}; nothing was stored"
        self.hint = "If the publisher replaced the file on purpose, run `modelcache lock` again"
        if announced:
            self.hint = _IN_BETWEEN


class EmptyContentError(IntegrityError):
    """The source sent no bytes at all, which is no model."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"{ref} came without a single byte; nothing was stored"
        self.hint = "To cache an empty file on purpose, give its digest"


class ExternalDataError(IntegrityError):
    """A model keeps data in a file that is missing, or that is not below its own directory."""

    def __init__(self, *, ref: str, location: str, problem: str) -> None:
        super().__init__(ref=ref, location=location, problem=problem)
        self.summary = f"{ref} keeps data in {_shown(location)}, which {problem}; nothing was built"
        self.hint = "Give the directory, repository or tree that holds the model with its data, and file= for the model"


class ModelTooLargeError(IntegrityError):
    """The file of a model is larger than its format, a protocol buffer, can be. ``size`` and ``limit`` are in bytes."""

    def __init__(self, *, ref: str, size: int, limit: int) -> None:
        super().__init__(ref=ref, size=size, limit=limit)
        self.summary = f"{ref} has {size} bytes, and no runtime reads a model file above {limit}; nothing was built"
        self.hint = "Save it with external data: onnx.save_model(..., save_as_external_data=True)"


class MissingCompanionError(IntegrityError):
    """A file of a tree names another one, such as a shard or external data, that the tree lacks."""

    def __init__(self, *, ref: str, path: str, needed: str) -> None:
        super().__init__(ref=ref, path=path, needed=needed)
        self.summary = f"{ref} is not whole: {path} needs {_shown(needed)}, which is not in it; nothing was stored"
        self.hint = "Tell the publisher; with allow_patterns a part of it can be had that is meant to be one"


class ListingError(IntegrityError):
    """A source lists files that cannot all be stored under their names."""

    def __init__(self, *, ref: str, problem: str) -> None:
        super().__init__(ref=ref, problem=problem)
        self.summary = f"the files of {ref} cannot be taken as they are listed: {problem}; nothing was stored"
        self.hint = "Tell the publisher; single files of it can still be had by their own refs"


class ArchiveError(IntegrityError):
    """An archive cannot be unpacked into a tree. ``member`` is to blame; "" if it is the archive itself."""

    def __init__(self, *, ref: str, member: str, problem: str) -> None:
        super().__init__(ref=ref, member=member, problem=problem)
        which = f"its member {_shown(member)}" if member else "the archive"
        self.summary = f"{ref} cannot be unpacked because of {which}: {problem}; nothing was stored"
        self.hint = "Tell the publisher; get() serves the archive itself, as it is"


class ArchiveLimitError(ArchiveError):
    """An archive unpacks to more than is ``allowed`` by ``limit``, a field of `ArchiveLimits`."""

    def __init__(self, *, ref: str, member: str, limit: str, allowed: float, problem: str = "") -> None:
        ModelCacheError.__init__(self, ref=ref, member=member, limit=limit, allowed=allowed, problem=problem)
        self.summary = (
            f"{ref} unpacks to more than {limit}={allowed:g} allows (at {_shown(member)}); nothing was stored"
        )
        self.hint = f"If you trust it, raise the limit: Cache(archive_limits=ArchiveLimits({limit}=...))"


class PackageError(IntegrityError):
    """No Core ML package, or one that is not whole. ``path``, in it, is to blame; "" if it is the package itself."""

    def __init__(self, *, ref: str, path: str, problem: str) -> None:
        super().__init__(ref=ref, path=path, problem=problem)
        which = f"{_shown(path)} in it: " if path else ""
        self.summary = f"{ref} is no whole Core ML package: {which}{problem}; nothing was stored"
        self.hint = "Save it again: MLModel.save('Net.mlpackage') writes a directory with Manifest.json and Data/"


class BundleError(IntegrityError):
    """A bundle is not what `export` writes, or its contents are not what its index says. ``problem`` says which."""

    def __init__(self, *, path: str, problem: str, hint: str = "") -> None:
        super().__init__(path=path, problem=problem, hint=hint)
        self.summary = f"the bundle {path} cannot be used: {problem}; the cache is as it was"
        self.hint = hint or "Copy it once more from where it was exported, or export it again"


class MissingContentsError(BundleError):
    """A bundle leaves out what its base had, and some of that is not in this cache. ``missing`` holds the digests."""

    def __init__(self, *, path: str, missing: tuple[str, ...]) -> None:
        ModelCacheError.__init__(self, path=path, missing=missing)
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        self.summary = (
            f"the bundle {path} leaves out {len(missing)} contents that are not in this cache: "
            f"{', '.join(missing[:3])}{more}; the cache is as it was"
        )
        self.hint = "Import the bundle that it was based on first, or export without a base"


class CorruptObjectError(IntegrityError):
    """A stored object no longer holds the content its name says; it is set aside and not served again."""

    def __init__(self, *, ref: str, expected: str, actual: str, moved_to: str) -> None:
        super().__init__(ref=ref, expected=expected, actual=actual, moved_to=moved_to)
        where = f"set aside in {moved_to}" if moved_to else "it is not there any more"
        self.summary = f"{ref} was altered on disk: expected {expected}, found {actual}; {where}"
        self.hint = "`modelcache verify --repair` fetches it again"


class NoSpaceError(ModelCacheError, OSError):
    """The disk has no room. ``needed`` and ``free`` are in bytes, None where they are not known."""

    exit_code = 8

    def __init__(self, *, what: str, needed: int | None, free: int | None) -> None:
        super().__init__(what=what, needed=needed, free=free)
        self.errno = _errno.ENOSPC
        facts = f": {needed} bytes are needed, {free} are free" if needed is not None else ""
        self.summary = f"no space left for {what}{facts}; the cache is whole"
        self.hint = "Free some space (`modelcache gc`, `modelcache rm`) and call again: what had arrived is used"


class CapacityError(NoSpaceError):
    """The cache may not use as much of the disk as this would need, whatever may go for it. All in bytes.

    Attributes:
        what: What was asked for.
        needed: What it needs, beside what is here of it.
        capacity: What the cache may use.
        used: What it uses.
        kept: Why what is here may not go, and how much that is.
    """

    def __init__(self, *, what: str, needed: int, capacity: int, used: int, kept: Mapping[str, int]) -> None:
        ModelCacheError.__init__(self, what=what, needed=needed, capacity=capacity, used=used, kept=dict(kept))
        self.errno = _errno.ENOSPC
        listed = ", ".join(f"{size} {why}" for why, size in kept.items() if size)
        stays = f" ({listed})" if listed else ""
        self.summary = (
            f"{what} does not fit: {needed} bytes are needed, and of the {capacity} that the cache may use {used} are "
            f"used{stays}; nothing was evicted for it"
        )
        self.hint = "Raise MODELCACHE_CAPACITY, or free some of it: `modelcache unpin`, `modelcache gc --grace 0`"


class LockTimeoutError(ModelCacheError, TimeoutError):
    """Another live process held a lock for longer than the time allowed (seconds)."""

    exit_code = 9

    def __init__(self, *, what: str, holder: str, seconds: float) -> None:
        super().__init__(what=what, holder=holder, seconds=seconds)
        self.summary = f"waited {seconds:g} s for {what}, held by {holder}; nothing was changed"
        self.hint = "Wait for that process, or raise MODELCACHE_LOCK_TIMEOUT"


class LocalNotFoundError(ModelCacheError, FileNotFoundError):
    """Not in the cache, and no network may be used."""

    exit_code = 10

    def __init__(self, *, ref: str, root: str, reason: str) -> None:
        super().__init__(ref=ref, root=root, reason=reason)
        self.summary = f"{ref} is not in the cache at {root}, and {reason}; no connection was tried"
        self.hint = "Fetch it once with a network: `modelcache get REF` or `modelcache prewarm MANIFEST`"


class LockDriftError(ModelCacheError, ValueError):
    """The lock file no longer describes the manifest, or a source no longer serves what was locked."""

    exit_code = 11

    def __init__(self, *, file: str, differences: tuple[str, ...]) -> None:
        super().__init__(file=file, differences=differences)
        self.summary = f"{file} has drifted: {'; '.join(differences)}"
        self.hint = "If the change is wanted, run `modelcache lock` and commit the new lock file"


class PolicyError(ModelCacheError, PermissionError):
    """A policy refuses it; nothing of it is stored, and nothing that is here is served.

    Attributes:
        ref: What was asked for.
        rule: The key of the policy: ``hosts``, ``schemes``, ``max-size``, ``formats``, ``allow-pickle``, ``digests``
            or ``signatures``.
        origin: Where the policy stands: file and line, or the argument.
        problem: What is against the rule.
    """

    exit_code = 12

    def __init__(self, *, ref: str, rule: str, origin: str, problem: str) -> None:
        super().__init__(ref=ref, rule=rule, origin=origin, problem=problem)
        self.ref, self.rule, self.origin = ref, rule, origin
        self.summary = f"{ref} is refused by {rule} of the policy in {origin}: {problem}; it is not stored or served"
        self.hint = _POLICY_HINTS[rule]


_POLICY_HINTS = {
    "hosts": "Fetch it from a host that is allowed, such as a mirror, or add this one to hosts",
    "schemes": "Use a scheme that is allowed, or add this one to schemes",
    "max-size": "Take a smaller one, or raise max-size; what is here already, `modelcache rm` removes",
    "formats": "Take it in a format that is allowed; of a repository, choose files by allow_patterns",
    "allow-pickle": "Take it as safetensors, ONNX or GGUF; set allow-pickle = true only for publishers that you trust",
    "digests": "Give digest=..., or `modelcache lock` and `prewarm --locked`; of a hub, name a commit: @<40 digits>",
    "signatures": "Ask the publisher for a signature by OpenSSF model signing, or correct [policy.signatures]",
}


class SignatureError(PolicyError):
    """It is not signed by whom the policy asks for: no signature, another signer, or other bytes."""

    def __init__(self, *, ref: str, origin: str, problem: str) -> None:
        PolicyError.__init__(self, ref=ref, rule="signatures", origin=origin, problem=problem)
        del self.facts["rule"]


class MissingLibraryError(ModelCacheError, ImportError):
    """What was asked for needs a library that comes with an extra, which is not installed."""

    def __init__(self, *, library: str, extra: str, purpose: str, reason: str) -> None:
        super().__init__(library=library, extra=extra, purpose=purpose, reason=reason)
        self.summary = f"{library} is needed to {purpose}, and cannot be imported ({reason}); nothing was done"
        self.hint = f"pip install 'modelcache[{extra}]'"


class ModelLoadError(ModelCacheError, RuntimeError):
    """A runtime does not load a model whose bytes are what they should be. ``detail`` is what it says."""

    def __init__(self, *, ref: str, runtime: str, detail: str) -> None:
        super().__init__(ref=ref, runtime=runtime, detail=detail)
        self.summary = f"{runtime} does not load {ref}: {detail}"
        self.hint = "Check compute units, function and hints against what this system knows; the cached model is whole"


class PinnedError(ModelCacheError, PermissionError):
    """A pinned entry is not removed."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"{ref} is pinned and was not removed"
        self.hint = "`modelcache rm --force` removes it with its pin"


class LeasedError(ModelCacheError, PermissionError):
    """An entry that a live process uses is not removed."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"{ref} is in use by a live process, and was not removed"
        self.hint = "`modelcache rm --force` forgets it; its content stays until the last lease is over"


class ClosedError(ModelCacheError, RuntimeError):
    """The cache object was closed."""

    def __init__(self, *, root: str) -> None:
        super().__init__(root=root)
        self.summary = f"this Cache (root {root}) is closed"
        self.hint = "Make a new one, or use it inside its `with` block"


class CancelledError(ModelCacheError):
    """The caller gave up. What had arrived is kept and resumed next time."""

    def __init__(self, *, ref: str) -> None:
        super().__init__(ref=ref)
        self.summary = f"the work on {ref} was cancelled"
        self.hint = "Ask again: a fetch is resumed, a build begins anew"


class StorageError(ModelCacheError, OSError):
    """The file system under the root failed a call."""

    def __init__(self, *, path: str, action: str, reason: str, number: int | None = None) -> None:
        super().__init__(path=path, action=action, reason=reason, number=number)
        self.errno = number
        self.summary = f"could not {action} {path}: {reason}; nothing was promised and nothing is half-written"
        self.hint = "`modelcache doctor` examines the file system"


class NoLocksError(StorageError):
    """Locks keep no other process out here, so that nobody can tell what others use."""

    def __init__(self, *, path: str, reason: str) -> None:
        ModelCacheError.__init__(self, path=path, reason=reason)
        self.summary = f"gc does not run at {path}: {reason}; nothing was removed"
        self.hint = "`modelcache doctor` examines the file system; `modelcache rm` removes single models"


class RootError(StorageError):
    """The root directory cannot be used."""

    def __init__(self, *, path: str, reason: str, hint: str) -> None:
        ModelCacheError.__init__(self, path=path, reason=reason, hint=hint)
        self.summary = f"the cache root {path} cannot be used: {reason}"


class LinkError(StorageError):
    """A symbolic link lies where the cache has a file or a directory of its own; nothing goes through it."""

    def __init__(self, *, path: str) -> None:
        ModelCacheError.__init__(self, path=path)
        self.errno = _errno.ELOOP
        self.summary = (
            f"{path} is a symbolic link, which modelcache never makes; nothing was read or written through it"
        )
        self.hint = "Find out who made it (`ls -l`), remove it, and run `modelcache doctor` and `modelcache verify`"


class GroupError(StorageError):
    """Files of the cache belong to a group, and this user cannot give any to it."""

    def __init__(self, *, path: str, group: str, user: int) -> None:
        ModelCacheError.__init__(self, path=path, group=group, user=user)
        self.errno = _errno.EPERM
        self.summary = f"the cache {path} is shared by group {group}, and user {user} is not in it; nothing was made"
        self.hint = "Have yourself added to the group and log in again; cached models are served if you may read them"


class FormatError(StorageError):
    """The root was written by a newer modelcache."""

    def __init__(self, *, path: str, found: str, known: int) -> None:
        ModelCacheError.__init__(self, path=path, found=found, known=known)
        self.summary = (
            f"the cache root {path} has layout {found}, this modelcache knows up to {known}; nothing was touched"
        )
        self.hint = "Upgrade modelcache, or use another root: MODELCACHE_DIR=..."


class BackendError(ModelCacheError):
    """A backend of the archive failed. ``backend`` is its name, ``detail`` what went wrong."""

    exit_code = 14
    transient = True
    hint = "What waits in a queue is tried again; `Archivist.health()` tells how each backend is"

    def __init__(self, *, backend: str, detail: str) -> None:
        super().__init__(backend=backend, detail=detail)
        self.backend, self.detail = backend, detail
        self.summary = f"the backend {_shown(backend)} failed: {detail}"


class BackendDownError(BackendError):
    """The backend failed before, and is left alone until it is tried again, in ``seconds``."""

    transient = False
    hint = "The other backends go on; this one is tried again by itself"

    def __init__(self, *, backend: str, detail: str, seconds: float) -> None:
        ModelCacheError.__init__(self, backend=backend, detail=detail, seconds=seconds)
        self.backend, self.detail = backend, detail
        again = f"is tried again in {seconds:.1f} s" if seconds else "is tried again when it has answered"
        self.summary = f"the backend {_shown(backend)} is down, was not asked, and {again}; its last failure: {detail}"


class BackendSetupError(BackendError):
    """The backend cannot be used as it is configured; nothing was written."""

    transient = False

    def __init__(self, *, backend: str, detail: str, hint: str = "") -> None:
        ModelCacheError.__init__(self, backend=backend, detail=detail, hint=hint)
        self.backend, self.detail = backend, detail
        self.summary = f"the backend {_shown(backend)} cannot be used: {detail}; nothing was written"
        self.hint = hint or "Correct its address or its options; docs/archive.md lists them"


class BackendAccessError(BackendError, PermissionError):
    """The backend refuses these credentials, or has none."""

    exit_code = 5
    transient = False
    hint = "Check the credentials: for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do"


class NoConditionalWritesError(BackendError):
    """The backend overwrites what it was asked to create only if it is not there."""

    transient = False
    hint = "Replicas and events work here; claims do not: use a server with conditional writes (If-None-Match)"


class QueueFullError(BackendError):
    """The queue of a backend has no room, and its policy drops nothing; this write was not accepted there.

    ``capacity`` is how many writes fit.
    """

    transient = False
    hint = "Write again later, raise Queued(capacity=...), or choose a policy that drops"

    def __init__(self, *, backend: str, capacity: int, detail: str) -> None:
        ModelCacheError.__init__(self, backend=backend, capacity=capacity, detail=detail)
        self.backend, self.detail = backend, detail
        self.summary = f"the queue of {_shown(backend)} is full ({capacity} writes): {detail}"


class DamagedReplicaError(BackendError, ValueError):
    """What a backend holds for a digest is not that content; nothing of it was kept."""

    exit_code = 7
    transient = False
    hint = "The other backends are asked; delete the replica there, and put the object once more"

    def __init__(self, *, backend: str, name: str, detail: str) -> None:
        ModelCacheError.__init__(self, backend=backend, name=name, detail=detail)
        self.backend, self.detail = backend, detail
        self.summary = f"{name} in the backend {_shown(backend)} is damaged: {detail}; nothing of it was kept"


class NotInArchiveError(ModelCacheError, FileNotFoundError):
    """No backend that answers has it. ``errors`` holds one error for each that was asked and failed."""

    exit_code = 4

    def __init__(self, *, what: str, asked: tuple[str, ...], errors: tuple[ModelCacheError, ...] = ()) -> None:
        super().__init__(what=what, asked=asked, errors=errors)
        failed = f"; {'; '.join(error.summary for error in errors)}" if errors else ""
        self.summary = f"{what} is in none of the backends ({', '.join(asked) or 'there are none'}){failed}"
        self.hint = "`Archivist.health()` tells which backends are down"


class ArchiveClosedError(ModelCacheError, RuntimeError):
    """The archivist was shut down; this write was not accepted."""

    def __init__(self, *, what: str) -> None:
        super().__init__(what=what)
        self.summary = f"this Archivist was shut down: {what} was not accepted"
        self.hint = "Make a new one, or write before shutdown()"


def storage_error(error: OSError, *, action: str, path: str) -> ModelCacheError:
    """Return the typed error for a failed system call, so that no bare OSError leaves the stores."""
    if isinstance(error, ModelCacheError):
        return error
    where = str(error.filename or path)
    if error.errno in {_errno.ENOSPC, _errno.EDQUOT}:
        return NoSpaceError(what=where, needed=None, free=None)
    if error.errno == _errno.ELOOP:
        return LinkError(path=where)
    return StorageError(path=where, action=action, reason=error.strerror or str(error), number=error.errno)


def _shown(text: object) -> str:
    """Return *text* as it may be printed: escaped, and cut where it is very long."""
    shown = repr(text)
    return shown if len(shown) <= 200 else f"{shown[:120]}… ({len(shown)} characters)"
