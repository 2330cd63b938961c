"""``python -m bench.forker ROOT AT_ONCE TURNS``: forks processes that ask a cache once, beside as many that do nothing.

A process of its own, that has imported no more than an application would: what a fork costs depends on its parent.
Each child asks for one of the cached models, and writes down what it got and how long it took, in memory that all
share. One JSON object comes out.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time

from modelcache import Cache

PROCESSES = 400
_RECORD = struct.Struct("<dqq")  # Seconds, bytes of what the path names, whether it was a hit.


def main(root: str, at_once: int, turns: int) -> None:
    """Alternate between both; print the rates, and what each child wrote down."""
    cache = Cache(root)
    names = [entry.ref for entry in cache.entries()]
    for name in names:
        cache.get(name)
    bare, asking, facts = [], [], []
    for turn in range(turns + 1):
        found: list[tuple[float, int, int]] = []
        rates = _rate(at_once, None, names, []), _rate(at_once, cache, names, found)
        if turn > 0:  # The first one warms up.
            bare.append(rates[0])
            asking.append(rates[1])
            facts += found
    print(json.dumps({"bare": bare, "asking": asking, "facts": facts}))


def _rate(at_once: int, cache: Cache | None, names: list[str], facts: list[tuple[float, int, int]]) -> float:
    """Return how many processes ended in a second; with *cache*, each asks it once, and its *facts* are collected."""
    board = mmap.mmap(-1, _RECORD.size * PROCESSES)
    running = 0
    started = time.perf_counter()
    for number in range(PROCESSES):
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
        facts += [_RECORD.unpack_from(board, number * _RECORD.size) for number in range(PROCESSES)]
    board.close()
    return PROCESSES / taken


def _ask(cache: Cache, name: str, board: mmap.mmap, number: int) -> None:
    before, begun = cache.stats().hits, time.perf_counter()
    path = cache.get(name)
    seconds = time.perf_counter() - begun
    _RECORD.pack_into(board, number * _RECORD.size, seconds, os.stat(path).st_size, cache.stats().hits - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
