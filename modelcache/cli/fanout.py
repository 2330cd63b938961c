"""``modelcache prewarm --cluster dask://scheduler:8786``: a manifest on every host of a cluster."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..config import parse_seconds
from ..errors import HostsError
from . import asking
from .console import Console, duration, one_line, size

if TYPE_CHECKING:  # It imports asyncio, which a prewarm of one machine has no use for.
    from .. import cluster

_HEADS = ("HOST", "STATE", "BYTES", "ORIGIN", "TIERS", "HERE", "SECONDS")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    group = parser.add_argument_group("on a cluster", "once on each host; --root and --ready-file are paths there")
    group.add_argument("--cluster", metavar="ADDRESS", help="of a dask scheduler: dask://host:8786, or tls://host:8786")
    group.add_argument(
        "--deadline",
        metavar="SPAN",
        help="for all hosts together, such as 30min (default: 1h)",
    )
    group.add_argument(
        "--at-once", type=int, metavar="N", help="hosts at a time, for the sake of the source (default: all)"
    )
    group.add_argument(
        "--connect-timeout",
        metavar="SPAN",
        help="longest wait for the scheduler, and for a first worker (default: 10s)",
    )
    group.add_argument(
        "--silence", metavar="SPAN", help="longest wait for an answer of a worker, which hangs then (default: 2min)"
    )


def given(arguments: argparse.Namespace) -> str | None:
    """Return the first argument that only a cluster has a use for; None if there is none."""
    for name in ("deadline", "at_once", "connect_timeout", "silence"):
        if getattr(arguments, name) is not None:
            return f"--{name.replace('_', '-')}"
    return None


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Warm the hosts; with --json, one line a host on stdout as it is done, the last line being the report."""
    from .. import cluster

    done: list[cluster.HostReport] = []
    waiting: tuple[str, ...] = ()

    def on_host(report: cluster.HostReport) -> None:
        done.append(report)
        if console.json:
            console.data_json({"event": "host", **report.as_dict()})
        else:
            console.note(_line(report))

    def on_wait(hosts: tuple[str, ...]) -> None:
        nonlocal waiting
        waiting = hosts
        console.note(f"{len(done)} hosts are done; waiting for {_some(hosts)}")

    options = asking.options(arguments)
    try:
        report = cluster.prewarm(
            arguments.manifest,
            arguments.cluster,
            deadline=_span(arguments.deadline, "--deadline", cluster.DEADLINE_S),
            connect_timeout=_span(arguments.connect_timeout, "--connect-timeout", cluster.CONNECT_S),
            silence=_span(arguments.silence, "--silence", cluster.SILENCE_S),
            root=arguments.root,
            jobs=arguments.jobs,
            locked=arguments.locked,
            ready_file=arguments.ready_file,
            at_once=arguments.at_once,
            on_host=on_host,
            on_wait=on_wait,
            **options,
        )
    except BaseException:
        # An error or a signal: what is done stays done, and whoever reads on is told.
        if done:
            console.say(f"until then: {', '.join(f'{one_line(host.host)} {host.state}' for host in done)}")
        raise
    if console.json:
        console.data_json({"event": "report", "hosts": [host.as_dict() for host in report.hosts]})
    elif not console.quiet:
        _show(report, console)
    report.check()
    return 0


def _span(text: str | None, setting: str, default: float) -> float:
    return default if text is None else parse_seconds(text, setting=setting)


def _some(hosts: tuple[str, ...]) -> str:
    shown = ", ".join(one_line(host) for host in hosts[:5])
    return shown if len(hosts) <= 5 else f"{shown} and {len(hosts) - 5} more"


def _line(report: cluster.HostReport) -> str:
    took = f" in {duration(report.seconds)}" if report.seconds >= 1 else ""
    why = f": {report.error.detail}" if report.error is not None else ""
    return one_line(f"{report.host}: {report.state}, {size(report.bytes)}{took}{why}")


def _show(report: cluster.ClusterReport, console: Console) -> None:
    rows: list[tuple[str, ...]] = [_HEADS]
    for host in report.hosts:
        counted = [size(count) for count in (host.bytes, host.from_origin, host.from_tiers, host.here)]
        rows.append((one_line(host.host), host.state, *counted, f"{host.seconds:.1f}"))
    console.table(rows, right=frozenset({2, 3, 4, 5, 6}))
    try:
        report.check()
    except HostsError as error:
        for why in error.failures.values():
            console.say(one_line(f"failed: {why}"))
