"""The archive within one process: queues, policies, health, reads, and what bad input gets."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, RetryPolicy, errors
from modelcache.archive import (
    Archivist,
    Batch,
    Direct,
    DirectoryBackend,
    MemoryBackend,
    Queued,
    Registration,
    SqliteBackend,
)
from modelcache.archive.queue import Queue
from modelcache.backends import base as backends_base
from modelcache.backends import contents
from modelcache.digest import Digest

QUICK = RetryPolicy(attempts=2, base=0)
LONG_S = 60.0  # Never waited for, unless something is wrong.


def registered(name: str, backend: Any, **options: Any) -> Registration:
    return Registration(name, backend, **{"retry": QUICK, "cooldown": 0.001, "cooldown_max": 0.002, **options})


class Told(MemoryBackend):
    """Says when so many events as *count* have landed."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.landed = count, threading.Event()

    def append_events(self, key: str, events: Sequence[Any]) -> None:
        super().append_events(key, events)
        if len(self.events) >= self.count:
            self.landed.set()


class Caller(threading.Thread):
    """Does *work* in a thread, and keeps what it raised."""

    def __init__(self, work: Any) -> None:
        super().__init__()
        self.work, self.error = work, None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001  # It is looked at.
            self.error = error  # type: ignore[assignment]

    def end(self) -> Any:
        self.join(LONG_S)
        assert not self.is_alive()
        return self.error


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when a sender is about to wait for room."""
    told = threading.Event()
    wait = Queue.wait

    def telling(self: Queue, *arguments: Any, **options: Any) -> int:
        told.set()
        return wait(self, *arguments, **options)

    monkeypatch.setattr(Queue, "wait", telling)
    return told


# -- queues ------------------------------------------------------------------------------------------------------------


def test_a_queued_write_returns_while_the_backend_hangs_and_lands_later(root: Path) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend)], root=root) as archivist:
        with backend.hold():
            archivist.append_events("k", [1])
            assert backend.waiting.wait(LONG_S)
            archivist.append_events("k", [2])
            assert backend.events == []
            assert archivist.health()["m"].depth == 2

        assert archivist.flush(LONG_S)
        assert backend.events == [1, 2]


def test_five_quick_appends_of_one_key_come_in_at_most_five_calls_in_order(root: Path) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend)], root=root) as archivist:
        for number in range(5):
            archivist.append_events("k", [{"n": number}])

        assert archivist.flush(LONG_S)
        assert len(backend.calls) <= 5
        assert backend.events == [{"n": number} for number in range(5)]


def test_what_waits_behind_a_call_is_coalesced_by_runs_of_one_key(root: Path) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend, policy=Queued(batch_window=0))], root=root) as archivist:
        with backend.hold():
            archivist.append_events("first", [0])
            assert backend.waiting.wait(LONG_S)
            for key, events in (("a", [1, 2]), ("a", [3]), ("b", [4]), ("a", [5])):
                archivist.append_events(key, events)
        archivist.flush(LONG_S)

        assert backend.calls == [("first", [0]), ("a", [1, 2, 3]), ("b", [4]), ("a", [5])]
        health = archivist.health()["m"]
        assert (health.dispatched, health.coalesced, health.depth, health.dropped) == (6, 1, 0, 0)


def test_a_full_queue_that_blocks_holds_the_sender_back_and_loses_nothing(root: Path, blocked: threading.Event) -> None:
    backend = MemoryBackend()
    accepted: list[int] = []
    with Archivist([registered("m", backend, policy=Queued(capacity=2))], root=root) as archivist:

        def send() -> None:
            for number in range(24):
                archivist.append_events(f"k{number}", [number])
                accepted.append(number)

        with backend.hold():
            sender = Caller(send)
            assert blocked.wait(LONG_S)
            # Two wait, two are under way, and no more.
            assert len(accepted) <= 4
            assert archivist.health()["m"].depth <= 4
        assert sender.end() is None

        assert archivist.flush(LONG_S)
        assert backend.events == list(range(24))
        assert archivist.health()["m"].dropped == 0


def test_a_slow_backend_and_a_queue_of_two_lose_nothing_of_24_keys(root: Path) -> None:
    backend = MemoryBackend(delay=0.05)
    with Archivist([registered("m", backend, policy=Queued(capacity=2))], root=root) as archivist:
        for number in range(24):
            archivist.append_events(f"k{number}", [number])
            assert archivist.health()["m"].depth <= 4

        assert archivist.flush(LONG_S)
    assert backend.events == list(range(24))


@pytest.mark.parametrize(
    ("overflow", "kept", "dropped"), [("drop-oldest", [0, 4, 5], [1, 2, 3]), ("drop-newest", [0, 1, 2], [3, 4, 5])]
)
def test_what_is_dropped_is_counted_and_named(root: Path, overflow: str, kept: list[int], dropped: list[int]) -> None:
    backend = MemoryBackend()
    policy = Queued(capacity=2, overflow=overflow, batch_window=0)
    with Archivist([registered("m", backend, policy=policy)], root=root) as archivist:
        with backend.hold():
            archivist.append_events("k", [0])
            assert backend.waiting.wait(LONG_S)
            for number in range(1, 6):
                archivist.append_events("k", [number])
        archivist.flush(LONG_S)

        assert backend.events == kept
        assert archivist.health()["m"].dropped == 3
        assert [(one.key, one.what, one.reason) for one in archivist.dropped("m")] == [
            ("k", number, "full") for number in dropped
        ]


@pytest.mark.parametrize(
    ("overflow", "kept"), [("drop-oldest", [0, 5, 6]), ("drop-newest", [0, 1, 2]), ("block", [0, 1, 2, 3, 4, 5, 6])]
)
def test_a_write_larger_than_the_queue_is_no_way_around_its_bound(root: Path, overflow: str, kept: list[int]) -> None:
    backend = MemoryBackend()
    policy = Queued(capacity=2, overflow=overflow, batch_window=0)
    with Archivist([registered("m", backend, policy=policy)], root=root) as archivist:
        with backend.hold():
            archivist.append_events("k", [0])
            assert backend.waiting.wait(LONG_S)
            sender = Caller(lambda: archivist.append_events("k", [1, 2, 3, 4, 5, 6]))
            if overflow != "block":
                sender.end()
            assert archivist.health()["m"].depth <= 3
        sender.end()
        archivist.flush(LONG_S)

        assert backend.events == kept


def test_a_full_queue_that_refuses_takes_nothing_of_the_write_and_the_others_take_it(root: Path) -> None:
    backend, other = MemoryBackend(), MemoryBackend()
    policy = Queued(capacity=2, overflow="error", batch_window=0)
    with Archivist([registered("m", backend, policy=policy), registered("o", other)], root=root) as archivist:
        with backend.hold():
            archivist.append_events("k", [0])
            assert backend.waiting.wait(LONG_S)
            archivist.append_events("k", [1])
            with pytest.raises(errors.QueueFullError):
                archivist.append_events("k", [2, 3])
        archivist.flush(LONG_S)

        assert backend.events == [0, 1]
        assert other.events == [0, 1, 2, 3]
        assert archivist.health()["m"].dropped == 0


def test_memory_is_bounded_by_the_capacity_whatever_comes(root: Path) -> None:
    backend = MemoryBackend()
    policy = Queued(capacity=10, overflow="drop-oldest")
    with Archivist([registered("m", backend, policy=policy)], root=root) as archivist, backend.hold():
        archivist.append_events("k", range(5000))
        archivist.append_events("k", range(5000))
        assert archivist.health()["m"].depth <= 20
        assert len(archivist.dropped("m")) <= 1000
        assert archivist.health()["m"].dropped >= 9980


# -- the end -----------------------------------------------------------------------------------------------------------


def test_shutdown_drains_and_a_second_one_does_nothing_and_writes_after_it_raise(root: Path) -> None:
    backend = MemoryBackend()
    direct = MemoryBackend()
    queued = registered("m", backend, policy=Queued(batch_window=1000))
    archivist = Archivist([queued, registered("d", direct, policy=Direct())], root=root)
    archivist.append_events("k", [1, 2])

    assert archivist.shutdown(LONG_S)

    assert backend.events == direct.events == [1, 2]
    assert archivist.shutdown(LONG_S)
    with pytest.raises(errors.ArchiveClosedError):
        archivist.append_events("k", [3])
    with pytest.raises(errors.ArchiveClosedError):
        archivist.put_object("sha256:" + "0" * 64)
    with pytest.raises(errors.ArchiveClosedError):
        archivist.add(registered("n", MemoryBackend()))
    assert direct.events == [1, 2]
    assert not [one for one in threading.enumerate() if one.name.startswith("modelcache-archive")]


def test_a_direct_write_after_the_shutdown_raises_too(root: Path) -> None:
    backend = MemoryBackend()
    archivist = Archivist([registered("d", backend, policy=Direct())], root=root)
    archivist.shutdown()

    with pytest.raises(errors.ArchiveClosedError):
        archivist.append_events("k", [1])

    assert backend.calls == []


def test_a_sender_that_waits_for_room_hears_of_the_shutdown(root: Path, blocked: threading.Event) -> None:
    backend = MemoryBackend()
    archivist = Archivist([registered("m", backend, policy=Queued(capacity=1, batch_window=0))], root=root)
    with backend.hold():
        archivist.append_events("k", [0])
        assert backend.waiting.wait(LONG_S)

        def send() -> None:
            for number in range(1, 5):
                archivist.append_events("k", [number])

        sender = Caller(send)
        assert blocked.wait(LONG_S)

        assert not archivist.shutdown(0)

        assert isinstance(sender.end(), errors.ArchiveClosedError)
    lost = [one for one in archivist.dropped("m") if one.reason == "shutdown"]
    assert 0 in [one.what for one in lost]  # It hung: nobody knows whether it landed.


def test_a_down_backend_is_tried_once_more_at_shutdown_and_what_is_lost_is_counted(root: Path) -> None:
    backend = MemoryBackend()
    backend.down = True
    archivist = Archivist([registered("m", backend, cooldown=1000.0, cooldown_max=1000.0)], root=root)
    archivist.append_events("k", [1])

    assert not archivist.shutdown(LONG_S)

    assert [(one.what, one.reason) for one in archivist.dropped("m")] == [(1, "shutdown")]
    assert len(backend.calls) == 1  # The shutdown came within the window; the one try was the last one.


# -- backends do not touch each other ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hanging", "down", "raising"])
def test_one_bad_backend_leaves_the_others_at_work(root: Path, how: str) -> None:
    bad = MemoryBackend()
    others = [Told(2000) for _ in range(9)]
    policy = Queued(capacity=10, overflow="drop-oldest")
    archivist = Archivist(
        [registered("bad", bad, policy=policy), *(registered(f"o{n}", other) for n, other in enumerate(others))],
        root=root,
    )
    bad.down = how == "down"
    if how == "raising":
        bad.fail_next(10_000, error=RuntimeError("somebody else's bug"))
    with bad.hold():
        if how != "hanging":
            bad._open.set()
        for number in range(2000):
            archivist.append_events(f"k{number % 7}", [number])
        for other in others:
            assert other.landed.wait(LONG_S)
            assert other.events == list(range(2000))

    archivist.shutdown(LONG_S)


def test_a_blocking_queue_of_a_best_effort_backend_that_hangs_holds_nobody_for_ever(
    root: Path, blocked: threading.Event
) -> None:
    bad, good = MemoryBackend(), MemoryBackend()
    hangs = registered("bad", bad, policy=Queued(capacity=1, batch_window=0), timeout=0.01)
    with Archivist([hangs, registered("good", good)], root=root) as archivist:
        with bad.hold():
            for number in range(50):
                archivist.append_events("k", [number])
            health = archivist.health()["bad"]
            assert health.state == "down"
            assert health.last_error is not None
            assert "not returned" in health.last_error
            assert health.dropped >= 47
            assert {one.reason for one in archivist.dropped("bad")} == {"down"}
        archivist.flush(LONG_S)
        assert good.events == list(range(50))
        assert archivist.health()["bad"].state == "healthy"


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_required_direct_failure_raises_and_a_best_effort_one_never_does(root: Path) -> None:
    bad, good = MemoryBackend(), MemoryBackend()
    bad.down = True
    with Archivist(
        [registered("bad", bad, failure="required", policy=Direct()), registered("good", good)], root=root
    ) as archivist:
        with pytest.raises(errors.BackendError, match="it is down"):
            archivist.append_events("k", [1])
        archivist.flush(LONG_S)
        assert good.events == [1]
    with Archivist([registered("bad", bad, policy=Direct())], root=root) as archivist:
        for number in range(5):
            archivist.append_events("k", [number])
        assert archivist.health()["bad"].dropped == 5


def test_a_required_queued_failure_is_raised_by_the_next_call_and_the_event_still_lands(root: Path) -> None:
    backend = MemoryBackend()
    backend.down = True
    failing = threading.Event()
    with Archivist(
        [registered("m", backend, failure="required", policy=Queued(batch_window=0))], root=root
    ) as archivist:
        breaker = archivist._lanes[0].breaker
        opened = breaker._open

        def told() -> None:
            opened()
            failing.set()

        breaker._open = told  # type: ignore[method-assign]
        archivist.append_events("k", [1])
        assert failing.wait(LONG_S)
        with pytest.raises(errors.BackendError):
            archivist.flush(LONG_S)
        backend.down = False
        with contextlib.suppress(errors.BackendError):  # One more failure may have been on its way.
            archivist.flush(LONG_S)
        archivist.flush(LONG_S)

        archivist.append_events("k", [2])

        assert archivist.flush(LONG_S)
        assert backend.events == [1, 2]


def test_health_goes_down_and_comes_back(root: Path) -> None:
    backend = MemoryBackend()
    with Archivist(
        [registered("m", backend, policy=Direct(), cooldown=1000.0, cooldown_max=1000.0)], root=root
    ) as archivist:
        assert archivist.health()["m"].state == "healthy"
        backend.fail_next(1)
        archivist.append_events("k", [1])  # The second try of two.
        assert (archivist.health()["m"].state, archivist.health()["m"].consecutive_failures) == ("healthy", 0)
        assert archivist.health()["m"].last_error == "it was told to fail"

        backend.down = True
        archivist.append_events("k", [2])
        health = archivist.health()["m"]
        assert (health.state, health.consecutive_failures, health.last_error) == ("down", 2, "it is down")
        calls = len(backend.calls)
        archivist.append_events("k", [3])
        assert len(backend.calls) == calls  # The breaker is open: it costs nothing.

        backend.down = False
        archivist._lanes[0].breaker._until = 0.0  # The cooldown is over.
        archivist.append_events("k", [4])
        assert (archivist.health()["m"].state, archivist.health()["m"].consecutive_failures) == ("healthy", 0)
        assert backend.events == [1, 4]
        assert [one.what for one in archivist.dropped("m")] == [2, 3]


def test_only_one_call_is_let_through_to_see_whether_a_backend_is_back(root: Path) -> None:
    backend = MemoryBackend()
    backend.down = True
    with Archivist([registered("m", backend, policy=Direct(), cooldown=1000.0, cooldown_max=1000.0)], root=root) as one:
        one.append_events("k", [1])
        one._lanes[0].breaker._until = 0.0
        before = len(backend.calls)
        backend.down = False
        with backend.hold():
            probe = Caller(lambda: one.append_events("k", [2]))
            assert backend.waiting.wait(LONG_S)
            one.append_events("k", [3])
            assert len(backend.calls) == before + 1
        probe.end()
        assert backend.events == [2]


def test_a_queued_backend_that_was_down_for_long_gets_all_of_it_in_order(root: Path) -> None:
    backend = MemoryBackend()
    backend.fail_next(25)
    with Archivist([registered("m", backend)], root=root) as archivist:
        for number in range(100):
            archivist.append_events(f"k{number % 3}", [number])

        assert archivist.flush(LONG_S)
        assert backend.events == list(range(100))
        assert archivist.health()["m"].state == "healthy"
        assert archivist.health()["m"].dropped == 0


def test_a_batch_that_fails_half_way_comes_again_without_loss_or_duplicates(root: Path) -> None:
    backend = MemoryBackend()
    backend.fail_next(3, after=2)
    with Archivist([registered("m", backend)], root=root) as archivist:
        archivist.append_events("k", [1, 2, 3])
        archivist.append_events("k", [4, 5])

        assert archivist.flush(LONG_S)
        assert backend.events == [1, 2, 3, 4, 5]
        assert backend.calls == [("k", [1, 2, 3, 4, 5])] * 4  # As it was, each time.


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_backend_that_ends_its_thread_costs_no_event(root: Path) -> None:
    class Panic(BaseException):
        """What a library that is no Python raises."""

    backend = MemoryBackend()
    backend.fail_next(1, error=Panic())
    with Archivist([registered("m", backend, policy=Queued(batch_window=0))], root=root) as archivist:
        archivist.append_events("k", [1])
        thread = archivist._lanes[0]._writer._thread  # type: ignore[union-attr]
        assert thread is not None
        thread.join(LONG_S)

        archivist.append_events("k", [2])

        assert archivist.flush(LONG_S)
        assert backend.events == [1, 2]


def test_a_best_effort_put_of_what_is_corrupt_or_of_a_bucket_that_is_gone_raises_nothing(
    root: Path, digest: Digest
) -> None:
    class Gone(MemoryBackend):
        def upload(self, name: str, path: str, size: int) -> None:
            raise errors.NotInArchiveError(what="the bucket", asked=("m",))

    with Archivist([registered("m", Gone(), policy=Direct())], root=root) as archivist:
        archivist.put_object(digest)
        (path,) = (root / "objects-v1").glob("*/m.onnx")
        path.chmod(0o644)
        path.write_bytes(b"Model" * 50_000)
        archivist.put_object(digest)

        assert [one.reason for one in archivist.dropped("m")] == ["down", "corrupt"]
        assert archivist.health()["m"].dispatched == 0


def test_the_calls_of_a_batch_that_have_landed_are_not_made_again(root: Path) -> None:
    """Of a backend that knows no ids: what landed before the failure is not repeated."""

    class Plain:
        def __init__(self) -> None:
            self.calls: list[tuple[str, list[Any]]] = []
            self.fails = {"b": 3}

        def append_events(self, key: str, events: Sequence[Any]) -> None:
            if self.fails.get(key, 0):
                self.fails[key] -= 1
                raise OSError("not now")
            self.calls.append((key, list(events)))

    backend = Plain()
    with Archivist([registered("m", backend)], root=root) as archivist:
        for key, number in (("a", 1), ("b", 2), ("b", 3), ("c", 4)):
            archivist.append_events(key, [number])

        assert archivist.flush(LONG_S)
        assert backend.calls == [("a", [1]), ("b", [2, 3]), ("c", [4])]


def test_an_event_has_one_id_in_all_backends_and_in_all_tries(root: Path, tmp_path: Path) -> None:
    memory, directory, sqlite = MemoryBackend(), DirectoryBackend(tmp_path / "d"), SqliteBackend(tmp_path / "e.db")
    memory.fail_next(1, after=1)
    with Archivist(
        [registered("m", memory), registered("d", directory, policy=Direct()), registered("s", sqlite)], root=root
    ) as archivist:
        archivist.append_events("k", ["a", "b"])
        archivist.append_events("k", ["c"])
        assert archivist.flush(LONG_S)
        ids = [[one.id for one in backend.read_events()] for backend in (memory, directory, sqlite)]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 3


def test_a_mistake_of_the_caller_is_told_to_the_caller_and_nothing_is_accepted(root: Path) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend)], root=root) as archivist:
        for events in (
            [1, object()],
            [float("nan")],
            ["\ud800"],
            [{"x": b"bytes"}],
            ["x" * (1 << 20)],
            {"a": 1},
            "text",
        ):
            with pytest.raises(errors.UsageError):
                archivist.append_events("k", events)
        for key in ("", "k" * 5000, 7):
            with pytest.raises(errors.UsageError):
                archivist.append_events(key, [1])  # type: ignore[arg-type]
        archivist.append_events("k", [])
        archivist.flush(LONG_S)
        assert backend.calls == []


def test_events_of_a_cache_are_archived_as_what_they_say(root: Path, tmp_path: Path) -> None:
    sqlite = SqliteBackend(tmp_path / "events.db")
    with Archivist([registered("s", sqlite)], root=root) as archivist:
        with Cache(root, on_event=lambda event: archivist.append_events(event.ref, [event])) as cache:
            (tmp_path / "m").write_bytes(b"x" * 100)
            ref = (tmp_path / "m").as_uri()
            cache.get(ref)
        archivist.flush(LONG_S)

        assert "fetched" in [one.event["kind"] for one in archivist.read_events(ref)]


# -- registrations -----------------------------------------------------------------------------------------------------


def test_registrations_come_and_go_while_events_are_written(root: Path) -> None:
    one, two = MemoryBackend(), MemoryBackend()
    with Archivist([registered("one", one)], root=root) as archivist:
        archivist.append_events("k", [1])
        archivist.add(registered("two", two))
        archivist.append_events("k", [2])
        archivist.disable("one")
        archivist.append_events("k", [3])
        archivist.enable("one")
        archivist.append_events("k", [4])
        assert archivist.remove("two", LONG_S)
        archivist.append_events("k", [5])
        archivist.flush(LONG_S)

        assert one.events == [1, 2, 4, 5]
        assert two.events == [2, 3, 4]
        assert list(archivist.health()) == ["one"]


def test_a_removal_that_races_with_writers_loses_nothing_elsewhere(root: Path) -> None:
    keeper = MemoryBackend()
    with Archivist([registered("keeper", keeper)], root=root) as archivist:
        going = threading.Event()

        def write() -> None:
            for number in range(500):
                archivist.append_events("k", [number])
                going.set()

        writer = Caller(write)
        assert going.wait(LONG_S)
        for _ in range(20):
            archivist.add(registered("guest", MemoryBackend()))
            archivist.remove("guest", LONG_S)
        assert writer.end() is None
        archivist.flush(LONG_S)
        assert keeper.events == list(range(500))


# -- reads -------------------------------------------------------------------------------------------------------------


def test_reads_of_events_fall_through_by_priority(root: Path) -> None:
    first, second = MemoryBackend(), MemoryBackend()
    with Archivist(
        [registered("second", second, priority=2), registered("first", first, priority=1)], root=root
    ) as archivist:
        archivist.append_events("k", [1])
        archivist.flush(LONG_S)
        second.append_events("k", ["only here"])

        assert [one.event for one in archivist.read_events()] == [1]
        first.down = True
        assert [one.event for one in archivist.read_events()] == [1, "only here"]
        second.down = True
        with pytest.raises(errors.NotInArchiveError) as caught:
            list(archivist.read_events())
        assert len(caught.value.errors) == 2  # type: ignore[attr-defined]


def test_a_read_that_fails_on_the_way_goes_on_in_the_next_backend_without_duplicates(root: Path) -> None:
    class Cut(MemoryBackend):
        def read_events(self, key: str | None = None, *, since: float = 0.0) -> Iterator[Any]:
            for count, one in enumerate(super().read_events(key, since=since)):
                if count == 700:
                    raise errors.BackendError(backend="cut", detail="it was cut")
                yield one

    cut, whole = Cut(), MemoryBackend()
    with Archivist([registered("cut", cut), registered("whole", whole, priority=1)], root=root) as archivist:
        archivist.append_events("k", range(1000))
        archivist.flush(LONG_S)

        assert [one.event for one in archivist.read_events()] == list(range(1000))


@pytest.fixture
def digest(root: Path) -> Digest:
    with Cache(root) as cache:
        return Digest(cache.put(b"model" * 50_000, name="m.onnx").digest)


def test_an_object_is_read_from_the_first_backend_that_has_it_whole(root: Path, digest: Digest, tmp_path: Path) -> None:
    down, damaged, lying, whole = (MemoryBackend() for _ in range(4))
    with Archivist(
        [
            registered("down", down, priority=1),
            registered("damaged", damaged, priority=2),
            registered("lying", lying, priority=3),
            registered("whole", whole, priority=4),
        ],
        root=root,
    ) as archivist:
        archivist.put_object(digest)
        assert archivist.flush(LONG_S)
        down.down = True
        damaged.alter(contents.blob_name(digest), b"model" * 49_999 + b"evil!")
        lying.alter(contents.manifest_name(digest), b"0123456789abcdef {}\n")

        path = archivist.read_object(digest, tmp_path / "out.onnx")

        assert Path(path).read_bytes() == b"model" * 50_000
        assert archivist.health()["damaged"].state == "down"
        whole.delete(contents.blob_name(digest))
        with pytest.raises(errors.NotInArchiveError) as caught:
            archivist.read_object(digest, tmp_path / "again.onnx")
        assert len(caught.value.errors) >= 1  # type: ignore[attr-defined]
        assert not (tmp_path / "again.onnx").exists()


def test_a_read_that_was_cut_asks_only_for_the_rest(
    root: Path, digest: Digest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_base, "PIECE_BYTES", 10_000)
    asked: list[int] = []

    class Cut(MemoryBackend):
        def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
            if name.startswith("blobs/"):
                asked.append(start)
                if len(asked) == 6:
                    raise errors.BackendError(backend="cut", detail="it was cut")
            return super().read(name, start, length)

    with Archivist([registered("cut", Cut(), retry=RetryPolicy(attempts=1))], root=root) as archivist:
        archivist.put_object(digest)
        archivist.flush(LONG_S)
        with pytest.raises(errors.NotInArchiveError):
            archivist.read_object(digest, tmp_path / "out")
        (partial,) = tmp_path.glob(".out.*.partial")
        have = partial.stat().st_size
        asked[:] = range(10)
        archivist._lanes[0].breaker._until = 0.0

        archivist.read_object(digest, tmp_path / "out")

        assert have > 0
        assert min(asked[10:]) == have
        assert (tmp_path / "out").read_bytes() == b"model" * 50_000
        assert list(tmp_path.glob(".out.*")) == []


def test_a_tree_comes_back_as_it_was(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin/run").write_text("#!/bin/sh\n")
    (source / "bin/run").chmod(0o755)
    (source / "weights").write_bytes(b"w" * 1000)
    backend = MemoryBackend()
    with Cache(root) as cache:
        entry = cache.put_tree(source, name="Net.mlpackage")
    with Archivist([registered("m", backend, policy=Direct(), failure="required")], root=root) as archivist:
        archivist.put_object(entry.digest)
        found = archivist.find_object(entry.digest)
        assert found is not None
        assert (found[0], found[1].name, found[1].size) == ("m", "Net.mlpackage", 1010)

        path = Path(archivist.read_object(entry.digest, tmp_path / "out"))

        assert (path / "weights").read_bytes() == b"w" * 1000
        assert (path / "bin/run").stat().st_mode & 0o111
        with pytest.raises(errors.UsageError):
            archivist.read_object(entry.digest, tmp_path / "out")


# -- objects -----------------------------------------------------------------------------------------------------------


def test_an_object_waits_in_the_outbox_until_it_is_there_and_gc_leaves_it_alone(root: Path, digest: Digest) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend)], root=root) as archivist:
        with backend.hold():
            archivist.put_object(digest)
            assert backend.waiting.wait(LONG_S)
            with Cache(root) as cache:
                cache.remove("m.onnx")
                cache.plan_gc(unused_for=0, grace=0).execute()
            assert list((root / "outbox-v1" / "m").iterdir()) != []
        assert archivist.flush(LONG_S)
        assert backend.read(contents.blob_name(digest)) == b"model" * 50_000
        assert list((root / "outbox-v1" / "m").iterdir()) == []
    with Cache(root) as cache:
        cache.plan_gc(unused_for=0, grace=0).execute()
    assert list((root / "objects-v1").iterdir()) == []


def test_a_required_backend_has_the_object_when_the_call_returns(root: Path, digest: Digest) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend, failure="required")], root=root) as archivist:
        archivist.put_object(digest)

        assert contents.has(backend, digest)
        backend.down = True
        other = Digest(Cache(root).put(b"other", name="o").digest)
        with pytest.raises(errors.BackendError, match="it is down"):
            archivist.put_object(other)
        backend.down = False
        assert archivist.flush(LONG_S)
        assert contents.has(backend, other)


def test_the_outbox_is_bounded_and_what_finds_no_room_is_counted(root: Path) -> None:
    with Cache(root) as cache:
        digests = [cache.put(b"%d" % number, name=f"m{number}").digest for number in range(4)]
    backend = MemoryBackend()
    policy = Queued(capacity=2, overflow="drop-newest")
    with Archivist([registered("m", backend, policy=policy)], root=root) as archivist:
        with backend.hold():
            for one in digests:
                archivist.put_object(one)
            assert len(list((root / "outbox-v1/m").iterdir())) == 2
        archivist.flush(LONG_S)
        assert [one.what for one in archivist.dropped("m")] == digests[2:]
    with (
        Archivist(
            [registered("n", backend, policy=Queued(capacity=1, overflow="error"), failure="required")], root=root
        ) as archivist,
        backend.hold(),
    ):
        with pytest.raises(errors.BackendError, match="did not take"):
            archivist.put_object(digests[2], timeout=0)
        with pytest.raises(errors.QueueFullError):
            archivist.put_object(digests[3], timeout=0)


def test_what_went_corrupt_before_it_was_brought_goes_nowhere_and_is_told(root: Path, digest: Digest) -> None:
    backend = MemoryBackend()
    (path,) = (root / "objects-v1").glob("*/m.onnx")
    with Archivist([registered("m", backend)], root=root) as archivist:
        with backend.hold():
            path.chmod(0o644)
            path.write_bytes(b"Model" * 50_000)
            archivist.put_object(digest)
        archivist.flush(LONG_S)

        assert list(backend.names()) == []
        assert [one.reason for one in archivist.dropped("m")] == ["corrupt"]
        assert list((root / "outbox-v1/m").iterdir()) == []


def test_an_object_that_is_not_in_the_cache_is_an_error_at_once(root: Path, digest: Digest) -> None:
    with Archivist([registered("m", MemoryBackend())], root=root) as archivist:
        with pytest.raises(errors.EntryNotFoundError):
            archivist.put_object("sha256:" + "0" * 64)
        with pytest.raises(errors.InvalidDigestError):
            archivist.put_object("nonsense")
        assert archivist.find_object("sha256:" + "0" * 64) is None


# -- asyncio -----------------------------------------------------------------------------------------------------------


def test_asyncio_callers_wait_for_room_without_blocking_the_loop(root: Path, tmp_path: Path, digest: Digest) -> None:
    backend = MemoryBackend()

    async def work() -> None:
        async with Archivist(
            [registered("m", backend, policy=Queued(capacity=1, batch_window=0))], root=root
        ) as archivist:
            with backend.hold():
                await archivist.aappend_events("k", [0])
                assert await asyncio.to_thread(backend.waiting.wait, LONG_S)
                waiting = [asyncio.create_task(archivist.aappend_events("k", [number])) for number in (1, 2)]
                ran = asyncio.Event()
                asyncio.get_running_loop().call_soon(ran.set)
                await ran.wait()  # The loop goes on while one of them has no room.
                assert not all(task.done() for task in waiting)
            await asyncio.gather(*waiting)
            assert await archivist.aflush(LONG_S)
            assert sorted([one.event async for one in archivist.aread_events("k")]) == [0, 1, 2]
            await archivist.aput_object(digest)
            assert await archivist.aflush(LONG_S)
            assert Path(await archivist.aread_object(digest, tmp_path / "out")).exists()

    asyncio.run(work())


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 0}, {"capacity": -1}, {"capacity": 1.5}, {"capacity": True}, {"overflow": "explode"},
        {"batch_max": 0}, {"batch_window": -1}, {"batch_window": float("nan")}, {"wait_max": "soon"},
    ],
)  # fmt: skip
def test_a_senseless_queue_is_refused_when_it_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigurationError):
        Queued(**options)


class Exploding:
    def __init__(self) -> None:
        raise RuntimeError("no such library")

    def append_events(self, key: str, events: Sequence[Any]) -> None: ...


@pytest.mark.parametrize(
    ("name", "backend", "options", "error"),
    [
        ("", MemoryBackend, {}, errors.ConfigurationError),
        ("../x", MemoryBackend, {}, errors.ConfigurationError),
        ("a/b", MemoryBackend, {}, errors.ConfigurationError),
        ("m", None, {}, errors.ConfigurationError),
        ("m", object, {}, errors.ConfigurationError),
        ("m", Exploding, {}, errors.BackendSetupError),
        ("m", MemoryBackend, {"failure": "maybe"}, errors.ConfigurationError),
        ("m", MemoryBackend, {"priority": "high"}, errors.ConfigurationError),
        ("m", MemoryBackend, {"enabled": "yes"}, errors.ConfigurationError),
        ("m", MemoryBackend, {"policy": "queued"}, errors.ConfigurationError),
        ("m", MemoryBackend, {"timeout": 0}, errors.ConfigurationError),
        ("m", MemoryBackend, {"failure": "required", "policy": Queued(overflow="drop-oldest")}, errors.UsageError),
        ("m", MemoryBackend, {"failure": "required", "policy": Queued(overflow="drop-newest")}, errors.UsageError),
    ],
)  # fmt: skip
def test_a_senseless_registration_is_refused_when_it_is_made(
    name: str, backend: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Registration(name, backend, **options)


def test_the_cache_is_the_one_that_the_settings_name_and_one_of_a_newer_kind_is_refused(
    root: Path, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELCACHE_DIR", str(root))
    backend = MemoryBackend()
    with Archivist([registered("m", backend, policy=Direct(), failure="required")]) as archivist:
        archivist.put_object(digest)
        assert contents.has(backend, digest)
    (root / "format").chmod(0o644)
    (root / "format").write_text("999\n")
    with pytest.raises(errors.FormatError):
        Archivist([registered("m", backend)])


def test_what_makes_a_backend_is_called_once(root: Path) -> None:
    registration = Registration("m", MemoryBackend)

    assert isinstance(registration.backend, MemoryBackend)


def test_two_backends_of_one_name_are_refused_and_a_backend_in_the_cache_too(root: Path) -> None:
    with pytest.raises(errors.UsageError, match="two backends"):
        Archivist([registered("m", MemoryBackend()), registered("m", MemoryBackend())], root=root)
    inside = DirectoryBackend(root / "tier")
    with pytest.raises(errors.UsageError, match="a copy of itself"):
        Archivist([registered("m", inside)], root=root)
    with pytest.raises(errors.UsageError):
        Archivist(["m"], root=root)  # type: ignore[list-item]
    with Archivist([registered("m", MemoryBackend())], root=root) as archivist:
        with pytest.raises(errors.UsageError, match="two backends"):
            archivist.add(registered("m", MemoryBackend()))
        with pytest.raises(errors.UsageError, match="no backend is called"):
            archivist.remove("nobody")


def test_a_required_backend_that_holds_no_objects_is_refused_before_anything_is_done(
    root: Path, digest: Digest
) -> None:
    class Plain:
        def append_events(self, key: str, events: Sequence[Any]) -> None: ...

    events_only = Archivist([registered("p", Plain()), registered("q", Plain())], root=root)
    with events_only, pytest.raises(errors.UsageError, match="holds objects"):
        events_only.put_object(digest)
    other = MemoryBackend()
    with Archivist([registered("m", other), registered("p", Plain(), failure="required")], root=root) as archivist:
        with pytest.raises(errors.UsageError, match="holds events only"):
            archivist.put_object(digest)
        archivist.flush(LONG_S)
        assert list(other.names()) == []


def test_the_names_load_only_what_they_need() -> None:
    # tenacity imports tornado, and with it asyncio, where that is installed: it comes with the extra `fleet`.
    code = (
        "import sys; sys.modules['tornado'] = None; import modelcache.archive; "
        "alone = [m for m in sys.modules if m.startswith('modelcache')]; "
        "from modelcache.archive import Archivist, Direct, MemoryBackend, Queued, Registration; "
        "print(alone, [m for m in ('sqlite3', 'obstore', 'urllib3') if m in sys.modules])"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.split("] ")[0] == "['modelcache', 'modelcache.archive'"
    assert ast.literal_eval(said.split("] ")[1]) == []


def test_two_threads_read_one_object_to_one_place_at_once(root: Path, digest: Digest, tmp_path: Path) -> None:
    backend = MemoryBackend()
    with Archivist([registered("m", backend, policy=Direct(), failure="required")], root=root) as archivist:
        archivist.put_object(digest)

        readers = [Caller(lambda: archivist.read_object(digest, tmp_path / "out")) for _ in range(8)]

        assert [reader.end() for reader in readers] == [None] * 8
        assert (tmp_path / "out").read_bytes() == b"model" * 50_000
        assert list(tmp_path.glob(".out.*")) == []


def test_a_batch_is_a_list_with_its_ids() -> None:
    batch = Batch.of("k", [1, 2])

    assert batch == [1, 2]
    assert len(set(batch.ids)) == 2
    assert Batch.of("k", batch) is batch
