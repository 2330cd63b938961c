"""P5: N processes ask at once for one cold 64 MB model."""

from __future__ import annotations

import shutil

from ..actors import MB, in_a_moment, model, serving, together, workers
from ..measure import Check, Context, Curve, MissingError, Result, Row, Table, median

PEERS = ("huggingface_hub", "cached_path", "pooch")
_PEER_COUNTS_MAX = 32  # 64 processes of some peers need more memory than a small machine has.


def run(context: Context) -> Result:
    """Count requests, and time the first and the last one through."""
    counts = (2, 8) if context.quick else (2, 8, 16, 32, 64)
    size = 64 * MB
    served = context.directory / "served"
    digest = model(served, "m", size)
    result, series = Result(), dict[str, list[tuple[float, float]]]()
    table = Table("P5 N processes, one cold 64 MB model: until the last one has it", "ms")
    spread = Table("   the last one through after the first", "ms")
    walls: dict[int, list[float]] = {count: [] for count in counts}
    for count in counts:
        for subject in ("modelcache", *(PEERS if context.peers and count <= _PEER_COUNTS_MAX else ())):
            turns = context.turns(5) if subject == "modelcache" else 1
            name = f"{subject}, N = {count}"
            seconds, lasts, asked = [], [], []
            try:
                for turn in range(turns):
                    root = context.directory / f"{subject}-{count}-{turn}"
                    with serving(served) as server, workers(subject, count, root, server.url, {"m": digest}) as herd:
                        at = in_a_moment()
                        got = together(herd, "get", [{"name": "m", "at": at}] * count)
                        stats = server.stats()
                    shutil.rmtree(root)
                    ends = [one["ended"] for one in got]
                    seconds.append(max(ends) - at)
                    lasts.append(max(ends) - min(ends))
                    asked.append((stats["GET"], stats["HEAD"], stats["bytes"] / size))
            except MissingError as error:
                table.rows.append(Row(name, note=str(error)))
                continue
            gets, heads, times = asked[-1]
            note = f"GET {gets}, HEAD {heads}, {times:.2f}x its bytes sent"
            table.rows.append(Row(name, tuple(one * 1e3 for one in seconds), note=note))
            spread.rows.append(Row(name, tuple(one * 1e3 for one in lasts)))
            series.setdefault(subject, []).append((count, median(seconds)))
            if subject == "modelcache":
                walls[count] = seconds
                whole = tuple(float(get + head + (sent != 1)) for get, head, sent in asked)
                result.checks.append(Check("P5", f"requests beyond one GET of all bytes, N = {count}",
                                           tuple(one - 1 for one in whole), 0))  # fmt: skip
                result.checks.append(Check("P5", f"last after first, ms, N = {count}", spread.rows[-1].samples, 50))
    base = median(walls[counts[0]])
    grown = tuple(wall / base for wall in walls[counts[-1]])
    result.checks.append(Check("P5", f"wall at N = {counts[-1]} / N = {counts[0]}", grown, 1.5))
    result.tables += [table, spread]
    result.curves.append(Curve("herd", "N processes ask for one cold 64 MB model", "processes", "seconds", series))
    return result
