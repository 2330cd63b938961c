"""``modelcache prewarm models.toml``: everything a node needs, before it serves."""

from __future__ import annotations

import argparse
import signal
import threading

from ..cache import Cache
from ..events import Event
from ..warmup import PrewarmReport
from . import asking
from .console import Console, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("manifest", nargs="?", default="models.toml", help="default: models.toml")
    parser.add_argument("--locked", action="store_true", help="accept exactly the bytes in models.lock; refuse drift")
    parser.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="models at a time (default: MODELCACHE_CONCURRENCY, 8)"
    )
    parser.add_argument("--ready-file", metavar="FILE", help="written last, when every model is here")
    asking.add(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Warm the cache; with --json, one event a line on stdout, the last one being the report."""

    def on_event(event: Event) -> None:
        if not console.json:
            console.event(event)
            return
        facts = {key: value for key, value in event.as_dict().items() if key != "kind"}
        try:
            console.data_json({"event": event.kind, **facts})
        except OSError:
            # Nobody reads what was asked for: end as after any other signal. To the main thread, or its wait goes on.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    with Cache(arguments.root, on_event=on_event, **asking.options(arguments)) as cache:
        report = cache.prewarm(
            arguments.manifest, jobs=arguments.jobs, locked=arguments.locked, ready_file=arguments.ready_file
        )
        stats = cache.stats().as_dict()
    console.close()
    asking.say_what_waits(cache, console)
    if console.json:
        console.data_json({"event": "report", "models": [_row(model) for model in report.models], "stats": stats})
    elif not console.quiet:
        _show(report, console)
    report.check()
    return 0


def _row(model: object) -> dict[str, object]:
    from ..warmup import Warmed

    assert isinstance(model, Warmed)
    error = model.error
    return {
        "ref": model.ref,
        "state": model.state,
        "seconds": round(model.seconds, 3),
        **({"path": model.entry.path, "digest": model.entry.digest, "size": model.entry.size} if model.entry else {}),
        **({"derived": list(model.derived)} if model.derived else {}),
        **({"error": type(error).__name__, "message": error.summary, "exit_code": error.exit_code} if error else {}),
    }


def _show(report: PrewarmReport, console: Console) -> None:
    rows = [("STATE", "SIZE", "SECONDS", "MODEL")]
    for model in report.models:
        bytes_here = size(model.entry.size) if model.entry else "-"
        rows.append((model.state, bytes_here, f"{model.seconds:.1f}", model.ref))
    if len(rows) > 1:
        console.table(rows, right=frozenset({1, 2}))
    for ref, error in report.failures.items():
        console.say(f"failed: {ref}: {error.summary}")
