"""What a bucket says may be wrong in any way: it costs a request at most, and never a get, nor the tier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Event, RetryPolicy, Tier
from modelcache.archive import MemoryBackend
from modelcache.backends import contents, refs
from modelcache.digest import Digest
from modelcache.errors import CapacityError
from modelcache.levels import base
from modelcache.promises import check_cache
from modelcache.sealed import seal
from modelcache.testing import FaultServer

CONTENT = bytes(range(256)) * 200
DIGEST = Digest.of_bytes([CONTENT])


@pytest.fixture(autouse=True)
def _tell_everything_again() -> None:
    base._complained.clear()


@pytest.fixture
def bucket() -> MemoryBackend:
    return MemoryBackend()


def tier(backend: Any, name: str = "b", **options: Any) -> Tier:
    return Tier("bucket", name=name, backend=backend, **{"timeout": 30.0, **options})


def filled(bucket: MemoryBackend, root: Path, url: str, **options: Any) -> dict[str, Any]:
    """Let another cache fetch *url* and bring it to the bucket; return what is on record there."""
    with Cache(root.parent / "first", tiers=[tier(bucket, write="direct")]) as first:
        first.get(url, **options)
    record = refs.read(bucket, url)
    assert record is not None
    return {"form": 1, **record.facts()}


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 10**18},
        {"size": 10**30},
        {"size": True},
        {"size": 5},
        {"size": 0},
        {"checked": 10**30},
        {"etag": '"a"\r\nX-Evil: 1'},
        {"etag": '"\u20ac"'},
        {"last_modified": "x\r\nX: y"},
        {"revision": "\ud800"},
        {"name": "\ud800"},
        {"source": "nonsense"},
        {"source": "file:///etc/passwd"},
        {"mirrors": ["file:///etc/passwd"]},
        {"mirrors": ["\0"]},
        {"key": "\ud800"},
        {"digest": f"tree:{'0' * 64}"},
        {"digest": ["x"]},
    ],
    ids=repr,
)
def test_a_record_that_says_nonsense_is_no_hindrance(
    root: Path, bucket: MemoryBackend, server: FaultServer, wrong: dict[str, Any]
) -> None:
    url = server.add("/model.onnx", CONTENT)
    facts = filled(bucket, root, url)
    bucket.put(refs.record_name(url), seal({**facts, **wrong}))

    with Cache(root, tiers=[tier(bucket, write="direct")], mode="refresh") as second:
        assert Path(second.get(url)).read_bytes() == CONTENT
        stats = second.stats()
        state = second.tiers()[0]
        entry = second.lookup(url)

    assert stats.bytes_received == len(CONTENT)
    assert (state.state, state.last_error) == ("healthy", None)
    assert entry is not None
    assert (entry.source, entry.mirrors, entry.size) == (url, (), len(CONTENT))
    healed = refs.read(bucket, url)
    assert healed is not None
    assert healed.size == len(CONTENT)
    assert check_cache(root) == []


def test_a_file_of_gigabytes_where_a_small_one_is_expected_is_not_read(
    root: Path, bucket: MemoryBackend, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    monkeypatch.setattr(refs, "_BYTES_MAX", 100)
    monkeypatch.setattr(contents, "_MANIFEST_BYTES_MAX", 100)
    read: list[int] = []
    whole = MemoryBackend.read

    def counted(self: MemoryBackend, name: str, start: int = 0, length: int | None = None) -> bytes:
        data = whole(self, name, start, length)
        read.append(len(data))
        return data

    monkeypatch.setattr("modelcache.backends.base.PIECE_BYTES", 64)
    monkeypatch.setattr(MemoryBackend, "read", counted)
    told: list[Event] = []

    with Cache(root, tiers=[tier(bucket)], on_event=told.append) as second:
        assert Path(second.get(url, digest=DIGEST)).read_bytes() == CONTENT

    details = [event.detail for event in told if event.kind == "refused"]
    assert len(details) == 2
    assert all(detail is not None and "more than 100 bytes" in detail for detail in details)
    assert sum(read) <= 2 * 128


def test_a_path_of_the_machine_that_fetched_it_does_not_leave_it(
    root: Path, bucket: MemoryBackend, server: FaultServer, tmp_path: Path
) -> None:
    own = tmp_path / "own.onnx"
    own.write_bytes(CONTENT)
    server.add("/mirror.onnx", CONTENT)
    url = server.add("/model.onnx", CONTENT)
    facts = filled(bucket, root, url, mirrors=[str(own), server.url("/mirror.onnx")])
    assert facts["mirrors"] == [server.url("/mirror.onnx")]


def test_what_has_no_room_is_said_so_though_the_source_cannot_be_asked(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)

    with Cache(root, tiers=[tier(bucket)], capacity=1000, retry=RetryPolicy(attempts=1)) as second:
        with pytest.raises(CapacityError):
            second.get(url)
        server.unplug()
        with pytest.raises(CapacityError):
            second.get(url)


def test_a_shared_disk_that_is_only_read_is_not_written_to(root: Path, server: FaultServer, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    url = server.add("/model.onnx", CONTENT)
    with Cache(root.parent / "first", tiers=[f"directory://{shared},write-direct"]) as first:
        first.get(url)
    for made in ("events", "staging"):
        (shared / made).rmdir()

    with Cache(root, tiers=[Tier(f"directory://{shared}", timeout=30.0)]) as second:
        second.get(url)
        assert second.stats().bytes_promoted == len(CONTENT)
        assert second.tiers()[0].problem == ""

    assert [found.name for found in shared.iterdir()] == ["files"]


def test_a_shared_disk_that_is_not_mounted_is_told_and_not_made(
    root: Path, server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Cache(root, tiers=[Tier(f"directory://{tmp_path}/shared/tier", timeout=30.0)]) as cache:
        for name in ("/a.onnx", "/b.onnx"):
            assert Path(cache.get(server.add(name, CONTENT))).read_bytes() == CONTENT
        state = cache.tiers()[0]

    assert (state.state, state.problem) == ("down", "it is not there")
    assert not (tmp_path / "shared").exists()
    assert caplog.text.count("is passed over") == 1


def test_a_bucket_cannot_say_what_a_path_of_this_machine_holds(
    root: Path, bucket: MemoryBackend, server: FaultServer, tmp_path: Path
) -> None:
    own = tmp_path / "own.onnx"
    own.write_bytes(b"its own")
    facts = filled(bucket, root, server.add("/model.onnx", CONTENT))
    keys = [f"file://{own}", "HTTP://Host/x", "../x", f"derived:x/1/{'a' * 64}", "x" * 5000]
    for key in keys:
        bucket.put(refs.record_name(key), seal({**facts, "key": key}))

    with Cache(root, tiers=[tier(bucket)]) as second:
        report = second.sync_tiers(from_="b")
        assert sorted(entry.key for entry in second.entries()) == [facts["key"]]
        assert Path(second.get(own)).read_bytes() == b"its own"
    assert report.counts() | {"bytes": 0} == {
        "copied": 1, "missing": 0, "there": 0, "other": 0, "failed": len(keys), "bytes": 0,
    }  # fmt: skip
