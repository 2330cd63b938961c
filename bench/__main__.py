"""``python -m bench [NAME …]``: the measurements that README.md in this folder describes."""

from __future__ import annotations

import compileall
import os
import platform
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import modelcache
from modelcache import Cache
from modelcache.testing import Fault, FaultServer

RUNS = 100
MB = 1_000_000

_WORKER = """
import sys, time
import modelcache.fetch, modelcache.flights, modelcache.sources.http
from modelcache import Cache
cache = Cache(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
cache.get(sys.argv[2])
print(time.monotonic(), cache.stats().fetched, flush=True)
sys.stdin.readline()  # A process that ends would take its processor time from those that still wait.
"""

# Linux hands the peak in getrusage(2) on to a child through fork and exec; the one in proc(5) is the child's own.
_MEMORY = """
import resource, sys
import modelcache.fetch, modelcache.flights, modelcache.sources.http
from modelcache import Cache
def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
cache = Cache(sys.argv[1])
before = peak()
cache.get(sys.argv[2])
print(before, peak())
"""


def main(names: list[str]) -> int:
    """Run the measurements in *names*, all if there are none; return an exit code."""
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(MEASUREMENTS)}", file=sys.stderr)
        return 2
    compileall.compile_dir(str(Path(modelcache.__file__).parent), quiet=2)
    print(
        f"CPython {platform.python_version()} | {platform.system()} {platform.release()} | {os.cpu_count()} processors"
    )
    for name in names or MEASUREMENTS:
        with tempfile.TemporaryDirectory(prefix="modelcache-bench-") as directory:
            print(f"\n{name}")
            MEASUREMENTS[name](Path(directory))
    return 0


def hit_process(directory: Path) -> None:
    """A warm hit as a whole process."""
    url = "http://bench.invalid/model.onnx"
    os.environ["MODELCACHE_DIR"] = str(directory / "cache")
    with Cache() as cache:
        digest = cache.put(b"content", name="model.onnx").digest
        cache.get(url, digest=digest)
    empty = directory / "empty"
    empty.mkdir()
    (empty / "__init__.py").touch()
    (empty / "__main__.py").touch()
    compileall.compile_dir(str(empty), quiet=2)
    os.environ["PYTHONPATH"] = str(directory)
    script = Path(sys.executable).with_name("modelcache")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -m (an empty package)": [sys.executable, "-m", "empty"],
        "python -m modelcache path REF": [sys.executable, "-m", "modelcache", "path", url],
        "python -m modelcache get REF": [sys.executable, "-m", "modelcache", "get", url],
    }
    if script.exists():
        commands["modelcache path REF (console script)"] = [str(script), "path", url]
    compare(commands)


def import_time(_directory: Path) -> None:
    """The import of the package."""
    compare({
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import modelcache'": [sys.executable, "-c", "import modelcache"],
    })  # fmt: skip


def compare(commands: dict[str, list[str]]) -> None:
    """Run *commands* in turn; print the median wall time of each and of its ratio to the first one of its turn."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(RUNS + 2):
        for name, command in commands.items():
            started = time.perf_counter()
            quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
            child = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
            _, status = os.waitpid(child, 0)
            if turn >= 2:
                times[name].append(time.perf_counter() - started)
            assert status == 0, f"{name} ended with {status}"
    first = next(iter(times.values()))
    for name, taken in times.items():
        ratio = statistics.median(one / base for one, base in zip(taken, first, strict=True))
        print(f"  {name:<40}{statistics.median(taken) * 1e3:8.2f} ms   ratio {ratio:.3f}")


def hit(directory: Path) -> None:
    """A warm hit in a process."""
    with Cache(directory / "cache") as cache:
        path = cache.put(b"content" * 1000, name="model.onnx").path
        cache.get("model.onnx")
        ratios = []
        for _ in range(15):
            stat = timeit.timeit(lambda: os.stat(path), number=20_000)
            get = timeit.timeit(lambda: cache.get("model.onnx"), number=20_000)
            ratios.append(get / stat)
    print(f"  Cache.get / os.stat: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def herd(directory: Path) -> None:
    """Many processes ask at once for one cold model."""
    content = directory / "model.onnx"
    content.write_bytes(random.Random(1).randbytes(64 * MB))
    for count in (2, 8, 32, 64):
        with FaultServer() as server:
            url = server.add("/model.onnx", content)
            command = [sys.executable, "-c", _WORKER, str(directory / f"cache-{count}"), url]
            workers = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]
            for worker in workers:
                read_line(worker)
            started = time.monotonic()
            for worker in workers:
                write_line(worker)
            outcomes = [read_line(worker).split() for worker in workers]
            for worker in workers:
                worker.communicate("\n")
            ends = sorted(float(end) for end, _ in outcomes)
            methods = server.methods()
        print(
            f"  N = {count:<3} GET {methods.count('GET')}, HEAD {methods.count('HEAD')}, "
            f"wall {ends[-1] - started:.3f} s, the last {(ends[-1] - ends[0]) * 1e3:.0f} ms after the first, "
            f"fetched {sum(int(fetched) for _, fetched in outcomes)}"
        )


def resume(directory: Path) -> None:
    """A download that is killed at 60 %, three times over."""
    size = 100 * MB
    content = directory / "model.onnx"
    content.write_bytes(random.Random(2).randbytes(size))
    code = "import sys; from modelcache import Cache; Cache(sys.argv[1]).get(sys.argv[2])"
    for turn in range(3):
        with FaultServer() as server:
            url = server.add("/model.onnx", content, [Fault(hold_after=size * 6 // 10)])
            root = str(directory / f"cache-{turn}")
            victim = subprocess.Popen([sys.executable, "-c", code, root, url])
            server.wait_for_sent(size * 6 // 10)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            server.release()
            with Cache(root) as cache:
                cache.get(url)
                resumed = cache.stats().bytes_resumed
            print(
                f"  sent {server.sent() / size:.3f}x the size in {len(server.seen())} requests, {resumed} bytes resumed"
            )


def memory(directory: Path) -> None:
    """What a large download adds to the peak of resident memory."""
    content = directory / "model.onnx"
    with content.open("wb") as file:
        file.truncate(2000 * MB)
    with FaultServer() as server:
        url = server.add("/model.onnx", content)
        command = [sys.executable, "-c", _MEMORY, str(directory / "cache"), url]
        before_it = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, peak = (int(number) * 1024 / MB for number in said.split())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"  2 GB add {peak - before:.1f} MB to a peak of {before:.1f} MB; "
        f"{used.ru_utime + used.ru_stime - before_it.ru_utime - before_it.ru_stime:.1f} s of processor time"
    )


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line that *process* prints."""
    assert process.stdout is not None
    return process.stdout.readline()


def write_line(process: subprocess.Popen[str]) -> None:
    """Let *process* go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


MEASUREMENTS: dict[str, Callable[[Path], None]] = {
    "hit-process": hit_process,
    "import": import_time,
    "hit": hit,
    "herd": herd,
    "resume": resume,
    "memory": memory,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
