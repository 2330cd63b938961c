"""P1: a warm hit in a process, whatever the size of the model."""

from __future__ import annotations

from contextlib import ExitStack

from ..actors import MB, Worker, model, serving
from ..measure import Check, Context, Result, alternate, ratios, tabulate

PEERS = ("huggingface_hub", "pooch", "cached_path", "fsspec", "diskcache")
_CALLS = {"os.stat": 20_000, "modelcache": 20_000, "diskcache": 4_000, "huggingface_hub": 400, "fsspec": 200}
SIZES = {"1 MB": MB, "100 MB": 100 * MB}


def run(context: Context) -> Result:
    """Time ``get`` of a cached model against ``os.stat``."""
    result = Result()
    served = context.directory / "served"
    digests = {label: model(served, label.replace(" ", ""), size) for label, size in SIZES.items()}
    with serving(served) as server:
        for label in SIZES:
            name = label.replace(" ", "")
            subjects = ["os.stat", "modelcache", *(PEERS if context.peers else ())]
            with ExitStack() as stack:
                timed = {}
                for subject in subjects:
                    # diskcache fetches nothing: it is given the path.
                    origin = "" if subject in {"os.stat", "diskcache"} else server.url
                    root = served if subject == "os.stat" else context.directory / f"{subject}-{name}"
                    worker = Worker(subject, root, origin, {name: digests[label]})
                    stack.callback(worker.close)
                    timed[subject] = _Timed(worker, subject, name, quick=context.quick)
                found = alternate(timed, context.turns(15))
            table = tabulate(f"P1 warm get, {label}, same process", "µs", found, floor="os.stat", scale=1e6)
            result.tables.append(table)
            result.checks.append(Check("P1", f"get / os.stat, {label}", ratios(table, "modelcache"), 2.5))
    return result


class _Timed:
    """Seconds of one warm get by a worker; the first call starts it, and warms its cache."""

    def __init__(self, worker: Worker, subject: str, name: str, *, quick: bool) -> None:
        self._worker, self._name, self._is_ready = worker, name, False
        self._calls = max(1, _CALLS.get(subject, 3) // (10 if quick else 1))

    def __call__(self) -> float:
        if not self._is_ready:
            self._worker.wait()
            self._worker.ask("get", name=self._name)
            self._is_ready = True
        return float(self._worker.ask("time", name=self._name, calls=self._calls)["seconds"])
