"""``python -m bench [SCENARIO …] [--peers] [--json FILE] [--plots DIR] [--quick] [--check]``; README.md explains it."""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import failpoints
import modelcache

from .measure import MET, Context, MissingError, Result, as_json
from .peers import SUBJECTS, version
from .plots import plot

SCENARIOS = {  # By goal, as `docs/performance.md` lists them.
    "hit": "P1",
    "hit-process": "P2",
    "import": "P3",
    "cold": "P4",
    "herd": "P5",
    "many-models": "P6",
    "hits-per-second": "P7",
    "processes-per-second": "P8",
    "lock": "P9",
    "commit": "P10",
    "growth": "P11",
    "prewarm": "P12",
    "onnx": "P13",
    "manage": "",
    "process-table": "",
    "resume": "",
    "archive": "",
    "tiers": "",
    "usage": "",
}


def main(arguments: Sequence[str]) -> int:
    """Run what *arguments* name; return an exit code: 1 if ``--check`` found a goal missed, 2 for a wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measurements; bench/README.md explains them.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"default: all of {', '.join(SCENARIOS)}")
    parser.add_argument("--peers", action="store_true", help="let the peers take part (pip install '.[bench]')")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: to see that it runs, not to judge")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="curves as PNG files")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="where to work: its file system is what is measured"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    try:
        importlib.import_module("modelcache.fetch")  # With what it needs: a clone that was not installed lacks that.
    except ImportError as error:
        print(f"modelcache is not installed here ({error}): pip install -e '.[bench]'", file=sys.stderr)
        return 2
    # An environment that writes no bytecode would compile the source at each start.
    for package in (modelcache, failpoints):
        compileall.compile_dir(str(Path(package.__file__ or "").parent), quiet=2)
    head = _head(peers=options.peers)
    print(head)
    results = {}
    for name in options.scenarios or SCENARIOS:
        started = time.monotonic()
        results[name] = _run(name, options)
        _show(name, results[name], time.monotonic() - started)
    if options.json is not None:
        data = {"machine": head, "scenarios": {name: as_json(result) for name, result in results.items()}}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.plots is not None:
        try:
            for file in plot((curve for result in results.values() for curve in result.curves), options.plots):
                print(f"wrote {file}")
        except MissingError as error:
            print(f"no plots: {error}", file=sys.stderr)
    return _verdict(results, judged=options.check)


def _run(name: str, options: argparse.Namespace) -> Result:
    module = importlib.import_module(f"bench.scenarios.{_MODULES.get(name, name.replace('-', '_'))}")
    with tempfile.TemporaryDirectory(prefix="modelcache-bench-", dir=options.directory) as directory:
        result: Result = module.run(Context(Path(directory), peers=options.peers, quick=options.quick))
    return result


_MODULES = {"import": "import_time"}


def _show(name: str, result: Result, seconds: float) -> None:
    print(f"\n== {name} ({seconds:.0f} s)")
    for table in result.tables:
        print(table.render())
    for note in result.notes:
        print(note)
    for check in result.checks:
        print(check.render())
    sys.stdout.flush()


def _verdict(results: dict[str, Result], *, judged: bool) -> int:
    checks = [check for result in results.values() for check in result.checks]
    other = [check for check in checks if check.verdict != MET]
    print(f"\n{len(checks) - len(other)} of {len(checks)} goals met")
    for check in other:
        print(check.render())
    return 1 if judged and any(check.verdict == "missed" for check in other) else 0


def _head(*, peers: bool) -> str:
    line = (
        f"modelcache {version('modelcache') or '(source)'} | CPython {platform.python_version()} | "
        f"{platform.system()} {platform.release()} {platform.machine()} | {os.cpu_count()} processors | "
        f"{time.strftime('%Y-%m-%d')}"
    )
    if not peers:
        return line
    lines = [line]
    for name, subject in SUBJECTS.items():
        if subject.package and name != "modelcache":
            lines.append(f"  {name} {version(name) or 'is not installed'}: {subject.settings}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
