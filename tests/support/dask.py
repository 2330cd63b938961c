"""A real dask cluster on this machine: workers on several loopback addresses, each of them a host of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO

from modelcache.cluster.engine import Dask

_LISTENS = re.compile(r"Scheduler at:\s+(\S+)")
_JOINED = re.compile(r"Registered to:")


class Process:
    """A command of dask, whose words are read as it says them."""

    def __init__(self, command: str, *arguments: str, place: Path, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command}", *arguments, "--no-dashboard"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=place,  # Not where the tests run: `python -m` would find the package there, whatever its path says.
            env={**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s", **variables},
        )
        self._said: deque[str] = deque(maxlen=500)
        self._change = threading.Condition()
        self._over = False
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._change:
                    self._said.append(line)
                    self._change.notify_all()
        with self._change:
            self._over = True
            self._change.notify_all()

    def wait_to_say(self, pattern: re.Pattern[str], times: int = 1) -> str:
        """Wait for the line that *pattern* is found in for the n-th time; return its group, if there is one."""

        def found() -> list[re.Match[str]]:
            return [match for line in self._said if (match := pattern.search(line))]

        with self._change:
            self._change.wait_for(lambda: len(found()) >= times or self._over, 30)
            assert len(found()) >= times, "".join(self._said)
        return found()[-1].group(found()[-1].re.groups)

    def end(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._reader.join()


class Cluster:
    """A scheduler, and workers: *hosts* maps each address to how many it has. The cache of a host is below *place*.

    Should whoever runs the tests be killed, all of it ends by itself, after some minutes in which nobody asks.
    """

    def __init__(self, place: Path, hosts: dict[str, int], *, options: tuple[str, ...] = ()) -> None:
        self.place = place
        self._options = options  # Of the scheduler and of each worker.
        self._processes: list[Process] = []
        scheduler = self._begin("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--idle-timeout", "300")
        self.address = scheduler.wait_to_say(_LISTENS)
        self.workers = {host: self.join(host, count, wait=False) for host, count in hosts.items()}
        for host, count in hosts.items():
            self.workers[host].wait_to_say(_JOINED, count)

    def root(self, host: str) -> Path:
        return self.place / f"cache-{host}"

    def join(self, host: str, count: int = 1, *, wait: bool = True, **variables: str) -> Process:
        """Begin *count* workers on *host*; a nanny brings each of them back."""
        process = self._begin(
            "dask_worker", self.address, "--host", host, "--nworkers", str(count), "--nthreads", "1",
            "--death-timeout", "30",
            "--local-directory", str(self.place / f"scratch-{host}"),
            **{"MODELCACHE_DIR": str(self.root(host)), "MODELCACHE_HTTP_RETRIES": "0", **variables},
        )  # fmt: skip
        if wait:
            process.wait_to_say(_JOINED, count)
        return process

    def pids(self) -> dict[str, list[int]]:
        """Return the processes of the workers of each host, without the nannies."""

        async def ask() -> dict[str, list[int]]:
            async with Dask(self.address, timeout=10, silence=10) as engine:
                hosts = await engine.look()
                found = await engine._client.run(os.getpid)
            return {host: [found[worker] for worker in workers] for host, workers in hosts.items()}

        return asyncio.run(ask())

    def worker_address(self) -> str:
        """Return the address of some worker."""

        async def ask() -> str:
            async with Dask(self.address, timeout=10, silence=10) as engine:
                return next(iter((await engine.look()).values()))[0]

        return asyncio.run(ask())

    def close(self) -> None:
        for process in reversed(self._processes):
            process.end()

    def _begin(self, command: str, *arguments: str, **variables: str) -> Process:
        self._processes.append(Process(command, *arguments, *self._options, place=self.place, **variables))
        return self._processes[-1]
