"""The table that this field quotes: forked processes that ask the cache once and end, counted honestly.

Hits and bytes are what each process wrote down (`bench.forker`). Beside it, as many processes that do nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys

from modelcache import Cache

from ..actors import MB
from ..measure import Check, Context, Curve, Result, Tracker, median, ratios, tabulate

_MODELS = 8
_BARE, _ASKING = "bare fork and exit", "fork, ask, exit"


def run(context: Context) -> Result:
    """Fork, ask, end; 2 to 32 processes at once."""
    root = str(context.directory / "cache")
    with Cache(root) as cache:
        for number in range(_MODELS):
            cache.put(bytes([number]) * MB, name=f"model-{number}.onnx")
    result, tracker = Result(), Tracker()
    series: dict[str, list[tuple[float, float]]] = {_BARE: [], _ASKING: []}
    for at_once in (2, 8) if context.quick else (2, 4, 8, 16, 32):
        command = [sys.executable, "-m", "bench.forker", root, str(at_once), str(context.turns(9))]
        said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        facts = said["facts"]
        hits = sum(hit for _, _, hit in facts) / len(facts)
        per_second = median(said["asking"]) * sum(size for _, size, _ in facts) / len(facts) / MB
        notes = {_ASKING: f"{hits:.1%} hits of {len(facts):,}, {per_second:,.0f} MB/s named"}
        found = {_BARE: said["bare"], _ASKING: said["asking"]}
        table = tabulate(f"Processes per second, {at_once} at once", "/s", found, floor=_BARE, notes=notes)
        result.tables.append(table)
        values = ratios(table, _ASKING)
        result.checks.append(Check("-", f"forked workers / bare fork, {at_once} at once", values, 0.75, at_least=True))
        result.checks.append(Check("-", f"counted hits, {at_once} at once", (hits,), 1, at_least=True))
        tracker.add(f"get in the process, {at_once} at once", [seconds for seconds, _, _ in facts])
        for row in table.rows:
            series[row.name].append((at_once, median(row.samples)))
    result.notes.append(tracker.render("What one get took in such a process"))
    result.curves.append(Curve("processes", "Forked processes that ask once", "at once", "processes/s", series))
    return result
