"""A process that fetches a tree is killed at each fail point that it comes by: complete, or not there at all.

The other suites have one server; this one has the hub, with its listing, its redirects and its content network.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import failpoints
from failpoints.source import find_points
from modelcache import Cache, RetryPolicy
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from tests.crash.world import forked, small_steps
from tests.support.hub import Hub
from tests.support.state import leftovers

REF = "hf://org/name"
OLD = {"config.json": b"{}", "a/weights.bin": bytes(range(256)) * 200, "b/weights.bin": b"shared" * 9_000}
NEW = {**OLD, "a/weights.bin": bytes(range(255)) * 200, "config.json": b'{"new": 1}'}
POINTS = sorted({point.name for point in find_points("modelcache")})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def content_of(directory: str | Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
    }


def in_a_process(root: Path, spec: str, said: Path) -> int:
    """Get the tree in a process that meets *spec*; return how it ended. What its points print is in *said*."""

    def work() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario(spec), Cache(root, retry=RetryPolicy(attempts=1)) as cache:
            cache.get(REF, force_download=True)
        said.write_text(sys.stderr.getvalue())

    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


@pytest.mark.parametrize("known", [False, True], ids=["first", "refresh"])
def test_a_kill_at_any_point_leaves_the_tree_as_it_was_or_whole(
    hub: Hub, tmp_path: Path, known: bool, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch)

    def prepared(name: str) -> Path:
        root = tmp_path / name
        if known:
            hub.add("org/name", OLD)
            with Cache(root) as cache:
                cache.get(REF)
            hub.add("org/name", NEW)
        else:
            Cache(root).put(b"something", name="other")
        return root

    hub.add("org/name", NEW)
    said = tmp_path / "said"
    assert in_a_process(prepared("whole"), ";".join(f"{point}=print({point})" for point in POINTS), said) == 0
    reached = said.read_text().split()
    wrong, kills = [], 0
    for point in sorted(set(reached)):
        passages = min(12, reached.count(point)) if pytestconfig.getoption("--crash-budget") == "large" else 1
        for passed in range(passages):
            root = prepared(f"{point}-{passed}")
            spec = f"{point}={f'{passed}*off->' if passed else ''}kill"
            code = in_a_process(root, spec, said)
            assert code in {0, -signal.SIGKILL}, f"{spec}: {code}"
            assert code < 0 or passed, f"{point} was reached, and is not"
            kills += code < 0
            wrong += [f"{spec}: {what}" for what in judge(root, known=known)]
    print(f"{'refresh' if known else 'first'}: {kills} kills")
    assert wrong == []
    assert kills > 20


def judge(root: Path, *, known: bool) -> list[str]:
    """Return what is wrong after the kill, and after the next process has got the tree."""
    wrong = [str(violation) for violation in check_cache(root) if violation.kind != "garbage"]
    with Cache(root, offline=True) as cache:
        entry = cache.lookup(REF)
        allowed = [OLD, NEW] if known else [None, NEW]
        found = None if entry is None else content_of(cache.get(REF))
        if found not in allowed:
            wrong.append(f"served offline is {None if found is None else sorted(found)}")
    with Cache(root, retry=RetryPolicy(attempts=1)) as cache:
        if content_of(cache.get(REF, force_download=True)) != NEW:
            wrong.append("the next process gets something else")
    sweep(str(root))
    wrong += [f"after recovery: {violation}" for violation in check_cache(root) if violation.kind != "garbage"]
    return wrong + [f"garbage: {name}" for name in leftovers(root) if not name.startswith("partial-v1")]
