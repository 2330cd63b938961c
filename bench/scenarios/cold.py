"""P4: a cold get over plain HTTP on loopback, verified and durable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..actors import MB, Server, Worker, model, run_process, serving
from ..floor import download_floor
from ..measure import Check, Context, Curve, MissingError, Result, Row, Table, alternate, median, ratios, tabulate
from ..peers import REVISION

PEERS = ("huggingface_hub", "pooch", "cached_path", "fsspec")
_TOOLS = ("curl + sha256sum", "aria2c")
FLOOR = "floor"


def run(context: Context) -> Result:
    """Time cold gets of several sizes; look at processor time and memory too."""
    result = Result()
    sizes = {"16 MB": 16, "64 MB": 64} if context.quick else {"16 MB": 16, "64 MB": 64, "256 MB": 256, "1 GB": 1000}
    series: dict[str, list[tuple[float, float]]] = {}
    for label, size in sizes.items():
        measured = _Size(context, label, size * MB)
        result.tables += measured.tables
        # Below 256 MB the fixed costs weigh more than the bytes; the goal is about the bytes.
        result.checks += measured.checks if size >= 256 or context.quick else []
        for row in measured.tables[0].rows:
            if row.samples:
                series.setdefault(row.name, []).append((size, size / median(row.samples)))
    result.curves.append(
        Curve("cold", "Cold get: throughput against size", "size (MB)", "MB/s", series)
    )  # fmt: skip
    return result


class _Size:
    """The measurement of one size."""

    def __init__(self, context: Context, label: str, size: int) -> None:
        self._context, self._size, self._turn = context, size, 0
        self._name = f"m{size}"
        self._served = context.directory / f"served-{size}"
        self._digest = model(self._served, self._name, size)
        self._facts: dict[str, list[dict[str, float]]] = {}
        subjects = ["modelcache", *(PEERS if context.peers else ())]
        with serving(self._served) as server:
            url = f"{server.url}/bench/models/resolve/{REVISION}/{self._name}"
            timed: dict[str, Callable[[], float]] = {FLOOR: lambda: download_floor(server, url, context.directory)}
            timed |= {subject: partial(self._cold, subject, server) for subject in subjects}
            timed |= {tool: partial(self._tool, tool, url) for tool in (_TOOLS if context.peers else ())}
            found = alternate(timed, context.turns(5 if size > 500 * MB else 9))
        shutil.rmtree(self._served)
        wall = tabulate(f"P4 cold get, {label}", "ms", found, scale=1e3, floor=FLOOR)
        self.tables = [wall, self._used("processor time a GB", "s/GB", "cpu", 1e9 / size)]
        self.tables.append(self._used("added to the peak of resident memory", "MB", "added_kib", 1024 / MB))
        by_name = {row.name: row for row in self.tables[1].rows}
        memory = {row.name: row for row in self.tables[2].rows}
        self.checks = [
            Check("P4", f"wall / floor, {label}", ratios(wall, "modelcache"), 2.0),
            Check("P4", f"processor time, s/GB, {label}", by_name["modelcache"].samples, 1.7),
            Check("P4", f"memory added, MB, {label}", memory["modelcache"].samples, 40),
        ]
        if context.peers:
            faster = ratios(wall, "huggingface_hub", "modelcache")
            self.checks.append(Check("P4", f"huggingface_hub / modelcache, {label}", faster, 2.5, at_least=True))

    def _used(self, what: str, unit: str, fact: str, scale: float) -> Table:
        rows = [
            Row(subject, tuple(one[fact] * scale for one in facts[1:]))  # Without the turn that warms up.
            for subject, facts in self._facts.items()
        ]
        return Table(f"   {what}, client only", unit, rows)

    def _cold(self, subject: str, server: Server) -> float:
        """Return the seconds of one get into a new cache, by a process that has imported all it needs."""
        root = self._root(subject)
        worker = Worker(subject, root, server.url, {self._name: self._digest})
        try:
            worker.wait()
            got = worker.ask("get", name=self._name)
        finally:
            worker.close()
            shutil.rmtree(root, ignore_errors=True)
        if got["bytes"] != self._size:
            raise MissingError(f"got {got['bytes']} bytes of {self._size}")
        self._facts.setdefault(subject, []).append(got)
        return float(got["wall"])

    def _tool(self, tool: str, url: str) -> float:
        root = self._root("tool")
        root.mkdir()
        target = root / "m"
        if tool == "aria2c":
            command = ["aria2c", "--quiet", "--allow-overwrite=true", "--max-connection-per-server=4", "--split=4",
                       f"--checksum=sha-256={self._digest}", f"--dir={root}", "--out=m", url]  # fmt: skip
        else:
            check = f"echo '{self._digest}  {target}' | sha256sum --check --status"
            command = ["sh", "-c", f"curl --silent --show-error --fail --output '{target}' '{url}' && {check}"]
        started = time.perf_counter()
        try:
            run_process(command)
            return time.perf_counter() - started
        finally:
            shutil.rmtree(root)

    def _root(self, subject: str) -> Path:
        self._turn += 1
        return self._context.directory / f"{subject}-{self._turn}"
