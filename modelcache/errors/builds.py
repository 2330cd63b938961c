"""What was to be derived, and could not be. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

from .base import ModelCacheError


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


class ModelLoadError(ModelCacheError, RuntimeError):
    """A runtime does not load a model whose bytes are what they should be. ``detail`` is what it says."""

    def __init__(self, *, ref: str, runtime: str, detail: str) -> None:
        super().__init__(ref=ref, runtime=runtime, detail=detail)
        self.summary = f"{runtime} does not load {ref}: {detail}"
        self.hint = "Check compute units, function and hints against what this system knows; the cached model is whole"
