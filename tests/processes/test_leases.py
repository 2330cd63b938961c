"""Leases between processes: who lives keeps what it holds, who dies lets go, and a forked child holds by itself."""

from __future__ import annotations

import errno
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache, errors, layout, leases, locks
from modelcache.leases import Leases
from modelcache.testing import check_cache, spawn
from tests.crash.world import forked

CONTENT = b"a model" * 100

_HOLDER = """
import signal, sys
from modelcache import Cache
from modelcache.testing import acknowledge
cache = Cache(sys.argv[1])
lease = cache.lease("m")
acknowledge("held")
while True:
    signal.pause()
"""


@pytest.fixture
def name(root: Path) -> str:
    return layout.object_name(Cache(root).put(CONTENT, name="m").digest)


def test_what_another_process_leases_is_not_removed_until_it_dies_however_it_dies(root: Path, name: str) -> None:
    with spawn(_HOLDER, root) as victim:
        victim.wait_for("held")
        with pytest.raises(errors.LeasedError):
            Cache(root).remove("m")
        assert Leases(str(root)).in_use().names == {name}

        assert victim.kill() == -signal.SIGKILL

    assert Leases(str(root)).in_use().names == set()
    assert [violation.kind for violation in check_cache(root)] == ["garbage"]
    assert Cache(root).remove("m")
    assert Leases(str(root)).sweep() == 1


def test_a_holder_that_nobody_can_look_for_is_known_by_its_lock(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from another container."""
    monkeypatch.setattr("modelcache.process._namespace", lambda: "7")
    with spawn(_HOLDER, root) as victim:
        victim.wait_for("held")
        for _ in range(3):  # A look must not let go of it.
            assert Leases(str(root)).in_use().names == {name}
        victim.kill()

    assert Leases(str(root)).in_use().names == set()
    assert Leases(str(root)).sweep() == 0  # That a lock can be had proves nothing where locks do nothing.
    Cache(root).plan_gc().execute()
    assert list((root / layout.LEASES).iterdir()) == []


def test_a_process_that_ends_removes_its_lease_file(root: Path, name: str) -> None:
    with spawn("from modelcache import Cache\nCache(sys.argv[1]).lease('m')", root) as victim:
        assert victim.wait() == 0
    assert list((root / layout.LEASES).iterdir()) == []


def ends(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_holds_what_its_parent_held_after_the_parent_has_let_go(root: Path, name: str) -> None:
    """Its own file is there before the parent's fork returns: no moment is without one."""
    lease = Cache(root).lease("m")
    waiting, go = os.pipe()
    child = forked(lambda: hold_until_told(waiting, go, lease.release))
    os.close(waiting)

    files = {path.name for path in (root / layout.LEASES).iterdir()}
    lease.release()

    assert len(files) == 2
    assert Leases(str(root)).in_use().names == {name}
    with pytest.raises(errors.LeasedError):
        Cache(root).remove("m")
    os.close(go)
    assert ends(child) == 0
    assert Leases(str(root)).in_use().names == set()


def hold_until_told(waiting: int, go: int, release: Callable[[], object]) -> None:
    os.close(go)
    assert os.read(waiting, 1) == b""
    release()


def test_a_child_that_lets_go_of_an_inherited_lease_lets_go_of_its_own_only(root: Path, name: str) -> None:
    with Cache(root).lease("m") as lease:
        assert ends(forked(lease.release)) == 0

        assert Leases(str(root)).in_use().names == {name}
        with pytest.raises(errors.LeasedError):
            Cache(root).remove("m")


def test_a_child_that_ends_leaves_the_lock_of_its_parent_alone(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(root).lease("m"):
        assert ends(forked(lambda: None)) == 0

        def seen_from_elsewhere() -> None:
            monkeypatch.setattr("modelcache.process._namespace", lambda: "7")
            Leases(str(root))._own.end()  # Its own copy of the lease.
            assert Leases(str(root)).in_use().names == {name}

        assert ends(forked(seen_from_elsewhere)) == 0


def test_a_fork_waits_for_a_child_no_longer_than_it_may(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the child had been stopped before it came to that."""
    monkeypatch.setattr(leases, "_FORK_WAIT_MS", 1)
    waiting, go = os.pipe()
    parent = os.getpid()
    renew = leases._Holder.renew

    def late(holder: leases._Holder) -> None:
        os.close(go)
        os.read(waiting, 1)
        renew(holder)

    monkeypatch.setattr(leases._Holder, "renew", late)

    with Cache(root).lease("m"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            os._exit(os.getppid() != parent)
        os.close(go)
        assert ends(child) == 0

    os.close(waiting)
    assert "has not leased" in caplog.text


def test_a_child_that_cannot_lease_says_so(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_paths: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work() -> None:
        assert "could not lease what it inherited" in caplog.text
        lease.release()

    with Cache(root).lease("m") as lease:
        monkeypatch.setattr(locks, "sign", full)
        assert ends(forked(work)) == 0
        monkeypatch.undo()


def test_a_program_that_is_started_holds_nothing(root: Path, name: str) -> None:
    """Only what was forked runs Python's hooks; what was started has neither the lease nor its descriptor."""
    with Cache(root).lease("m"):
        listing = "import os; print(*(os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') "
        listing += "if os.path.exists(f'/proc/self/fd/{fd}')))"
        with spawn(f"{listing}", root) as victim:
            assert victim.wait() == 0

        assert len(list((root / layout.LEASES).iterdir())) == 1
