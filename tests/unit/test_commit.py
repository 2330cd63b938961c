"""The order of the system calls that make a change durable, and what is left when one of them fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import failpoints
from modelcache import commit, errors, roots

RECORDED = ("fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir")


@pytest.fixture
def ready(root: Path) -> Path:
    roots.prepare_root(str(root))
    return root


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, ready: Path) -> list[str]:
    """The calls made so far: ``fsync objects-v1``, ``rename object -> sha256-ab`` …"""
    made: list[str] = []

    def name(path: object) -> str:
        return os.path.basename(str(path))

    def recorded(what: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if what in {"fsync", "fdatasync"}:
                made.append(f"{what} {name(os.readlink(f'/proc/self/fd/{arguments[0]}'))}")
            else:
                made.append(
                    " ".join([what, *(name(argument) for argument in arguments[:2] if isinstance(argument, str))])
                )
            return original(*arguments, **options)

        return call

    for what in RECORDED:
        monkeypatch.setattr(os, what, recorded(what, getattr(os, what)))
    return made


def staged_object(root: Path) -> str:
    staged = commit.stage_directory(str(root))
    descriptor = commit.create_file(f"{staged}/model.onnx")
    commit.write(descriptor, b"content")
    os.close(descriptor)
    return staged


def final(root: Path) -> str:
    return f"{root}/objects-v1/sha256-{'a' * 64}"


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names descriptors by /proc")


@needs_proc
def test_an_object_is_synced_renamed_and_its_name_synced(ready: Path, calls: list[str]) -> None:
    staged = staged_object(ready)
    calls.clear()

    assert commit.commit_object(staged, final(ready))

    assert calls == [
        "fsync model.onnx",
        f"fsync {os.path.basename(staged)}",
        f"rename {os.path.basename(staged)} sha256-{'a' * 64}",
        "fsync objects-v1",
    ]


@needs_proc
def test_a_record_is_synced_renamed_and_its_name_synced(ready: Path, calls: list[str]) -> None:
    commit.commit_record(f"{ready}/staging", f"{ready}/entries-v1/id", b"facts")

    staged = calls[0].removeprefix("fsync ")
    assert calls == [f"fsync {staged}", f"replace {staged} id", "fsync entries-v1"]


@needs_proc
def test_a_removed_record_stays_removed(ready: Path, calls: list[str]) -> None:
    commit.commit_record(f"{ready}/staging", f"{ready}/entries-v1/id", b"facts")
    calls.clear()

    assert commit.remove_record(f"{ready}/entries-v1/id")

    assert calls == ["unlink id", "fsync entries-v1"]


@needs_proc
def test_an_object_that_was_there_is_synced_before_it_is_promised(ready: Path, calls: list[str]) -> None:
    commit.commit_object(staged_object(ready), final(ready))
    staged = staged_object(ready)
    calls.clear()

    assert not commit.commit_object(staged, final(ready))

    assert calls[-1] == "fsync objects-v1"
    assert os.path.isdir(staged)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_record_whose_commit_fails_is_the_old_one_and_leaves_nothing(
    call: str, number: int, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ready / "entries-v1" / "id"
    commit.commit_record(f"{ready}/staging", str(target), b"old")

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            commit.commit_record(f"{ready}/staging", str(target), b"new")

    assert target.read_bytes() == b"old"
    assert os.listdir(ready / "staging") == []
    commit.commit_record(f"{ready}/staging", str(target), b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("call", ["fchmod", "fsync", "rename"])
def test_an_object_whose_commit_fails_is_not_visible(
    call: str, number: int, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = staged_object(ready)

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(number)):
            commit.commit_object(staged, final(ready))

    assert not os.path.exists(final(ready))


def test_a_write_that_stops_short_is_gone_on_with(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: original(fd, bytes(data)[:3]))

    commit.commit_record(f"{ready}/staging", f"{ready}/entries-v1/id", b"0123456789")

    assert (ready / "entries-v1" / "id").read_bytes() == b"0123456789"


def test_a_name_that_is_taken_in_staging_is_not_written_through(ready: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    planted = ready / "staging" / "planted"
    planted.symlink_to(tmp_path / "precious")

    with pytest.raises(FileExistsError):
        commit.create_file(str(planted))

    assert (tmp_path / "precious").read_text() == "content"


@pytest.mark.parametrize("place", ["root", "root/objects-v1", "."])
def test_a_file_where_a_directory_should_be_is_a_root_error(place: str, tmp_path: Path) -> None:
    occupied = tmp_path / place if place != "." else tmp_path / "parent"
    occupied.parent.mkdir(exist_ok=True)
    occupied.write_text("x")
    root = tmp_path / "root" if place != "." else occupied / "root"

    with pytest.raises(errors.RootError, match="not a directory"):
        roots.prepare_root(str(root))

    assert occupied.read_text() == "x"


def test_a_fresh_root_is_marked_as_a_cache(ready: Path) -> None:
    assert (ready / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    assert (ready / "format").read_text() == "1\n"
    assert os.listdir(ready / "staging") == []


@pytest.mark.parametrize("text", ["2\n", "99", "", "one", "-1"])
def test_a_format_that_is_not_known_is_refused(text: str, ready: Path) -> None:
    (ready / "format").write_text(text)

    with pytest.raises(errors.FormatError):
        roots.prepare_root(str(ready))


def test_a_root_whose_maker_died_before_it_was_marked_is_marked_by_the_next_one(tmp_path: Path) -> None:
    root = f"{tmp_path}/cache"
    with failpoints.active("commit.before-rename-record", "raise(KeyboardInterrupt)"), pytest.raises(KeyboardInterrupt):
        roots.prepare_root(root)
    roots.prepare_root(root)

    assert {"format", "CACHEDIR.TAG"} <= set(os.listdir(root))


def test_a_hint_that_cannot_be_put_in_its_place_leaves_nothing(ready: Path) -> None:
    with failpoints.active("commit.before-rename-hint", "raise(EIO)"), pytest.raises(OSError, match="rename-hint"):
        commit.replace_hint(f"{ready}/staging", f"{ready}/hint", b"x")

    assert os.listdir(ready / "staging") == []
