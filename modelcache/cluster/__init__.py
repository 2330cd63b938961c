"""A manifest on every host of a cluster: what `modelcache prewarm` does on one machine, once per host.

The engine is one that is there already: dask.distributed (``pip install 'modelcache[fleet]'``). docs/cluster.md.
``report = prewarm("models.toml", "dask://scheduler:8786", deadline=600)``; ``report.check()`` raises what failed.
"""

from __future__ import annotations

import asyncio
import math
import os
import queue
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .. import manifest as manifests
from .. import reference, warmup
from ..config import is_seconds, is_whole
from ..errors import HostsError, HostTimeoutError, ModelCacheError, NoWorkersError, SchedulerLostError, UsageError
from .hosts import GoneError, HostReport, Patience, Roll, Warming
from .onhost import PROTOCOL

__all__ = ["ClusterReport", "HostReport", "prewarm"]

DEADLINE_S = 3600.0
CONNECT_S = 10.0
SILENCE_S = 120.0
HEARTBEAT_S = 10.0
_LOOK_S = 0.3  # At who is there; the more hosts, the rarer.
_STOPPED_S = 10.0  # After who waits has given up.


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """What became of every host, by address."""

    hosts: tuple[HostReport, ...]

    @property
    def failures(self) -> dict[str, ModelCacheError]:
        """The errors by host."""
        return {host.host: host.error for host in self.hosts if host.error is not None}

    def check(self) -> None:
        """Raise a HostsError if a host is not ready."""
        if self.failures:
            raise HostsError(failures=self.failures, total=len(self.hosts))


def prewarm(
    manifest: str | os.PathLike[str],
    cluster: str,
    *,
    deadline: float = DEADLINE_S,
    root: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    locked: bool = False,
    ready_file: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    mode: str | None = None,
    max_bandwidth: int | None = None,
    at_once: int | None = None,
    connect_timeout: float = CONNECT_S,
    silence: float = SILENCE_S,
    on_host: Callable[[HostReport], object] | None = None,
    on_wait: Callable[[tuple[str, ...]], object] | None = None,
) -> ClusterReport:
    """Get every model of *manifest* on every host of *cluster*, once per host whatever workers it has.

    The manifest is sent as text. Everything else is the host's: its settings, its cache, its credentials. A host that
    joins meanwhile is warmed too. Ctrl-C ends the work on all hosts; what they have is kept.

    Args:
        manifest: Path of a ``models.toml``, here; paths in it mean the same files there.
        cluster: ``dask://host:port``, ``tcp://host:port`` or ``tls://host:port`` of a dask scheduler.
        deadline: Seconds for all of it.
        root: The cache on each host. Default: what that host's own settings say.
        jobs: Models at a time on a host.
        locked: Accept exactly the bytes in the ``models.lock`` beside the manifest, which is sent too.
        ready_file: An absolute path on each host; written there last, if all models are there.
        offline: As `Cache` takes it, there; *mode* and *max_bandwidth* (bytes per second and host) too.
        mode: See *offline*.
        max_bandwidth: See *offline*.
        at_once: How many hosts at a time, for the sake of the source. Default: all.
        connect_timeout: Longest wait for the scheduler, and then for a first worker, in seconds.
        silence: For how long a worker may leave a question without an answer, in seconds.
        on_host: Called with the report of each host when it is done.
        on_wait: Called every ten seconds, with the hosts that are not done.

    Returns:
        What became of each host. Failures are in it, not raised; ``report.check()`` raises them.

    Raises:
        UsageError: The call makes no sense, or the manifest holds credentials, which are not sent.
        ManifestError, LockDriftError: As for a prewarm here; no host is asked.
        MissingLibraryError: dask.distributed is not installed.
        ClusterError: The scheduler cannot be used, has no workers, or has gone.
    """
    from .engine import address_of, check_installed

    for name, seconds in (("deadline", deadline), ("connect_timeout", connect_timeout), ("silence", silence)):
        if not (is_seconds(seconds) and seconds > 0):
            raise UsageError(problem=f"{name}={seconds!r:.50} makes no sense", hint="Give seconds above 0")
    for name, count in (("jobs", jobs), ("at_once", at_once)):
        if count is not None and not (is_whole(count) and count >= 1):
            raise UsageError(problem=f"{name}={count!r:.50} makes no sense", hint="Give a whole number from 1")
    for name, path in (("root", root), ("ready_file", ready_file)):
        if path is not None and not os.path.isabs(path):
            hint = "It is a path on each host: give it from /"
            raise UsageError(problem=f"{name} {os.fspath(path)!r:.200} is not absolute", hint=hint)
    address = address_of(cluster)
    order = _order(
        warmup.read(manifest, locked=locked),
        root=None if root is None else os.fspath(root),
        ready_file=None if ready_file is None else os.fspath(ready_file),
        jobs=jobs,
        options={"offline": offline, "mode": mode, "max_bandwidth": max_bandwidth},
    )
    check_installed()
    return _call(_Run(address, order, deadline, at_once, connect_timeout, silence), on_host, on_wait)


def _order(documents: warmup.Documents, **rest: Any) -> dict[str, Any]:
    """Return what a host is told, but for the time that it has.

    Raises:
        UsageError: It would hold credentials.
    """
    from .onhost import version

    for wanted in warmup.wanted(documents):
        for ref in (wanted.ref, *wanted.mirrors):
            if _holds_credentials(ref):
                raise UsageError(
                    problem=f"the address of {reference.parse(ref).key} in {documents.file} holds credentials, which "
                    "are not sent to other hosts",
                    hint="Take them out, and give each host its own: a token in its environment, or a netrc file",
                )
    manifests.parse_policy(documents.text, file=documents.file)
    return {
        "protocol": PROTOCOL,
        "modelcache": version(),
        "file": os.path.abspath(documents.file),
        "text": documents.text,
        "lock": documents.lock,
        **rest,
    }


def _holds_credentials(ref: str) -> bool:
    """Tell whether *ref* has what its key has not: a user, or parameters that sign."""
    parsed = reference.parse(ref)
    if parsed.scheme in {"", "file"}:
        return False
    asked, kept = urlsplit(parsed.url), urlsplit(parsed.key)
    names = {name for name, _ in parse_qsl(asked.query, keep_blank_values=True)}
    known = {name for name, _ in parse_qsl(kept.query, keep_blank_values=True)}
    return "@" in asked.netloc.removesuffix(kept.netloc) or bool(names - known)


class _Run:
    """One call, in an event loop of its own. ``news`` gets a HostReport, or a tuple of hosts that are waited for."""

    def __init__(
        self,
        address: str,
        order: dict[str, Any],
        deadline: float,
        at_once: int | None,
        connect_timeout: float,
        silence: float,
    ) -> None:
        self._address, self._order, self._deadline = address, order, deadline
        self._at_once, self._connect, self._silence = at_once, connect_timeout, silence
        self._token = uuid.uuid4().hex
        self.news: queue.SimpleQueue[HostReport | tuple[str, ...] | None] = queue.SimpleQueue()
        self._reports: dict[str, HostReport] = {}
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> ClusterReport:
        from .engine import Dask

        loop = asyncio.get_running_loop()
        end = loop.time() + self._deadline
        timeout = min(self._connect, self._deadline)
        async with Dask(self._address, timeout=timeout, silence=min(self._silence, self._deadline)) as engine:
            hosts = await self._first_look(engine, timeout)
            roll = Roll()
            turns = asyncio.Semaphore(self._at_once or len(hosts) + 1_000_000)
            beat = loop.time() + HEARTBEAT_S
            failing_since = math.inf
            try:
                while True:
                    await roll.update(hosts)
                    for host in hosts:
                        if host not in self._under_way:
                            self._under_way[host] = asyncio.create_task(self._host(host, engine, roll, turns, end))
                    waiting = {task for task in self._under_way.values() if not task.done()}
                    if not waiting:
                        return ClusterReport(tuple(self._reports[host] for host in sorted(self._reports)))
                    await asyncio.wait(waiting, timeout=max(_LOOK_S, len(hosts) / 200), return_when="ALL_COMPLETED")
                    if loop.time() >= beat:
                        beat = loop.time() + HEARTBEAT_S
                        self.news.put(tuple(sorted(self._under_way.keys() - self._reports.keys())))
                    if loop.time() < end:
                        try:
                            hosts, failing_since = await engine.look(), math.inf
                        except GoneError as error:
                            failing_since = min(failing_since, loop.time())
                            if loop.time() - failing_since >= timeout:
                                raise SchedulerLostError(address=self._address, detail=str(error)) from error
            finally:
                for task in self._under_way.values():
                    task.cancel()
                await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _first_look(self, engine: Any, timeout: float) -> dict[str, tuple[str, ...]]:
        """Return the hosts, of which there is one at least; raise NoWorkersError."""
        try:
            async with asyncio.timeout(timeout):
                while not (hosts := await engine.look()):
                    await asyncio.sleep(_LOOK_S)
        except (TimeoutError, GoneError):
            detail = f"its scheduler has had no workers for {timeout:g} s"
            raise NoWorkersError(address=self._address, detail=detail) from None
        return dict(hosts)

    async def _host(self, host: str, engine: Any, roll: Roll, turns: asyncio.Semaphore, end: float) -> None:
        try:
            async with asyncio.timeout_at(end):
                await turns.acquire()
        except TimeoutError:
            why = HostTimeoutError(host=host, detail="the deadline came before its turn")
            report = HostReport(host, "timeout", 0.0, error=why)
        else:
            try:
                report = await Warming(
                    host, engine, roll, token=self._token, order=self._order, end=end, patience=Patience(),
                    crowd=lambda: len(self._under_way) - len(self._reports),
                ).run()  # fmt: skip
            finally:
                turns.release()
        self._reports[host] = report
        self.news.put(report)


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """Close *loop*, as `asyncio.run` does: what the engine has left under way is ended first."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.wait(left, timeout=_STOPPED_S / 2) if left else asyncio.sleep(0))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _call(
    run: _Run,
    on_host: Callable[[HostReport], object] | None,
    on_wait: Callable[[tuple[str, ...]], object] | None,
) -> ClusterReport:
    """Run *run* in a thread: the caller may have an event loop of its own, and a signal must find us here."""
    outcome: list[ClusterReport | BaseException] = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(run.run())

    def work() -> None:
        try:
            outcome.append(loop.run_until_complete(task))
        except BaseException as error:  # noqa: BLE001  # Raised in the thread that waits.
            outcome.append(error)
        finally:
            try:
                _end(loop)
            finally:
                run.news.put(None)

    thread = threading.Thread(target=work, name="modelcache-cluster", daemon=True)
    thread.start()
    try:
        while (news := run.news.get()) is not None:
            if isinstance(news, HostReport):
                if on_host is not None:
                    on_host(news)
            elif on_wait is not None:
                on_wait(news)
    except BaseException:
        try:
            loop.call_soon_threadsafe(task.cancel)
        except RuntimeError:  # It has ended meanwhile.
            pass
        thread.join(_STOPPED_S)
        raise
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
