"""One host of a cluster, from its first worker to its report. It knows no engine: tests give it one of their own.

A host is asked through one of its workers, whichever that is. Rules:
  * A worker that dies, or that no longer knows what it was told, is replaced by any worker that its host has then, up
    to `TRIES` times: what had arrived is resumed. An engine may take long to say that it cannot be reached: one that is
    not on the roll any more is not waited for.
  * A host without workers is waited for, as long as `Patience.back`. A worker that comes back has another address.
  * A worker that does not answer is left for another one of its host; without one the host has timed out.
  * All of it ends at the deadline, whatever hangs: then the work on the host is ended too, if that can be said to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..errors import (
    HostError,
    HostFailedError,
    HostLostError,
    HostSetupError,
    HostTimeoutError,
)

TRIES = 5
_STOP_S = 2.0  # For saying that nobody wants it any more.
_ASK_S_MIN, _ASK_S_MAX = 0.1, 1.0
_ASKS_PER_S = 100  # Of all hosts together: each goes through the scheduler.

Worker = str


class GoneError(Exception):
    """The worker has died, gone, or begun anew."""


class SilentError(Exception):
    """The worker does not answer."""


class UnfitError(Exception):
    """The worker cannot do it: no modelcache there, or another one."""


class Engine(Protocol):
    """What is asked of an engine; see `engine.Dask`."""

    async def look(self) -> dict[str, tuple[Worker, ...]]:
        """Return the workers of each host."""

    async def start(self, worker: Worker, token: str, order: dict[str, Any]) -> dict[str, Any]:
        """Begin *order*; return what `ask` does."""

    async def ask(self, worker: Worker, token: str) -> dict[str, Any]:
        """Return ``{"state": …}``: see `onhost.ask`. Raises GoneError, SilentError or UnfitError."""

    async def stop(self, worker: Worker, token: str) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class HostReport:
    """What became of one host.

    Attributes:
        host: Its address, as the scheduler knows it.
        state: ``ok`` (all models are there), ``partial`` (some), ``failed`` (none, or it could not begin), ``timeout``
            (not done in time, or it hangs), ``lost`` (its workers died or went).
        seconds: From its turn to its end.
        tries: How many workers were told to do it.
        bytes: The sizes of the models that are ready there, together.
        from_origin: Bytes that came from sources for it.
        from_tiers: Bytes that were copied from tiers.
        here: Bytes that did not have to come.
        root: The cache there; None if it did not say.
        modelcache: The version there; None likewise.
        models: A dict for each model: ``ref``, ``state``, ``seconds``, ``size``; of one that failed ``error``,
            ``message``, ``hint``, ``exit_code``.
        error: Why it is not ok; None if it is.
    """

    host: str
    state: str
    seconds: float
    tries: int = 0
    bytes: int = 0
    from_origin: int = 0
    from_tiers: int = 0
    here: int = 0
    root: str | None = None
    modelcache: str | None = None
    models: tuple[Mapping[str, Any], ...] = ()
    error: HostError | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON-ready dict."""
        plain = {**asdict(self), "seconds": round(self.seconds, 3), "models": [dict(model) for model in self.models]}
        del plain["error"]
        if self.error is None:
            return plain
        kind = self.error.error if isinstance(self.error, HostFailedError) else type(self.error).__name__
        return {**plain, "error": kind, "message": self.error.detail, "hint": self.error.hint}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what is waited for, in seconds: ``back`` for a worker of a host that has none any more."""

    back: float = 60.0


class Roll:
    """Which workers each host has, as it was seen last."""

    def __init__(self) -> None:
        self._hosts: dict[str, tuple[Worker, ...]] = {}
        self._changed = asyncio.Condition()

    async def update(self, hosts: dict[str, tuple[Worker, ...]]) -> None:
        """Take what the engine has seen."""
        async with self._changed:
            self._hosts = hosts
            self._changed.notify_all()

    async def worker(self, host: str, *, but: set[Worker], within: float) -> Worker | None:
        """Return a worker of *host* that is none of *but*; None if there is none for *within* seconds."""

        def found() -> Worker | None:
            return next((worker for worker in self._hosts.get(host, ()) if worker not in but), None)

        try:
            async with asyncio.timeout(within), self._changed:
                return await self._changed.wait_for(found)
        except TimeoutError:
            return None

    async def without(self, host: str, worker: Worker) -> None:
        """Return when *worker* is none of *host* any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: worker not in self._hosts.get(host, ()))


class Warming:
    """The prewarm of one host.

    Args:
        host: Which.
        token: What its workers call it.
        order: What they are told, without ``seconds``.
        end: The deadline, on the clock of the event loop.
        crowd: How many hosts there are now: the more, the less often each is asked.
    """

    def __init__(
        self,
        host: str,
        engine: Engine,
        roll: Roll,
        *,
        token: str,
        order: dict[str, Any],
        end: float,
        patience: Patience,
        crowd: Callable[[], int] = lambda: 1,
    ) -> None:
        self.host = host
        self._engine, self._roll, self._token, self._order = engine, roll, token, order
        self._end, self._patience, self._crowd = end, patience, crowd
        self._tries = 0
        self._busy: Worker | None = None
        self._gone: set[Worker] = set()
        self._why: HostError | None = None

    async def run(self) -> HostReport:
        """Return its report. Cancelled, it ends the work there."""
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout_at(self._end):
                answer = await self._answer()
            if answer is None:
                assert self._why is not None
                state = "timeout" if isinstance(self._why, HostTimeoutError) else "lost"
                return HostReport(self.host, state, clock() - started, self._tries, error=self._why)
            return self._report(answer, clock() - started)
        except UnfitError as error:
            why: HostError = HostSetupError(host=self.host, detail=str(error))
            return HostReport(self.host, "failed", clock() - started, self._tries, error=why)
        except TimeoutError:
            detail = f"not done at the deadline, after {clock() - started:.1f} s"
            if self._why is not None:
                detail += f"; before that, {self._why.detail}"
            why = HostTimeoutError(host=self.host, detail=detail)
            return HostReport(self.host, "timeout", clock() - started, self._tries, error=why)
        finally:
            if self._busy is not None:
                await _quietly(self._engine.stop(self._busy, self._token))

    async def _answer(self) -> dict[str, Any] | None:
        """Return what a worker has answered; None, with the reason in ``_why``, if none will."""
        while self._tries < TRIES:
            hangs = isinstance(self._why, HostTimeoutError)
            # One that hangs is still there, so that none will come in its place: only what is there now counts.
            within = 0 if hangs else self._patience.back
            worker = await self._roll.worker(self.host, but=self._gone, within=within)
            if worker is None:
                if not hangs:
                    gone = f"its workers are gone, and none came back within {self._patience.back:g} s"
                    self._why = HostLostError(host=self.host, detail=gone)
                return None
            self._tries += 1
            self._busy = worker
            try:
                answer = await self._wait_for(worker)
            except GoneError as error:
                # The same worker may have lost no more than a connection: it is asked again if it is still there.
                detail = f"its worker died or went, {self._tries} times; the last time: {error}"
                self._why = HostLostError(host=self.host, detail=detail)
                await asyncio.sleep(min(_ASK_S_MIN * 2**self._tries, _ASK_S_MAX))
            except SilentError as error:
                self._gone.add(worker)
                self._why = HostTimeoutError(host=self.host, detail=f"its worker hangs: {error}")
            else:
                self._busy = None
                return answer
        return None

    async def _wait_for(self, worker: Worker) -> dict[str, Any]:
        left = self._end - asyncio.get_running_loop().time()
        order = {**self._order, "seconds": max(left, 0.1)}
        answer = await self._while_there(worker, self._engine.start(worker, self._token, order))
        wait = _ASK_S_MIN
        while answer["state"] == "running":
            await asyncio.sleep(max(wait, self._crowd() / _ASKS_PER_S))
            wait = min(wait * 1.5, _ASK_S_MAX)
            answer = await self._while_there(worker, self._engine.ask(worker, self._token))
        if answer["state"] == "skew":
            theirs, ours = answer.get("modelcache"), self._order["modelcache"]
            raise UnfitError(f"it has modelcache {theirs}, which does not take the orders of {ours}")
        if answer["state"] == "unknown":
            raise GoneError("its worker began anew")
        return answer

    async def _while_there(self, worker: Worker, call: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        """Return what *call* does; raise GoneError if *worker* goes meanwhile."""
        asking = asyncio.ensure_future(call)
        gone = asyncio.ensure_future(self._roll.without(self.host, worker))
        try:
            await asyncio.wait({asking, gone}, return_when="FIRST_COMPLETED")
            if not asking.done():
                raise GoneError("its scheduler has it no more")
            return asking.result()
        finally:
            for task in (asking, gone):
                task.cancel()
            await asyncio.gather(asking, gone, return_exceptions=True)

    def _report(self, answer: dict[str, Any], seconds: float) -> HostReport:
        """Return the report of what the host has *answered*: ``done``, ``failed`` or ``timeout``."""
        models = tuple(answer.get("models", ()))
        failed = [model for model in models if model["state"] == "failed"]
        state = "ok"
        error: HostError | None = None
        if answer["state"] == "timeout":
            state, error = "timeout", HostTimeoutError(host=self.host, detail="it was not done at the deadline")
        elif answer["state"] == "failed":
            state, error = "failed", self._failure(answer, str(answer.get("message")))
        elif failed:
            state = "failed" if len(failed) == len(models) else "partial"
            message = f"{len(failed)} of {len(models)} models failed; the first: {failed[0].get('message')}"
            error = self._failure(failed[0], message)
        facts = {name: int(answer.get(name, 0)) for name in ("bytes", "from_origin", "from_tiers", "here")}
        return HostReport(
            self.host, state, seconds, self._tries, **facts,
            root=answer.get("root"), modelcache=answer.get("modelcache"), models=models, error=error,
        )  # fmt: skip

    def _failure(self, facts: Mapping[str, Any], detail: str) -> HostFailedError:
        return HostFailedError(
            host=self.host,
            error=str(facts.get("error")),
            detail=detail,
            advice=str(facts.get("hint", "")),
            code=int(facts.get("exit_code", 1)),
        )


async def _quietly(work: Awaitable[object]) -> None:
    """Await *work*, which nobody depends on, for a short while."""
    try:
        async with asyncio.timeout(_STOP_S):
            await work
    except (GoneError, SilentError, UnfitError, TimeoutError):
        return
