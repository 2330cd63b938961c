"""Which object each key stands for."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache import hit, layout
from modelcache.digest import Digest
from modelcache.errors import NoSpaceError, StorageError
from modelcache.records import Entries, Entry
from modelcache.sealed import seal, unseal

KEY = "https://example.org/a/m%20o.onnx"
DIGEST = Digest.of_bytes([b"model"])


def entry(store: str, key: str = KEY) -> Entry:
    path = f"{store}/objects-v1/{layout.object_name(DIGEST)}/m o.onnx"
    return Entry(
        key=key,
        digest=DIGEST,
        path=path,
        size=5,
        name="m o.onnx",
        source="https://mirror.example.org/m",
        created=1_700_000_000,
        checked=1_700_000_100,
        mtime_ns=1_700_000_000_123_456_789,
        etag='W/"ü"',
        last_modified="Tue, 14 Nov 2023 22:13:20 GMT",
        revision="v1\n\u2028",
        mirrors=("https://mirror.example.org/m", "file:///m"),
    )


@pytest.fixture
def record(store: str) -> Path:
    """The record of KEY, written a moment ago."""
    Entries(store).write(entry(store))
    return Path(Entries(store).path(KEY))


def test_an_entry_comes_back_as_it_was_written(store: str) -> None:
    entries = Entries(store)
    entries.write(entry(store))

    assert entries.read(KEY) == entry(store)
    assert list(entries.all()) == [entry(store)]


def test_a_key_without_a_record_has_no_entry(store: str) -> None:
    entries = Entries(store)

    assert entries.read(KEY) is None
    assert entries.used(KEY) == 0
    assert entries.remove(KEY) is False


def test_a_record_that_was_removed_is_gone(store: str, record: Path) -> None:
    assert Entries(store).remove(KEY) is True
    assert Entries(store).read(KEY) is None


def test_a_confirmed_entry_says_when_its_source_confirmed_it(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = Entries(store)
    entries.write(entry(store))
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)

    confirmed = entries.confirm(entry(store))

    assert confirmed == replace(entry(store), checked=1_800_000_000)
    assert entries.read(KEY) == confirmed


def test_an_entry_is_json_ready(store: str) -> None:
    shown = json.loads(json.dumps(entry(store).as_dict()))

    assert shown["ref"] == shown["key"] == KEY
    assert shown["digest"] == DIGEST
    assert shown["mirrors"] == list(entry(store).mirrors)


def _foreign(record: Path) -> bytes:
    return record.read_bytes().partition(b"\n")[0] + b"\n"


def _body_with(record: Path, **facts: object) -> tuple[bytes, bytes]:
    """Return the second line of *record* as it is, and sealed again with other *facts*."""
    body = record.read_bytes().partition(b"\n")[2]
    return body, seal((unseal(body) or {}) | facts)


BROKEN = {
    "empty": lambda record: b"",
    "zeroed": lambda record: b"\0" * record.stat().st_size,
    "head alone": _foreign,
    "cut in the head": lambda record: record.read_bytes()[:40],
    "cut by one byte": lambda record: record.read_bytes()[:-1],
    "zeroed tail": lambda record: record.read_bytes()[:-20] + b"\0" * 20,
    "size edited": lambda record: record.read_bytes().replace(b" 5 ", b" 6 ", 1),
    "source edited": lambda record: record.read_bytes().replace(b"mirror", b"mirrer"),
    "text": lambda record: b"hello\nworld\n",
    "not a dict": lambda record: _foreign(record) + seal([]),  # type: ignore[arg-type]
    "another form": lambda record: _foreign(record) + seal({"version": 2}),
    "key of another type": lambda record: _foreign(record) + seal({"key": 7}),
    "field missing": lambda record: _foreign(record) + seal({"key": KEY, "source": "x"}),
    "mirrors of another type": lambda record: record.read_bytes().replace(*_body_with(record, mirrors=7)),
    "key of another record": lambda record: record.read_bytes().replace(*_body_with(record, key="another key")),
    "another object": lambda record: layout.encode_head(record.name, "../../etc", 5, 1, 1, "passwd")
    + record.read_bytes().partition(b"\n")[2],
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_record_is_a_miss(store: str, record: Path, broken: object) -> None:
    assert callable(broken)
    record.write_bytes(broken(record))

    assert Entries(store).read(KEY) is None
    assert list(Entries(store).all()) == []


def test_a_record_under_another_name_is_a_miss(store: str, record: Path) -> None:
    record.rename(Entries(store).path("another key"))

    assert Entries(store).read("another key") is None


def test_a_directory_where_a_record_should_be_is_a_miss(store: str) -> None:
    os.mkdir(Entries(store).path(KEY))

    assert Entries(store).read(KEY) is None


def test_a_broken_record_is_logged_once_and_does_not_hide_others(
    store: str, record: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = Entries(store)
    entries.write(entry(store, "another key"))
    record.write_bytes(b"")

    with caplog.at_level(logging.WARNING, "modelcache"):
        for _ in range(3):
            assert entries.read(KEY) is None
            assert [found.key for found in Entries(store).all()] == ["another key"]

    assert [message.getMessage() for message in caplog.records] == [
        f"the record {record} is broken; it counts as a miss"
    ]


def test_the_broken_record_of_a_second_cache_is_logged_too(
    store: str, record: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = Entries(str(tmp_path / "second"))
    os.makedirs(os.path.dirname(second.path(KEY)))
    for path in (record, Path(second.path(KEY))):
        path.write_bytes(b"")

    with caplog.at_level(logging.WARNING, "modelcache"):
        Entries(store).read(KEY)
        second.read(KEY)

    assert len(caplog.records) == 2


def test_a_broken_record_is_replaced_by_a_new_one(store: str, record: Path) -> None:
    record.write_bytes(b"\0" * 100)

    Entries(store).write(entry(store))

    assert Entries(store).read(KEY) == entry(store)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS syncs by fcntl")
def test_a_record_is_synced_before_it_is_visible_and_its_name_before_write_returns(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fsync, rename = os.fsync, os.replace

    def logged_fsync(descriptor: int) -> None:
        log.append(f"sync {os.readlink(f'/proc/self/fd/{descriptor}')}")
        fsync(descriptor)

    def logged_rename(source: str, target: str) -> None:
        log.append(f"rename {source} {target}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_rename)

    Entries(store).write(entry(store))

    staged = log[0].removeprefix("sync ")
    final = Entries(store).path(KEY)
    assert os.path.dirname(staged) == f"{store}/staging"
    assert log == [f"sync {staged}", f"rename {staged} {final}", f"sync {os.path.dirname(final)}"]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EIO, StorageError)])
def test_a_record_that_cannot_be_written_leaves_the_old_one_and_nothing_staged(
    store: str, record: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(kind):
        Entries(store).write(replace(entry(store), size=6))
    monkeypatch.undo()

    assert Entries(store).read(KEY) == entry(store)
    assert os.listdir(f"{store}/staging") == []


def stamped(store: str, record: Path, at: float) -> bool:
    """Set the last use to *at*, and tell whether a use now is recorded."""
    os.utime(record, (at, at))
    Entries(store).stamp_use(KEY)
    return abs(Entries(store).used(KEY) - time.time()) < 60


@pytest.mark.parametrize("ago", [hit.USE_STAMP_S + 10, 1e9, -hit.USE_STAMP_S - 10, -1e8])
def test_a_use_is_recorded_when_the_last_one_is_an_hour_off_in_either_direction(
    store: str, record: Path, ago: float
) -> None:
    assert stamped(store, record, time.time() - ago)


@pytest.mark.parametrize("ago", [120, hit.USE_STAMP_S - 10, -120, -hit.USE_STAMP_S + 10])
def test_a_use_within_the_hour_is_not_recorded_again(store: str, record: Path, ago: float) -> None:
    assert not stamped(store, record, time.time() - ago)


def test_a_use_stamp_leaves_the_record_whole(store: str, record: Path) -> None:
    before = record.read_bytes()

    assert stamped(store, record, 0)
    assert record.read_bytes() == before


def test_a_use_that_cannot_be_recorded_is_no_error(store: str, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(time, "time", lambda: 1e10)

    Entries(store).stamp_use(KEY)
    Entries(store).stamp_use("never recorded")
