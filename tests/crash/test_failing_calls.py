"""Every system call of the modules that touch the disk fails: once, from then on, or for one path alone.

The calls are counted in a first run; then each of them fails in turn, in each way. What comes of it is a typed error,
or success with all that success promises: a call that returns although a sync of its own failed has lied. Either way
nothing is corrupt, and what was there stays there. After it the disk is as good as new, and the same operation must
come to its end. A file whose sync failed is never synced again: the kernel may have dropped its pages, and would call
the next sync a success.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import os
import random
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelcache import (
    Cache,
    RetryPolicy,
    bundle,
    commit,
    deriving,
    errors,
    exporting,
    files,
    importing,
    leases,
    locks,
    packed,
    partials,
    process,
    products,
    roots,
    staged,
    trees,
    unpacking,
)
from modelcache.records import Entries
from modelcache.sweep import sweep
from modelcache.testing import Fault, FaultServer, check_cache
from modelcache.usage import store
from modelcache.usage.tally import Usage
from tests.crash.world import (
    OLD,
    USED,
    Act,
    Operation,
    World,
    broken_exports,
    broken_replicas,
    cold_get,
    collect,
    collect_derived,
    collect_for_room,
    derived,
    digest_of,
    export_file,
    export_folder,
    hit_by_digest,
    import_file,
    import_folder,
    judge,
    leased,
    pin_and_unpin,
    promote,
    put,
    put_again,
    put_archive,
    put_tree,
    refresh,
    remove,
    remove_one_of_two_names,
    remove_tree,
    replicate,
    resumed_get,
    second_name_of_a_tree,
    small_steps,
    through_buckets,
)
from tests.crash.world import Log as Listener
from tests.support.state import leftovers

MODULES = (
    commit, roots, partials, locks, files, staged, trees, bundle, exporting, importing, packed, unpacking, deriving,
    products, store,
)  # fmt: skip
CALLS = {
    "close", "fchmod", "fdatasync", "fstat", "fsync", "ftruncate", "link", "listdir", "lseek", "mkdir", "open", "pread",
    "pwrite", "read", "rename", "replace", "rmdir", "scandir", "stat", "unlink", "utime", "write",
}  # fmt: skip
OF_TWO_PATHS = {"link", "rename", "replace"}
_OUTSIDE = ("out", "replicas")  # Beside the root: what is exported to.
WAYS = ["ENOSPC", "EIO", "EMFILE", "EROFS", "EACCES", "EINTR", "short write"]
WAYS_OF_A_PATH = ["EIO", "EMFILE"]
# What is acknowledged through them was synced; no other way in leads to the disk.
PROMISING = ("get", "put", "put_tree", "remove", "pin", "unpin", "lease", "export", "import_", "derive")


def interrupted_get(world: World) -> Act:
    """It fails half-way, twice, and the third one finishes. A source that works by now interrupts nobody."""
    world.serve(OLD, Fault(abort_after=40_000), Fault(abort_after=30_000))

    def act(log: Listener) -> None:
        for _ in range(2):
            with Cache(world.root, retry=RetryPolicy(attempts=1)) as cache, contextlib.suppress(errors.NetworkError):
                cache.get(world.url)
        world.cache().get(world.url)
        log.expect(world.url, digest_of(OLD))

    return act


def use(world: World) -> Act:
    """As in `world`, but that what is folded is there already: a second try must not count it again."""
    world.put(OLD, "kept")
    for day, hits in (("2020-01-01", 2), ("2020-01-02", USED - 2)):
        store.write(str(world.root), f"{day}.{process.token()}", "host", {"kept": Usage(hits=hits)})

    def act(log: Listener) -> None:
        log.expect("kept", digest_of(OLD))
        with Cache(world.root, usage=True) as cache:
            cache.get("kept")
        store.fold_quietly(str(world.root))

    return act


def miscounted(root: Path) -> list[str]:
    """Return what is wrong with the usage on record: of what was on it nothing is lost, or there twice."""
    parts = store.read(str(root))
    old = sum(usage.hits for part in parts if part.day < "2021" for usage in part.tally.values())
    new = sum(usage.hits for part in parts if part.day > "2021" for usage in part.tally.values())
    return [] if not parts or (old == USED and new <= 2) else [f"corrupt: usage of {old} and {new} hits"]


OPERATIONS: list[Operation] = [
    cold_get, resumed_get, interrupted_get, refresh, put, put_again, hit_by_digest, remove, remove_one_of_two_names,
    pin_and_unpin, put_tree, second_name_of_a_tree, remove_tree, promote, leased, collect, collect_for_room,
    put_archive, import_folder, import_file, export_folder, export_file, derived, collect_derived, replicate, use,
    through_buckets,
]  # fmt: skip
# A tier that fails is tried again after a while, so that two hundred runs of it take half a minute.
OF_A_PATH = [operation for operation in OPERATIONS if operation is not through_buckets]


@dataclass(frozen=True)
class Case:
    """Which calls fail, and how: number *at*, all from there on (*lasting*), or all on the path number *at*."""

    at: int
    way: str
    lasting: bool = False
    by_path: bool = False

    def __str__(self) -> str:
        return f"{'path' if self.by_path else 'call'} {self.at}, {self.way}{', lasting' if self.lasting else ''}"


class Reading(io.FileIO):
    """An open file each read of which may fail."""

    def __init__(self, descriptor: int, look: Callable[[], object]) -> None:
        super().__init__(descriptor, "rb")
        self._look = look

    def readinto(self, buffer: Any) -> int | None:
        self._look()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._look()
        return super().readall()


class Failing:
    """Stands in for ``os``, and for ``open``: the calls that *case* says fail."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.count = 0
        self.paths: list[str] = []  # In the order in which they were first named.
        self.failed_syncs = 0
        self.wrong: list[str] = []
        self._opened: dict[int, str] = {}
        self._inodes: dict[int, tuple[int, int]] = {}
        # Kept open, so that no other file gets the number of a lost one's inode.
        self._lost: dict[tuple[int, int], int] = {}
        self._guard = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        return functools.partial(self._call, name, found) if name in CALLS else found

    def open_file(self, path: str, *arguments: Any, **options: Any) -> Any:
        """Do what the builtin ``open`` does."""
        return self._call("open", builtins.open, path, *arguments, **options)

    def fdopen(self, descriptor: int, mode: str, *arguments: Any, **options: Any) -> Any:
        """Do what ``os.fdopen`` does; what reads through a buffer makes its calls in C, so they are made here."""
        path = self._opened.pop(descriptor, "")  # The file closes it.
        if mode != "rb":
            return os.fdopen(descriptor, mode, *arguments, **options)
        return io.BufferedReader(Reading(descriptor, lambda: self._come("read", path)))

    @property
    def left_open(self) -> list[str]:
        """What was opened and never closed, by whomever."""
        return [path for descriptor, path in self._opened.items() if _inode(descriptor) == self._inodes[descriptor]]

    def _call(self, name: str, found: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        paths = [self._path(argument) for argument in arguments[: 2 if name in OF_TWO_PATHS else 1]]
        if options.get("dir_fd") is not None:  # Else one name in every directory would be one path.
            directory = os.readlink(f"/proc/self/fd/{options['dir_fd']}")
            paths = [f"{directory}/{path}" for path in paths]
        try:
            fails = self._come(name, *paths, descriptor=arguments[0])
        except OSError:
            if name == "close":  # It is closed, whatever it says: close(2).
                self._opened.pop(arguments[0], None)
                os.close(arguments[0])
            raise
        if name == "write" and fails:
            return os.write(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])
        if name == "close":
            self._opened.pop(arguments[0], None)
        result = found(*arguments, **options)
        if name == "open" and isinstance(result, int):
            self._opened[result], self._inodes[result] = paths[0], _inode(result)
        return result

    def _path(self, argument: Any) -> str:
        return self._opened.get(argument, "") if isinstance(argument, int) else os.fspath(argument)

    def _come(self, name: str, *paths: str, descriptor: Any = None) -> bool:
        """Count a call; raise if it fails, and return True if it is a write that is to stop short."""
        with self._guard:
            number, self.count = self.count, self.count + 1
            self.paths += [path for path in paths if path not in self.paths]
            # Python itself reads again after a signal: nobody above it ever sees that.
            fails = self._fails(number, paths) and (name, self.case.way) != ("read", "EINTR")
        if name in {"fsync", "fdatasync"}:
            self._look(descriptor, fails=fails)
        if fails and self.case.way != "short write":
            code = getattr(errno, self.case.way)
            raise OSError(code, os.strerror(code), paths[0])
        return fails

    def _fails(self, number: int, paths: tuple[str, ...]) -> bool:
        case = self.case
        if case.by_path:
            return any(self.paths.index(path) == case.at for path in paths)
        return number >= case.at if case.lasting else number == case.at

    def _look(self, descriptor: int, *, fails: bool) -> None:
        fails = fails and self.case.way != "short write"
        # fsync(2) knows no EACCES: who is not allowed to sync a directory was not allowed to open it.
        # What a carrier's sync refuses, it brings again in a new file before anybody is told that it is there.
        is_carrier = threading.current_thread().name.startswith("modelcache-archive-objects")
        self.failed_syncs += fails and self.case.way != "EACCES" and not is_carrier
        inode = _inode(descriptor)
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            if inode in self._lost:
                self.wrong.append(f"a file was synced again after its sync had failed: {inode}")
            elif fails:
                self._lost[inode] = os.dup(descriptor)

    def close_lost(self) -> None:
        for descriptor in self._lost.values():
            os.close(descriptor)


def _inode(descriptor: int) -> tuple[int, int]:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


class Log:
    """What an operation says: what each key may stand for from now on."""

    def __init__(self) -> None:
        self.said: dict[str, frozenset[str | None]] = {}

    def expect(self, key: str, *allowed: str | None) -> None:
        self.said[key] = frozenset(allowed)


def honest(shim: Failing, promise: Callable[..., Any]) -> Callable[..., Any]:
    """Return *promise*, a method of Cache, which complains if it returns although a sync that it made has failed."""

    @functools.wraps(promise)
    def call(*arguments: Any, **options: Any) -> Any:
        before = shim.failed_syncs
        result = promise(*arguments, **options)
        if shim.failed_syncs > before:
            shim.wrong.append(f"{promise.__name__} returned as if all were well, and a sync that it made had failed")
        return result

    return call


@contextmanager
def failing(case: Case) -> Iterator[Failing]:
    shim = Failing(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commit, "_settled", set())  # Else what an earlier case has synced would be synced no more.
        for module in MODULES:
            patch.setattr(module, "os", shim)
            patch.setattr(module, "open", shim.open_file, raising=False)
        for name in PROMISING:
            patch.setattr(Cache, name, honest(shim, getattr(Cache, name)))
        yield shim
    shim.close_lost()


def said_of(error: BaseException) -> str:
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)))
    return f"{error!r} in {where}"


def attempt(act: Act, log: Log, case: Case) -> list[str]:
    """Do it; return what is wrong with how it failed, if it did."""
    try:
        act(log)
    except errors.ModelCacheError as error:
        return (
            [f"a write that stops short is to be gone on with: {said_of(error)}"] if case.way == "short write" else []
        )
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # What must not be.
        return [f"not a typed error: {said_of(error)}"]
    return []


def next_try(act: Act, world: World) -> list[str]:
    """Do it again where nothing fails any more: it must come to its end, and what was asked be there."""
    log = Log()
    try:
        act(log)
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # Whatever it is, it is a finding.
        return [f"the next try: {said_of(error)}"]
    found = broken(world.root, log) + broken_exports(world, world.root, log.said)
    found += broken_replicas(world, world.root, log.said)
    return [f"the next try: {what}" for what in found]


def broken(root: Path, log: Log) -> list[str]:
    """Return what is not as it must be: I1 to I7, and what the operation has said, of every key."""
    said = {key: allowed for key, allowed in log.said.items() if not key.startswith(("export ", "replica ", "event"))}
    sure = {key: next(iter(allowed)) for key, allowed in said.items() if len(allowed) == 1}
    wrong = [str(violation) for violation in check_cache(root, sure) if violation.kind != "garbage"]
    for key, allowed in said.items():
        entry = Entries(str(root)).read(key)
        found = None if entry is None else entry.digest
        if found not in allowed:
            wrong.append(f"{key} stands for {found}, and may stand for {sorted(map(str, allowed))}")
    return wrong


class Stage:
    """The same beginning for each case: a root as the operation finds it, in time stamps too."""

    def __init__(self, operation: Operation, server: FaultServer, place: Path) -> None:
        self._operation, self._server, self._place = operation, server, place
        self.root = place / "cache"
        self._prepared = place / "prepared"
        operation(World(server, self.root))
        self._prepared.mkdir()
        for name in ("cache", *_OUTSIDE):
            if (place / name).exists():
                shutil.copytree(place / name, self._prepared / name, symlinks=True)

    def anew(self) -> tuple[World, Act]:
        elsewhere = self._place / "elsewhere"
        world = World(self._server, elsewhere)
        act = self._operation(world)  # For what it does to the server, and what it notes.
        shutil.rmtree(elsewhere, ignore_errors=True)
        for half in self._place.glob(".out*"):
            half.unlink()
        (self._place / "out.tar").unlink(missing_ok=True)
        for name in ("cache", *_OUTSIDE):
            shutil.rmtree(self._place / name, ignore_errors=True)
            if (self._prepared / name).exists():
                shutil.copytree(self._prepared / name, self._place / name, symlinks=True)
        world.root = self.root
        return world, act

    def measured(self) -> Failing:
        """Return what the operation does where nothing fails."""
        _, act = self.anew()
        with failing(Case(10**9, "EIO")) as shim:
            act(Log())
        assert shim.wrong == []
        return shim

    def run(self, case: Case) -> list[str]:
        """Return all that is wrong with what becomes of *case*."""
        world, act = self.anew()
        log = Log()
        with failing(case) as shim:
            wrong = attempt(act, log, case)
        leases._at_exit()  # The one file that a process keeps open until its end.
        wrong += shim.wrong
        wrong += [f"left open: {path}" for path in shim.left_open]
        wrong += broken(self.root, log) + broken_exports(world, self.root, log.said)
        wrong += broken_replicas(world, self.root, log.said) + miscounted(self.root)
        if case.way == "short write" and not wrong:
            wrong += judge(world, self.root, log.said)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "boot_id", lambda: "b00ted00")
            patch.setattr(commit, "_settled", set())
            wrong += next_try(act, world)
            wrong += miscounted(self.root)
            sweep(str(self.root))
            wrong += [f"garbage: {name}" for name in leftovers(self.root) if not name.startswith("partial-v1")]
            wrong += [str(violation) for violation in check_cache(self.root) if violation.kind != "garbage"]
        return [f"{case}: {what}" for what in wrong]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_call_that_fails_is_a_typed_error_and_nothing_is_corrupt(
    operation: Operation,
    server: FaultServer,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_steps(monkeypatch)
    stage = Stage(operation, server, tmp_path)
    total = stage.measured().count
    chance = random.Random(f"{operation.__name__} {pytestconfig.getoption('--crash-seed')}")
    cases = [Case(at, way, lasting) for at in range(total) for way in WAYS for lasting in (False, True)]
    large = pytestconfig.getoption("--crash-budget") == "large"
    tried = cases if large else chance.sample(cases, min(len(cases), 50))

    wrong = [what for case in tried for what in stage.run(case)]

    print(f"{operation.__name__}: {len(tried)} failures of {len(cases)}, {total} calls")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("operation", OF_A_PATH, ids=lambda operation: operation.__name__)
def test_a_path_that_fails_while_all_others_work_costs_nothing_that_is_elsewhere(
    operation: Operation, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector under one record, say: what it names is still named."""
    small_steps(monkeypatch)
    stage = Stage(operation, server, tmp_path)
    paths = stage.measured().paths

    wrong = [
        what for at in range(len(paths)) for way in WAYS_OF_A_PATH for what in stage.run(Case(at, way, by_path=True))
    ]

    print(f"{operation.__name__}: {len(paths)} paths, in {len(WAYS_OF_A_PATH)} ways")
    assert not wrong, "\n".join(wrong)


def test_a_refresh_whose_first_look_at_the_record_fails_asks_the_source_all_the_same(
    server: FaultServer, tmp_path: Path
) -> None:
    assert Stage(refresh, server, tmp_path).run(Case(0, "EMFILE")) == []


def test_a_file_that_cannot_be_examined_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"content")
    opened: list[int] = []

    class Blind:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def open(self, path: str, flags: int) -> int:
            opened.append(os.open(path, flags))
            return opened[-1]

        def fstat(self, _descriptor: int) -> os.stat_result:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files, "os", Blind())
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.open_regular(f"{tmp_path}/file")

    left = [descriptor for descriptor in opened if _inode(descriptor) != (0, 0)]
    for descriptor in left:
        os.close(descriptor)
    assert left == []
