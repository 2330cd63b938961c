"""P13: an ONNX model from the cache against from its source, in fresh processes: creation, first run, memory, our part.

Both are given the same options and two threads. `create` begins when onnxruntime, and for ours modelcache.onnx, have
been imported; what that import costs is a row of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..measure import Check, Context, MissingError, Result, Table, alternate, tabulate

GOALS = {"transformer": 4.0, "resnet50": 5.0, "densenet121": 5.0, "squeezenet": 5.0}
PROCESSES = 4
_MEMORY_TURNS = 7  # How much of its heap a process gives back differs from one to the next.
_KINDS = {"plain": "from the source", "cached": "from the cache"}
_REPOSITORY = Path(__file__).parents[2]
_WORKER = str(_REPOSITORY / "bench" / "onnx_worker.py")


def run(context: Context) -> Result:
    """Measure every model of `GOALS`."""
    for library in ("onnx", "onnxruntime", "numpy"):
        if importlib.util.find_spec(library) is None:
            return Result(notes=[f"not measured: {library} is not installed (pip install -e '.[dev]')"])
    build = runpy.run_path(str(_REPOSITORY / "examples" / "onnx_models.py"))["build"]
    environment = {**os.environ, "MODELCACHE_DIR": str(context.directory / "cache"), "PYTHONPATH": str(_REPOSITORY)}
    result = Result()
    for name, goal in GOALS.items():
        model = build(str(context.directory / f"{name}.onnx"))
        _model(context, name, model, goal, environment, result)
    return result


def _model(context: Context, name: str, model: str, goal: float, environment: dict[str, str], result: Result) -> None:
    first = _one("cached", model, environment)  # Builds it.
    found: dict[str, list[dict[str, float]]] = {"plain": [], "cached": []}

    def one(kind: str) -> Callable[[], float]:
        def measured() -> float:
            found[kind].append(_one(kind, model, environment))
            return found[kind][-1]["create"]

        return measured

    turns = context.turns(20)
    created = alternate({"from the source": one("plain"), "from the cache": one("cached")}, turns)
    table = tabulate(f"P13 {name}: create, fresh process", "ms", created, scale=1e3, floor="from the source")
    plain, cached = (found[kind][-turns:] for kind in ("plain", "cached"))
    runs: dict[str, list[float] | str] = {
        "from the source": [one["first"] for one in plain],
        "from the cache": [one["first"] for one in cached],
        "from the cache, import too": [one["first"] + one["import"] for one in cached],
    }
    result.tables += [
        table,
        tabulate(f"P13 {name}: create and first run", "ms", runs, scale=1e3, floor="from the source"),
    ]
    result.notes.append(f"{name}: the first process, which builds, took {first['create']:.2f} s")
    faster = tuple(a["create"] / b["create"] for a, b in zip(plain, cached, strict=True))
    whole = tuple(b["first"] / a["first"] for a, b in zip(plain, cached, strict=True))
    result.checks += [
        Check("P13", f"{name}: create from the cache, times as fast", faster, goal, at_least=True),
        Check("P13", f"{name}: create and first run, of that from the source", whole, 1.0),
    ]
    if name == "transformer":
        _memory(model, environment, result)
    _overhead(context, name, model, result)


def _one(kind: str, model: str, environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, _WORKER, kind, model, environment["MODELCACHE_DIR"]],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise MissingError(f"failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _memory(model: str, environment: dict[str, str], result: Result) -> None:
    """Sum the proportional shares of several processes that hold the model at once."""
    if not Path("/proc/self/smaps_rollup").exists():
        result.notes.append("not measured: memory, which Linux alone tells by /proc/self/smaps_rollup")
        return
    sums = alternate(
        {name: partial(_together, kind, model, environment) for kind, name in _KINDS.items()}, _MEMORY_TURNS
    )
    table = tabulate(
        f"P13 transformer: memory (PSS) of {PROCESSES} processes together", "MB", sums, scale=1e-6,
        floor="from the source",
    )  # fmt: skip
    result.tables.append(table)
    plain, cached = (sums[name] for name in _KINDS.values())
    assert isinstance(plain, list), plain
    assert isinstance(cached, list), cached
    shared = tuple(b / a for a, b in zip(plain, cached, strict=True))
    result.checks.append(
        Check("P13", f"transformer: PSS of {PROCESSES} processes, of that from the source", shared, 0.35)
    )


def _together(kind: str, model: str, environment: dict[str, str]) -> float:
    running = [
        subprocess.Popen(
            [sys.executable, _WORKER, kind, model, environment["MODELCACHE_DIR"], "wait"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(PROCESSES)
    ]  # fmt: skip
    try:
        total = 0.0
        for one in running:
            _line(one)
        for one in running:
            _go(one)
            total += _line(one)["pss"]
        return total
    finally:
        for one in running:
            _go(one)
            one.communicate()


def _line(process: Any) -> dict[str, float]:
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def _go(process: Any) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def _overhead(context: Context, name: str, model: str, result: Result) -> None:
    """Compare a warm session() in one process with a session of the same file."""
    import onnxruntime

    import modelcache.onnx
    from modelcache import Cache

    with Cache(context.directory / "cache") as cache:
        path = modelcache.onnx.optimize(model, cache=cache)

        def plain() -> float:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            started = time.perf_counter()
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return time.perf_counter() - started

        def ours() -> float:
            started = time.perf_counter()
            modelcache.onnx.session(model, cache=cache)
            return time.perf_counter() - started

        def alone() -> float:
            started = time.perf_counter()
            modelcache.onnx.optimize(model, cache=cache)
            return time.perf_counter() - started

        turns = context.turns(30)
        found = alternate(
            {"InferenceSession(path)": plain, "session(model)": ours, "our part alone": alone}, turns, warm_up=2
        )
    table: Table = tabulate(f"P13 {name}: warm session() in one process", "ms", found, scale=1e3)
    result.tables.append(table)
    part = found["our part alone"]
    assert isinstance(part, list)
    result.checks.append(
        Check("P13", f"{name}: our part of a warm session(), ms", tuple(1e3 * one for one in part), 2.0)
    )
