"""P10: the durable commit of a small object with its entry, and of a directory of eight files."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import perf_counter

from modelcache import Cache, commit

from ..measure import Check, Context, Result, alternate, ratios, tabulate

_FILES = 8


def run(context: Context) -> Result:
    """Time both against one file that is written and synced by fdatasync(2) in the same directory's file system."""
    number = count()
    content = os.urandom(4096)
    cache = Cache(context.directory / "cache")
    cache.put(content, name="first")

    def floor() -> float:
        started = perf_counter()
        descriptor = os.open(context.directory / f"floor-{next(number)}", os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, content)
        os.fdatasync(descriptor)
        os.close(descriptor)
        return perf_counter() - started

    def put() -> float:
        name = f"model-{next(number)}"
        started = perf_counter()
        cache.put(content[:-8] + next(number).to_bytes(8, "big"), name=name)
        return perf_counter() - started

    def tree() -> float:
        """Return the seconds a file of one commit of a directory."""
        staged, final = context.directory / f"staged-{next(number)}", context.directory / f"final-{next(number)}"
        staged.mkdir()
        started = perf_counter()
        for file in range(_FILES):
            Path(staged, f"part-{file}").write_bytes(content)
        commit.commit_object(str(staged), str(final))
        return (perf_counter() - started) / _FILES

    subjects: dict[str, Callable[[], float]] = {
        "one file, fdatasync": floor, "put: object and entry": put, f"directory of {_FILES}, per file": tree,
    }  # fmt: skip
    found = alternate(subjects, context.turns(100), warm_up=5)
    cache.close()
    table = tabulate("P10 durable commit of 4 KB", "µs", found, floor="one file, fdatasync", scale=1e6)
    return Result(
        [table],
        [
            Check("P10", "put / fdatasync of one file", ratios(table, "put: object and entry"), 10),
            Check("P10", "per file of a directory / floor", ratios(table, f"directory of {_FILES}, per file"), 2),
        ],
    )
