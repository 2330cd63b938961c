"""Immutable content under the name of its digest."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from modelcache import commit, files
from modelcache.digest import Digest
from modelcache.errors import StorageError
from modelcache.objects import Objects, Stored

CONTENT = b"the weights"
DIGEST = Digest.of_bytes([CONTENT])


def stage(store: str, name: str = "m.onnx", content: bytes = CONTENT) -> str:
    staged = commit.stage_directory(store)
    Path(staged, name).write_bytes(content)
    return staged


def publish(store: str, name: str = "m.onnx") -> Stored:
    return Objects(store).publish(stage(store, name), DIGEST, name)


def alter(stored: Stored) -> None:
    os.chmod(stored.path, 0o644)
    Path(stored.path).write_bytes(b"other weights")


def test_a_published_file_is_whole_and_read_only(store: str) -> None:
    stored = publish(store)
    facts = os.stat(stored.path)

    assert Path(stored.path).read_bytes() == CONTENT
    assert facts.st_mode & 0o777 == 0o444
    assert (stored.size, stored.mtime_ns) == (len(CONTENT), facts.st_mtime_ns)
    assert stored.path == f"{store}/objects-v1/sha256-{DIGEST.hex}/m.onnx"
    assert os.listdir(f"{store}/staging") == []


def test_the_same_content_published_twice_is_stored_once(store: str) -> None:
    first, second = publish(store), publish(store)

    assert first == second
    assert list(Objects(store).all()) == [DIGEST]
    assert os.listdir(f"{store}/staging") == []


def test_a_second_name_is_a_hard_link_beside_the_first(store: str) -> None:
    first, second = publish(store, "a.onnx"), publish(store, "b.onnx")

    assert os.path.samefile(first.path, second.path)
    assert sorted(os.listdir(os.path.dirname(first.path))) == ["a.onnx", "b.onnx"]
    assert second.name == "b.onnx"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_without_hard_links_a_second_name_is_served_under_the_first(
    store: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    first = publish(store, "a.onnx")

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)

    assert publish(store, "b.onnx") == first
    assert os.listdir(f"{store}/staging") == []


def test_a_name_for_an_object_that_is_not_there_is_nothing(store: str) -> None:
    assert Objects(store).name(DIGEST, "a.onnx") is None
    assert Objects(store).find(DIGEST) is None


def test_an_object_removed_while_it_is_named_counts_as_not_there(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store, "a.onnx")
    link = os.link

    def removed_first(*args: Any, **options: Any) -> None:
        Objects(store).remove(DIGEST, is_named=lambda _: False)
        link(*args, **options)

    monkeypatch.setattr(os, "link", removed_first)

    assert Objects(store).name(DIGEST, "b.onnx") is None


def test_an_object_removed_while_the_same_content_is_published_is_published_anew(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "a.onnx")
    link = os.link

    def removed_first(*args: Any, **options: Any) -> None:
        Objects(store).remove(DIGEST, is_named=lambda _: False)
        link(*args, **options)

    monkeypatch.setattr(os, "link", removed_first)

    assert Path(publish(store, "b.onnx").path).read_bytes() == CONTENT
    assert not os.path.exists(f"{store}/quarantine")


@pytest.mark.parametrize("name", ["m.onnx", "second.onnx"])
def test_an_altered_object_is_set_aside_and_replaced_when_its_content_comes_again(store: str, name: str) -> None:
    alter(publish(store))

    stored = publish(store, name)

    assert Path(stored.path).read_bytes() == CONTENT
    (set_aside,) = Path(store, "quarantine").iterdir()
    assert (set_aside / "m.onnx").read_bytes() == b"other weights"


@pytest.mark.parametrize("inside", ["m.onnx", "weights"])
def test_an_object_that_holds_a_directory_in_place_of_its_file_is_replaced(store: str, inside: str) -> None:
    os.makedirs(f"{Objects(store).path(DIGEST)}/{inside}/more")

    assert Path(publish(store).path).read_bytes() == CONTENT


def test_an_empty_object_directory_is_replaced(store: str) -> None:
    os.mkdir(Objects(store).path(DIGEST))

    assert Path(publish(store).path).read_bytes() == CONTENT


def test_two_processes_that_replace_an_altered_object_at_once_both_get_it(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(publish(store))
    quarantine = Objects.quarantine

    def overtaken(self: Objects, digest: Digest, reason: str, seen: os.stat_result | None) -> str:
        monkeypatch.undo()
        target = quarantine(self, digest, reason, seen)
        publish(store, "other.onnx")
        return target

    monkeypatch.setattr(Objects, "quarantine", overtaken)

    stored = publish(store)

    assert (stored.name, Path(stored.path).read_bytes()) == ("m.onnx", CONTENT)
    assert os.listdir(f"{store}/staging") == []


def test_an_object_that_others_keep_altering_is_a_typed_error(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(publish(store))
    monkeypatch.setattr(Objects, "quarantine", lambda *_: "nowhere")

    with pytest.raises(StorageError, match="keep replacing"):
        publish(store)


def test_an_object_that_cannot_be_set_aside_is_one_typed_error(store: str) -> None:
    alter(publish(store))
    Path(store, "quarantine").write_text("a file in the way")

    with pytest.raises(StorageError) as raised:
        publish(store)

    assert raised.value.facts["action"] == "set aside"


def test_a_quarantined_object_has_its_reason_beside_it_and_is_not_found(store: str) -> None:
    publish(store)

    target = Objects(store).quarantine(DIGEST, "expected ü, found something else")

    note = json.loads(Path(target, "REASON.json").read_text())
    assert (note["digest"], note["reason"]) == (DIGEST, "expected ü, found something else")
    assert Path(target, "m.onnx").read_bytes() == CONTENT
    assert os.path.dirname(target) == f"{store}/quarantine"
    assert Objects(store).find(DIGEST) is None


def test_an_object_that_another_process_has_set_aside_is_no_error(store: str) -> None:
    Objects(store).quarantine(DIGEST, "gone already")

    assert list(Objects(store).all()) == []


def test_a_removed_object_goes_by_way_of_the_trash(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    moved: list[tuple[str, str]] = []
    move = commit.move_durably

    def logged(source: str, target: str) -> None:
        move(source, target)
        moved.append((source, os.path.dirname(target)))
        assert os.listdir(target) == ["m.onnx"]

    monkeypatch.setattr(commit, "move_durably", logged)

    assert Objects(store).remove(DIGEST, is_named=lambda _: False)
    assert moved == [(Objects(store).path(DIGEST), f"{store}/trash")]
    assert os.listdir(f"{store}/trash") == os.listdir(f"{store}/objects-v1") == []


def test_removing_what_is_not_there_frees_nothing(store: str) -> None:
    assert not Objects(store).remove(DIGEST, is_named=lambda _: False)


def test_a_failed_publish_leaves_the_staged_directory_to_its_caller(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage(store)

    def fail(source: str, target: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "rename", fail)

    with pytest.raises(StorageError):
        Objects(store).publish(staged, DIGEST, "m.onnx")
    assert os.listdir(staged) == ["m.onnx"]
    assert Objects(store).find(DIGEST) is None


def test_only_names_of_file_objects_are_listed(store: str) -> None:
    publish(store)
    for name in ("tree-ab", "sha256-short", ".DS_Store", f"md5-{'a' * 64}"):
        Path(store, "objects-v1", name).mkdir()

    assert list(Objects(store).all()) == [DIGEST]


def test_what_takes_the_place_of_an_altered_object_has_all_its_names(store: str) -> None:
    first = publish(store, "a.onnx")
    publish(store, "b.onnx")
    alter(first)

    publish(store, "c.onnx")

    for name in ("a.onnx", "b.onnx", "c.onnx"):
        found = Objects(store).find(DIGEST, name)
        assert found is not None
        assert Path(found.path).read_bytes() == CONTENT


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_an_object_that_this_process_cannot_open_now_is_not_set_aside(
    number: int, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = publish(store)

    def failing(path: str) -> tuple[Digest, os.stat_result]:
        raise OSError(number, os.strerror(number), path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "digest_of", failing)
        with pytest.raises(StorageError):
            publish(store)

    assert Path(stored.path).read_bytes() == CONTENT
    assert not os.path.exists(f"{store}/quarantine")


def test_a_mark_whose_close_fails_is_not_left(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def failing(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        with pytest.raises(StorageError), Objects(store).announced(DIGEST):
            pass

    assert os.listdir(f"{store}/staging") == []
