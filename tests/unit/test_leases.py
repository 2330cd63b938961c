"""Leases within one process: what is held is on disk before it is looked for, and goes with the last release."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import subprocess
import threading
from pathlib import Path

import pytest

from modelcache import Cache, Entry, errors, files, layout, leasing, locks, process
from modelcache.digest import Digest
from modelcache.leases import Leases, decode
from modelcache.objects import Objects
from modelcache.pins import Pins
from modelcache.sweep import is_needed, sweep
from modelcache.testing import FaultServer, check_cache

CONTENT = b"a model" * 100
NAMES = [f"sha256-{number:064x}" for number in range(6)]


@pytest.fixture
def store(root: Path) -> Leases:
    Cache(root).put(CONTENT, name="m")
    return Leases(str(root))


def on_disk(root: Path) -> set[str]:
    """Return what another process would read. This one must not open its own file: look at the bytes by a copy."""
    found = set()
    for path in (root / layout.LEASES).iterdir():
        found |= decode(subprocess.check_output(["cat", path]))
    return found


def test_a_leased_entry_is_not_removed(root: Path) -> None:
    cache = Cache(root)
    cache.put(CONTENT, name="m")

    with cache.lease("m") as lease:
        with pytest.raises(errors.LeasedError):
            cache.remove("m")
        assert Path(lease.path).read_bytes() == CONTENT

    assert cache.remove("m")
    assert not Path(lease.path).exists()


def test_a_leased_entry_that_is_removed_by_force_keeps_its_content_until_the_lease_is_over(root: Path) -> None:
    cache = Cache(root)
    cache.put(CONTENT, name="m")

    with cache.lease("m") as lease:
        assert cache.remove("m", force=True)
        assert cache.lookup("m") is None
        assert Path(lease.path).read_bytes() == CONTENT


def test_an_object_that_is_leased_several_times_is_held_until_the_last_release(root: Path, store: Leases) -> None:
    for _ in range(3):
        store.hold(NAMES[0])
    for _ in range(2):
        store.release(NAMES[0])
        assert on_disk(root) == {NAMES[0]}

    store.release(NAMES[0])
    assert on_disk(root) == store.in_use().names == set()
    store.release(NAMES[0])  # Once too often is no harm to anybody.
    store.hold(NAMES[0])
    assert on_disk(root) == {NAMES[0]}
    store.release(NAMES[0])


def test_a_process_has_one_lease_file_that_grows_only_with_what_is_held_at_one_time(root: Path, store: Leases) -> None:
    for _ in range(5):
        for name in NAMES:
            store.hold(name)
        assert on_disk(root) == set(NAMES)
        for name in NAMES:
            store.release(name)

    (file,) = (root / layout.LEASES).iterdir()
    assert file.stat().st_size == 80 * len(NAMES)


def test_what_is_held_is_on_disk_before_the_object_is_looked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a removal that is under way is waited for between the two."""
    cache = Cache(root)
    name = layout.object_name(cache.put(CONTENT, name="m").digest)
    steps = []
    stands = leasing._stands

    def look(path: str) -> bool:
        steps.append(("look", on_disk(root)))
        return stands(path)

    monkeypatch.setattr(Objects, "await_removal", lambda _self, _digest: steps.append(("wait", on_disk(root))))
    monkeypatch.setattr(leasing, "_stands", look)

    with cache.lease("m"):
        monkeypatch.undo()

    assert steps == [("wait", {name}), ("look", {name})]


def test_what_goes_between_the_get_and_the_lease_is_fetched_again(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    cache, hold = Cache(root), Leases.hold
    cache.get(url)

    def removed_first(self: Leases, name: str) -> None:
        monkeypatch.setattr(Leases, "hold", hold)
        Cache(root).remove(url)
        hold(self, name)

    monkeypatch.setattr(Leases, "hold", removed_first)

    with cache.lease(url) as lease:
        assert Path(lease.path).read_bytes() == CONTENT
        assert not is_gone(root, lease)
    assert len(server.seen()) == 2


def is_gone(root: Path, lease: leasing.Lease) -> bool:
    """Try to remove the object of *lease* as gc does, once nothing names it."""
    digest = Digest.parse(Path(lease.path).parent.name.replace("-", ":"))
    Cache(root).remove("m", force=True)
    return Objects(str(root)).remove(digest, is_named=is_needed(str(root)))


def test_what_others_remove_each_time_is_an_error_and_not_an_endless_loop(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(root)
    cache.put(CONTENT, name="m")
    monkeypatch.setattr(leasing, "_stands", lambda _path: False)

    with pytest.raises(errors.StorageError, match="keep removing"):
        cache.lease("m")
    monkeypatch.undo()
    assert on_disk(root) == set()


def test_asyncio_tasks_lease_and_let_go(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    async def use(cache: Cache) -> None:
        async with cache.alease(url) as lease:
            assert len(on_disk(root)) == 1
            assert Path(lease.path).read_bytes() == CONTENT

    with Cache(root) as cache:
        asyncio.run(use(cache))
    assert on_disk(root) == set()


def test_threads_that_lease_and_release_leave_exactly_what_is_held(root: Path, store: Leases) -> None:
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for turn in range(300):
            store.hold(NAMES[(number + turn) % 3])
            store.release(NAMES[(number + turn) % 3])
        store.hold(NAMES[3 + number % 2])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert on_disk(root) == store.in_use().names == {NAMES[3], NAMES[4]}
    for name in NAMES[3:5]:
        store.release(name)
        store.release(name)


def test_two_spellings_of_a_root_have_one_lease_file(root: Path, tmp_path: Path, store: Leases) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    store.hold(NAMES[0])

    Leases(str(link)).hold(NAMES[1])

    assert on_disk(root) == {NAMES[0], NAMES[1]}
    assert Leases(str(link)).in_use().names == {NAMES[0], NAMES[1]}
    for name in NAMES[:2]:
        store.release(name)


def test_a_look_at_all_leases_opens_no_file_of_its_own_process(
    root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To close it again would drop the lock, and others would take this process for dead."""
    store.hold(NAMES[0])
    (own,) = (root / layout.LEASES).iterdir()
    opened: list[str] = []
    real = os.open

    def opening(path: str, *arguments: int) -> int:
        opened.append(path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", opening)

    assert store.in_use().names == {NAMES[0]}
    sweep(str(root))
    check_cache(root)

    assert str(own) not in opened
    assert own.exists()
    store.release(NAMES[0])


def test_a_process_that_cannot_tell_who_lives_knows_its_own_file(
    root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find the lock free: its own is never in its way."""
    monkeypatch.setattr(process, "is_dead", lambda _owner: None)
    store.hold(NAMES[0])

    assert store.sweep() == 0
    assert on_disk(root) == {NAMES[0]}
    store.release(NAMES[0])


def test_a_lease_file_that_was_deleted_with_the_cache_is_made_anew(root: Path, store: Leases) -> None:
    store.hold(NAMES[0])
    for file in (root / layout.LEASES).iterdir():
        file.unlink()

    store.hold(NAMES[1])

    assert on_disk(root) == {NAMES[0], NAMES[1]}
    for name in NAMES[:2]:
        store.release(name)


@pytest.mark.parametrize("written", [0, 1, 40, 79])
def test_a_lease_that_was_half_written_is_an_error_and_harms_no_other(
    written: int, root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.hold(NAMES[0])
    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, data, at: real(file, data[:written], at))
        with pytest.raises(errors.NoSpaceError):
            store.hold(NAMES[1])
    assert on_disk(root) & set(NAMES) == {NAMES[0]}

    store.hold(NAMES[2])

    assert on_disk(root) & set(NAMES) == {NAMES[0], NAMES[2]}
    store.release(NAMES[0])
    store.release(NAMES[2])


def test_a_lease_that_cannot_be_taken_back_is_held_until_the_process_ends(
    root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.hold(NAMES[0])
    with monkeypatch.context() as patch:
        patch.setattr(locks.Sign, "write", failing)
        store.release(NAMES[0])

    assert store.in_use().names == on_disk(root) == {NAMES[0]}
    store.hold(NAMES[0])
    store.release(NAMES[0])
    assert store.in_use().names == on_disk(root) == set()


def failing(*_arguments: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_full_disk_is_an_error_and_no_lease_without_protection(
    root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_paths: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locks, "sign", full)

    with pytest.raises(errors.NoSpaceError):
        Cache(root).lease("m")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_root_that_cannot_be_written_serves_a_path_without_a_lease_and_says_so_once(
    number: int, root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_paths: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "sign", refused)
    with pytest.raises(errors.StorageError):  # It can be written: then a path without a lease would be a lie.
        Cache(root).lease("m")
    monkeypatch.setattr(os, "access", lambda *_arguments: False)
    caplog.set_level(logging.WARNING)

    for _ in range(3):
        with Cache(root).lease("m") as lease:
            assert Path(lease.path).read_bytes() == CONTENT
            assert not lease.protected

    assert len([record for record in caplog.records if "cannot be leased" in record.message]) == 1


def test_where_there_are_no_locks_the_name_of_the_file_tells_who_lives(
    root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", without)
    store.hold(NAMES[0])
    stranger = f"00000000-00000000-1-{os.getpid()}-1-00000000"
    (root / layout.LEASES / stranger).write_bytes(f"+{NAMES[1]}".ljust(79).encode() + b"\n")

    assert store.in_use().names == {NAMES[0], NAMES[1]}  # Whoever cannot be looked for lives.
    assert store.sweep() == 0
    store.release(NAMES[0])


def test_a_lease_file_that_may_not_be_read_keeps_everything(
    root: Path, store: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = process.token()
    (root / layout.LEASES).mkdir()
    (root / layout.LEASES / ours).write_bytes(b"")

    def refused(path: str) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(files, "read", refused)

    assert store.in_use().covers("sha256-anything")


def test_the_name_of_an_object_of_any_kind_fits(root: Path, store: Leases) -> None:
    for name in (f"tree-{'a' * 64}", f"sha256-{'b' * 64}"):
        store.hold(name)
    assert on_disk(root) == {f"tree-{'a' * 64}", f"sha256-{'b' * 64}"}
    for name in (f"tree-{'a' * 64}", f"sha256-{'b' * 64}"):
        store.release(name)


def test_an_object_in_the_trash_of_a_dead_process_that_is_leased_comes_back(root: Path) -> None:
    entry = Cache(root).put(CONTENT, name="m")
    with Cache(root).lease("m") as lease:
        dead = f"{process.machine_id()}-00000000-1-1-1-00000000.{entry.digest.hex}"
        os.rename(Path(lease.path).parent, root / layout.TRASH / dead)
        forget(root, entry)

        sweep(str(root))

        assert Path(lease.path).read_bytes() == CONTENT


def forget(root: Path, entry: Entry) -> None:
    os.unlink(root / layout.ENTRIES / layout.key_id(entry.key))


def test_an_entry_that_was_about_to_go_when_its_use_was_recorded_is_looked_for_again(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    Cache(root).get(url)
    os.utime(root / layout.ENTRIES / layout.key_id(url), (1, 1))

    def removed_meanwhile(_objects: Objects, _digest: Digest) -> None:
        monkeypatch.undo()
        Cache(root).remove(url)

    monkeypatch.setattr(Objects, "await_removal", removed_meanwhile)

    path = Cache(root).get(url)

    assert Path(path).read_bytes() == CONTENT
    assert len(server.seen()) == 2


def test_a_pin_waits_for_a_removal_that_has_not_seen_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Cache(root).put(CONTENT, name="m")

    def evicted_meanwhile(_objects: Objects, _digest: Digest) -> None:
        forget(root, entry)

    monkeypatch.setattr(Objects, "await_removal", evicted_meanwhile)

    with pytest.raises(errors.EntryNotFoundError):
        Cache(root).pin("m")
    assert not Pins(str(root)).has("m")


def test_a_lease_file_of_the_dead_is_garbage_to_the_checker_and_goes_with_a_sweep(root: Path, store: Leases) -> None:
    dead = f"{process.machine_id()}-00000000-1-1-1-00000000"
    (root / layout.LEASES).mkdir()
    (root / layout.LEASES / dead).write_bytes(f"+{NAMES[0]}".ljust(79).encode() + b"\n")

    assert store.in_use().names == set()
    (violation,) = check_cache(root)
    assert (violation.promise, violation.kind) == ("I10", "garbage")
    sweep(str(root))
    assert check_cache(root) == []
