"""What came, and is not what was asked for, or not what is let in. The whole tree is drawn in `modelcache.errors`."""

from __future__ import annotations

from .base import ModelCacheError, shown

_IN_BETWEEN = "A proxy or a content network in between alters or confuses files; try again later, or a mirror"


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
        self.summary = f"{ref} keeps data in {shown(location)}, which {problem}; nothing was built"
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
        self.summary = f"{ref} is not whole: {path} needs {shown(needed)}, which is not in it; nothing was stored"
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
        which = f"its member {shown(member)}" if member else "the archive"
        self.summary = f"{ref} cannot be unpacked because of {which}: {problem}; nothing was stored"
        self.hint = "Tell the publisher; get() serves the archive itself, as it is"


class ArchiveLimitError(ArchiveError):
    """An archive unpacks to more than is ``allowed`` by ``limit``, a field of `ArchiveLimits`."""

    def __init__(self, *, ref: str, member: str, limit: str, allowed: float, problem: str = "") -> None:
        ModelCacheError.__init__(self, ref=ref, member=member, limit=limit, allowed=allowed, problem=problem)
        self.summary = f"{ref} unpacks to more than {limit}={allowed:g} allows (at {shown(member)}); nothing was stored"
        self.hint = f"If you trust it, raise the limit: Cache(archive_limits=ArchiveLimits({limit}=...))"


class PackageError(IntegrityError):
    """No Core ML package, or one that is not whole. ``path``, in it, is to blame; "" if it is the package itself."""

    def __init__(self, *, ref: str, path: str, problem: str) -> None:
        super().__init__(ref=ref, path=path, problem=problem)
        which = f"{shown(path)} in it: " if path else ""
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
