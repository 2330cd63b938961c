"""The table that this field quotes: forked processes that ask the cache once and end, counted honestly.

Each process asks for one of the cached models, and writes down what it got and how long it took; hits and bytes are
what they wrote. Beside it, as many processes that do nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from functools import partial

from modelcache import Cache

from ..actors import MB, model
from ..measure import Check, Context, Curve, Result, Tracker, alternate, median, ratios, tabulate

_PROCESSES = 400
_MODELS = 8
_RECORD = struct.Struct("<dqq")  # Seconds, bytes of what the path names, whether it was a hit.


def run(context: Context) -> Result:
    """Fork, ask, end; 2 to 32 processes at once."""
    root = context.directory / "cache"
    cache = Cache(root)
    names = []
    for number in range(_MODELS):
        model(context.directory, "content", MB)
        content = (context.directory / "content").read_bytes()
        names.append(cache.put(content + bytes([number]), name=f"model-{number}.onnx").ref)
        cache.get(names[-1])
    result, tracker = Result(), Tracker()
    series: dict[str, list[tuple[float, float]]] = {"bare fork and exit": [], "fork, ask, exit": []}
    for at_once in (2, 8) if context.quick else (2, 4, 8, 16, 32):
        facts: list[tuple[float, int, int]] = []
        found = alternate(
            {
                "bare fork and exit": partial(_rate, at_once, None, names, []),
                "fork, ask, exit": partial(_rate, at_once, cache, names, facts),
            },
            context.turns(9),
        )
        hits = sum(hit for _, _, hit in facts) / len(facts)
        rates = found["fork, ask, exit"]
        assert isinstance(rates, list)
        per_second = median(rates) * sum(size for _, size, _ in facts) / len(facts) / MB
        notes = {"fork, ask, exit": f"{hits:.1%} hits of {len(facts):,}, {per_second:,.0f} MB/s named"}
        table = tabulate(
            f"Processes per second, {at_once} at once", "/s", found, floor="bare fork and exit", notes=notes
        )
        result.tables.append(table)
        values = ratios(table, "fork, ask, exit")
        result.checks.append(Check("-", f"forked workers / bare fork, {at_once} at once", values, 0.75, at_least=True))
        result.checks.append(Check("-", f"counted hits, {at_once} at once", (hits,), 1, at_least=True))
        tracker.add(f"get in the process, {at_once} at once", [seconds for seconds, _, _ in facts])
        for row in table.rows:
            series[row.name].append((at_once, median(row.samples)))
    cache.close()
    result.notes.append(tracker.render("What one get took in such a process"))
    result.curves.append(Curve("processes", "Forked processes that ask once", "at once", "processes/s", series))
    return result


def _rate(at_once: int, cache: Cache | None, names: list[str], facts: list[tuple[float, int, int]]) -> float:
    """Return how many processes ended in a second; with *cache*, each asks it once, and its *facts* are collected."""
    board = mmap.mmap(-1, _RECORD.size * _PROCESSES)
    running = 0
    started = time.perf_counter()
    for number in range(_PROCESSES):
        if running == at_once:
            os.wait()
            running -= 1
        if os.fork() == 0:
            if cache is not None:
                _ask(cache, names[number % len(names)], board, number)
            os._exit(0)
        running += 1
    while running:
        os.wait()
        running -= 1
    taken = time.perf_counter() - started
    if cache is not None:
        facts += [_RECORD.unpack_from(board, number * _RECORD.size) for number in range(_PROCESSES)]
    board.close()
    return _PROCESSES / taken


def _ask(cache: Cache, name: str, board: mmap.mmap, number: int) -> None:
    before, begun = cache.stats(), time.perf_counter()
    path = cache.get(name)
    seconds = time.perf_counter() - begun
    hit = cache.stats().hits - before.hits
    _RECORD.pack_into(board, number * _RECORD.size, seconds, os.stat(path).st_size, hit)
