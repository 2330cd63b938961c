"""Tiers that are buckets: read, refused, healed, written to, and passed over."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Event, Policy, Tier, Timeout, errors, layout, replication
from modelcache.archive import DirectoryBackend, MemoryBackend, Queued
from modelcache.backends import base as backends_base
from modelcache.backends import contents, refs
from modelcache.digest import Digest
from modelcache.hints import Hints
from modelcache.levels import base
from modelcache.levels.health import Health, Look
from modelcache.outbox import Outbox
from modelcache.promises import check_cache
from modelcache.reference import parse
from modelcache.testing import FaultServer
from tests.support.state import leftovers

CONTENT = bytes(range(256)) * 2000
OTHER = b"other" * 1000
DIGEST = Digest.of_bytes([CONTENT])
PATIENT = 30.0  # Two cores may be busy with other tests: only who tests a timeout sets a short one.


@pytest.fixture(autouse=True)
def _tell_everything_again() -> None:
    base._complained.clear()


@pytest.fixture
def bucket() -> MemoryBackend:
    return MemoryBackend()


def tier(backend: Any, name: str = "b", **options: Any) -> Tier:
    return Tier("bucket", name=name, backend=backend, **{"timeout": PATIENT, **options})


def cache(root: Path, *tiers: Tier, **options: Any) -> Cache:
    return Cache(root, tiers=tiers, **options)


def filled(bucket: Any, root: Path, url: str) -> None:
    """Let another cache fetch *url*, and bring it to the bucket."""
    with cache(root.parent / "first", tier(bucket, write="direct")) as first:
        first.get(url)
    assert list(bucket.names("refs/")) == [refs.record_name(url)]


def whole(root: Path) -> None:
    assert check_cache(root) == []
    assert leftovers(root) == []


# -- read ----------------------------------------------------------------------------------------------------------


def test_what_one_cache_has_fetched_another_one_has_from_the_bucket(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    seen = len(server.seen())

    with cache(root, tier(bucket)) as second:
        path = Path(second.get(url))
        stats = second.stats()
        entry = second.lookup(url)

    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(root)
    assert len(server.seen()) == seen
    assert (stats.bytes_promoted, stats.bytes_received, stats.requests) == (len(CONTENT), 0, 0)
    assert entry is not None
    assert (entry.source, entry.digest) == (url, DIGEST)
    assert entry.etag is not None
    whole(root)


def test_a_digest_is_found_under_any_ref_and_without_any_record(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    filled(bucket, root, server.add("/model.onnx", CONTENT))
    other = server.add("/renamed.onnx", CONTENT)

    with cache(root, tier(bucket, trust="content")) as second:
        path = Path(second.get(other, digest=DIGEST))
        stats = second.stats()

    assert path.name == "renamed.onnx"
    assert path.read_bytes() == CONTENT
    assert (stats.requests, stats.bytes_promoted) == (0, len(CONTENT))


def test_records_of_a_tier_that_is_trusted_with_content_alone_are_not_read(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)

    with cache(root, tier(bucket, trust="content")) as second:
        second.get(url)
        assert second.stats().bytes_promoted == 0


def test_a_tree_comes_from_the_bucket_and_shares_what_is_here(
    root: Path, bucket: MemoryBackend, tmp_path: Path
) -> None:
    source = tmp_path / "Net.mlpackage"
    (source / "Data").mkdir(parents=True)
    (source / "Data/weights").write_bytes(CONTENT)
    (source / "a").write_bytes(OTHER)
    with cache(root.parent / "first", tier(bucket, write=True)) as first:
        digest = first.put_tree(source, name="Net.mlpackage").digest
        assert first.flush(60)

    with cache(root, tier(bucket)) as second:
        second.put(OTHER, name="other")
        path = Path(second.get("Net.mlpackage"))
        stats = second.stats()
        entry = second.lookup("Net.mlpackage")

    assert (path / "Data/weights").read_bytes() == CONTENT
    assert (path / "a").read_bytes() == OTHER
    assert entry is not None
    assert entry.digest == digest
    assert stats.bytes_promoted == len(CONTENT)
    whole(root)


def test_offline_no_bucket_beyond_a_connection_is_asked(root: Path, bucket: MemoryBackend, server: FaultServer) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)

    with cache(root, tier(bucket), offline=True) as near:
        assert Path(near.get(url)).read_bytes() == CONTENT
        assert near.remove(url)
    bucket.is_remote = True
    with cache(root, tier(bucket), offline=True) as far, pytest.raises(errors.LocalNotFoundError):
        far.get(url)
    with cache(root, tier(bucket)) as looking:
        assert looking.lookup(url) is None
        assert Path(looking.get(url)).read_bytes() == CONTENT


def test_a_path_of_this_machine_is_no_name_that_others_know(root: Path, bucket: MemoryBackend, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    with cache(root.parent / "first", tier(bucket, write="direct")) as first:
        first.get(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(OTHER)

    with cache(root, tier(bucket)) as second:
        assert Path(second.get(tmp_path / "m.onnx")).read_bytes() == OTHER
        assert Path(second.get(tmp_path / "m.onnx", digest=DIGEST)).read_bytes() == CONTENT
    assert list(bucket.names("refs/")) == []


def test_the_source_confirms_what_came_from_the_bucket_without_its_bytes(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)

    with cache(root, tier(bucket)) as second:
        second.get(url, max_age=0)
        stats = second.stats()

    assert (stats.bytes_promoted, stats.bytes_received, stats.unchanged) == (len(CONTENT), 0, 1)


# -- what is wrong is refused, asked for elsewhere, and healed ---------------------------------------------------------


def damage(bucket: MemoryBackend, url: str, what: str) -> None:
    blob, manifest = contents.blob_name(DIGEST), contents.manifest_name(DIGEST)
    if what == "blob":
        bucket.alter(blob, CONTENT[:-1] + b"x")
    elif what == "truncated blob":
        bucket.alter(blob, CONTENT[:1000])
    elif what == "missing blob":
        bucket.delete(blob)
    elif what == "record":
        bucket.alter(refs.record_name(url), b"torn")
    elif what == "record of another":
        bucket.alter(refs.record_name(url), bucket.read(refs.record_name(url)).replace(b"model", b"m0del"))
    else:
        bucket.alter(manifest, b"torn")


@pytest.mark.parametrize("what", ["blob", "truncated blob", "missing blob", "record", "record of another", "manifest"])
@pytest.mark.parametrize("given", [None, DIGEST])
def test_what_is_damaged_in_a_bucket_is_never_served_and_healed_by_who_has_it_whole(
    root: Path, bucket: MemoryBackend, server: FaultServer, what: str, given: str | None, caplog: Any
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    damage(bucket, url, what)
    events: list[Event] = []

    with cache(root, tier(bucket, write=True), on_event=events.append) as second:
        assert Path(second.get(url, digest=given)).read_bytes() == CONTENT
        assert second.flush(60)
        stats = second.stats()

    unread = (what == "manifest") or (what.startswith("record") and given is not None)
    if not unread and what != "missing blob":
        assert stats.refused == 1
        assert [event.ref for event in events if event.kind == "refused"] == [url]
        assert "is refused" in caplog.text
    with cache(root.parent / "third", tier(bucket)) as third:
        assert Path(third.get(url)).read_bytes() == CONTENT
        healed = third.stats().requests == 0
    assert healed or unread
    whole(root)


def test_a_damaged_bucket_that_cannot_be_written_stays_as_it_is(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    damage(bucket, url, "blob")

    with cache(root, tier(bucket)) as second:
        assert Path(second.get(url)).read_bytes() == CONTENT
        assert second.flush(60)

    assert bucket.read(contents.blob_name(DIGEST)) != CONTENT


def test_what_one_tier_has_damaged_the_next_one_has_whole_and_the_first_is_healed(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    near = MemoryBackend()
    filled(near, root.parent / "again" / "x", url)
    damage(near, url, "blob")
    seen = len(server.seen())

    with cache(root, tier(near, "near", write=True), tier(bucket, "far")) as second:
        assert Path(second.get(url)).read_bytes() == CONTENT
        assert second.flush(60)

    assert len(server.seen()) == seen
    assert near.read(contents.blob_name(DIGEST)) == CONTENT
    whole(root)


def test_a_damaged_file_of_a_tree_comes_from_the_next_tier(root: Path, bucket: MemoryBackend, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").write_bytes(CONTENT)
    (tmp_path / "t/b").write_bytes(OTHER)
    near = MemoryBackend()
    with cache(root.parent / "first", tier(near, "near", write=True), tier(bucket, "far", write=True)) as first:
        first.put_tree(tmp_path / "t", name="t")
        assert first.flush(60)
    near.alter(contents.blob_name(DIGEST), CONTENT[::-1])

    with cache(root, tier(near, "near", write=True), tier(bucket, "far")) as second:
        path = Path(second.get("t"))
        assert second.flush(60)
        assert second.stats().refused == 1

    assert (path / "a").read_bytes() == CONTENT
    assert near.read(contents.blob_name(DIGEST)) == CONTENT
    whole(root)


def test_what_is_wrong_in_the_only_place_that_may_be_asked_is_an_error(root: Path, bucket: MemoryBackend) -> None:
    with cache(root.parent / "first", tier(bucket, write="direct")) as first:
        first.put(CONTENT, name="m")
    bucket.alter(contents.blob_name(DIGEST), CONTENT[::-1])

    with cache(root, tier(bucket)) as second, pytest.raises(errors.DigestMismatchError):
        second.get("m")
    whole(root)


# -- written to --------------------------------------------------------------------------------------------------------


def test_what_one_tier_had_is_brought_to_those_before_it_and_not_to_those_behind(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    near, behind = MemoryBackend(), MemoryBackend()
    tiers = tier(near, "near", write=True), tier(bucket, "far"), tier(behind, "behind", write=True)

    with cache(root, *tiers) as second:
        second.get(url)
        assert second.flush(60)

    assert refs.read(near, url) == refs.read(bucket, url)
    assert list(behind.names()) == []


def test_a_direct_tier_has_it_when_get_returns(root: Path, bucket: MemoryBackend, server: FaultServer) -> None:
    url = server.add("/model.onnx", CONTENT)

    with cache(root, tier(bucket, write="direct")) as first:
        first.get(url)
        assert bucket.read(contents.blob_name(DIGEST)) == CONTENT
        assert first.waiting() == {}


def test_a_required_tier_that_fails_is_raised_and_a_best_effort_one_is_not(
    root: Path, bucket: MemoryBackend, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = server.add("/model.onnx", CONTENT), server.add("/other.onnx", OTHER)

    def fail(*_: object) -> None:
        raise errors.BackendError(backend="memory", detail="it was told to fail")

    monkeypatch.setattr(bucket, "upload", fail)
    with cache(root, tier(bucket, write=True, failure="required")) as first:
        with pytest.raises(errors.BackendError, match="told to fail"):
            first.get(url)
        assert Path(first.get(url)).read_bytes() == CONTENT  # It is here, and waits.
        assert first.waiting() == {"b": 1}
        with pytest.raises(errors.BackendError):
            first.put(OTHER, name="o")
    with cache(root, tier(bucket, write="direct")) as second:
        assert Path(second.get(other)).read_bytes() == OTHER
    monkeypatch.undo()
    with cache(root, tier(bucket, write=True)) as third:
        assert third.flush(60)
    assert sorted(bucket.names("refs/")) == sorted(map(refs.record_name, [url, other, "o"]))
    whole(root)


def test_what_waits_is_delivered_by_the_next_cache_that_fetches(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url, other = server.add("/model.onnx", CONTENT), server.add("/other.onnx", OTHER)
    bucket.fail_next(100)
    with cache(root, tier(bucket, write=True, timeout=0.5)) as first:
        first.get(url)
        assert first.waiting() == {"b": 1}
    bucket._failures.clear()

    with cache(root, tier(bucket, write=True)) as second:
        second.get(other)
        assert second.flush(60)

    assert sorted(bucket.names("refs/")) == sorted(map(refs.record_name, [url, other]))


def test_private_content_goes_only_where_it_was_asked_for(root: Path, server: FaultServer) -> None:
    url = server.add("/model.onnx", CONTENT)
    private = url.replace("://", "://user:secret@")
    open_one, private_one = MemoryBackend(), MemoryBackend()
    tiers = tier(open_one, "open", write="direct"), tier(private_one, "private", write="direct", private=True)

    with cache(root, *tiers) as first:
        first.get(private)

    assert list(open_one.names()) == []
    assert private_one.read(contents.blob_name(DIGEST)) == CONTENT
    assert all(b"secret" not in private_one.read(name) for name in private_one.names())


def test_an_outbox_that_is_full_takes_no_more_and_a_required_tier_says_so(
    root: Path, bucket: MemoryBackend, server: FaultServer, caplog: Any
) -> None:
    urls = [server.add(f"/{n}.onnx", OTHER * (n + 1)) for n in range(3)]
    bucket.fail_next(10_000)
    with cache(root, tier(bucket, write=Queued(capacity=1), timeout=0.5)) as first:
        for url in urls:
            first.get(url)
        assert first.waiting() == {"b": 1}
    assert "so many objects wait" in caplog.text
    required = tier(bucket, write=Queued(capacity=1), failure="required", timeout=0.5)
    with cache(root, required) as second, pytest.raises(errors.QueueFullError):
        second.get(server.add("/more.onnx", CONTENT))


@pytest.mark.parametrize(("skew", "stays"), [(0.0, True), (3600.0, False)])
def test_what_waited_on_one_machine_takes_nothing_back_that_another_has_brought(
    root: Path, bucket: MemoryBackend, monkeypatch: pytest.MonkeyPatch, skew: float, stays: bool
) -> None:
    now = time.time
    written = tier(bucket, write="direct")
    bucket.down = True
    with cache(root, written) as late:
        monkeypatch.setattr(time, "time", lambda: now() - 100)
        older = late.put(OTHER, name="m").digest
    monkeypatch.setattr(time, "time", lambda: now() + skew)
    bucket.down = False
    with cache(root.parent / "other", written) as other:
        newer = other.put(CONTENT, name="m").digest
    monkeypatch.setattr(time, "time", now)

    with cache(root, written) as late:
        assert late.flush(60)

    record = refs.read(bucket, "m")
    assert record is not None
    assert record.digest == (newer if stays else older)


def test_an_outbox_that_empties_while_the_oldest_is_looked_for_is_no_error(
    root: Path, bucket: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outbox, "count", lambda self: 10)
    with cache(root, tier(bucket, write=Queued(capacity=1, overflow="drop-oldest"))) as first:
        first.put(CONTENT, name="m")
        monkeypatch.undo()
        assert first.flush(60)
    assert refs.read(bucket, "m") is not None


def test_an_older_content_does_not_take_the_place_of_a_newer_one(root: Path, bucket: MemoryBackend) -> None:
    with cache(root, tier(bucket, write=True)) as first:
        old = first.put(OTHER, name="m")
        new = first.put(CONTENT, name="m")
        assert first.flush(60)
        record = base_record(bucket, "m")
        assert record.digest == new.digest
        Outbox(str(root), "b").add(old.digest, record={**record.facts(), "digest": old.digest})
        assert first.flush(60)

    assert base_record(bucket, "m").digest == new.digest


def base_record(bucket: Any, ref: str) -> refs.RefRecord:
    record = refs.read(bucket, parse(ref).key)
    assert record is not None
    return record


# -- health --------------------------------------------------------------------------------------------------------


class Hanging(MemoryBackend):
    """A backend of which every call waits until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.release = threading.Event()

    def _pass(self) -> None:
        self.asked += 1
        self.release.wait()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    backend = Hanging()
    yield backend
    backend.release.set()


def test_where_one_tier_does_not_answer_at_once_all_are_looked_at_side_by_side(root: Path, server: FaultServer) -> None:
    meeting = threading.Barrier(4)

    class Meeting(MemoryBackend):
        def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
            meeting.wait(PATIENT / 2)  # Nobody goes on before all are asked.
            return super().read(name, start, length)

    with cache(root, *(tier(Meeting(), f"m{n}") for n in range(4))) as upper:
        assert Path(upper.get(server.add("/model.onnx", CONTENT))).read_bytes() == CONTENT
        assert [state.state for state in upper.tiers()] == ["healthy"] * 4
    assert not meeting.broken


def test_the_time_of_those_that_are_asked_later_is_that_of_the_first(
    root: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = [Hanging() for _ in range(3)]
    begun: list[Look] = []
    begin = Health._begin

    def noted(self: Health, *given: Any, **options: Any) -> Look | None:
        look = begin(self, *given, **options)
        assert look is not None
        begun.append(look)
        return look

    monkeypatch.setattr(Health, "_begin", noted)
    try:
        with cache(root, *(tier(one, f"h{n}", timeout=0.4) for n, one in enumerate(hanging))) as upper:
            upper.get(server.add("/model.onnx", CONTENT))
    finally:
        for one in hanging:
            one.release.set()

    assert len(begun) == 3
    assert len({look.began for look in begun}) == 1
    assert all(look.until == pytest.approx(look.began + 0.4, abs=0.2) for look in begun)


def test_a_tier_that_is_slow_and_answers_is_waited_for_and_told_once(
    root: Path, bucket: MemoryBackend, server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    begin = Health._begin

    def long_ago(self: Health, *given: Any, **options: Any) -> Look | None:
        look = begin(self, *given, **options)
        assert look is not None
        look.wait(PATIENT)
        look.seconds = 25.0
        return look

    filled(bucket, root, server.add("/model.onnx", CONTENT))
    monkeypatch.setattr(Health, "_begin", long_ago)
    with cache(root, tier(bucket)) as upper:
        for name in ("/model.onnx", "/a.onnx", "/b.onnx"):
            upper.get(server.add(name, CONTENT))
        assert upper.stats().bytes_promoted == len(CONTENT)
    assert [record.getMessage() for record in caplog.records if "is slow" in record.getMessage()] == [
        "the tier bucket is slow: a look took 25.00 s; each get of what is not here waits for one (timeout=30 s)"
    ]


def test_tiers_that_hang_are_asked_once_and_then_left_alone(root: Path, server: FaultServer, caplog: Any) -> None:
    hanging = [Hanging() for _ in range(4)]
    urls = [server.add(f"/{n}.onnx", CONTENT) for n in range(5)]
    try:
        with cache(root, *(tier(one, f"h{n}", timeout=0.2) for n, one in enumerate(hanging))) as upper:
            for url in urls:
                assert Path(upper.get(url)).read_bytes() == CONTENT
    finally:
        for one in hanging:
            one.release.set()

    assert [one.asked for one in hanging] == [1, 1, 1, 1]
    assert caplog.text.count("is passed over") == 4


def test_what_one_process_has_found_dead_the_next_one_does_not_ask(
    root: Path, server: FaultServer, hanging: Hanging
) -> None:
    urls = [server.add(f"/{n}.onnx", CONTENT) for n in range(3)]
    with cache(root, tier(hanging, timeout=0.05)) as first:
        first.get(urls[0])
    asked = hanging.asked

    with cache(root, tier(hanging, timeout=PATIENT)) as second:  # It would wait for half a minute.
        second.get(urls[2])

    assert hanging.asked == asked


def test_each_process_that_finds_a_tier_still_dead_leaves_it_alone_for_longer(
    root: Path, server: FaultServer, hanging: Hanging
) -> None:
    hints = Hints(str(root), layout.BACKOFF)
    name = layout.key_id("tier bucket")
    left = []
    for n in range(3):
        with cache(root, tier(hanging, timeout=0.05)) as upper:
            upper.get(server.add(f"/{n}.onnx", OTHER))
        left.append(hints.read(name)["cooldown"])
        hints.write(name, {**hints.read(name), "until": 0.0})  # That time is over.

    assert left[1] > 1.5 * left[0]
    assert left[2] > 1.5 * left[1]


def test_an_end_does_not_wait_for_a_tier_that_is_down(
    root: Path, server: FaultServer, hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "_EXIT_S", 1000.0)  # A failure takes as long.

    with cache(root, tier(hanging, timeout=0.05, write=True)) as upper:
        upper.get(server.add("/model.onnx", CONTENT))

    assert upper.waiting() == {"b": 1}


def test_a_tier_that_answers_again_is_asked_again_and_nobody_waited_for_it(
    root: Path, bucket: MemoryBackend, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "COOLDOWN_S", 0.001)
    url, other = server.add("/model.onnx", CONTENT), server.add("/other.onnx", OTHER)
    filled(bucket, root, url)
    bucket.down = True
    with cache(root, tier(bucket)) as second:
        second.get(other)
        assert second.tiers()[0].state == "down"
        bucket.down = False
        while second.tiers()[0].state != "healthy":  # A look in the background.
            pass
        assert Path(second.get(url)).read_bytes() == CONTENT
        assert second.stats().bytes_promoted == len(CONTENT)


def test_a_tier_that_stalls_in_the_middle_is_left_for_the_source_which_goes_on(
    root: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_base, "PIECE_BYTES", 100_000)
    release = threading.Event()

    class Stalling(MemoryBackend):
        def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
            if start >= 300_000:
                release.wait()
            return super().read(name, start, length)

    bucket = Stalling()
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)
    try:
        with cache(root, tier(bucket), timeout=Timeout(stall=0.2)) as second:
            assert Path(second.get(url)).read_bytes() == CONTENT
            stats = second.stats()
            assert second._getter.tiers is not None
            assert second._getter.tiers.levels[0].breaker.state == "down"
    finally:
        release.set()

    assert (stats.bytes_promoted, stats.bytes_received) == (300_000, len(CONTENT) - 300_000)
    whole(root)


def test_a_wrong_beginning_of_a_tier_is_never_gone_on_with_to_a_whole(
    root: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_base, "PIECE_BYTES", 100_000)

    class Lying(MemoryBackend):
        def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
            if name.startswith("blobs/"):
                if start >= 300_000:
                    raise errors.BackendError(backend="memory", detail="cut")
                return bytes(length or 0)
            return super().read(name, start, length)

    bucket = Lying()
    url = server.add("/model.onnx", CONTENT)
    with cache(root.parent / "first", tier(bucket, write="direct")) as first:
        first.get(url)

    with cache(root, tier(bucket)) as second:
        assert Path(second.get(url)).read_bytes() == CONTENT
    whole(root)


def test_a_tier_that_hangs_holds_few_threads_however_many_ask(
    root: Path, server: FaultServer, hanging: Hanging
) -> None:
    urls = [server.add(f"/{n}.onnx", OTHER) for n in range(24)]

    with cache(root, tier(hanging, timeout=0.3)) as upper:
        assert len(upper.get_many(urls, jobs=24)) == 24

    assert 1 <= hanging.asked <= 8


# -- configuration -----------------------------------------------------------------------------------------------------


class Refusing(MemoryBackend):
    """A backend that never lets anybody in."""

    error: errors.BackendError = errors.BackendAccessError(backend="memory", detail="wrong key")

    def _pass(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        errors.BackendAccessError(backend="memory", detail="wrong key"),
        errors.BackendSetupError(backend="memory", detail="there is no such bucket"),
    ],
)
def test_a_mistake_is_raised_from_every_get_until_the_tier_has_worked_once(
    root: Path, bucket: MemoryBackend, server: FaultServer, error: errors.BackendError, tmp_path: Path
) -> None:
    url, other = server.add("/model.onnx", CONTENT), server.add("/other.onnx", OTHER)
    refusing = Refusing()
    refusing.error = error
    with cache(root, tier(refusing)) as upper:
        for _ in range(2):
            with pytest.raises(type(error)):
                upper.get(url)
        with pytest.raises(type(error)):
            upper.tiers()
        (tmp_path / "models.toml").write_text(f'[[model]]\nref = "{url}"\n')
        assert isinstance(upper.prewarm(tmp_path / "models.toml").failures[url], type(error))
    with cache(root, tier(bucket)) as upper:
        upper.get(url)
        monkey = pytest.MonkeyPatch()
        monkey.setattr(bucket, "_pass", refusing._pass)
        assert Path(upper.get(other)).read_bytes() == OTHER  # Later it is an outage.
        monkey.undo()


@pytest.mark.parametrize(
    "text",
    [
        "s3://", "s3:///x", "ftp://b/p", "s3://key:secret@b/p", "s3://b/p?x=1", "directory://relative", "s3://b,wirte",
        "s3://b,promote,in-place", "s3://b,in-place", "/mnt/x,write", "/mnt/x,single-flight", "/mnt/x,content-only",
        "s3://b,name=a/b", "s3://b,name=", "s3://b,required", "s3://b/../p", "s3://b ,write", "s3://b/p/.,write",
    ],
)  # fmt: skip
def test_a_tier_that_makes_no_sense_is_refused_and_shows_no_secret(root: Path, text: str) -> None:
    with pytest.raises(errors.UsageError) as refused:
        Cache(root, tiers=[text])

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": True}, {"promote": 7}, {"name": "a b"},
        {"name": "x" * 65}, {"name": 7}, {"write": "yes"}, {"failure": "maybe"}, {"failure": "required"}, {"trust": 1},
        {"private": 1}, {"single_flight": "x"}, {"promote": False},
    ],
)  # fmt: skip
def test_an_option_of_a_tier_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageError):
        Tier("s3://b/p", **options)


def test_a_required_tier_with_a_policy_that_drops_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="drop-oldest"):
        Tier("s3://b/p", write=Queued(overflow="drop-oldest"), failure="required")


@pytest.mark.parametrize("below", ["{root}", "{root}/x", "directory://{root}/x", "{root}/../cache"])
def test_a_tier_that_is_the_cache_itself_or_in_it_is_refused(root: Path, below: str) -> None:
    with pytest.raises(errors.UsageError, match="the cache"):
        Cache(root, tiers=[below.format(root=root)])


def test_two_tiers_of_one_name_are_refused(root: Path) -> None:
    with pytest.raises(errors.UsageError, match="a name is one's own"):
        Cache(root, tiers=["/mnt/a", "directory:///mnt/b,name=mnt-a"])


def test_a_tier_without_its_library_is_refused_at_construction(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(errors.MissingLibraryError, match="obstore"):
        Cache(root, tiers=["s3://b/p"])


def test_a_backend_that_raises_in_its_constructor_is_a_typed_error_of_the_first_get(
    root: Path, server: FaultServer
) -> None:
    class Exploding(MemoryBackend):
        def __init__(self) -> None:
            raise ValueError("no")

    with cache(root, tier(Exploding)) as upper, pytest.raises(errors.BackendSetupError, match="constructor raised"):
        upper.get(server.add("/model.onnx", CONTENT))


def test_the_text_of_a_tier_says_it_again_and_holds_no_secret() -> None:
    text = "s3://b/p,promote,write-direct,required,private,single-flight,content-only,name=x"
    made = Tier.parse(text, {})

    assert str(made) == text
    assert (made.is_direct, made.is_required, made.single_flight, made.trust) == (True, True, True, "content")
    assert Tier.parse("s3://b,single-flight", {}).write is True
    assert "secret" not in repr(Tier("s3://b", config={"secret_access_key": "secret"}))


def test_credentials_in_the_variable_are_refused_and_not_shown(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_TIERS", "/mnt/x:s3://key:secret@bucket/prefix")
    with pytest.raises(errors.ConfigurationError) as refused:
        Cache(root)
    assert "secret" not in str(refused.value)


def test_the_variable_splits_at_colons_that_no_scheme_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_TIERS", "/a:s3://b/p,write:huggingface,promote:directory:///d:/c,promote")
    monkeypatch.setenv("HF_HUB_CACHE", "/hub")

    with Cache(root) as upper:
        said = [str(one) for one in upper._limits.tiers]

    assert said == ["/a", "s3://b/p,write", "/hub,promote", "directory:///d", "/c,promote"]


def test_what_a_tier_waits_for_and_since_when_is_in_its_state(root: Path, bucket: MemoryBackend) -> None:
    bucket.fail_next(10_000)
    with cache(root, tier(bucket, write=True, timeout=0.5)) as upper:
        upper.put(CONTENT, name="m")
        state = upper.tiers()[0]

    assert (state.name, state.kind, state.write, state.waiting, state.state) == (
        "b", "MemoryBackend", "queued", 1, "down",
    )  # fmt: skip
    assert state.lag >= 0
    assert state.last_error == "it was told to fail"


def test_a_hit_and_an_import_make_no_archivist(root: Path, bucket: MemoryBackend, server: FaultServer) -> None:
    url = server.add("/model.onnx", CONTENT)
    with cache(root, tier(bucket)) as first:
        first.get(url)

    with cache(root, tier(bucket, write=True)) as second:
        second.get(url)
        assert second._replicating is None


def test_a_directory_as_a_bucket_is_shared_by_caches(root: Path, tmp_path: Path, server: FaultServer) -> None:
    url = server.add("/model.onnx", CONTENT)
    shared = f"directory://{tmp_path}/shared"
    with Cache(root.parent / "first", tiers=[f"{shared},write-direct"]) as first:
        first.get(url)

    with Cache(root, tiers=[Tier(shared, timeout=PATIENT)]) as second:
        assert Path(second.get(url)).read_bytes() == CONTENT
        assert second.stats().requests == 0
    assert isinstance(DirectoryBackend(tmp_path / "shared"), DirectoryBackend)
    assert os.listdir(tmp_path / "shared/staging") == []
    assert logging.getLogger("modelcache").level == 0


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_asked_of_where_the_bucket_had_it_from_and_of_what_it_is(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)

    for policy in (Policy(hosts=["models.example.org"]), Policy(max_size=1000), Policy(digests="required")):
        with cache(root, tier(bucket), policy=policy) as strict, pytest.raises(errors.PolicyError):
            strict.get(url)
        whole(root)
    with cache(root, tier(bucket), policy=Policy(digests="required")) as strict:
        assert Path(strict.get(url, digest=DIGEST)).read_bytes() == CONTENT
        assert strict.stats().bytes_promoted == len(CONTENT)


def test_what_comes_from_a_bucket_counts_towards_the_capacity(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    filled(bucket, root, url)

    with cache(root, tier(bucket), capacity=len(CONTENT) - 1) as small, pytest.raises(errors.CapacityError):
        small.get(url)
    whole(root)


# -- copied on request -------------------------------------------------------------------------------------------------


def test_sync_brings_what_is_missing_and_nothing_twice(root: Path, bucket: MemoryBackend, server: FaultServer) -> None:
    urls = [server.add(f"/{n}.onnx", OTHER * (n + 1)) for n in range(4)]
    with Cache(root) as alone:
        for url in urls:
            alone.get(url)

    with cache(root, tier(bucket, write=True)) as upper:
        planned = upper.sync_tiers(dry_run=True)
        assert list(bucket.names()) == []
        first = upper.sync_tiers(urls[0], urls[1])
        second = upper.sync_tiers()

    assert planned.counts() == {
        "copied": 0, "missing": 4, "there": 0, "other": 0, "failed": 0, "bytes": 10 * len(OTHER),
    }  # fmt: skip
    assert (first.counts()["copied"], first.counts()["bytes"]) == (2, 3 * len(OTHER))
    assert (second.counts()["copied"], second.counts()["there"], second.counts()["bytes"]) == (2, 2, 7 * len(OTHER))
    with cache(root.parent / "other", tier(bucket)) as other:
        pulled = other.sync_tiers(from_="b")
        assert (pulled.counts()["copied"], pulled.counts()["bytes"]) == (4, 10 * len(OTHER))
        assert other.sync_tiers(from_="b").counts()["there"] == 4
        assert [entry.key for entry in other.entries()] == sorted(urls)
        assert other.stats().requests == 0
    whole(root.parent / "other")


@pytest.mark.parametrize("kind", ["a file", "a tree"])
def test_sync_brings_a_part_that_the_bucket_has_lost(
    root: Path, bucket: MemoryBackend, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/a").write_bytes(CONTENT)
    (tmp_path / "net/b").write_bytes(OTHER)
    with cache(root, tier(bucket, write=True)) as first:
        if kind == "a tree":
            first.put_tree(tmp_path / "net", name="m")
        else:
            first.put(CONTENT, name="m")
        assert first.flush(60)
        bucket.delete(contents.blob_name(DIGEST))  # Such as by a rule of the store's for what is old.

        assert first.sync_tiers(dry_run=True).counts()["missing"] == 1
        assert first.sync_tiers().counts()["bytes"] == len(CONTENT)
        assert first.sync_tiers().counts()["there"] == 1
    assert bucket.read(contents.blob_name(DIGEST)) == CONTENT


def test_sync_leaves_alone_what_stands_for_another_content(root: Path, bucket: MemoryBackend) -> None:
    with cache(root, tier(bucket, write=True)) as upper:
        upper.put(CONTENT, name="m")
        assert upper.flush(60)
    with cache(root.parent / "other", tier(bucket, write=True)) as other:
        with Cache(other.root) as alone:
            alone.put(OTHER, name="m")
        assert [one.state for one in other.sync_tiers(to="b").refs] == ["other"]
        assert [one.state for one in other.sync_tiers(from_="b").refs] == ["other"]
        assert Path(other.get("m")).read_bytes() == OTHER
    assert base_record(bucket, "m").digest == DIGEST


def test_what_sync_cannot_copy_is_told_and_the_rest_is_copied(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    urls = [server.add(f"/{n}.onnx", OTHER * (n + 1)) for n in range(3)]
    with cache(root, tier(bucket, write=True)) as upper:
        for url in urls:
            upper.get(url)
        assert upper.flush(60)
    blob = contents.blob_name(Digest.of_bytes([OTHER]))
    bucket.alter(blob, bucket.read(blob)[1:] + b"x")
    bucket.alter(refs.record_name(urls[1]), b"torn")

    with cache(root.parent / "other", tier(bucket)) as other:
        report = other.sync_tiers(from_="b")

    assert report.counts()["copied"] == 1, report
    assert sorted(type(one.error).__name__ for one in report.failures) == ["DamagedReplicaError", "DigestMismatchError"]
    whole(root.parent / "other")


@pytest.mark.parametrize("options", [{"to": "b"}, {"to": "x"}, {"from_": "x"}, {"to": "b", "from_": "b"}, {}])
def test_a_sync_that_makes_no_sense_is_refused(root: Path, bucket: MemoryBackend, options: dict[str, str]) -> None:
    with cache(root, tier(bucket)) as upper, pytest.raises(errors.UsageError):
        upper.sync_tiers(**options)  # type: ignore[arg-type]
    with Cache(root) as none, pytest.raises(errors.UsageError):
        none.sync_tiers(to="b")


def test_a_project_s_file_cannot_have_what_is_fetched_brought_anywhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELCACHE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "modelcache.toml").write_text('tiers = ["s3://b/p,name=x,write"]\n')

    with pytest.raises(errors.ConfigFileError, match="stranger"):
        Cache(root)


def test_who_asks_how_a_tier_is_asks_now_whatever_others_have_found(
    root: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = MemoryBackend()
    bucket.down = True
    with cache(root, tier(bucket)) as first:
        first.get(server.add("/net.onnx", CONTENT))
        assert [state.state for state in first.tiers()] == ["down"]
        bucket.down = False
        assert [state.state for state in first.tiers()] == ["healthy"]
        bucket.down = True
        first.get(server.add("/other.onnx", OTHER))
    bucket.down = False
    caplog.clear()

    with cache(root, tier(bucket)) as second:
        assert [state.state for state in second.tiers()] == ["healthy"]
        assert caplog.messages == []
        assert Hints(str(root), layout.BACKOFF).names() == []
