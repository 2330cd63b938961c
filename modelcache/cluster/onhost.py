"""What runs on a host of a cluster: `modelcache prewarm`, in a process of its own, of a manifest that came as data.

The engine calls `start`, `ask` and `stop` in the event loop of its worker, so each returns at once: the work is in a
thread, and that only waits for a child. A child, because it can be killed when it hangs, because neither its memory nor
its crash is the worker's, and because a worker that is busy with it must go on to tell its scheduler that it lives. It
ends with its worker, however that ends.

All that travels is a dict of plain values, either way. The child reads the settings of its own host, as any process
there does; credentials are of that host too, and none are sent.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from .. import isolation
from ..errors import CancelledError, ModelCacheError

# Of the orders and the answers; a worker refuses another one.
PROTOCOL = 1
_JOBS_MAX = 16
_jobs: OrderedDict[str, _Job] = OrderedDict()


class _Job:
    """One prewarm under way, or done. ``answer`` is None until it is done."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.answer: dict[str, Any] | None = None
        self._order = order
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="modelcache-prewarm", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise CancelledError(ref=self._order["file"])

    def _run(self) -> None:
        try:
            self.answer = isolation.run(warm, self._order, timeout=self._order["seconds"], check=self._check)
        except isolation.TimedOutError:
            self.answer = {"state": "timeout"}
        except isolation.DiedError as error:
            said = f": {error.said}" if error.said else ""
            self.answer = {"state": "failed", "error": "DiedError", "message": f"its process {error}{said}"}
        except Exception as error:  # noqa: BLE001  # Whatever it is, it is told; a thread has nobody to raise it to.
            self.answer = _failure(error)


def start(token: str, order: dict[str, Any]) -> dict[str, Any]:
    """Begin what *order* says; a second call with the same *token* does nothing."""
    if order.get("protocol") != PROTOCOL:
        return {"state": "skew", "protocol": PROTOCOL, "modelcache": version()}
    if token not in _jobs:
        _jobs[token] = _Job(order)
        while len(_jobs) > _JOBS_MAX:
            _jobs.popitem(last=False)[1].stop()
    return ask(token)


def ask(token: str) -> dict[str, Any]:
    """Return what has become of it: ``running``, ``unknown`` (this worker has not begun it), or the answer."""
    if token not in _jobs:
        return {"state": "unknown"}
    return _jobs[token].answer or {"state": "running"}


def stop(token: str) -> dict[str, Any]:
    """End it, if it is under way. What has arrived is kept and resumed next time."""
    if token in _jobs:
        _jobs[token].stop()
    return {"state": "stopped"}


def warm(order: dict[str, Any]) -> dict[str, Any]:
    """Do what *order* says, in this process; return the answer."""
    from ..cache import Cache
    from ..warmup import Documents

    try:
        with Cache(order["root"], **order["options"]) as cache:
            report = cache.prewarm(
                Documents(order["file"], order["text"], order["lock"]),
                jobs=order["jobs"],
                locked=order["lock"] is not None,
                ready_file=order["ready_file"],
            )
            return {
                "state": "done",
                "modelcache": version(),
                "root": cache.root,
                "bytes": report.bytes,
                "from_origin": report.bytes_from_origin,
                "from_tiers": report.bytes_from_tiers,
                "here": report.bytes_here,
                "models": [
                    {
                        "ref": model.ref,
                        "state": model.state,
                        "seconds": round(model.seconds, 3),
                        "size": model.entry.size if model.entry else None,
                        **(_facts(model.error) if model.error else {}),
                    }
                    for model in report.models
                ],
            }
    except ModelCacheError as error:
        return _failure(error)


def _failure(error: Exception) -> dict[str, Any]:
    return {"state": "failed", "modelcache": version(), **_facts(error)}


def _facts(error: Exception) -> dict[str, Any]:
    if isinstance(error, ModelCacheError):
        kind, told = type(error).__name__, error
        return {"error": kind, "message": told.summary, "hint": told.hint, "exit_code": told.exit_code}
    return {"error": type(error).__name__, "message": str(error) or repr(error)}


def version() -> str:
    """Return the version of the modelcache that is installed here."""
    from importlib import metadata

    try:
        return metadata.version("modelcache")
    except metadata.PackageNotFoundError:
        return "unknown"
