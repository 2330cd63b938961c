"""A process that counts usage, and folds what others counted, is killed at each fail point that it comes by.

What was on record before is there once, whoever dies while it folds: not twice, and not lost. What the dead had not
written is lost. The next fold clears up.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest

import failpoints
from failpoints.source import find_points
from modelcache import Cache, layout, process
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from modelcache.usage import store
from modelcache.usage.tally import Tally, Usage
from tests.crash.world import forked
from tests.support.state import leftovers

POINTS = sorted({point.name for point in find_points("modelcache")})
OURS = {point for point in POINTS if point.startswith("usage.")}
OLD = {"2020-01-01": 2, "2020-01-02": 3, "2020-01-03": 4}


def prepared(root: Path) -> Path:
    """Return the root of a cache in which others have counted, some on days that are long over, some yesterday."""
    with Cache(root) as cache:
        cache.put(b"content", name="m")
    for day, hits in OLD.items():
        store.write(str(root), f"{day}.{process.token()}", "host", {"m": Usage(hits=hits)})
    for host in ("one", "two"):  # Of machines whose processes cannot be looked at, and of a day that is over.
        before = store.day_of(__import__("time").time() - 5 * 86_400)
        store.write(str(root), f"{before}.{process.token()}", host, {"m": Usage(hits=10)})
    looks = root / layout.USAGE / f"2020-01-04.{'0' * 8}.looks"
    looks.write_bytes(b"")
    return root


def live(root: Path) -> None:
    with Cache(root, usage=True) as cache:
        cache.get("m")
    store.fold(str(root))
    store.fold(str(root))


def in_a_process(root: Path, spec: str, said: Path) -> int:
    """Let a process live that meets *spec*; return how it ended. What its points print is in *said*."""

    def work() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario(spec):
            live(root)
        said.write_text(sys.stderr.getvalue())

    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def hits(root: Path) -> tuple[int, int]:
    """Return the hits of all days that are over, and of today."""
    total: Tally = {}
    now = 0
    for part in store.read(str(root)):
        for key, usage in part.tally.items():
            total.setdefault(key, Usage()).add(usage)
        now += sum(one.hits for one in part.tally.values()) if part.day > store.day_of(1.7e9) and part.host else 0
    recent = sum(
        one.hits for part in store.read(str(root)) if part.host in {"one", "two"} for one in part.tally.values()
    )
    return sum(one.hits for one in total.values()) - (now - recent), now - recent


def test_a_kill_at_any_point_loses_and_doubles_nothing_that_was_on_record(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    said = tmp_path / "said"
    whole = prepared(tmp_path / "whole")
    assert in_a_process(whole, ";".join(f"{point}=print({point})" for point in POINTS), said) == 0
    reached = said.read_text().split()
    assert set(reached) >= OURS
    before = sum(OLD.values()) + 20
    wrong, kills = [], 0
    for point in sorted(set(reached)):
        passages = min(8 if pytestconfig.getoption("--crash-budget") == "large" else 3, reached.count(point))
        for passed in range(passages):
            root = prepared(tmp_path / f"{point}-{passed}")
            spec = f"{point}={f'{passed}*off->' if passed else ''}kill"
            code = in_a_process(root, spec, said)
            assert code == -signal.SIGKILL, f"{spec}: {code}"
            kills += 1
            found = [hits(root)]
            store.fold(str(root))
            found.append(hits(root))
            wrong += [f"{spec}: {old} and {new}" for old, new in found if old != before or new not in {0, 1}]
            sweep(str(root))
            wrong += [f"{spec}: {one}" for one in check_cache(root) if one.kind != "garbage"]
            wrong += [f"{spec}: {name} is left over" for name in leftovers(root)]
            left = len(os.listdir(root / layout.USAGE))
            wrong += [f"{spec}: {left} files are left"] if left > 5 else []
    assert wrong == []
    assert kills > 15
