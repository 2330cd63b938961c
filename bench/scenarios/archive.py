"""The archive: what an append costs, how much lands in SQLite, and what a backend that hangs costs the others."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import count as count_up
from typing import Any

from modelcache.archive import Archivist, MemoryBackend, Queued, Registration, SqliteBackend

from ..measure import Check, Context, Result, Table, alternate, ratios, tabulate

_EVENT = {"kind": "hit", "ref": "https://host/model.onnx", "seconds": 0.000004, "host": "node-17"}
_TURNS = 9


class _Sink:
    """Takes events and does nothing."""

    def append_events(self, *_: object) -> None:
        return


def run(context: Context) -> Result:
    """Time enqueueing, landing, and ten backends of which one hangs."""
    result = Result()
    count = 5_000 if context.quick else 50_000
    subjects = {"a list behind a lock": lambda: _floor(count // 5), "append": lambda: _enqueue(context, count // 5)}
    found = alternate(subjects, context.turns(_TURNS))
    table = tabulate("append one event to a queue", "µs", found, floor="a list behind a lock", scale=1e6)
    result.tables.append(table)
    result.checks.append(Check("arc", "append one event, µs", _samples(table, "append"), 10.0))

    turns = count_up()
    landing = alternate({"landed in sqlite": lambda: _land(context, next(turns), count)}, context.turns(5))
    table = tabulate(f"{count} events of one key, accepted one by one and landed in sqlite", "events/s", landing)
    result.tables.append(table)
    result.checks.append(Check("arc", "events/s", _samples(table, "landed in sqlite"), 50_000.0, at_least=True))

    bounded = [_memory(context, count // 5 * factor) for factor in (1, 2)]
    sizes = " and ".join(f"{size / 1e6:.2f} MB" for size in bounded)
    result.notes.append(f"traced memory of a queue of 1000 that hangs, offered {count // 5} and twice as many: {sizes}")

    ten = {
        "ten are well": lambda: _ten(context, count // 10, hangs=False),
        "one of ten hangs": lambda: _ten(context, count // 10, hangs=True),
    }
    table = tabulate("nine backends have all events", "s", alternate(ten, context.turns(_TURNS)), floor="ten are well")
    result.tables.append(table)
    result.checks.append(Check("arc", "nine beside one that hangs", ratios(table, "one of ten hangs"), 1 / 0.95))
    return result


def _samples(table: Table, name: str) -> tuple[float, ...]:
    return next(tuple(row.samples) for row in table.rows if row.name == name)


def _floor(count: int) -> float:
    """Return the seconds that one append to a list behind a lock takes."""
    lock, waiting = threading.Lock(), list[Any]()
    started = time.perf_counter()
    for number in range(count):
        with lock:
            waiting.append(("k", _EVENT, number))
    return (time.perf_counter() - started) / count


def _enqueue(context: Context, count: int) -> float:
    policy = Queued(capacity=count, batch_window=60)  # The writer stays out of it: one processor does this alone.
    archivist = Archivist([Registration("sink", _Sink(), policy=policy)], root=context.directory / "cache")
    started = time.perf_counter()
    for _ in range(count):
        archivist.append_events("k", (_EVENT,))
    seconds = time.perf_counter() - started
    archivist.shutdown(60)
    return seconds / count


def _land(context: Context, turn: int, count: int) -> float:
    """Return how many events a second are appended, one by one, and are in SQLite."""
    backend = SqliteBackend(context.directory / f"events-{turn}.db")
    policy = Queued(capacity=20_000, batch_window=0.02, batch_max=5_000)
    archivist = Archivist([Registration("sqlite", backend, policy=policy)], root=context.directory / "cache")
    started = time.perf_counter()
    for _ in range(count):
        archivist.append_events("k", (_EVENT,))
    assert archivist.flush(120)
    seconds = time.perf_counter() - started
    assert backend.query("SELECT count(*) FROM events") == [(count,)]
    archivist.shutdown(60)
    return count / seconds


def _memory(context: Context, count: int) -> int:
    """Return the most bytes that a queue of 1000 took while *count* events were offered to it."""
    held = MemoryBackend()
    policy = Queued(capacity=1_000, overflow="drop-oldest")
    with Archivist([Registration("m", held, policy=policy)], root=context.directory / "cache") as full, held.hold():
        tracemalloc.start()
        for number in range(count):
            full.append_events(f"k{number}", ({**_EVENT, "n": number},))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


def _ten(context: Context, count: int, *, hangs: bool) -> float:
    """Return the seconds until nine backends have all of *count* events; the tenth hangs, or does not."""
    tenth = MemoryBackend()
    nine = [_Counting(count) for _ in range(9)]
    small = Queued(capacity=100, overflow="drop-oldest")
    registrations = [Registration("tenth", tenth, policy=small)]
    registrations += [Registration(f"b{number}", one, policy=Queued(capacity=count)) for number, one in enumerate(nine)]
    archivist = Archivist(registrations, root=context.directory / "cache")
    with tenth.hold() if hangs else nullcontext():
        started = time.perf_counter()
        for number in range(count):
            archivist.append_events(f"k{number % 10}", (_EVENT,))
        for one in nine:
            one.done.wait()
        seconds = time.perf_counter() - started
    archivist.shutdown(60)
    return seconds


class _Counting:
    def __init__(self, count: int) -> None:
        self.left, self.done = count, threading.Event()

    def append_events(self, _key: str, events: Sequence[Any]) -> None:
        self.left -= len(events)
        if self.left <= 0:
            self.done.set()
