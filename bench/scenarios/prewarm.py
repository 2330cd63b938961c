"""P12: 200 models of mixed sizes from a server that answers 50 ms late."""

from __future__ import annotations

import shutil
import time
from functools import partial
from itertools import count, pairwise
from pathlib import Path

from modelcache import Cache

from ..actors import Server, model, serving
from ..floor import download_floor
from ..measure import Check, Context, Result, alternate, ratios, tabulate
from ..peers import REVISION

_LATENCY_S = 0.05
_SIZES = (20_000, 200_000, 2_000_000, 20_000_000)


def run(context: Context) -> Result:
    """Time a prewarm at its default number of jobs, and at four times that, against the floor of as many bytes."""
    models = 40 if context.quick else 200
    served = context.directory / "served"
    sizes = [_SIZES[number % len(_SIZES)] for number in range(models)]
    for number, size in enumerate(sizes):
        model(served, f"m{number}.bin", size)
    model(served, "all", sum(sizes))
    turn = count()
    longest: list[float] = []

    def prewarm(server: Server, jobs: int | None) -> float:
        manifest = context.directory / "models.toml"
        manifest.write_text("".join(
            f'[[model]]\nref = "{server.url}/bench/models/resolve/{REVISION}/m{one}.bin"\n' for one in range(models)
        ))  # fmt: skip
        root = context.directory / f"cache-{next(turn)}"
        told = [time.monotonic()]
        with Cache(root, on_event=lambda _: told.append(time.monotonic())) as cache:
            started = time.monotonic()
            report = cache.prewarm(manifest, jobs=jobs)
            ended = time.monotonic()
        report.check()
        shutil.rmtree(root)
        longest.append(max(b - a for a, b in pairwise(told)) * 1e3)
        return ended - started

    with serving(served) as direct, serving(served, _LATENCY_S) as late:
        url = f"{direct.url}/bench/models/resolve/{REVISION}/all"
        found = alternate(
            {
                "floor of all bytes, no latency": lambda: download_floor(direct, url, Path(context.directory)),
                "prewarm": partial(prewarm, late, None),
                "prewarm, 16 jobs": partial(prewarm, late, 16),
            },
            context.turns(5),
        )
    title = f"P12 prewarm of {models} models, {sum(sizes) / 1e6:,.0f} MB, {_LATENCY_S * 1e3:.0f} ms latency"
    table = tabulate(title, "ms", found, scale=1e3, floor="floor of all bytes, no latency")
    return Result(
        [table],
        [
            Check("P12", "wall / floor", ratios(table, "prewarm"), 1.3),
            Check("P12", "longest time without an event, ms", tuple(longest), 500),
        ],
    )
