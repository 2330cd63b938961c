"""The one checker: each promise that is broken by hand is named, and a cache in good order is not accused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache, Entry, layout
from modelcache.testing import check_cache

CONTENT = b"a model" * 100


@pytest.fixture
def entry(root: Path) -> Entry:
    return Cache(root).put(CONTENT, name="m.onnx")


def test_a_cache_in_good_order_keeps_every_promise(root: Path, entry: Entry) -> None:
    assert check_cache(root, {"m.onnx": entry.digest, "never": None}) == []
    assert check_cache(root / "missing") == []


def alter(root: Path, entry: Entry) -> None:
    Path(entry.path).chmod(0o644)
    Path(entry.path).write_bytes(CONTENT[::-1])


def empty(root: Path, entry: Entry) -> None:
    Path(entry.path).unlink()


def lose_the_object(root: Path, entry: Entry) -> None:
    shutil.rmtree(Path(entry.path).parent)


def lose_the_record(root: Path, entry: Entry) -> None:
    Path(root, layout.ENTRIES, layout.key_id(entry.key)).unlink()


def break_the_record(root: Path, entry: Entry) -> None:
    record = Path(root, layout.ENTRIES, layout.key_id(entry.key))
    record.write_bytes(record.read_bytes()[:-4])


def share_the_file(root: Path, entry: Entry) -> None:
    os.link(entry.path, root / layout.STAGING / "twin")


def put_a_stranger_there(root: Path, entry: Entry) -> None:
    (root / layout.OBJECTS / "readme").write_text("x")


@pytest.mark.parametrize(
    ("damage", "promises"),
    [
        (alter, {"I1", "I3"}),
        (empty, {"I1", "I2", "I3"}),
        (lose_the_object, {"I2", "I3"}),
        (lose_the_record, {"I3", "I7"}),
        (break_the_record, {"I3", "I6", "I7"}),
        (share_the_file, {"I5"}),
        (put_a_stranger_there, {"I7"}),
    ],
)
def test_a_broken_promise_is_named(
    damage: Callable[[Path, Entry], None], promises: set[str], root: Path, entry: Entry
) -> None:
    damage(root, entry)

    assert {violation.promise for violation in check_cache(root, {"m.onnx": entry.digest})} == promises


def test_what_was_removed_and_is_there_again_is_a_loss_too(root: Path, entry: Entry) -> None:
    assert [str(v) for v in check_cache(root, {"m.onnx": None})] == [
        "I3 lost: m.onnx: it was removed, and is there again"
    ]


def test_verify_tells_of_content_that_no_record_names(root: Path, entry: Entry) -> None:
    alter(root, entry)
    lose_the_record(root, entry)

    report = Cache(root).verify()

    assert not report.ok
    assert [violation.promise for violation in report.violations] == ["I1"]


def test_verify_is_content_with_a_cache_in_good_order_and_tells_a_loss_once(root: Path, entry: Entry) -> None:
    assert Cache(root).verify().ok
    lose_the_object(root, entry)
    report = Cache(root).verify()

    assert (len(report.bad), report.violations) == (1, ())
