"""``modelcache verify [REF …] [--repair]``: does the cache hold what it says?"""

from __future__ import annotations

import argparse
import time

from ..cache import Cache
from ..config import parse_moment
from ..errors import IntegrityError, ModelCacheError
from ..verification import Finding, Report
from . import asking
from .console import Console, one_line, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="*", metavar="REF", help="default: everything")
    parser.add_argument("--repair", action="store_true", help="fetch again what is corrupt or missing")
    parser.add_argument(
        "--since",
        metavar="WHEN",
        help="only what came since then: a date, 2d or 12h ago",
    )
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help="files hashed at a time (default: one a processor)")
    asking.add(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Verify; 0 if all is well or repaired, 7 if not."""
    with Cache(arguments.root, on_event=console.event, **asking.options(arguments)) as cache:
        since = None if arguments.since is None else parse_moment(arguments.since, now=time.time(), setting="--since")
        report = cache.verify(*arguments.refs, repair=arguments.repair, jobs=arguments.jobs, since=since)
    console.close()
    if console.json:
        console.data_json(
            {
                "ok": report.ok,
                "bytes_read": report.bytes_read,
                "models": [_row(f) for f in report.findings],
                "violations": [str(violation) for violation in report.violations],
            }
        )
    else:
        for finding in report.bad:
            console.data(_line(finding))
        for violation in report.violations:
            console.data(one_line(f"broken promise  {violation}"))
        whole = len(report.findings) - len(report.bad)
        repaired = sum(finding.repaired for finding in report.bad)
        more = f", {repaired} more are repaired" if repaired else ""
        console.note(f"{whole} of {len(report.findings)} models are whole{more}, {size(report.bytes_read)} read")
    if not report.ok and not console.json:
        console.say("hint: `modelcache verify --repair` fetches again what is corrupt or missing")
    return 0 if report.ok else _code(report)


def _code(report: Report) -> int:
    """Return 7, or the exit code of the repairs that failed if they all failed alike."""
    failed: set[ModelCacheError] = {f.error for f in report.bad if f.error is not None}
    codes = {error.exit_code for error in failed}
    return codes.pop() if len(codes) == 1 else IntegrityError.exit_code


def _row(finding: Finding) -> dict[str, object]:
    return {
        "ref": finding.entry.key,
        "state": finding.state,
        "expected": finding.entry.digest,
        "actual": finding.actual,
        "moved_to": finding.moved_to,
        "repaired": finding.repaired,
        "error": finding.error.summary if finding.error else None,
    }


def _line(finding: Finding) -> str:
    what = "repaired" if finding.repaired else finding.state
    found = f": expected {finding.entry.digest}, found {finding.actual}" if finding.state == "corrupt" else ""
    moved = f"; set aside in {finding.moved_to}" if finding.moved_to else ""
    why = f"; not repaired: {finding.error.summary}" if finding.error else ""
    return f"{what}  {finding.entry.key}{found}{moved}{why}"
