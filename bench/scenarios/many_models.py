"""P6: N processes each ask for the same M cold models, each in an order of its own."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial

from ..actors import MB, Server, in_a_moment, model, serving, together, workers
from ..floor import download_floor
from ..measure import Check, Context, Result, alternate, ratios, tabulate
from ..peers import REVISION

PEERS = ("huggingface_hub", "cached_path")


def run(context: Context) -> Result:
    """Count downloads, and time all against the floor of as many bytes."""
    processes, models, size = (4, 4, 4 * MB) if context.quick else (32, 8, 16 * MB)
    served = context.directory / "served"
    names = [f"m{number}" for number in range(models)]
    digests = {name: model(served, name, size) for name in names}
    model(served, "all", size * models)
    turn = iter(range(10**6))
    gets: list[float] = []

    def asked(subject: str, server: Server) -> float:
        root = context.directory / f"{subject}-{next(turn)}"
        before = server.stats()
        with workers(subject, processes, root, server.url, digests) as all_of_them:
            at = in_a_moment()
            orders = [random.Random(number).sample(names, models) for number in range(processes)]
            got = together(all_of_them, "get_many", [{"names": order, "at": at} for order in orders])
        shutil.rmtree(root)
        if subject == "modelcache":
            gets.append(server.stats()["GET"] - before["GET"])
        return float(max(one["ended"] for one in got) - at)

    with serving(served) as server:
        url = f"{server.url}/bench/models/resolve/{REVISION}/all"
        timed: dict[str, Callable[[], float]] = {
            "floor of all bytes": lambda: download_floor(server, url, context.directory)
        }
        timed |= {name: partial(asked, name, server) for name in ("modelcache", *(PEERS if context.peers else ()))}
        found = alternate(timed, context.turns(5))
    title = f"P6 {processes} processes, {models} cold models of {size // MB} MB each"
    table = tabulate(title, "ms", found, scale=1e3, floor="floor of all bytes")
    return Result(
        [table],
        [
            Check("P6", f"GETs beyond {models}", tuple(get - models for get in gets[1:]), 0),
            Check("P6", "wall / floor", ratios(table, "modelcache"), 1.3),
        ],
    )
