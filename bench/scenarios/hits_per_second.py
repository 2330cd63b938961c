"""P7: warm hits per second in all, by N processes at once."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial

from ..actors import MB, Worker, model, serving, together, workers
from ..measure import Check, Context, Curve, MissingError, Result, alternate, median, ratios, tabulate

PEERS = ("diskcache", "huggingface_hub", "pooch")


def run(context: Context) -> Result:
    """Count what N processes get done in a second, hits by their own count."""
    result, series = Result(), dict[str, list[tuple[float, float]]]()
    served = context.directory / "served"
    digest = model(served, "m", MB)
    with serving(served) as server:
        for count in (1, 2) if context.quick else (1, 2, 4, 8):
            subjects = ("os.stat", "modelcache", *(PEERS if context.peers else ()))
            absent: dict[str, list[float] | str] = {}
            shares: list[float] = []
            with ExitStack() as stack:
                timed = {}
                for subject in subjects:
                    root = served if subject == "os.stat" else context.directory / f"{subject}-{count}"
                    origin = "" if subject in {"os.stat", "diskcache"} else server.url
                    try:
                        asked = stack.enter_context(workers(subject, count, root, origin, {"m": digest}))
                        together(asked, "get", [{"name": "m"}] * count)
                    except MissingError as error:
                        absent[subject] = str(error)
                        continue
                    timed[subject] = partial(_rate, asked, shares if subject == "modelcache" else [])
                found = {**alternate(timed, context.turns(7)), **absent}
            title = f"P7 warm hits per second, {count} processes"
            table = tabulate(title, "/s", found, floor="os.stat")
            result.tables.append(table)
            result.checks.append(
                Check("P7", f"hits / os.stat, N = {count}", ratios(table, "modelcache"), 0.4, at_least=True)
            )
            result.checks.append(
                Check("P7", f"counted hits of all calls, N = {count}", tuple(shares), 1, at_least=True)
            )
            for row in table.rows:
                if row.samples:
                    series.setdefault(row.name, []).append((count, median(row.samples)))
    result.curves.append(Curve("hits", "Warm hits per second", "processes", "hits/s", series))
    return result


def _rate(asked: list[Worker], shares: list[float]) -> float:
    until = time.monotonic() + 0.4
    got = together(asked, "rate", [{"name": "m", "until": until}] * len(asked))
    calls = sum(one["calls"] for one in got)
    shares.append(sum(one["hits"] for one in got) / calls)
    return float(calls / max(one["seconds"] for one in got))
