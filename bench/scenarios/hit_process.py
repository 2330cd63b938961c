"""P2: a warm hit as a whole process, by the command line and by the peers' ways."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from modelcache import Cache

from ..actors import MB, Worker, model, run_process, serving
from ..measure import Check, Context, MissingError, Result, Table, alternate, ratios, tabulate
from ..peers import REVISION

_LIBRARIES = {
    "huggingface_hub (library)": (
        "huggingface_hub",
        (
            "from huggingface_hub import hf_hub_download as get\n"
            f"print(get('bench/models', 'm', revision={REVISION!r}, cache_dir={{root!r}}))"
        ),
    ),
    "pooch (library)": (
        "pooch",
        "import pooch\nprint(pooch.retrieve({url!r}, known_hash='sha256:{digest}', fname='m', path={root!r}))",
    ),
    "cached_path (library)": (
        "cached_path",
        "from cached_path import cached_path\nprint(cached_path({url!r}, cache_dir={root!r}, quiet=True))",
    ),
}
_FACTS = """
import os, sys
def tell():
    with open("/proc/self/status") as status:
        peak = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
    print(len(sys.modules), peak, file=sys.stderr, flush=True)
leave = os._exit
def ended(code):
    tell()
    leave(code)
os._exit = ended  # The short path ends by it.
import runpy
sys.argv = ["modelcache", "path", sys.argv[1]]
runpy.run_module("modelcache", run_name="__main__")
"""


def run(context: Context) -> Result:
    """Time whole processes against ``python -c pass``."""
    url = "http://bench.invalid/model.onnx"
    environ = {"MODELCACHE_DIR": str(context.directory / "cache"), "PYTHONPATH": f"{context.directory}:{Path.cwd()}"}
    with Cache(environ["MODELCACHE_DIR"]) as cache:
        cache.get(url, digest=cache.put(b"content", name="model.onnx").digest)
    empty = context.directory / "empty"
    empty.mkdir()
    (empty / "__init__.py").touch()
    (empty / "__main__.py").touch()
    compileall.compile_dir(str(empty), quiet=2)
    python = sys.executable
    script, nothing = Path(python).with_name("modelcache"), context.directory / "nothing"
    commands = {
        "python -c pass": [python, "-c", "pass"],
        "python -m (an empty package)": [python, "-m", "empty"],
        "python -m modelcache path REF": [python, "-m", "modelcache", "path", url],
        "python -m modelcache get REF": [python, "-m", "modelcache", "get", url],
    }
    if script.exists():
        text = script.read_text().replace("modelcache.__main__", "empty.nothing")
        (empty / "nothing.py").write_text("def main():\n    pass\n")
        nothing.write_text(text)
        nothing.chmod(0o755)
        commands["the same script around nothing"] = [str(nothing)]
        commands["modelcache path REF (script)"] = [str(script), "path", url]
    timed = {name: Timed(command, environ) for name, command in commands.items()}
    table = tabulate("P2 warm hit, whole process", "ms", alternate(timed, context.turns(100), warm_up=2), scale=1e3,
                     floor="python -c pass")  # fmt: skip
    result = Result([table])
    for how in ("path", "get"):
        values = ratios(table, f"python -m modelcache {how} REF")
        result.checks.append(Check("P2", f"python -m modelcache {how} / python -c pass", values, 1.5))
    if script.exists():
        values = ratios(table, "modelcache path REF (script)", "the same script around nothing")
        result.checks.append(Check("P2", "the script / the same around nothing", values, 1.12))
    if sys.platform == "linux":
        said = subprocess.run(
            [python, "-c", _FACTS, url], env={**os.environ, **environ}, capture_output=True, text=True, check=True
        ).stderr.split()
        result.checks.append(Check("P2", "modules in the process, runpy included", (float(said[0]),), 60))
        result.checks.append(Check("P2", "peak of resident memory, MB", (int(said[1]) * 1024 / MB,), 12))
    if context.peers:
        result.tables.append(_peers(context))
    return result


def _peers(context: Context) -> Table:
    served = context.directory / "served"
    digest = model(served, "m", MB)
    with serving(served) as server:
        timed: dict[str, Callable[[], float]] = {"python -c pass": Timed([sys.executable, "-c", "pass"], {})}
        missing = {}
        for name, (peer, code) in _LIBRARIES.items():
            root = context.directory / peer
            worker = Worker(peer, root, server.url, {"m": digest})
            try:
                worker.wait()
                worker.ask("get", name="m")
            except MissingError as error:
                missing[name] = str(error)
                continue
            finally:
                worker.close()
            url = f"{server.url}/bench/models/resolve/{REVISION}/m"
            command = [sys.executable, "-c", code.format(root=str(root), url=url, digest=digest)]
            timed[name] = Timed(command, {"HF_ENDPOINT": server.url, "HF_HUB_DISABLE_TELEMETRY": "1"})
            hub = Path(sys.executable).with_name("hf")
            if peer == "huggingface_hub" and hub.exists():
                command = [str(hub), "download", "bench/models", "m", "--revision", REVISION, "--cache-dir", str(root)]
                timed["hf download (command line)"] = Timed(command, {"HF_ENDPOINT": server.url})
        found = alternate(timed, context.turns(20))
    return tabulate("P2 the same by the peers, 1 MB", "ms", {**found, **missing}, scale=1e3, floor="python -c pass")


class Timed:
    """Seconds of a whole process."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self._command, self._environ = command, environ

    def __call__(self) -> float:
        """Run it once."""
        started = time.perf_counter()
        run_process(self._command, self._environ)
        return time.perf_counter() - started
