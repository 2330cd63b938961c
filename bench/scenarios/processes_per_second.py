"""P8: fresh processes per second on a warm cache, several at once."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

from modelcache import Cache

from ..measure import Check, Context, Result, alternate, ratios, tabulate


def run(context: Context) -> Result:
    """Count how many processes that get a path end in a second, against those that do nothing."""
    url = "http://bench.invalid/model.onnx"
    root = str(context.directory / "cache")
    with Cache(root) as cache:
        cache.get(url, digest=cache.put(b"content", name="model.onnx").digest)
    environ = {**os.environ, "MODELCACHE_DIR": root}
    commands = {"python -c pass": [sys.executable, "-c", "pass"],
                "python -m modelcache path REF": [sys.executable, "-m", "modelcache", "path", url]}  # fmt: skip
    script = Path(sys.executable).with_name("modelcache")
    if script.exists():
        commands["modelcache path REF (script)"] = [str(script), "path", url]
    result = Result()
    for at_once in (2,) if context.quick else (2, 4, 8):
        timed = {name: partial(_rate, command, environ, at_once) for name, command in commands.items()}
        found = alternate(timed, context.turns(9))
        table = tabulate(f"P8 processes per second, {at_once} at once", "/s", found, floor="python -c pass")
        result.tables.append(table)
        values = ratios(table, "python -m modelcache path REF")
        result.checks.append(Check("P8", f"path / python -c pass, {at_once} at once", values, 0.7, at_least=True))
    return result


def _rate(command: list[str], environ: dict[str, str], at_once: int) -> float:
    """Return how many of 100 processes ended in a second, *at_once* running at each moment."""
    count, running, failed = 100, 0, 0
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    started = time.perf_counter()
    for _ in range(count):
        if running == at_once:
            failed += os.wait()[1] != 0
            running -= 1
        os.posix_spawn(command[0], command, environ, file_actions=quiet)
        running += 1
    while running:
        failed += os.wait()[1] != 0
        running -= 1
    assert failed == 0, f"{failed} of {count} processes failed"
    return count / (time.perf_counter() - started)
