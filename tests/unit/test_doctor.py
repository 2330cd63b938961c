"""What `modelcache doctor` says of places that are wrong, and that it leaves them as they are."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache import Cache, commit, doctor, errors, layout, locks, roots
from modelcache.doctor import Check


def examined(root: Path, *, locking: bool = False, durability: bool = False) -> dict[str, Check]:
    return {check.name: check for check in doctor.examine(str(root), locking=locking, durability=durability)}


def test_a_directory_of_something_else_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("x")
    found = examined(tmp_path, durability=True)

    assert found["format"].level == "warning"
    assert "photo.jpg" in found["format"].detail
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_a_broken_promise_fails_the_check(root: Path) -> None:
    Path(Cache(root).put(b"content", name="m").path).unlink()

    assert examined(root)["promises"].level == "failed"


def test_a_place_that_others_may_write_is_a_warning(root: Path) -> None:
    Cache(root).put(b"content", name="m")
    root.chmod(0o777)

    assert examined(root)["owner"].level == "warning"


@pytest.mark.parametrize("problem", [(roots, "prepare_root"), (commit, "stage_directory")])
def test_a_root_that_cannot_be_written_is_looked_at_all_the_same(
    problem: tuple[object, str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(Cache(root).put(b"content", name="m").path).unlink()

    def refused(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(*problem, refused)
    found = examined(root, durability=True)

    assert found["writable"].level == "failed"
    assert found["promises"].level == "failed"
    assert {"owner", "space", "left-overs", "environment"} <= found.keys()
    assert "sync" not in found


def test_a_directory_that_cannot_be_read_fails_its_own_check_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(root).put(b"content", name="m")
    listdir = os.listdir

    def refused(path: str) -> list[str]:
        if path.endswith(layout.ENTRIES):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    found = examined(root)

    assert found["promises"].level == "failed"
    assert "Permission denied" in found["promises"].detail
    assert found["environment"].level == "ok"


def test_a_full_disk_fails_the_check(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(root).put(b"content", name="m")
    real = os.statvfs(root)

    class Full:
        f_bavail, f_frsize, f_files, f_favail = 10, 1024, real.f_files, 5

    monkeypatch.setattr(os, "statvfs", lambda _: Full)

    assert examined(root)["space"].level == "failed"


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="there is no RAM disk at /dev/shm")
def test_a_ram_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examined(Path("/dev/shm/modelcache-that-is-not-there"), durability=True)

    assert found["sync"].level == "warning"
    assert "tmpfs" in found["sync"].detail


def test_locks_are_tried_by_a_second_process(root: Path) -> None:
    assert examined(root.parent, locking=True)["locks"].level == "ok"


def test_a_lock_that_two_can_have_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_CONTENDER", "print('had')")

    assert examined(root.parent, locking=True)["locks"].level == "warning"


def test_a_second_process_that_does_not_run_says_nothing_about_locks(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_CONTENDER", "import no_such_module_anywhere")
    found = examined(root.parent, locking=True)["locks"]

    assert found.level == "failed"
    assert "no_such_module_anywhere" in found.detail


def test_nothing_in_the_current_directory_is_run(root: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("random", "socket", "fasteners"):
        (here / f"{name}.py").write_text("open('ran', 'w')")
    code = f"import sys; sys.path.remove(''); from modelcache import doctor; list(doctor.examine({str(root)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True)

    assert not (here / "ran").exists()


def test_locks_that_there_are_none_of_are_a_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(path: str, **_: object) -> object:
        raise locks.LockUnavailableError("no locks available")

    monkeypatch.setattr(locks, "exclusive", none)

    assert examined(root.parent, locking=True)["locks"].level == "warning"


@pytest.mark.parametrize("home", ["somewhere", None])
def test_without_a_home_directory_it_says_so(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> object:
        raise KeyError("no such user")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "MODELCACHE_DIR", "MODELCACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)

    with pytest.raises(errors.RootError, match=r"no home directory\. Set MODELCACHE_DIR"):
        Cache()
