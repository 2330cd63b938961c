"""What a hostile world does to the archive: poison, giants, interrupts, panics, clocks, deletions, full disks."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, commit, errors
from modelcache import breaker as breakers
from modelcache.archive import (
    Archivist,
    Batch,
    Direct,
    DirectoryBackend,
    MemoryBackend,
    Queued,
    Registration,
    SqliteBackend,
    exits,
)
from modelcache.archive import (
    archivist as archivists,
)
from modelcache.archive import (
    queue as queues,
)
from modelcache.archive import (
    writer as writers,
)
from modelcache.archive.lane import Lane
from modelcache.archive.queue import Item, Ledger, Queue
from modelcache.backends import contents
from modelcache.backends.base import encode
from modelcache.breaker import Breaker
from modelcache.digest import Digest
from modelcache.errors.archives import without_credentials
from modelcache.objects import Objects
from modelcache.outbox import Outbox
from modelcache.retry import Deadline
from tests.unit.test_archive import LONG_S, QUICK, Caller, Told, registered


def item(event: Any) -> Item:
    return Item("k", event, encode(event), f"id.{event}", 0.0, time.monotonic(), True, 50)


def a_queue(**options: Any) -> Queue:
    return Queue("q", Queued(**options), Ledger())


def never() -> bool:
    return False


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_large_events_are_bounded_by_bytes_while_they_wait_and_in_each_call(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "BATCH_BYTES_MAX", 300_000)
    backend = MemoryBackend()
    policy = Queued(overflow="drop-newest", batch_window=0, capacity_bytes=1_000_000)
    with Archivist([registered("m", backend, policy=policy)], root=root) as archivist:
        with backend.hold():
            archivist.append_events("k", ["first"])
            assert backend.waiting.wait(LONG_S)
            for number in range(100):
                archivist.append_events("k", [f"{number:03}" * 33_333])
            assert archivist.health()["m"].depth == 1 + 10 - 1  # Ten of 100 051 bytes are too many by one.
            assert archivist.health()["m"].dropped == 91
        archivist.flush(LONG_S)

        assert [event[:3] for event in backend.events] == ["fir", *(f"{number:03}" for number in range(9))]
        assert max(len(events) for _, events in backend.calls) == 2


def test_the_oldest_go_until_the_bytes_fit(root: Path) -> None:
    backend = MemoryBackend()
    policy = Queued(overflow="drop-oldest", batch_window=0, capacity_bytes=1_000_000)
    with Archivist([registered("m", backend, policy=policy)], root=root) as archivist:
        with backend.hold():
            archivist.append_events("k", ["first"])
            assert backend.waiting.wait(LONG_S)
            archivist.append_events("k", [f"{number:03}" * 33_333 for number in range(100)])
            assert archivist.health()["m"].depth <= 10
        archivist.flush(LONG_S)

        assert [event[:3] for event in backend.events] == ["fir", *(f"{number:03}" for number in range(91, 100))]


@pytest.mark.parametrize("overflow", ["block", "drop-oldest", "drop-newest", "error"])
def test_one_event_with_more_bytes_than_the_queue_may_hold_is_taken_alone(root: Path, overflow: str) -> None:
    backend = MemoryBackend()
    policy = Queued(overflow=overflow, capacity_bytes=10)
    with Archivist([registered("m", backend, policy=policy)], root=root) as archivist:
        archivist.append_events("k", ["x" * 1000])

        assert archivist.flush(LONG_S)
        assert backend.events == ["x" * 1000]


def test_a_batch_of_many_keys_is_coalesced_once_however_many_calls_it_takes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    coalesced = writers.coalesced

    def counting(items: Sequence[Item]) -> list[Batch]:
        seen.append(len(items))
        return coalesced(items)

    monkeypatch.setattr(writers, "coalesced", counting)
    backend = MemoryBackend()
    with Archivist([registered("m", backend)], root=root) as archivist:
        for number in range(1000):
            archivist.append_events(f"k{number % 2}", [number])
        assert archivist.flush(LONG_S)

    assert len(backend.calls) == 1000
    assert sum(seen) == 1000


def test_what_is_remembered_of_what_was_dropped_is_bounded_by_bytes() -> None:
    ledger = Ledger()

    for number in range(500):
        ledger.add("k", number, "full", 100_000)

    assert ledger.count == 500
    assert [one.what for one in ledger.last()] == list(range(459, 500))


def test_counts_of_many_threads_are_right() -> None:
    ledger = Ledger()
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for _ in range(2000):
            ledger.add("k", 1, "down")
            ledger.landed(1)

    callers = [Caller(work) for _ in range(4)]
    assert [caller.end() for caller in callers] == [None] * 4

    assert (ledger.count, ledger.direct) == (8000, 8000)


def test_nobody_overtakes_a_sender_that_waits_for_room() -> None:
    queue = a_queue(capacity=1)
    queue.offer([item(0)])
    waiting = Caller(lambda: queue.wait([item(1)], hopeless=never, look_in=lambda: LONG_S))
    while not queue._line:
        threading.Event().wait(0.001)
    with queue._lock:  # Room comes, and another sender is faster than the one that was woken.
        assert queue._popped().event == 0
        assert queue.offer([item(2)]) == 0
        queue._room.notify_all()
    waiting.end()

    assert [one.event for one in queue._waiting] == [1]


def test_a_full_queue_holds_its_sender_and_not_what_goes_elsewhere(root: Path) -> None:
    full, good = MemoryBackend(), Told(3)
    policy = Queued(capacity=1, batch_window=0)
    with Archivist([registered("full", full, policy=policy), registered("good", good)], root=root) as archivist:
        with full.hold():
            archivist.append_events("k", [0])
            assert full.waiting.wait(LONG_S)
            archivist.append_events("k", [1])
            sender = Caller(lambda: archivist.append_events("k", [2]))

            assert good.landed.wait(LONG_S)

            assert sender.is_alive()
        assert sender.end() is None


def test_after_one_sender_has_waited_in_vain_no_other_one_waits_until_something_moves() -> None:
    queue = a_queue(capacity=1, wait_max=0.01)
    queue.offer([item(0)])
    assert queue.wait([item(1)], hopeless=never, look_in=lambda: 1.0) == 0
    queue._policy = Queued(capacity=1, wait_max=1000.0)

    second = Caller(lambda: queue.wait([item(2)], hopeless=never, look_in=lambda: LONG_S))
    assert second.end() is None
    queue.take()

    assert queue.wait([item(3)], hopeless=never, look_in=lambda: 1.0) == 1


def test_who_waits_for_room_is_told_once_for_whom(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queues, "_TOLD_S", 0.001)
    queue, looks = a_queue(capacity=1, wait_max=LONG_S), itertools.count(1)
    queue.offer([item(0)])

    for number in range(3):
        queue.wait([item(number)], hopeless=lambda: next(looks) % 20 == 0, look_in=lambda: 1.0)

    assert [record.getMessage() for record in caplog.records] == [
        "q: its queue is full, and a write waits for room, 60 s at most"
    ]


def test_a_large_object_that_takes_its_time_is_no_backend_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(breakers, "monotonic", lambda: now[0])
    breaker = Breaker("b", policy=QUICK, cooldown=1.0, cooldown_max=1.0, timeout=30.0)
    seen: list[tuple[float, str]] = []

    def work() -> None:
        for seconds in (31, 100 + 29, 100 + 31):
            now[0] = 1000.0 + seconds
            seen.append((seconds, breaker.state))

    breaker.call(work, patience=Deadline(None, ref="b"), size=100 << 20)

    assert seen == [(31, "healthy"), (129, "healthy"), (131, "down")]
    assert breaker.state == "healthy"


# -- poison ------------------------------------------------------------------------------------------------------------


class Poisoned(MemoryBackend):
    """Takes no event with the word poison; *how* is what it raises."""

    def __init__(self, how: Callable[[], Exception]) -> None:
        super().__init__()
        self.how = how

    def append_events(self, key: str, events: Sequence[Any]) -> None:
        if any("poison" in str(event) for event in events):
            self.calls.append((key, list(events)))
            raise self.how()
        super().append_events(key, events)


class PoisonedAtOnce(Poisoned):
    """The same, of several batches in one call."""

    def append_batches(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            if any("poison" in str(event) for event in batch):
                raise self.how()
        for batch in batches:
            self.append_events(batch.key, batch)


def rejecting() -> Exception:
    return errors.RejectedError(backend="m", detail="too spicy")


@pytest.mark.parametrize("kind", [Poisoned, PoisonedAtOnce])
@pytest.mark.parametrize("where", [0, 37, 99])
def test_an_event_that_the_backend_rejects_is_left_out_alone(root: Path, kind: type[Poisoned], where: int) -> None:
    backend = kind(rejecting)
    events: list[Any] = list(range(100))
    events[where] = "poison"
    with Archivist([registered("m", backend)], root=root) as archivist:
        for number, event in enumerate(events):
            archivist.append_events(f"k{number % 10 // 5}", [event])

        assert archivist.flush(LONG_S)
        assert backend.events == [event for event in events if event != "poison"]
        assert [(one.what, one.reason) for one in archivist.dropped("m")] == [("poison", "rejected")]
        health = archivist.health()["m"]
        assert (health.state, health.dispatched, health.depth) == ("healthy", 99, 0)


def test_a_rejection_by_a_required_backend_is_raised_though_others_land_behind_it(root: Path) -> None:
    backend = Poisoned(rejecting)
    with Archivist([registered("m", backend, failure="required")], root=root) as archivist:
        archivist.append_events("k", [1, "poison", 2])

        with pytest.raises(errors.RejectedError, match="too spicy"):
            archivist.flush(LONG_S)

        assert archivist.flush(LONG_S)
        assert backend.events == [1, 2]


@pytest.mark.parametrize(("failure", "raises"), [("required", True), ("best-effort", False)])
def test_a_direct_rejection_is_told_or_counted_and_the_backend_stays_healthy(
    root: Path, failure: str, raises: bool
) -> None:
    backend = Poisoned(rejecting)
    with Archivist([registered("m", backend, failure=failure, policy=Direct())], root=root) as archivist:
        if raises:
            with pytest.raises(errors.RejectedError):
                archivist.append_events("k", ["poison"])
        else:
            archivist.append_events("k", ["poison"])
            assert [one.reason for one in archivist.dropped("m")] == ["rejected"]
        assert archivist.health()["m"].state == "healthy"
        assert len(backend.calls) == 1


@pytest.mark.parametrize("poison", [["poison"], ["poison 1", "poison 2"]])
def test_an_event_that_a_backend_of_ones_own_chokes_on_does_not_hold_up_the_others_for_ever(
    root: Path, poison: list[str]
) -> None:
    backend = Poisoned(lambda: TypeError("not serializable"))
    with Archivist([registered("m", backend)], root=root) as archivist:
        archivist.append_events("k", ["a", *poison, "b", "c"])

        assert archivist.flush(LONG_S)
        assert backend.events == ["a", "b", "c"]
        assert [(one.what, one.reason) for one in archivist.dropped("m")] == [(one, "rejected") for one in poison]
        assert archivist.health()["m"].state == "healthy"


def test_a_server_that_talks_nonsense_for_a_while_costs_no_event(root: Path) -> None:
    backend = MemoryBackend()
    backend.fail_next(60, error=ValueError("<html>502 Bad Gateway</html> is no JSON"))
    with Archivist([registered("m", backend)], root=root) as archivist:
        archivist.append_events("k", list(range(10)))

        assert archivist.flush(LONG_S)
        assert backend.events == list(range(10))
        assert archivist.dropped("m") == ()


def test_an_event_that_was_only_unlucky_lands_late_and_is_not_dropped(root: Path) -> None:
    class Recovering(MemoryBackend):
        def append_events(self, key: str, events: Sequence[Any]) -> None:
            if "unlucky" in events and not self.events:
                raise ValueError("<html>502 Bad Gateway</html> is no JSON")
            super().append_events(key, events)

    backend = Recovering()
    with Archivist([registered("m", backend)], root=root) as archivist:
        archivist.append_events("k", ["unlucky", "other"])

        assert archivist.flush(LONG_S)
        assert backend.events == ["other", "unlucky"]
        assert archivist.dropped("m") == ()


def test_poison_alone_in_its_queue_waits_until_another_event_shows_whose_fault_it_is(root: Path) -> None:
    backend = Poisoned(lambda: TypeError("not serializable"))
    with Archivist([registered("m", backend)], root=root) as archivist:
        archivist.append_events("k", ["poison"])
        assert not archivist.flush(0.2)
        assert archivist.dropped("m") == ()

        archivist.append_events("k", ["well"])

        assert archivist.flush(LONG_S)
        assert backend.events == ["well"]


@pytest.mark.parametrize("key", ["\ud800", "a\udfffb"])
def test_a_key_without_a_form_in_utf8_is_refused_and_does_not_stay_in_a_queue_for_ever(root: Path, key: str) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend)], root=root) as archivist:
        with pytest.raises(errors.UsageError, match="no key"):
            archivist.append_events(key, [1])
        assert archivist.flush(LONG_S)
        assert backend.calls == []


# -- interrupts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupt() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Takes what a signal handler is to do."""
    before = signal.getsignal(signal.SIGUSR1)

    def handle(work: Callable[[], None]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: work())

    try:
        yield handle
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupted_in(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Let the first call of *name* in this thread be interrupted by SIGUSR1."""
    original, me, done = getattr(owner, name), threading.get_ident(), list[bool]()

    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
        if threading.get_ident() == me and not done:
            done.append(True)
            signal.raise_signal(signal.SIGUSR1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Ends a test of the main thread that hangs: by a traceback of all threads."""
    import faulthandler

    faulthandler.dump_traceback_later(LONG_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("place", ["_offer", "_check_open", "_add"])
def test_a_signal_handler_may_append_while_the_queue_is_locked_by_its_thread(
    root: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Any, place: str
) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend)], root=root) as archivist:
        interrupt(lambda: archivist.append_events("k", ["handler"]))
        interrupted_in(monkeypatch, Queue, place)

        archivist.append_events("k", ["main"])

        assert archivist.flush(LONG_S)
        assert sorted(backend.events) == ["handler", "main"]


@pytest.mark.usefixtures("no_hang")
def test_a_signal_handler_that_finds_no_room_does_not_wait_for_the_thread_that_it_interrupts(
    root: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Any
) -> None:
    backend = MemoryBackend()
    policy = Queued(capacity=1, batch_window=0, wait_max=100_000.0)
    with Archivist([registered("m", backend, policy=policy, timeout=100_000.0)], root=root) as archivist:
        with backend.hold():
            archivist.append_events("k", [0])
            assert backend.waiting.wait(LONG_S)
            archivist.append_events("k", [1])

            def handler() -> None:
                archivist.append_events("k", ["handler"])
                backend._open.set()  # Only now is there room for the one that it has interrupted.

            interrupt(handler)
            interrupted_in(monkeypatch, Queue, "_take_turn")
            archivist.append_events("k", [2])

        assert archivist.flush(LONG_S)
        assert backend.events == [0, 1, 2]
        assert [(one.what, one.reason) for one in archivist.dropped("m")] == [("handler", "full")]


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("make", [SqliteBackend, DirectoryBackend, lambda _: MemoryBackend()])
def test_a_direct_write_in_a_signal_handler_fails_and_does_not_hang(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupt: Any, make: Any
) -> None:
    backend = make(tmp_path / "place")
    with Archivist([registered("m", backend, policy=Direct())], root=root) as archivist:
        interrupt(lambda: archivist.append_events("k", ["handler"]))
        interrupted_in(monkeypatch, Batch, "__iter__" if isinstance(backend, MemoryBackend) else "records")
        if isinstance(backend, SqliteBackend):
            interrupted_in(monkeypatch, SqliteBackend, "_there")

        archivist.append_events("k", ["main"])

        assert [one.event for one in backend.read_events()] == ["main"]
        assert [one.what for one in archivist.dropped("m")] == ["handler"]
        assert archivist.health()["m"].state == "healthy"


# -- panics, ends ------------------------------------------------------------------------------------------------------


class Panic(BaseException):
    """What a library that is no Python raises."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("end", ["flush", "shutdown"])
def test_a_thread_that_its_backend_has_ended_is_started_again_to_write_what_waits(root: Path, end: str) -> None:
    backend = MemoryBackend()
    backend.fail_next(1, error=Panic())
    archivist = Archivist([registered("m", backend, policy=Queued(batch_window=0))], root=root)
    archivist.append_events("k", [1])
    thread = archivist._lanes[0]._writer._thread  # type: ignore[union-attr]
    assert thread is not None
    thread.join(LONG_S)

    assert getattr(archivist, end)(LONG_S)

    assert backend.events == [1]
    archivist.shutdown()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_a_backend_that_always_panics_does_not_take_is_counted_and_no_success(root: Path) -> None:
    backend = MemoryBackend()
    backend.fail_next(100, error=Panic())
    archivist = Archivist([registered("m", backend, policy=Queued(batch_window=0))], root=root)
    archivist.append_events("k", [1, 2])

    assert not archivist.shutdown(LONG_S)

    assert [(one.what, one.reason) for one in archivist.dropped("m")] == [(1, "shutdown"), (2, "shutdown")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("end", ["flush", "shutdown"])
def test_a_carrier_that_its_backend_has_ended_is_started_again(root: Path, digest: Digest, end: str) -> None:
    class Panicking(MemoryBackend):
        panics = 1

        def upload(self, name: str, path: str, size: int) -> None:
            if self.panics:
                self.panics -= 1
                raise Panic
            super().upload(name, path, size)

    backend = Panicking()
    archivist = Archivist([registered("m", backend)], root=root)
    archivist.put_object(digest)
    thread = archivist._lanes[0]._carrier._thread  # type: ignore[union-attr]
    assert thread is not None
    thread.join(LONG_S)

    assert getattr(archivist, end)(LONG_S)

    assert contents.has(backend, digest)
    archivist.shutdown()


def test_a_backend_whose_close_fails_keeps_no_other_one_from_ending(root: Path) -> None:
    class Unclosable(MemoryBackend):
        def close(self) -> None:
            raise RuntimeError("closed already")

    good = SqliteBackend(root.parent / "e.db")
    archivist = Archivist([registered("bad", Unclosable()), registered("good", good)], root=root)
    archivist.append_events("k", [1])

    assert archivist.shutdown(LONG_S)

    assert [one.event for one in good.read_events()] == [1]
    assert not [one for one in threading.enumerate() if one.name.startswith("modelcache-archive")]
    good.close()


def test_an_archivist_that_could_not_be_made_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane
    made: list[str] = []

    def failing(registration: Registration, where: str) -> Any:
        made.append(registration.name)
        if registration.name == "second":
            raise errors.UsageError(problem="no")
        return lane(registration, where)

    monkeypatch.setattr(archivists, "Lane", failing)
    before = dict(exits._live)
    with pytest.raises(errors.UsageError):
        Archivist([registered("first", MemoryBackend()), registered("second", MemoryBackend())], root=root)

    assert made == ["first", "second"]
    assert exits._live == before


# -- the outbox --------------------------------------------------------------------------------------------------------


@pytest.fixture
def digest(root: Path) -> Digest:
    with Cache(root) as cache:
        return Digest(cache.put(b"model" * 50_000, name="m.onnx").digest)


@pytest.mark.parametrize("name", ["readme.txt", "sha256-" + "AB" * 32, "cd" * 32, "sha256-" + "0" * 63])
def test_what_is_none_of_ours_in_the_outbox_is_left_alone_and_holds_up_nothing(
    root: Path, digest: Digest, name: str
) -> None:
    backend = MemoryBackend()
    (root / "outbox-v1/m").mkdir(parents=True)
    (root / "outbox-v1/m" / name).write_text("of somebody else")
    with Archivist([registered("m", backend)], root=root) as archivist:
        archivist.put_object(digest)

        assert archivist.flush(LONG_S)
        assert contents.has(backend, digest)
    assert os.listdir(root / "outbox-v1/m") == [name]


@pytest.mark.parametrize("record", [b"", b"torn", b"\0" * 100, b"0123456789abcdef {}\n"])
def test_a_broken_record_is_of_the_object_that_its_name_says(root: Path, digest: Digest, record: bytes) -> None:
    backend = MemoryBackend()
    (root / "outbox-v1/m").mkdir(parents=True)
    (root / "outbox-v1/m" / digest.replace(":", "-")).write_bytes(record)

    with Archivist([registered("m", backend)], root=root) as archivist:
        assert archivist.flush(LONG_S)

    assert contents.has(backend, digest)
    assert os.listdir(root / "outbox-v1/m") == []


def test_a_directory_in_the_place_of_a_record_does_not_hold_up_the_others(root: Path, digest: Digest) -> None:
    backend = MemoryBackend()
    (root / "outbox-v1/m" / f"sha256-{'0' * 64}").mkdir(parents=True)
    with Archivist([registered("m", backend)], root=root) as archivist:
        archivist.put_object(digest)
        landed = archivist._lanes[0]._carrier
        assert landed is not None
        with landed._changed:
            assert landed._changed.wait_for(lambda: digest not in landed._asked, LONG_S)

        assert contents.has(backend, digest)


def test_an_object_that_a_backend_fails_with_does_not_hold_up_the_others(root: Path) -> None:
    with Cache(root) as cache:
        digests = [Digest(cache.put(b"%d" % number, name=f"m{number}").digest) for number in range(5)]
    bad = digests[0]

    class Choosy(MemoryBackend):
        def upload(self, name: str, path: str, size: int) -> None:
            if name == contents.blob_name(bad):
                raise errors.BackendError(backend="m", detail="not this one")
            super().upload(name, path, size)

    backend = Choosy()
    with Archivist([registered("m", backend)], root=root) as archivist:
        for one in digests:
            archivist.put_object(one)
        carrier = archivist._lanes[0]._carrier
        assert carrier is not None
        with carrier._changed:
            assert carrier._changed.wait_for(lambda: set(carrier._asked) == {bad}, LONG_S)

        assert all(contents.has(backend, one) for one in digests[1:])
        assert Outbox(str(root), "m").all() == [bad]


def test_an_object_that_the_backend_rejects_waits_no_more_and_is_told(root: Path, digest: Digest) -> None:
    class Rejecting(MemoryBackend):
        def upload(self, name: str, path: str, size: int) -> None:
            raise errors.RejectedError(backend="m", detail="larger than 5 GiB")

    with Archivist([registered("m", Rejecting())], root=root) as archivist:
        archivist.put_object(digest)
        assert archivist.flush(LONG_S)
        assert [one.reason for one in archivist.dropped("m")] == ["rejected"]
        assert archivist.health()["m"].state == "healthy"
    with Archivist([registered("n", Rejecting(), failure="required")], root=root) as archivist:
        with pytest.raises(errors.RejectedError):
            archivist.put_object(digest)
        assert os.listdir(root / "outbox-v1/n") == []


def test_an_object_that_goes_from_the_cache_on_its_way_is_no_failure_of_the_backend(root: Path, digest: Digest) -> None:
    class Late(MemoryBackend):
        def size(self, name: str) -> int | None:
            for path in (root / "objects-v1").iterdir():
                shutil.rmtree(path)
            return super().size(name)

    with Archivist([registered("m", Late())], root=root) as archivist:
        archivist.put_object(digest)

        assert archivist.flush(LONG_S)
        health = archivist.health()["m"]
        assert (health.state, health.last_error) == ("healthy", None)
        assert [one.reason for one in archivist.dropped("m")] == ["gone"]


def test_a_full_disk_under_the_outbox_is_raised_by_a_required_backend_alone(
    root: Path, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    backend, other = MemoryBackend(), MemoryBackend()
    monkeypatch.setattr(commit, "commit_record", full)
    with Archivist([registered("m", backend), registered("d", other, policy=Direct())], root=root) as archivist:
        archivist.put_object(digest)
        assert [(one.what, one.reason) for one in archivist.dropped("m")] == [(digest, "disk")]
        assert contents.has(other, digest)
    required = registered("n", backend, failure="required")
    with Archivist([required], root=root) as archivist, pytest.raises(errors.NoSpaceError):
        archivist.put_object(digest)


def test_a_backend_that_is_removed_under_a_put_is_no_error_of_the_put(root: Path, digest: Digest) -> None:
    with Archivist([registered("m", MemoryBackend())], root=root) as archivist:
        (lane,) = archivist._lanes
        stored = Objects(str(root)).find(digest)
        assert stored is not None
        archivist.remove("m", LONG_S)

        lane.put(stored, 1.0)

        assert lane.ledger.count == 0


def test_two_archivists_on_one_cache_deliver_each_object_once(root: Path) -> None:
    with Cache(root) as cache:
        digests = [cache.put(b"%d" % number, name=f"m{number}").digest for number in range(10)]

    class Counting(MemoryBackend):
        uploads = 0

        def upload(self, name: str, path: str, size: int) -> None:
            Counting.uploads += 1
            super().upload(name, path, size)

    backend = Counting()
    with (
        Archivist([registered("m", backend)], root=root) as one,
        Archivist([registered("m", backend)], root=root) as two,
    ):
        for number, digest in enumerate(digests):
            (one, two)[number % 2].put_object(digest)
        assert one.flush(LONG_S)
        assert two.flush(LONG_S)

    assert backend.uploads == 10
    assert os.listdir(root / "outbox-v1/m") == []


def test_names_that_are_one_directory_on_some_disks_are_refused(root: Path) -> None:
    with pytest.raises(errors.UsageError, match="two backends"):
        Archivist([registered("tier", MemoryBackend()), registered("Tier", MemoryBackend())], root=root)


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_the_lag_does_not_follow_a_clock_that_is_set(root: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    backend = MemoryBackend()
    monkeypatch.setattr(archivists, "clock", lambda: time.time() + jump)
    with Archivist([registered("m", backend)], root=root) as archivist, backend.hold():
        archivist.append_events("k", [1])
        assert backend.waiting.wait(LONG_S)

        assert 0.0 <= archivist.health()["m"].lag < LONG_S
        assert archivist.health()["m"].lag > 0.0


def test_events_stay_in_order_when_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10**18]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    backend = DirectoryBackend(tmp_path, rotate_bytes=1)

    for number in range(5):
        backend.append_events("k", [number])
        now[0] -= 10**12

    assert [one.event for one in backend.read_events()] == list(range(5))
    backend.close()


# -- backends ----------------------------------------------------------------------------------------------------------


def test_events_are_not_written_to_a_file_that_somebody_has_deleted(root: Path, tmp_path: Path) -> None:
    backend = DirectoryBackend(tmp_path / "d")
    with Archivist([registered("d", backend, policy=Direct(), failure="required")], root=root) as archivist:
        archivist.append_events("k", [1])
        (old,) = (tmp_path / "d/events").iterdir()
        old.unlink()

        archivist.append_events("k", [2])
        archivist.append_events("k", [3])

    assert [one.event for one in DirectoryBackend(tmp_path / "d").read_events()] == [2, 3]


def test_a_database_that_was_deleted_or_replaced_is_made_anew(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "e.db")
    backend.append_events("k", [1])
    assert len(backend.query("SELECT * FROM events")) == 1
    (tmp_path / "e.db").unlink()

    backend.append_events("k", [2])

    other = SqliteBackend(tmp_path / "e.db")
    assert [one.event for one in other.read_events()] == [one.event for one in backend.read_events()] == [2]
    other.close()
    (tmp_path / "e.db").replace(tmp_path / "old.db")
    SqliteBackend(tmp_path / "e.db").close()
    backend.append_events("k", [3])
    other = SqliteBackend(tmp_path / "e.db")
    assert [one.event for one in other.read_events()] == [3]
    other.close()
    backend.close()


def test_a_database_on_a_full_disk_takes_what_waits_when_there_is_room(root: Path, tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "e.db")
    with Archivist([registered("s", backend, policy=Direct(), cooldown=1e-6)], root=root) as archivist:
        archivist.append_events("k", ["small"])
        connection = backend._to_write.connection
        assert connection is not None
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        archivist.append_events("k", ["x" * 100_000])
        health = archivist.health()["s"]
        assert "full" in (health.last_error or "")

        archivist.append_events("k", ["y" * 100_000])  # The limit was that of a connection, which is not used again.

        assert "y" * 100_000 in [one.event for one in backend.read_events()]


def test_a_database_that_another_process_has_locked_fails_in_time_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelcache.backends.sqlite._BUSY_S", 0.01)
    backend = SqliteBackend(tmp_path / "e.db")
    with sqlite3.connect(tmp_path / "e.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.BackendError, match="locked"):
            backend.append_events("k", [1])
        assert list(backend.read_events()) == []  # Who reads does not wait.
        other.execute("COMMIT")
    other.close()

    backend.append_events("k", [1])

    assert [one.event for one in backend.read_events()] == [1]
    backend.close()


def test_a_corrupt_database_is_a_typed_error_and_a_mended_one_is_used_again(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "e.db")
    for number in range(200):
        backend.append_events("k", ["x" * 1000 + str(number)])
    backend.close()
    whole = (tmp_path / "e.db").read_bytes()
    (tmp_path / "e.db").write_bytes(whole[:8192] + b"\xff" * (len(whole) - 8192))

    with pytest.raises(errors.BackendError, match="SQLite"):
        list(backend.read_events())
    with suppress(errors.BackendError):
        backend.append_events("k", ["lost?"])
    backend.close()
    for path in tmp_path.glob("e.db*"):
        path.unlink()
    backend.append_events("k", ["new"])

    assert [one.event for one in backend.read_events()] == ["new"]
    backend.close()


def test_a_long_query_does_not_hold_up_a_writer(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "e.db")
    backend.append_events("k", [1])
    with backend._to_read.guard:  # As while a query of minutes runs.
        writer = Caller(lambda: backend.append_events("k", [2]))
        assert writer.end() is None

    assert [one.event for one in backend.read_events()] == [1, 2]
    backend.close()


def test_a_link_that_a_network_disk_has_made_and_denies_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: str, target: str, **options: Any) -> None:
        with suppress(FileExistsError):
            link(source, target, **options)
        raise FileExistsError(errno.EEXIST, "File exists")  # The answer to the repetition.

    backend = DirectoryBackend(tmp_path)
    monkeypatch.setattr(os, "link", twice)

    assert backend.create("claims/x", b"1")
    assert not backend.create("claims/x", b"2")
    assert backend.read("claims/x") == b"1"


@pytest.mark.parametrize(
    "text",
    [
        "GET http://user:hunter2@host/bucket?list-type=2 failed", "s3:/key:hunter2@bucket is no URL",
        "could not connect: postgresql://me:hunter2@db/x", "host=db password=hunter2 user=me",
        "https://a.blob.core.windows.net/c?sv=1&sig=hunter2&se=3", "https://b/x?X-Amz-Signature=hunter2",
        "AWS_SECRET_ACCESS_KEY=hunter2",
    ],
)  # fmt: skip
def test_no_error_of_a_backend_holds_credentials(root: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend, policy=Direct(), failure="required")], root=root) as archivist:
        for error in (ConnectionError(text), errors.BackendError(backend="m", detail=text)):
            backend.fail_next(2, error=error)
            archivist._lanes[0].breaker._until = 0.0
            with pytest.raises(errors.BackendError) as caught:
                archivist.append_events("k", [1])
            assert "hunter2" not in str(caught.value)
            assert "hunter2" not in str(pickle.loads(pickle.dumps(caught.value)))
        assert "hunter2" not in str(archivist.health())
    assert "hunter2" not in caplog.text
    assert without_credentials("status code: 404 for s3://models/a@b/c") == "status code: 404 for s3://models/a@b/c"
