"""Calls that make no sense, or end by the caller's own doing. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

from .base import ModelCacheError, shown


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
        self.summary = f"{shown(ref)} is not a usable ref: {problem}"
        self.hint = hint or "Give a URL (https://host/model.onnx), a path, or a name that was put"


class InvalidDigestError(UsageError):
    """A digest that is neither ``sha256:`` nor ``tree:`` and 64 hexadecimal digits."""

    def __init__(self, *, text: str) -> None:
        ModelCacheError.__init__(self, text=text)
        self.summary = f"{shown(text)} is not a digest"
        self.hint = "A digest is 'sha256:' (of a tree, 'tree:') and 64 hexadecimal digits; `sha256sum FILE` prints them"


class UnknownSchemeError(UsageError):
    """No source is registered for the scheme of a ref."""

    def __init__(self, *, ref: str, scheme: str, known: tuple[str, ...]) -> None:
        ModelCacheError.__init__(self, ref=ref, scheme=scheme, known=known)
        self.summary = f"no source serves {scheme}:// (asked for {shown(ref)})"
        self.hint = f"Known schemes: {', '.join(known)}. A package adds one by the entry point modelcache.sources"


class NotListableError(UsageError):
    """The source of a ref cannot say which files there are."""

    def __init__(self, *, ref: str, problem: str) -> None:
        ModelCacheError.__init__(self, ref=ref, problem=problem)
        self.summary = f"{shown(ref)} cannot be listed: {problem}"
        self.hint = (
            "Whole repositories can: hf://org/name, hf://org/name@revision; archives (.tar.gz, .zip) are unpacked"
        )


class UnsupportedArchiveError(UsageError):
    """What was to be unpacked is no archive by its name, or needs a library that is not installed."""

    def __init__(self, *, ref: str, problem: str, hint: str = "") -> None:
        ModelCacheError.__init__(self, ref=ref, problem=problem, hint=hint)
        self.summary = f"{shown(ref)} cannot be unpacked: {problem}; nothing was fetched"
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


class ProviderNotInstalledError(UsageError):
    """This onnxruntime was built without the provider. ``installed`` are those that it has."""

    def __init__(self, *, provider: str, installed: tuple[str, ...]) -> None:
        ModelCacheError.__init__(self, provider=provider, installed=installed)
        self.summary = f"onnxruntime has no provider {shown(provider)} here; nothing was built"
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


class MissingLibraryError(ModelCacheError, ImportError):
    """What was asked for needs a library that comes with an extra, which is not installed."""

    def __init__(self, *, library: str, extra: str, purpose: str, reason: str) -> None:
        super().__init__(library=library, extra=extra, purpose=purpose, reason=reason)
        self.summary = f"{library} is needed to {purpose}, and cannot be imported ({reason}); nothing was done"
        self.hint = f"pip install 'modelcache[{extra}]'"


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
