"""The one checker: each promise that is broken by hand is named, and a cache in good order is not accused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache, Entry, errors, layout
from modelcache.records import Entries
from modelcache.testing import check_cache, spawn

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
    os.chmod(entry.path, 0o644)  # Else nobody could: a tree that is put together has links to files of objects.


def put_a_stranger_there(root: Path, entry: Entry) -> None:
    (root / layout.OBJECTS / "readme").write_text("x")


def leave_staging(root: Path, entry: Entry) -> None:
    child = subprocess.Popen([sys.executable, "-c", "from modelcache import process; print(process.token())"],
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    (root / layout.STAGING / child.communicate()[0].strip()).mkdir()


def lose_what_is_pinned(root: Path, entry: Entry) -> None:
    Cache(root).pin(entry.key)
    lose_the_record(root, entry)


def break_the_pin(root: Path, entry: Entry) -> None:
    Cache(root).pin(entry.key)
    Path(root, layout.PINS, layout.key_id(entry.key)).write_bytes(b"torn")


def link_elsewhere(root: Path, entry: Entry) -> None:
    elsewhere = root / layout.STAGING / "same"
    elsewhere.write_bytes(CONTENT)
    Path(entry.path).unlink()
    Path(entry.path).symlink_to(elsewhere)


def lead_elsewhere(root: Path, entry: Entry) -> None:
    (root / layout.STAGING / "same").write_bytes(CONTENT)
    Entries(str(root)).write(dataclasses.replace(entry, name=f"../../{layout.STAGING}/same"))


@pytest.mark.parametrize(
    ("damage", "promises"),
    [
        (leave_staging, {"I10"}),
        (lose_what_is_pinned, {"I3", "I4", "I7"}),
        (break_the_pin, {"I6"}),
        (link_elsewhere, {"I1", "I3"}),
        (lead_elsewhere, {"I3", "I6", "I7"}),
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


@pytest.mark.parametrize("what", ["another directory", "a file", "a newer format", ""])
def test_what_is_no_cache_is_not_called_a_good_one(what: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("x")
    else:
        place.mkdir()
        (place / ("format" if what == "a newer format" else "photo.jpg")).write_text("99\n")

    with pytest.raises(errors.ModelCacheError):
        check_cache(place if what else "")


def test_a_fifo_among_the_records_does_not_hang(root: Path, entry: Entry) -> None:
    os.mkfifo(root / layout.ENTRIES / "0")

    assert [violation.promise for violation in check_cache(root)] == ["I6"]


def test_a_cache_in_use_is_not_accused(root: Path) -> None:
    code = """
        from modelcache import Cache
        from modelcache.testing import acknowledge
        cache, number = Cache(sys.argv[1]), 0
        while True:
            cache.put(b"%d" % number, name=f"m{number % 20}")
            cache.remove(f"m{(number + 10) % 20}")
            number += 1
            acknowledge("once")
    """
    with spawn(code, root) as writer:
        writer.wait_for("once")
        with Cache(root) as cache:
            for _ in range(60):
                assert [v for v in check_cache(root) if v.kind != "garbage"] == []
                assert cache.verify().ok
        assert writer.alive


def test_a_broken_pin_is_written_anew_by_a_repair(root: Path, entry: Entry) -> None:
    break_the_pin(root, entry)
    cache = Cache(root)

    assert not cache.verify().ok
    assert cache.verify(repair=True).ok
    assert cache.disk_usage().pinned == 1
    assert check_cache(root) == []


def test_a_broken_pin_of_nothing_is_set_aside_by_a_repair(root: Path, entry: Entry) -> None:
    (root / layout.PINS).mkdir()
    (root / layout.PINS / "0").write_bytes(b"torn")

    assert Cache(root).verify(repair=True).ok
    assert check_cache(root) == []


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
