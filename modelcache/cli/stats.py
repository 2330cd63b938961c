"""``modelcache stats``: what is on disk, counted; how models were used; both as metrics."""

from __future__ import annotations

import argparse
import time

from .. import metrics
from ..cache import Cache
from ..config import parse_moment
from ..errors import UsageError
from ..usage.summary import BY, UsageReport, UsageRow
from .console import Console, duration, one_line, size

_ROWS = 20


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--since", metavar="TIME", help="usage of the last 30d, say, or since a date (2026-11-01)")
    parser.add_argument("--by", choices=BY, default="model", help="what the rows of usage are by (default: model)")
    parser.add_argument("--top", type=int, default=_ROWS, metavar="N", help=f"rows of usage (default: {_ROWS})")
    parser.add_argument(
        "--from", dest="archive", metavar="LOCATION", help="read usage there: s3://bucket/prefix, sqlite:///path, …"
    )
    parser.add_argument("--prometheus", action="store_true", help="print metrics, as Prometheus reads them")
    parser.add_argument("--models", action="store_true", help="with --prometheus: also by model")
    parser.add_argument("--output", metavar="FILE", help="with --prometheus: replace FILE, for node_exporter")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Count entries, objects (shared bytes once), partials and quarantine; and sum up usage."""
    if (arguments.output is not None or arguments.models) and not arguments.prometheus:
        raise UsageError(problem="--output and --models say how metrics are printed: --prometheus is missing")
    given = {"--since": arguments.since, "--from": arguments.archive, "--json": console.json or None}
    if arguments.prometheus and any(value is not None for value in given.values()):
        option = next(name for name, value in given.items() if value is not None)
        raise UsageError(problem=f"{option} has no meaning for metrics, which are of this cache, since it was made")
    if arguments.output == "":
        raise UsageError(problem="--output names no file")
    if arguments.top < 1:
        raise UsageError(problem=f"--top {arguments.top} makes no sense: a whole number from 1")
    since = None if arguments.since is None else parse_moment(arguments.since, now=time.time(), setting="--since")
    with Cache(arguments.root) as cache:
        if arguments.prometheus:
            return _metrics(cache, arguments, console)
        disk = cache.disk_usage()
        report = cache.usage(since=since, by=arguments.by, archive=arguments.archive)
    if console.json:
        usage = report.as_dict()
        usage["rows"] = usage["rows"][: arguments.top]
        console.data_json({**disk.as_dict(), "usage": usage})
        return 0
    console.data(f"root         {disk.root}")
    console.data(f"entries      {disk.entries} ({disk.pinned} pinned)")
    console.data(f"objects      {disk.objects}, {size(disk.object_bytes)}")
    console.data(f"partials     {disk.partials}, {size(disk.partial_bytes)}")
    console.data(f"quarantine   {disk.quarantined}")
    console.data(f"free         {size(disk.free_bytes)}")
    _show(report, arguments, console)
    return 0


def _metrics(cache: Cache, arguments: argparse.Namespace, console: Console) -> int:
    if arguments.output:
        metrics.write(cache, arguments.output, models=arguments.models)
        console.note(f"wrote {arguments.output}")
    else:
        console.data(metrics.text(cache, models=arguments.models).rstrip("\n"))
    return 0


def _show(report: UsageReport, arguments: argparse.Namespace, console: Console) -> None:
    total = report.total
    if not report.rows:
        console.note("no usage is on record: MODELCACHE_USAGE=1 counts it")
        return
    ratio = "no gets" if total.hit_ratio is None else f"{100 * total.hit_ratio:.1f} % of {_gets(total)} gets"
    errors = ", ".join(f"{name} {count}" for name, count in sorted(total.usage.errors.items())) or "none"
    console.data("")
    console.data(f"usage        {f'since {report.since} (UTC)' if report.since else 'all that is on record'}")
    console.data(f"hits         {ratio}")
    console.data(f"saved        {size(total.bytes_saved)}, {duration(total.seconds_saved)} of downloading")
    console.data(
        f"downloaded   {size(total.usage.source_bytes)} from sources, {size(total.usage.tier_bytes)} from tiers"
    )
    console.data(f"evictions    {total.usage.evictions}, {size(total.usage.evicted_bytes)}")
    console.data(f"quarantined  {total.usage.quarantines}")
    console.data(f"errors       {errors}")
    for row in report.slowest[:1]:
        console.data(f"slowest      {row.usage.median_seconds:.1f} s: {one_line(row.name)}")
    console.data("")
    heads = ("HITS", "MISSES", "RATIO", "FETCH", "SAVED", "TIME SAVED", "ERRORS", report.by.upper())
    rows = [heads, *(_row(row) for row in report.rows[: arguments.top])]
    console.table(rows, right=frozenset(range(len(heads) - 1)))
    if len(report.rows) > arguments.top:
        console.note(f"{len(report.rows) - arguments.top} more: --top N shows them")


def _row(row: UsageRow) -> tuple[str, ...]:
    median = row.usage.median_seconds
    return (
        str(row.usage.hits),
        str(row.usage.misses),
        "-" if row.hit_ratio is None else f"{100 * row.hit_ratio:.1f} %",
        "-" if median is None else f"{median:.1f} s",
        size(row.bytes_saved),
        duration(row.seconds_saved),
        str(row.error_count),
        one_line(row.name),
    )


def _gets(row: UsageRow) -> int:
    return row.usage.hits + row.usage.misses
