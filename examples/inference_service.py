"""An inference service: several workers, one model, compiled once per machine. Run it by ``make serve``.

``python examples/inference_service.py`` builds a transformer of 99 MB, starts the service with gunicorn three times (as
plain onnxruntime, with modelcache for the first time, and with modelcache again) and prints how long each took until
every worker had answered, and what memory the workers take together. With ``--serve`` it only serves::

    MODEL=https://host/model.onnx python examples/inference_service.py --serve
    curl http://127.0.0.1:8760/
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORK = HERE.parent / ".demo-service"
HOST, PORT = "127.0.0.1", 8760
WORKERS = 4
START_S = 120.0
Answer = Callable[[str, list[tuple[str, str]]], object]


# -- the service -------------------------------------------------------------------------------------------------------


class Model:
    """The model of one worker, loaded when the worker starts."""

    def __init__(self) -> None:
        import numpy as np

        self.session = self._session(os.environ["MODEL"])
        first = self.session.get_inputs()[0]
        shape = [size if isinstance(size, int) else 1 for size in first.shape]
        kind = {"tensor(int64)": np.int64, "tensor(float)": np.float32}[first.type]
        self.feeds = {first.name: np.ones(shape, kind)}

    def _session(self, model: str) -> Any:
        if os.environ.get("PLAIN"):
            import onnxruntime

            return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        import modelcache.onnx

        return modelcache.onnx.session(model)

    def answer(self) -> dict[str, Any]:
        """Return what the model says to an input of ones, and which process says so."""
        outputs = self.session.run(None, self.feeds)
        return {"pid": os.getpid(), "sum": float(outputs[0].sum()), "shape": list(outputs[0].shape)}


_model: Model | None = None


def app(_environ: dict[str, Any], answer: Answer) -> Iterable[bytes]:
    """Answer one request (WSGI, PEP 3333)."""
    global _model
    if _model is None:
        _model = Model()
    body = json.dumps(_model.answer()).encode()
    answer("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def post_worker_init(_worker: object) -> None:
    """Load the model when a worker starts, before it is asked (a hook of gunicorn)."""
    global _model
    _model = Model()


def command(port: int = PORT) -> list[str]:
    """Return the command that serves."""
    here = [f"--chdir={HERE}", f"--config={HERE / 'inference_service.py'}", "inference_service:app"]
    options = [f"--bind={HOST}:{port}", f"--workers={WORKERS}", f"--timeout={START_S:.0f}", "--log-level=warning"]
    return [sys.executable, "-m", "gunicorn", *options, *here]


# -- the comparison ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Start the service in each of three ways; return an exit code."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    model = WORK / "transformer.onnx"
    subprocess.run([sys.executable, HERE / "onnx_models.py", str(model)], check=True, stdout=subprocess.DEVNULL)
    variables = {"MODEL": str(model), "MODELCACHE_DIR": str(WORK / "cache")}
    rows = [("", "until all workers have answered", "memory of the workers (PSS)", "answers")]
    sums = set()
    for title, more in (("onnxruntime", {"PLAIN": "1"}), ("modelcache, cold", {}), ("modelcache, warm", {})):
        seconds, memory, answers = measured({**os.environ, **variables, **more})
        sums |= {round(answer["sum"], 1) for answer in answers}
        rows.append((title, f"{seconds:.2f} s", f"{memory / 1e6:.0f} MB", f"{len(answers)} workers agree"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if len(sums) != 1:
        print(f"the answers differ: {sums}", file=sys.stderr)
    return int(len(sums) != 1)


def measured(environment: dict[str, str]) -> tuple[float, int, list[dict[str, Any]]]:
    """Return the seconds until every worker has answered, the bytes that they take together, and their answers."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    server = subprocess.Popen(command(port), env=environment)
    try:
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < WORKERS:
            if server.poll() is not None or time.monotonic() - started > START_S:
                raise SystemExit(f"the service did not start: {server.poll()}")
            try:
                with urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=10) as response:
                    answer = json.load(response)
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.01)  # It does not listen yet.
                continue
            answers[answer["pid"]] = answer
        return time.monotonic() - started, sum(map(proportional, answers)), list(answers.values())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def proportional(pid: int) -> int:
    """Return the bytes of memory of process *pid*, shared pages divided by who shares them (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the memory of a process")


if __name__ == "__main__":
    if "--serve" in sys.argv[1:]:
        os.environ.setdefault("MODEL", str(WORK / "transformer.onnx"))
        os.execv(sys.executable, command())  # noqa: S606  # A fixed program.
    sys.exit(main())
