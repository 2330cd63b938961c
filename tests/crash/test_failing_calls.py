"""Every system call of the modules that touch the disk fails, once or from then on: a typed error, nothing corrupt.

The calls are counted in a first run; then each of them fails in turn, in each way. After it the disk is as good as new,
and the same operation must work. A file whose sync failed is never synced again: the kernel may have dropped its pages,
and would call the next sync a success.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelcache import commit, errors, files, locks, partials, process
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from modelcache.testing import FaultServer
from tests.crash.world import (
    Operation,
    World,
    cold_get,
    hit_by_digest,
    interrupted_get,
    judge,
    pin_and_unpin,
    put,
    put_again,
    refresh,
    remove,
    resumed_get,
    small_steps,
)
from tests.support.state import leftovers

MODULES = (commit, partials, locks, files)
CALLS = {
    "fchmod", "fdatasync", "fstat", "fsync", "ftruncate", "link", "listdir", "lseek", "mkdir", "open", "pread",
    "pwrite", "rename", "replace", "rmdir", "stat", "unlink", "utime", "write",
}  # fmt: skip
WAYS = ["ENOSPC", "EIO", "EMFILE", "EROFS", "EACCES", "EINTR", "short write"]
OPERATIONS: list[Operation] = [
    cold_get, resumed_get, interrupted_get, refresh, put, put_again, hit_by_digest, remove, pin_and_unpin,
]  # fmt: skip


class Failing:
    """Stands in for ``os``: the call number *at* fails in the given way, and all after it if *lasting*."""

    def __init__(self, at: int, way: str, *, lasting: bool) -> None:
        self.at, self.way, self.lasting = at, way, lasting
        self.count = 0
        self.wrong: list[str] = []
        # Kept open, so that no other file gets the number of a lost one's inode.
        self._lost: dict[tuple[int, int], int] = {}
        self._guard = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if name not in CALLS:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            with self._guard:
                number, self.count = self.count, self.count + 1
            if name in {"fsync", "fdatasync"}:
                self._look(arguments[0], fails=self._fails(number))
            if self._fails(number):
                if self.way != "short write":
                    code = getattr(errno, self.way)
                    raise OSError(code, os.strerror(code), str(arguments[0]))
                if name == "write":
                    return os.write(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])
            return found(*arguments, **options)

        return call

    def _fails(self, number: int) -> bool:
        return number >= self.at if self.lasting else number == self.at

    def _look(self, descriptor: int, *, fails: bool) -> None:
        found = os.fstat(descriptor)
        inode = found.st_dev, found.st_ino
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            if inode in self._lost:
                self.wrong.append(f"a file was synced again after its sync had failed: {inode}")
            elif fails and self.way != "short write":
                self._lost[inode] = os.dup(descriptor)

    def close_lost(self) -> None:
        for descriptor in self._lost.values():
            os.close(descriptor)


class Silent:
    """What an operation says is of no use here."""

    def expect(self, key: str, *allowed: str | None) -> None:
        """Expect nothing: whether it was done is looked at afterwards."""


@contextmanager
def failing(at: int, way: str, *, lasting: bool) -> Iterator[Failing]:
    shim = Failing(at, way, lasting=lasting)
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            patch.setattr(module, "os", shim)
        yield shim
    shim.close_lost()


def attempt(act: Callable[[Silent], None]) -> str:
    """Do it; return what is wrong with how it failed."""
    try:
        act(Silent())
    except errors.ModelCacheError:
        return ""
    except (AssertionError, pytest.fail.Exception):  # It expects an error of its own, and met another one, or none.
        return ""
    except BaseException as error:  # noqa: BLE001  # What must not be.
        where = " < ".join(
            f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__))
        )
        return f"not a typed error: {error!r} in {where}"
    return ""


def prepare_and_act(operation: Operation, world: World, log: Silent) -> None:
    operation(world)(log)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_call_that_fails_is_a_typed_error_and_nothing_is_corrupt(
    operation: Operation,
    server: FaultServer,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_steps(monkeypatch)
    root = tmp_path / "cache"
    prepared = tmp_path / "prepared"
    world = World(server, root)
    operation(world)
    prepared.mkdir()
    if root.exists():
        shutil.copytree(root, prepared / "cache", symlinks=True)

    def anew() -> tuple[World, Callable[[Silent], None]]:
        """Return the operation on a root as it was before, in time stamps too."""
        shutil.rmtree(root, ignore_errors=True)
        place = tmp_path / "elsewhere"
        fresh = World(server, place)
        act = operation(fresh)
        shutil.rmtree(place, ignore_errors=True)
        if (prepared / "cache").exists():
            shutil.copytree(prepared / "cache", root, symlinks=True)
        fresh.root = root
        return fresh, act

    _, act = anew()
    with failing(10**9, "EIO", lasting=False) as shim:
        attempt(act)
    total = shim.count
    large = pytestconfig.getoption("--crash-budget") == "large"
    chance = random.Random(f"{operation.__name__} {pytestconfig.getoption('--crash-seed')}")
    cases = [(at, way, lasting) for at in range(total) for way in WAYS for lasting in (False, True)]
    tried = cases if large else chance.sample(cases, min(len(cases), 50))
    wrong = []
    for at, way, lasting in tried:
        fresh, act = anew()
        with failing(at, way, lasting=lasting) as shim:
            complaint = attempt(act)
        found = [complaint] if complaint else []
        found += shim.wrong
        found += [str(v) for v in check_cache(root) if v.kind != "garbage"]
        if way == "short write" and not found:
            found += judge(fresh, root, {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "boot_id", lambda: "b00ted00")
            again = attempt(partial(prepare_and_act, operation, World(server, root)))
            sweep(str(root))
            found += [f"the next try: {again}"] if again else []
            found += [f"garbage: {name}" for name in leftovers(root) if not name.startswith("partial-v1")]
            found += [str(v) for v in check_cache(root) if v.kind != "garbage"]
        wrong += [f"call {at} of {total}, {way}{', lasting' if lasting else ''}: {what}" for what in found]

    print(f"{operation.__name__}: {len(tried)} failures of {len(cases)}, {total} calls")
    assert not wrong, "\n".join(wrong)
