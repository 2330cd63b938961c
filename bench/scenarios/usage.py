"""Usage: what it costs a hit to be counted, in a process and as a whole process; on, off, and by a file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from modelcache import Cache, looks

from ..measure import Check, Context, Result, Table, alternate, tabulate

_TURNS, _CALLS, _LOOKS = 25, 20_000, 300
_NAME = "m.onnx"


def run(context: Context) -> Result:
    """Time warm hits, looks and processes."""
    result = Result()
    root = context.directory / "cache"
    with Cache(root) as cache:
        cache.put(b"x" * 1_000_000, name=_NAME)
    calls = _CALLS // (10 if context.quick else 1)
    with Cache(root) as off, Cache(root, usage=True) as on:
        found = alternate({"off": _hits(off, calls), "on": _hits(on, calls)}, context.turns(_TURNS))
        table = tabulate("a warm hit, same process", "µs", found, floor="off", scale=1e6)
        result.tables.append(table)
        result.checks.append(Check("use", "a hit with usage on, µs more", _more(table), 0.5))
        found = alternate({"off": _looks(off), "on": _looks(on)}, context.turns(_TURNS))
        result.tables.append(tabulate("a hit that looks at its record", "µs", found, floor="off", scale=1e6))
    found = alternate({"a line": lambda: _line(root)}, context.turns(_TURNS))
    result.tables.append(tabulate("the line of a look", "µs", found, scale=1e6))
    settings = context.directory / "settings.toml"
    settings.write_text("usage = true\n")
    processes = {
        "off": _process(root, {}),
        "on, by the variable": _process(root, {"MODELCACHE_USAGE": "1"}),
        "on, by a file": _process(root, {"MODELCACHE_CONFIG": str(settings)}),
    }
    found = alternate(processes, context.turns(_TURNS))
    result.tables.append(tabulate("python -m modelcache path", "ms", found, floor="off", scale=1e3))
    return result


def _more(table: Table) -> tuple[float, ...]:
    """Return how much more a turn of *on* took than that of *off* beside it."""
    rows = {row.name: row.samples for row in table.rows}
    return tuple(on - off for on, off in zip(rows["on"], rows["off"], strict=True))


def _hits(cache: Cache, calls: int) -> Callable[[], float]:
    def once() -> float:
        get = cache.get
        get(_NAME)
        started = time.perf_counter()
        for _ in range(calls):
            get(_NAME)
        return (time.perf_counter() - started) / calls

    return once


def _looks(cache: Cache) -> Callable[[], float]:
    def once() -> float:
        spent = 0.0
        for _ in range(_LOOKS):
            cache._warm.clear()  # noqa: SLF001  # As ten seconds do.
            started = time.perf_counter()
            cache.get(_NAME)
            spent += time.perf_counter() - started
        return spent / _LOOKS

    return once


def _line(root: Path) -> float:
    started = time.perf_counter()
    for _ in range(_LOOKS):
        looks.add(str(root), _NAME, 1_000_000)
    return (time.perf_counter() - started) / _LOOKS


def _process(root: Path, variables: dict[str, str]) -> Callable[[], float]:
    environ = {**os.environ, "MODELCACHE_DIR": str(root), "MODELCACHE_CONFIG": "", **variables}

    def once() -> float:
        started = time.perf_counter()
        command = [sys.executable, "-m", "modelcache", "path", _NAME]
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    return once
