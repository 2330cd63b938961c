"""``modelcache doctor``: examine the cache directory and its file system."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..doctor import Check, examine, fix
from ..errors import ModelCacheError, StorageError, UsageError
from ..levels.base import TierState
from .console import Console, one_line
from .sharing import root_of, said
from .tierstates import described


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--locks", action="store_true", help="of the probes, only that of locks")
    parser.add_argument("--fix", action="store_true", help="mend modes and groups as the cache's own config says")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --fix: say what would be mended, and change nothing"
    )
    parser.add_argument("--durability", action="store_true", help="of the probes, only those of rename, link and sync")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print every check; 1 if one failed. A warning is no failure: the cache works, with less."""
    root = root_of(arguments.root)
    if arguments.dry_run and not arguments.fix:
        raise UsageError(problem="--dry-run says what --fix would do: give both")
    if arguments.fix:
        return _fix(root, console, dry_run=arguments.dry_run)
    checks = []
    everything = arguments.locks == arguments.durability
    for check in examine(root, locking=arguments.locks or everything, durability=arguments.durability or everything):
        checks.append(check)
        if not console.json:
            console.data(one_line(f"{check.level:<8} {check.name:<12} {check.detail}"))
    for state in _tiers(arguments.root):
        level = "ok" if not state.problem and state.state == "healthy" else "warning"
        waits = f"; {state.waiting} objects wait for it" if state.waiting else ""
        checks.append(Check(f"tier {state.name}", level, f"{state.path}: {described(state)}{waits}"))
        if not console.json:
            console.data(one_line(f"{level:<8} {checks[-1].name:<12} {checks[-1].detail}"))
    if console.json:
        console.data_json([{"name": c.name, "level": c.level, "detail": c.detail} for c in checks])
    return 1 if any(check.level == "failed" for check in checks) else 0


def _fix(root: str, console: Console, *, dry_run: bool) -> int:
    """Mend, and print each change; 1 if something had to be left as it is."""
    found = fix(root, dry_run=dry_run)
    if console.json:
        console.data_json([one.as_dict() for one in found])
    for one in () if console.json else found:
        console.data(one_line(said(one, dry_run=dry_run)))
    if not found:
        console.note("all modes and groups are as they should be")
    return 1 if any(one.why and not one.mended for one in found) else 0


def _tiers(root: str | None) -> list[TierState]:
    """Return how the tiers are; what keeps all of them from being used counts as one of them."""
    try:
        with Cache(root) as cache:
            return cache.tiers()
    except StorageError:
        return []  # Which is told above.
    except ModelCacheError as error:
        return [
            TierState("", "unknown", promote=False, problem=f"{error.summary}. {error.hint}", name="", state="down")
        ]
