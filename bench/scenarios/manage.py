"""Managing a large cache: listing, accounting and planning per entry; leases; verification beside a bare SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from modelcache import Cache, layout

from ..measure import Check, Context, Result, Row, Table, alternate, tabulate

_FILES_OF_A_TREE = 20
_FILL = """
import os, shutil, sys
from pathlib import Path
from modelcache import Cache
os.fsync = os.fdatasync = lambda descriptor: None  # Only to be done sooner: what is measured comes later.
root, count, files, source = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
cache = Cache(root)
for number in range(count):
    if files == 1:
        cache.put(b"content %d" % number, name=f"model-{number}.onnx")
        continue
    source.mkdir()
    for one in range(files):
        (source / f"shard-{one}").write_bytes(b"%d of %d" % (one, number if one else 0))  # The first is shared by all.
    cache.put_tree(source, name=f"tree-{number}")
    shutil.rmtree(source)
"""
_LEASE = """
import sys, time
from modelcache import Cache
import modelcache.leasing
cache = Cache(sys.argv[1])
cache.get(sys.argv[2]), cache.get(sys.argv[3])
def timed(name):
    started = time.perf_counter()
    held.append(cache.lease(name))
    return time.perf_counter() - started
held = []
print(timed(sys.argv[2]), timed(sys.argv[3]), min(timed(sys.argv[2]) for _ in range(50)))
"""


def run(context: Context) -> Result:
    """Fill one cache with files and one with trees; time what looks at all of it."""
    entries, trees = (300, 50) if context.quick else (10_000, 1_000)
    result = Result([], [])
    for what, count, files in (("files", entries, 1), ("trees of twenty files", trees, _FILES_OF_A_TREE)):
        root = str(context.directory / what.split()[0])
        source = str(context.directory / "source")
        subprocess.run([sys.executable, "-c", _FILL, root, str(count), str(files), source], check=True)
        _look(context, result, root, f"{count:,} {what}", count)
    _leases(context, result, str(context.directory / "files"))
    _verify(context, result)
    return result


def _look(context: Context, result: Result, root: str, label: str, count: int) -> None:
    with Cache(root) as cache:
        found = alternate(
            {
                "scandir and stat of all": partial(_timed, partial(_walk, root)),
                "ls": partial(_timed, cache.entries),
                "du": partial(_timed, cache.disk_usage_by_model),
                "plan_gc": partial(_timed, cache.plan_gc),
            },
            context.turns(9),
        )
    table = tabulate(f"{label}, per entry", "µs", found, floor="scandir and stat of all", scale=1e6 / count)
    result.tables.append(table)
    for row in table.rows[1:]:
        result.checks.append(Check("manage", f"{row.name}, µs an entry, {label}", row.samples, 15))


def _walk(root: str) -> None:
    """Do what nobody can do without who asks what all of it takes: records, and each file of each object."""
    pending = [f"{root}/{layout.ENTRIES}", f"{root}/{layout.OBJECTS}"]
    while pending:
        with os.scandir(pending.pop()) as inside:
            for one in inside:
                if one.is_dir(follow_symlinks=False):
                    pending.append(one.path)
                else:
                    one.stat(follow_symlinks=False)


def _leases(context: Context, result: Result, root: str) -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", _LEASE, root, "model-1.onnx", "model-2.onnx"],
            capture_output=True, text=True, check=True,
        ).stdout.split()
        for _ in range(context.turns(15))
    ]  # fmt: skip
    table = Table("a lease", "µs")
    for row, (name, goal) in enumerate(
        (("the first of a process, modules imported", 100), ("of another object", 15), ("of one that is held", 15))
    ):
        samples = tuple(float(values[row]) * 1e6 for values in said)
        table.rows.append(Row(name, samples))
        result.checks.append(Check("manage", f"lease {name}, µs", samples, goal))
    result.tables.append(table)


def _verify(context: Context, result: Result) -> None:
    root, size = context.directory / "content", 1_000_000 if context.quick else 100_000_000
    with Cache(root) as cache:
        paths = [cache.put(os.urandom(size), name=f"m{number}").path for number in range(6)]
        found = alternate(
            {"sha256, two threads": partial(_timed, partial(_hash, paths)), "verify": partial(_timed, cache.verify)},
            context.turns(7),
        )
    table = tabulate(f"verify of {6 * size / 1e6:g} MB in the page cache", "s", found, floor="sha256, two threads")
    result.tables.append(table)
    result.checks.append(Check("manage", "verify / bare sha256", table.rows[1].ratios, 1.2))
    shutil.rmtree(root)


def _hash(paths: list[str]) -> None:
    def one(path: str) -> None:
        with Path(path).open("rb") as file:
            hashlib.file_digest(file, "sha256")

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(one, paths))


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
