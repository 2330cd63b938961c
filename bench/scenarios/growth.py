"""P11: what a hit and a listing cost as the cache grows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from modelcache import Cache, layout

from ..measure import Check, Context, Result, Row, Table, alternate, median, tabulate

_FILL = """
import os, sys
from modelcache import Cache
os.fsync = os.fdatasync = lambda descriptor: None  # Only to be done sooner: what is measured comes later.
cache = Cache(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    cache.put(b"content %d" % number, name=f"model-{number}.onnx")
"""
_LIST = """
import sys, time
from modelcache import Cache
from bench.worker import peak_kib
cache = Cache(sys.argv[1])
next(iter(cache._entries.all()))
before = peak_kib()
started = time.perf_counter()
entries = cache.entries()
print(time.perf_counter() - started, len(entries), peak_kib() - before)
"""


def run(context: Context) -> Result:
    """Fill a cache in steps; time a hit, in a process and as one, and a listing, at each step."""
    sizes = (10, 1_000) if context.quick else (10, 1_000, 10_000, 100_000)
    root = str(context.directory / "cache")
    warm, fresh, listed = (
        Table("P11 warm get in a process", "µs"),
        Table("P11 warm hit, whole process (path REF)", "ms"),
        Table("P11 ls, per entry", "µs"),
    )
    filled, checks = 0, []
    environ = {**os.environ, "MODELCACHE_DIR": root}
    for size in sizes:
        subprocess.run([sys.executable, "-c", _FILL, root, str(filled), str(size)], check=True)
        filled = size
        name = f"model-{size // 2}.onnx"
        label = f"{size:,} entries"
        with Cache(root) as cache:
            cache.get(name)
            warm.rows.append(Row(label, tuple(_per_call(cache, name) * 1e6 for _ in range(context.turns(15)))))
        command = [sys.executable, "-m", "modelcache", "path", name]
        fresh.rows.append(Row(label, tuple(_process(command, environ) * 1e3 for _ in range(context.turns(30)))))
        found = alternate({"scandir and stat": partial(_scan, root), "ls": partial(_ls, root)}, context.turns(7))
        step = tabulate("", "µs", found, floor="scandir and stat", scale=1e6)
        listed.rows += [Row(f"{row.name}, {label}", row.samples, row.ratios) for row in step.rows]
    for table, what in ((warm, "warm get"), (fresh, "fresh process")):
        base = median(table.rows[0].samples)
        grown = tuple(sample / base for sample in table.rows[-1].samples)
        checks.append(Check("P11", f"{what}, {sizes[-1]:,} entries / {sizes[0]} entries", grown, 1.3))
    checks.append(Check("P11", f"ls, µs an entry, {sizes[-1]:,} entries", listed.rows[-1].samples, 15))
    said = subprocess.run([sys.executable, "-c", _LIST, root], capture_output=True, text=True, check=True)
    _, count, added = said.stdout.split()
    checks.append(Check("P11", "memory of a listing, bytes an entry", (float(added) * 1024 / int(count),), 1024))
    return Result([warm, fresh, listed], checks)


def _per_call(cache: Cache, name: str) -> float:
    started = time.perf_counter()
    for _ in range(2_000):
        cache.get(name)
    return (time.perf_counter() - started) / 2_000


def _process(command: list[str], environ: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _scan(root: str) -> float:
    """Return the seconds per entry of a bare listing: each name, and one ``stat`` of it."""
    started = time.perf_counter()
    count = 0
    with os.scandir(Path(root, layout.ENTRIES)) as found:
        for item in found:
            item.stat()
            count += 1
    return (time.perf_counter() - started) / count


def _ls(root: str) -> float:
    """Return the seconds per entry of our own listing, in a new process, without its start."""
    said = subprocess.run([sys.executable, "-c", _LIST, root], capture_output=True, text=True, check=True).stdout
    seconds, count, _ = said.split()
    return float(seconds) / int(count)
