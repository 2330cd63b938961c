"""What an archive, or a backend of it, could not do. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

from .base import ModelCacheError, shown

_SECRETS = (
    (r"(?<=[A-Za-z0-9]:)(/{1,2})[^\s/?#@]+@", r"\1"),  # scheme://user:password@
    (r"(?i)([\w.-]*(?:signature|\bsig|token|secret|passw|pwd|credential|access_?key)[\w.-]*=)[^&;\s\"']+", r"\1…"),
)


def without_credentials(text: str) -> str:
    """Return *text*, of whatever library, without what looks like a password or a signature."""
    import re  # Not on the path of a hit, which imports all errors.

    for pattern, shown_as in _SECRETS:
        text = re.sub(pattern, shown_as, text)
    return text


class BackendError(ModelCacheError):
    """A backend of the archive failed. ``backend`` is its name, ``detail`` what went wrong."""

    exit_code = 14
    transient = True
    hint = "What waits in a queue is tried again; `Archivist.health()` tells how each backend is"

    def __init__(self, *, backend: str, detail: str) -> None:
        super().__init__(backend=backend, detail=detail)
        self.backend, self.detail = backend, without_credentials(detail)
        self.summary = f"the backend {shown(backend)} failed: {self.detail}"


class BackendDownError(BackendError):
    """The backend failed before, and is left alone until it is tried again, in ``seconds``."""

    transient = False
    hint = "The other backends go on; this one is tried again by itself"

    def __init__(self, *, backend: str, detail: str, seconds: float) -> None:
        ModelCacheError.__init__(self, backend=backend, detail=detail, seconds=seconds)
        self.backend, self.detail = backend, without_credentials(detail)
        again = f"is tried again in {seconds:.1f} s" if seconds else "is tried again when it has answered"
        self.summary = (
            f"the backend {shown(backend)} is down, was not asked, and {again}; its last failure: {self.detail}"
        )


class BackendSetupError(BackendError):
    """The backend cannot be used as it is configured; nothing was written."""

    transient = False

    def __init__(self, *, backend: str, detail: str, hint: str = "") -> None:
        ModelCacheError.__init__(self, backend=backend, detail=detail, hint=hint)
        self.backend, self.detail = backend, without_credentials(detail)
        self.summary = f"the backend {shown(backend)} cannot be used: {self.detail}; nothing was written"
        self.hint = hint or "Correct its address or its options; docs/archive.md lists them"


class BackendAccessError(BackendError, PermissionError):
    """The backend refuses these credentials, or has none."""

    exit_code = 5
    transient = False
    hint = (
        "Check the credentials: for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do "
        "(without s3:ListBucket S3 answers 403 for what is not there)"
    )


class RejectedError(BackendError):
    """The backend refuses one write for what it is, and would whenever it came again; it is well, and was not changed.

    A backend raises it; the archive leaves that one event, or object, out, and goes on with the others.
    """

    transient = False
    hint = "`Archivist.dropped()` names it; write it in a form that the backend takes"

    def __init__(self, *, backend: str, detail: str) -> None:
        super().__init__(backend=backend, detail=detail)
        self.summary = f"the backend {shown(backend)} refuses this write: {self.detail}; it was left out"


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
        self.backend, self.detail = backend, without_credentials(detail)
        self.summary = f"the queue of {shown(backend)} is full ({capacity} writes): {self.detail}"


class DamagedReplicaError(BackendError, ValueError):
    """What a backend holds for a digest is not that content; nothing of it was kept."""

    exit_code = 7
    transient = False
    hint = "The other backends are asked; delete the replica there, and put the object once more"

    def __init__(self, *, backend: str, name: str, detail: str) -> None:
        ModelCacheError.__init__(self, backend=backend, name=name, detail=detail)
        self.backend, self.detail = backend, without_credentials(detail)
        self.summary = f"{name} in the backend {shown(backend)} is damaged: {self.detail}; nothing of it was kept"


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
