"""Proof of the instrument: each mistake that a cache could make with its disk is caught by the suite.

A twin is our own code with one mistake put in. A suite that finds nothing wrong with it would find nothing wrong with
us either. The kinds are those of CRASH.md: corrupt, lost, dangling, garbage, stuck.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelcache import commit, locks, partials
from modelcache.digest import Digest
from modelcache.objects import Objects, Stored
from modelcache.records import Entries, Entry
from modelcache.testing import FaultServer
from tests.crash.disk import MODELS
from tests.crash.test_power_loss import cut
from tests.crash.world import (
    OLD,
    Act,
    Log,
    Operation,
    World,
    cold_get,
    digest_of,
    interrupted_get,
    put,
    put_again,
    remove,
    small_steps,
)

Patch = pytest.MonkeyPatch


def _os() -> Any:
    """What `commit` takes for ``os``: the recorder, while one is in place."""
    return vars(commit)["os"]


def no_file_sync(patch: Patch) -> None:
    sync = commit._sync

    def only_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            sync(descriptor)

    patch.setattr(commit, "_sync", only_directories)
    patch.setattr(commit, "sync_data", lambda _descriptor: None)


def sync_after_rename(patch: Patch) -> None:
    def commit_object(staged: str, final: str) -> bool:
        _os().rename(staged, final)
        commit.sync_directory(os.path.dirname(final))
        for name in os.listdir(final):
            commit._seal_file(f"{final}/{name}")
        return True

    patch.setattr(commit, "commit_object", commit_object)
    patch.setattr(commit, "sync_data", lambda _descriptor: None)  # Early syncs would hide it.


def no_directory_sync(patch: Patch) -> None:
    patch.setattr(commit, "sync_directory", lambda _path: None)


def record_before_object(patch: Patch) -> None:
    publish, write = Objects.publish, Entries.write
    waiting: list[Callable[[], object]] = []

    def later(self: Objects, staged: str, digest: Digest, name: str) -> Stored:
        found = os.stat(f"{staged}/{name}")
        waiting.append(lambda: publish(self, staged, digest, name))
        return Stored(digest, f"{self.path(digest)}/{name}", name, found.st_size, found.st_mtime_ns)

    def first(self: Entries, entry: Entry) -> None:
        write(self, entry)
        while waiting:
            waiting.pop()()

    patch.setattr(Objects, "publish", later)
    patch.setattr(Entries, "write", first)


def write_in_place(patch: Patch) -> None:
    def commit_record(staging: str, final: str, data: bytes) -> None:
        if os.path.exists(final):
            descriptor = _os().open(final, os.O_RDWR)
            _os().ftruncate(descriptor, 0)
        else:
            descriptor = commit.create_file(final)
        commit.write(descriptor, data)
        commit._sync(descriptor)
        _os().close(descriptor)
        commit.sync_directory(os.path.dirname(final))

    patch.setattr(commit, "commit_record", commit_record)


def a_leak(patch: Patch) -> None:
    patch.setattr(commit, "discard", lambda _path: None)
    patch.setattr(commit, "remove_quietly", lambda _path: None)


def resume_without_verification(patch: Patch) -> None:
    patch.setattr(partials, "_same_boot", lambda _facts: True)


def nothing(patch: Patch) -> None:
    """The baseline: no mistake."""


def acknowledged_early(world: World) -> Act:
    """A program that says "stored" before `put` has returned."""

    def act(log: Log) -> None:
        log.expect("n", digest_of(OLD))
        world.put(OLD, "n")

    return act


@pytest.mark.parametrize(
    ("twin", "operations", "kinds"),
    [
        (no_file_sync, [cold_get, put_again], {"corrupt", "lost"}),
        (sync_after_rename, [cold_get, put], {"corrupt"}),
        (no_directory_sync, [cold_get, put, remove], {"lost"}),
        (record_before_object, [put], {"dangling"}),
        (write_in_place, [put_again], {"corrupt", "lost"}),
        (nothing, [acknowledged_early], {"lost"}),
        (a_leak, [cold_get, put, remove], {"garbage"}),
        (resume_without_verification, [interrupted_get], {"corrupt"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mistake_is_caught(
    twin: Callable[[Patch], None],
    operations: list[Operation],
    kinds: set[str],
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    small_steps(monkeypatch)
    found = set()
    tries = [(operation, model, seed) for seed in range(1, 5) for operation in operations for model in MODELS]
    for operation, model, seed in tries:  # As many as it takes: what is drawn differs from run to run.
        place = tmp_path / f"{operation.__name__}-{model}-{seed}"
        place.mkdir()
        with Patch.context() as patch:
            twin(patch)
            wrong, _, _ = cut(operation, model, 60, server, place, seed=seed)
        found |= {kind for kind in ("corrupt", "lost", "dangling", "garbage", "stuck") for w in wrong if kind in w}
        if kinds <= found:
            break

    print(f"{twin.__name__}: {sorted(found)}")
    assert kinds <= found


def test_a_lock_file_that_is_unlinked_without_a_look_at_its_inode_is_caught(tmp_path: Path, monkeypatch: Patch) -> None:
    from tests.processes.test_exclusion import (
        test_a_file_that_was_unlinked_before_the_lock_came_is_not_mistaken_for_the_lock,
    )

    monkeypatch.setattr(locks, "_is_current", lambda _descriptor, _path: True)

    with pytest.raises(AssertionError):
        test_a_file_that_was_unlinked_before_the_lock_came_is_not_mistaken_for_the_lock(
            str(tmp_path / "lock"), monkeypatch
        )
