"""One tree of errors, each with its facts, its exit code, and what to do now."""

from __future__ import annotations

import errno
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from modelcache import errors
from modelcache.errors import ModelCacheError

REF = "https://example.org/m.onnx"
_DERIVED = f"derived:onnx-optimize/{'0' * 64}"
_INNER = errors.StalledError(ref=REF, detail="it stalled")
EXAMPLES: list[ModelCacheError] = [
    errors.UsageError(problem="jobs=0 makes no sense"),
    errors.UsageError(problem="no such option", hint="see --help"),
    errors.InvalidReferenceError(ref="..", problem="'..' cannot be a file name"),
    errors.InvalidReferenceError(ref="..", problem="'..' cannot be a file name", hint="name it otherwise"),
    errors.InvalidDigestError(text="md5:1"),
    errors.UnknownSchemeError(ref="ftp://x/y", scheme="ftp", known=("file", "https")),
    errors.NotListableError(ref=REF, problem="its source lists nothing"),
    errors.UnsupportedArchiveError(ref=REF, problem="it is one compressed file"),
    errors.UnsupportedArchiveError(ref=REF, problem="no zstd", hint="Install it"),
    errors.ArchiveError(ref=REF, member="../evil", problem="its name is absolute"),
    errors.ArchiveError(ref=REF, member="", problem="it ends too early"),
    errors.ArchiveLimitError(ref=REF, member="bomb", limit="bytes_max", allowed=10),
    errors.PackageError(ref="Net.mlpackage", path="Manifest.json", problem="it is not there"),
    errors.PackageError(ref="nets", path="", problem="there is no package in it"),
    errors.BundleError(path="/b.tar", problem="it is cut"),
    errors.BundleError(path="/b.tar", problem="it is cut", hint="Copy it again"),
    errors.MissingContentsError(path="/b.tar", missing=("sha256:1", "sha256:2", "sha256:3", "sha256:4")),
    errors.NotInBundleError(ref=REF, path="/b.tar"),
    errors.ConfigurationError(setting="MODELCACHE_DEADLINE", value="soon", expected="seconds above 0"),
    errors.ManifestError(file="models.toml", problem="is missing", line=3, key="ref"),
    errors.ManifestError(file="models.toml", problem="No such file or directory"),
    errors.ConfigFileError(file="/home/u/modelcache.toml", line=3, key="capcity", problem="unknown key"),
    errors.ConfigFileError(file="/home/u/modelcache.toml", problem="not UTF-8"),
    errors.CacheConfigError(file="/srv/cache/config.toml", line=2, key="access", problem="unknown"),
    errors.PolicyError(ref=REF, rule="hosts", origin="/srv/modelcache.toml:3", problem="it leads to evil.example"),
    errors.SignatureError(ref=REF, origin="the argument policy", problem="there is no signature"),
    errors.MissingLibraryError(library="model-signing", extra="signing", purpose="verify", reason="No module"),
    errors.ModelLoadError(ref=REF, runtime="Core ML", detail="no such function"),
    errors.DerivationError(ref=_DERIVED, model=REF, detail="it failed"),
    errors.BuildFailedError(ref=_DERIVED, model=REF, error="ValueError", reason="no such operator"),
    errors.BuildDiedError(ref=_DERIVED, model=REF, how="SIGSEGV", said="core dumped", moved_to="/cache/quarantine/x"),
    errors.BuildDiedError(ref=_DERIVED, model=REF, how="exit code 3"),
    errors.BuildTimeoutError(ref=_DERIVED, model=REF, seconds=30.0),
    errors.ProductError(ref=_DERIVED, model=REF, detail="the build wrote nothing"),
    errors.ProductRefusedError(ref=_DERIVED, model=REF, detail="it answers something else"),
    errors.NotReproducibleError(ref=_DERIVED, model=REF, before="tree:1", now="tree:2", differs="model.onnx"),
    errors.RepeatedFailureError(ref=_DERIVED, model=REF, count=3, retry_after=600.0, last="its process died"),
    errors.ModelRefusedError(ref=_DERIVED, model=REF, providers=("CPUExecutionProvider",), reason="no such operator"),
    errors.ProviderNotInstalledError(provider="CUDAExecutionProvider", installed=("CPUExecutionProvider",)),
    errors.ExternalDataError(ref=REF, location="../weights", problem="is missing"),
    errors.ModelTooLargeError(ref=REF, size=1 << 32, limit=(1 << 31) - 1),
    errors.NoInterpreterError(ref=_DERIVED, model=REF, reason="this is a frozen program"),
    errors.UnsupportedPlatformError(what="compiling for CoreML", needs="macOS", here="Linux"),
    errors.BatchError(failures={REF: _INNER}, total=3),
    errors.ClusterError(address="tcp://h:8786", detail="it cannot"),
    errors.NoSchedulerError(address="tcp://h:8786", detail="connection refused"),
    errors.NotASchedulerError(address="tcp://h:8786", detail="it is a worker"),
    errors.ClusterTLSError(address="tls://h:8786", detail="it speaks no TLS"),
    errors.NoWorkersError(address="tcp://h:8786", detail="it has no workers"),
    errors.SchedulerLostError(address="tcp://h:8786", detail="connection refused"),
    errors.HostError(host="10.0.0.7", detail="it is off"),
    errors.HostSetupError(host="10.0.0.7", detail="No module named 'modelcache'"),
    errors.HostLostError(host="10.0.0.7", detail="its worker died 5 times"),
    errors.HostTimeoutError(host="10.0.0.7", detail="not done after 60 s"),
    errors.HostFailedError(host="10.0.0.7", error="NoSpaceError", detail="the disk is full", code=8),
    errors.HostFailedError(
        host="10.0.0.7", error="NoSpaceError", detail="the disk is full", advice="Make room", code=8
    ),
    errors.HostsError(failures={"10.0.0.7": _INNER}, total=3),
    errors.RemoteNotFoundError(ref=REF, detail="404 Not Found"),
    errors.RemoteNotFoundError(ref="hf://org/name/m.onnx", detail="404 EntryNotFound"),
    errors.RepositoryNotFoundError(ref="hf://org/name/m", repository="org/name", detail="401", with_token=False),
    errors.RepositoryNotFoundError(ref="hf://org/name/m", repository="org/name", detail="404", with_token=True),
    errors.RevisionNotFoundError(ref="hf://org/name@v1/m", repository="org/name", revision="v1", detail="404"),
    errors.EntryNotFoundError(ref="resnet", root="/cache"),
    errors.NoSourceError(ref="resnet"),
    errors.AccessDeniedError(ref=REF, detail="403 Forbidden"),
    errors.AccessDeniedError(ref=REF, detail="403 Forbidden", hint="Give a token"),
    errors.GatedRepositoryError(
        ref="hf://org/name/m", repository="org/name", page="https://hub/org/name", detail="401", with_token=False
    ),
    errors.NetworkError(ref=REF, detail="it failed"),
    errors.UnreachableError(ref=REF, detail="connection refused"),
    errors.UnreachableError(ref=REF, detail="certificate verify failed", transient=False),
    errors.InterruptedTransferError(ref=REF, detail="reset"),
    errors.StalledError(ref=REF, detail="it stalled"),
    errors.DeadlineError(ref=REF, detail="not done within 3 s"),
    errors.HttpStatusError(ref=REF, status=503, reason="Service Unavailable", retry_after=7.5),
    errors.HttpStatusError(ref=REF, status=418),
    errors.RedirectError(ref=REF, detail="a loop"),
    errors.ProtocolError(ref=REF, detail="two lengths"),
    errors.MirrorsExhaustedError(ref=REF, errors=(_INNER, errors.RemoteNotFoundError(ref=REF, detail="410"))),
    errors.DigestMismatchError(ref=REF, expected="sha256:1", actual="sha256:2"),
    errors.DigestMismatchError(ref=REF, expected="sha256:1", actual="sha256:2", announced=True),
    errors.SizeMismatchError(ref=REF, expected=1, actual=2, announced=True),
    errors.MissingCompanionError(ref="hf://org/name#tree", path="model.onnx", needed="model.onnx.data"),
    errors.NothingMatchesError(ref="hf://org/name#tree", files=3),
    errors.ListingError(ref="hf://org/name", problem="'..' is no path that is safe everywhere"),
    errors.SizeMismatchError(ref=REF, expected=1, actual=2),
    errors.EmptyContentError(ref=REF),
    errors.CorruptObjectError(ref=REF, expected="sha256:1", actual="sha256:2", moved_to="/cache/quarantine/1.2"),
    errors.CorruptObjectError(ref=REF, expected="sha256:1", actual="sha256:2", moved_to=""),
    errors.NoSpaceError(what=REF, needed=10, free=2),
    errors.NoSpaceError(what=REF, needed=None, free=None),
    errors.CapacityError(what=REF, needed=10, capacity=12, used=8, kept={"pinned": 3, "leased": 0}),
    errors.NoLocksError(path="/cache", reason="two processes got one lock"),
    errors.GroupError(path="/cache", group="ml", user=1000),
    errors.LinkError(path="/cache/staging"),
    errors.LockTimeoutError(what=REF, holder="process 7", seconds=600.0),
    errors.LocalNotFoundError(ref=REF, root="/cache", reason="the cache is offline"),
    errors.LockDriftError(file="models.lock", differences=("a is new", "b is gone")),
    errors.PinnedError(ref=REF),
    errors.LeasedError(ref=REF),
    errors.ClosedError(root="/cache"),
    errors.CancelledError(ref=REF),
    errors.BackendError(backend="bucket", detail="connection reset"),
    errors.BackendDownError(backend="bucket", detail="connection reset", seconds=2.5),
    errors.BackendDownError(backend="bucket", detail="a call has not returned for 30 s", seconds=0.0),
    errors.BackendSetupError(backend="s3://models", detail="there is no such bucket"),
    errors.BackendSetupError(backend="s3://models", detail="no address", hint="Give one"),
    errors.BackendAccessError(backend="s3://models", detail="403 Forbidden"),
    errors.NoConditionalWritesError(backend="s3://models", detail="it has overwritten an object of ours"),
    errors.QueueFullError(backend="bucket", capacity=10, detail="no room came in time"),
    errors.RejectedError(backend="bucket", detail="the key is too long"),
    errors.DamagedReplicaError(backend="bucket", name="blobs/sha256/1", detail="it ends at byte 7 of 9"),
    errors.NotInArchiveError(what="sha256:1", asked=("bucket",), errors=(_INNER,)),
    errors.NotInArchiveError(what="sha256:1", asked=()),
    errors.ArchiveClosedError(what="an event"),
    errors.StorageError(path="/cache", action="publish", reason="Input/output error", number=errno.EIO),
    errors.RootError(path="/cache", reason="it is a file", hint="Set MODELCACHE_DIR"),
    errors.FormatError(path="/cache", found="9", known=1),
]
# Only their leaves are ever raised.
ABSTRACT = {errors.ModelCacheError, errors.NotFoundError, errors.IntegrityError}
each_example = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


def classes(root: type[ModelCacheError] = ModelCacheError) -> Iterator[type[ModelCacheError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith(errors.__name__):
            yield from classes(child)


def drawn() -> dict[str, tuple[str, set[str], int | None]]:
    """Return the tree in the docstring: parent, builtin bases and exit code (None: the parent's) by class."""
    found: dict[str, tuple[str, set[str], int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ├└─]*)(\w+Error)(?: \(([\w, ]+)\))?(?:\s+(?:exit code )?(\d+))?(?:\s|$)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        path = [*path[:depth], match[2]]
        bases = {base.strip() for base in (match[3] or "").split(",")} - {"", "ENOSPC"}
        found[match[2]] = (path[-2] if depth else "", bases, int(match[4]) if match[4] else None)
    return found


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    real = {
        kind.__name__: next((base.__name__ for base in kind.__bases__ if issubclass(base, ModelCacheError)), "")
        for kind in classes()
    }

    assert {name: parent for name, (parent, _, _) in drawn().items()} == real


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
def test_a_class_has_the_builtin_and_the_exit_code_that_are_drawn(kind: type[ModelCacheError]) -> None:
    _, bases, code = drawn()[kind.__name__]
    own = {base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"} - {"Exception"}

    assert own == bases
    if code is not None:
        assert kind.exit_code == code
    else:
        assert kind.exit_code == kind.__mro__[1].exit_code  # type: ignore[attr-defined]


def test_every_class_has_an_example_here() -> None:
    assert {type(error) for error in EXAMPLES} == set(classes()) - ABSTRACT


@each_example
def test_an_error_survives_pickling_with_all_its_facts(error: ModelCacheError) -> None:
    copy = pickle.loads(pickle.dumps(error))

    def state(one: ModelCacheError) -> dict[str, object]:
        return {name: repr(value) for name, value in vars(one).items()}

    assert type(copy) is type(error)
    assert (str(copy), copy.exit_code, copy.transient) == (str(error), error.exit_code, error.transient)
    assert state(copy) == state(error)
    assert getattr(copy, "errno", None) == getattr(error, "errno", None)


@each_example
def test_an_error_says_what_happened_and_what_to_do_now(error: ModelCacheError) -> None:
    assert error.summary
    assert error.hint
    assert str(error) == f"{error.summary}. {error.hint}"
    assert "please" not in str(error).lower()


@each_example
def test_the_facts_of_an_error_are_its_fields(error: ModelCacheError) -> None:
    for name, value in error.facts.items():
        assert getattr(error, name) == value or name == "hint"


@each_example
def test_the_text_of_an_error_names_its_facts(error: ModelCacheError) -> None:
    for name in error.facts.keys() & {"ref", "file", "setting", "path", "root", "detail", "status", "key", "line"}:
        assert error.facts[name] is None or str(error.facts[name]) in str(error)


def test_a_full_disk_has_the_errno_of_one() -> None:
    full = errors.storage_error(OSError(errno.EDQUOT, "Disk quota exceeded", "/cache/x"), action="write", path="/cache")

    assert isinstance(full, errors.NoSpaceError)
    assert full.errno == errno.ENOSPC
    assert "/cache/x" in str(full)


def test_a_failed_call_keeps_its_errno_and_its_path() -> None:
    failed = errors.storage_error(OSError(errno.EIO, "Input/output error"), action="sync", path="/cache/y")

    assert isinstance(failed, errors.StorageError)
    assert failed.errno == errno.EIO
    assert "could not sync /cache/y: Input/output error" in str(failed)


@pytest.mark.parametrize(("status", "transient"), [(429, True), (503, True), (408, True), (418, False), (501, False)])
def test_only_a_status_that_may_pass_is_transient(status: int, transient: bool) -> None:
    assert errors.HttpStatusError(ref=REF, status=status).transient is transient


def test_mirrors_that_fail_alike_have_the_exit_code_of_their_failure() -> None:
    missing = errors.RemoteNotFoundError(ref=REF, detail="404")

    assert errors.MirrorsExhaustedError(ref=REF, errors=(missing, missing)).exit_code == 4
    assert errors.MirrorsExhaustedError(ref=REF, errors=(missing, _INNER)).exit_code == 6


def test_hostile_text_in_a_ref_is_shown_escaped_and_cut() -> None:
    error = errors.InvalidReferenceError(ref="\x1b[2J\ud800" + "x" * 10_000, problem="no")

    assert str(error).isprintable()
    assert len(str(error)) < 500


def test_an_error_that_is_typed_already_never_becomes_its_own_cause() -> None:
    typed = errors.StorageError(path="x", action="read", reason="why", number=errno.EIO)

    def store() -> None:
        try:
            raise typed
        except OSError as error:
            raise errors.storage_error(error, action="write", path="y") from error

    with pytest.raises(errors.StorageError) as caught:
        store()

    assert caught.value is typed
    assert typed.__cause__ is None


def test_an_error_of_a_root_is_pickled_by_those_who_follow_causes() -> None:
    """As dask does in each process that imports it."""
    script = """
import os, pickle, sys, tblib.pickling_support
from modelcache import errors, roots
tblib.pickling_support.install()
try:
    try:
        raise errors.GroupError(path="/x", group="0", user=1)
    except OSError as error:
        raise roots._root_error("/x", error) from error
except errors.GroupError as error:
    print(type(pickle.loads(pickle.dumps(error))).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "GroupError\n"
