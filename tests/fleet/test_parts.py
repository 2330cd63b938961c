"""What a claimer shares while it comes: several pieces at once, no hole, and a download that waits, for a while."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelcache import Timeout, errors, transfer
from modelcache.archive import MemoryBackend
from modelcache.backends import contents
from modelcache.digest import Digest
from modelcache.fleet import Bucket, Sharing, growing, parts
from modelcache.layout import key_id
from modelcache.partials import Partial, Partials
from modelcache.reference import parse
from modelcache.retry import Deadline
from modelcache.roots import prepare_root
from modelcache.sealed import unseal
from modelcache.sources import Stream

KEY = "https://example.org/m.onnx"
PIECE = 1000
CONTENT = random.Random(84).randbytes(10 * PIECE)
FACTS = {"place": KEY, "announced": None, "etag": '"v1"', "last_modified": None, "strong_date": False, "revision": None}
LONG_S = 30.0


class Gated(MemoryBackend):
    """A bucket that brings a piece when it is let, and checks each index when it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.change = threading.Condition()
        self.arrived: dict[int, str] = {}
        self.let: set[int] = set()
        self.open = False
        self.failing = 0
        self.checks = True
        self.indices: list[int] = []

    def put(self, name: str, data: bytes) -> None:
        kind = name.rpartition("/")[2].split(".")
        if name.startswith("parts/") and len(kind) == 3:
            start = int(kind[2].partition("-")[0])
            with self.change:
                if self.failing:
                    self.failing -= 1
                    raise errors.BackendError(backend="bucket", detail="it was told to fail")
                self.arrived[start] = name
                self.change.notify_all()
                assert self.change.wait_for(lambda: self.open or start in self.let, LONG_S)
                del self.arrived[start]
                self.change.notify_all()
        super().put(name, data)
        if name.startswith("parts/") and len(kind) == 2:
            index = unseal(data)
            assert index is not None
            for piece, size, _ in index["pieces"] if self.checks else ():
                assert self.size(f"parts/{key_id(KEY)}/{piece}") == size, "an index names what is not there"
            with self.change:
                self.indices.append(len(index["pieces"]))
                self.change.notify_all()

    def wait_for(self, ready: Callable[[], bool]) -> None:
        with self.change:
            assert self.change.wait_for(ready, LONG_S)

    def release(self, *starts: int) -> None:
        with self.change:
            self.let.update(starts)
            self.open = self.open or not starts
            self.change.notify_all()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(growing, "PIECE_BYTES_MAX", PIECE)


@pytest.fixture
def backend() -> Iterator[Gated]:
    made = Gated()
    yield made
    made.release()


@pytest.fixture
def partial(root: Path) -> Partial:
    prepare_root(str(root))
    made = Partials(str(root)).create(KEY, "m.onnx")
    made.describe(dict(FACTS), len(CONTENT))
    return made


def sharing(backend: MemoryBackend, *, mark: str = "0123456789abcdef", hold: float = LONG_S) -> Sharing:
    bucket = Bucket("bucket", lambda: backend)
    return Sharing(bucket, KEY, mark, trusted=True, deadline=Deadline(LONG_S, ref=KEY), hold=hold)


def receive(shared: Sharing, partial: Partial, deadline: Deadline) -> None:
    while partial.length < len(CONTENT):
        partial.append(CONTENT[partial.length : partial.length + PIECE // 2])
        shared.pace(deadline)


def started(shared: Sharing, partial: Partial, deadline: Deadline) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            receive(shared, partial, deadline)
        except errors.ModelCacheError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, raised


def test_three_go_up_at_once_in_any_order_and_no_index_has_a_hole(backend: Gated, partial: Partial) -> None:
    shared = sharing(backend)
    shared.follow(KEY, partial, resumable=True)
    thread, raised = started(shared, partial, Deadline(LONG_S, ref=KEY))

    backend.wait_for(lambda: len(backend.arrived) == 3)
    assert partial.length == 3 * PIECE  # It waits: what is here, and not shared, is no more than that.
    backend.release(2 * PIECE, PIECE)
    backend.wait_for(lambda: list(backend.arrived) == [0])
    assert backend.indices == []
    backend.release()
    thread.join(LONG_S)
    backend.wait_for(lambda: backend.indices[-1:] == [9])  # The last piece stays: who has it has all.
    shared.close(wait=True)

    assert raised == []
    assert partial.length == len(CONTENT)
    partial.discard()


def test_a_download_waits_for_so_long_in_total_and_then_goes_on(
    backend: Gated, partial: Partial, caplog: pytest.LogCaptureFixture
) -> None:
    shared = sharing(backend, hold=0.05)
    shared.follow(KEY, partial, resumable=True)

    with caplog.at_level(logging.WARNING, "modelcache"):
        receive(shared, partial, Deadline(LONG_S, ref=KEY))  # No piece ever comes through.

    assert len([one for one in caplog.messages if "more slowly than it comes" in one]) == 1
    shared.close()
    partial.discard()


def test_nothing_waits_for_a_bucket_that_fails_and_what_failed_is_brought_later(
    backend: Gated, partial: Partial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_REST_S", 0.001)
    monkeypatch.setattr(parts, "_REST_MAX_S", 0.001)
    backend.release()
    backend.failing = 1 << 62
    shared = sharing(backend)
    shared.follow(KEY, partial, resumable=True)

    receive(shared, partial, Deadline(LONG_S, ref=KEY))
    backend.failing = 0
    backend.wait_for(lambda: backend.indices[-1:] == [9])

    shared.close(wait=True)
    partial.discard()


def test_an_index_that_was_on_the_way_when_all_began_anew_is_removed(backend: Gated, partial: Partial) -> None:
    backend.release()
    shared = sharing(backend)
    put = backend.put

    def putting(name: str, data: bytes) -> None:
        if name.count(".") == 1:
            shared.drop(KEY)
        put(name, data)

    backend.checks = False
    backend.put = putting  # type: ignore[method-assign]
    shared.follow(KEY, partial, resumable=True)
    partial.append(CONTENT[:PIECE])
    shared.pace(Deadline(LONG_S, ref=KEY))
    backend.wait_for(lambda: backend.indices != [])
    shared.close(wait=True)

    assert list(backend.names("parts/")) == []
    partial.discard()


def test_who_gives_up_waits_for_no_upload(backend: Gated, partial: Partial) -> None:
    shared, deadline = sharing(backend), Deadline(LONG_S, ref=KEY)
    shared.follow(KEY, partial, resumable=True)
    thread, raised = started(shared, partial, deadline)
    backend.wait_for(lambda: len(backend.arrived) == 3)

    deadline.cancel()
    thread.join(LONG_S)

    assert [type(one) for one in raised] == [errors.CancelledError]
    shared.close()
    partial.discard()


def test_what_was_on_the_way_when_all_began_anew_is_named_by_no_index(backend: Gated, partial: Partial) -> None:
    shared = sharing(backend)
    shared.follow(KEY, partial, resumable=True)
    thread, _ = started(shared, partial, Deadline(LONG_S, ref=KEY))
    backend.wait_for(lambda: len(backend.arrived) == 3)

    shared.drop(KEY)
    thread.join(LONG_S)
    backend.release()
    shared.close(wait=True)

    assert backend.indices == []
    assert list(backend.names("parts/")) == []
    partial.discard()


def test_taken_up_is_what_was_shared_and_beats_say_how_far_that_is(
    backend: Gated, partial: Partial, root: Path
) -> None:
    backend.release()
    first = sharing(backend)
    first.follow(KEY, partial, resumable=True)
    receive(first, partial, Deadline(LONG_S, ref=KEY))
    backend.wait_for(lambda: backend.indices[-1:] == [9])
    first.close(wait=True)
    partial.discard()
    second = sharing(backend, mark="fedcba9876543210")
    seen = []
    read = backend.read

    def reading(name: str, start: int = 0, length: int | None = None) -> bytes:
        seen.append(second.reached[0])
        return read(name, start, length)

    backend.read = reading  # type: ignore[method-assign]
    restored = second.longer(
        None, parse(KEY), KEY, Partials(str(root)), proven=False, make_room=lambda _: None
    )  # fmt: skip

    assert restored is not None
    assert (restored.length, max(seen) > 0) == (9 * PIECE, True)
    assert Path(restored.path).read_bytes() == CONTENT[: 9 * PIECE]
    restored.discard()


def test_to_wait_for_uploads_is_no_stall_and_no_slow_stream(partial: Partial, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Chunks(Stream):
        total = len(CONTENT)

        def __init__(self) -> None:
            self.left = [CONTENT[at : at + PIECE] for at in range(0, len(CONTENT), PIECE)]

        def read(self, limit: int) -> bytes:
            return self.left.pop(0) if self.left else b""

        def interrupt(self) -> None: ...

        def close(self) -> None: ...

    def pace() -> float:
        now[0] += 1000.0
        return 1000.0

    moved = transfer.Transfer(
        Chunks(), partial, KEY, Timeout(stall=5.0), Deadline(None, ref=KEY), lambda _: None, pace=pace, may_split=True
    )
    moved.run()

    assert (partial.length, moved.slow) == (len(CONTENT), False)
    partial.discard()


def test_of_a_tree_of_many_files_only_those_under_way_are_looked_at(backend: Gated, tmp_path: Path) -> None:
    shared = sharing(backend)
    (tmp_path / "file").write_bytes(CONTENT)
    digest = Digest(f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    for number in range(50):
        one = SimpleNamespace(length=len(CONTENT), total=len(CONTENT), facts=dict(FACTS), path=str(tmp_path / "file"))
        shared.follow(f"{KEY}/{number}", one, resumable=False)  # type: ignore[arg-type]
        shared.whole(f"{KEY}/{number}", str(tmp_path / "file"), digest, len(CONTENT))

    assert shared.reached == (50 * len(CONTENT), 50 * len(CONTENT))
    assert len(shared._contents) == 0
    shared.pace(Deadline(LONG_S, ref=KEY))  # Until the bucket has it, once.
    shared.close(wait=True)

    assert list(backend.names()) == [contents.blob_name(digest)]
