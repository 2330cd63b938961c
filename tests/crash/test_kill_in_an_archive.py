"""A process that unpacks an archive is killed at each fail point that it comes by: the tree is whole, or not there.

What had come of the archive is not asked for again; and of two processes that want it at once, one fetches and unpacks.
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
from modelcache.testing import Fault, FaultServer
from tests.crash.test_kill_in_a_tree import content_of
from tests.crash.world import forked, small_steps
from tests.support.archives import tar_gz
from tests.support.state import leftovers

OLD = {"config.json": b"{}", "a/weights.bin": os.urandom(60_000), "b/weights.bin": b"shared" * 9_000}
NEW = {**OLD, "a/weights.bin": os.urandom(60_000), "config.json": b'{"new": 1}'}
POINTS = sorted({point.name for point in find_points("modelcache")})
ARCHIVES = {"old": tar_gz(OLD), "new": tar_gz(NEW)}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def in_a_process(root: Path, url: str, spec: str, said: Path) -> int:
    """Get the tree in a process that meets *spec*; return how it ended. What its points print is in *said*."""

    def work() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario(spec), Cache(root, retry=RetryPolicy(attempts=1)) as cache:
            cache.get_tree(url, max_age=0)
        said.write_text(sys.stderr.getvalue())

    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


@pytest.mark.parametrize("known", [False, True], ids=["first", "refresh"])
def test_a_kill_at_any_point_leaves_the_tree_as_it_was_or_whole(
    server: FaultServer, tmp_path: Path, known: bool, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_steps(monkeypatch)

    def prepared(name: str) -> tuple[Path, str]:
        root, path = tmp_path / name, f"/{name}.tar.gz"
        if known:
            with Cache(root) as cache:
                cache.get_tree(server.add(path, ARCHIVES["old"]))
        else:
            Cache(root).put(b"something", name="other")
        return root, server.add(path, ARCHIVES["new"])

    said = tmp_path / "said"
    root, url = prepared("whole")
    assert in_a_process(root, url, ";".join(f"{point}=print({point})" for point in POINTS), said) == 0
    reached = said.read_text().split()
    assert {"archived.before-publish", "archived.before-record", "unpacking.before-file"} <= set(reached)
    wrong, kills = [], 0
    for point in sorted(set(reached)):
        passages = min(12, reached.count(point)) if pytestconfig.getoption("--crash-budget") == "large" else 1
        for passed in range(passages):
            root, url = prepared(f"{point}-{passed}")
            spec = f"{point}={f'{passed}*off->' if passed else ''}kill"
            code = in_a_process(root, url, spec, said)
            assert code in {0, -signal.SIGKILL}, f"{spec}: {code}"
            assert code < 0 or passed, f"{point} was reached, and is not"
            kills += code < 0
            wrong += [f"{spec}: {what}" for what in judge(root, url, server, known=known)]
    print(f"{'refresh' if known else 'first'}: {kills} kills")
    assert wrong == []
    assert kills > 20


def judge(root: Path, url: str, server: FaultServer, *, known: bool) -> list[str]:
    """Return what is wrong after the kill, and after the next process has got the tree."""
    wrong = [str(violation) for violation in check_cache(root) if violation.kind != "garbage"]
    key = f"{url}#tree"
    with Cache(root, offline=True) as cache:
        entry = cache.lookup(key)
        allowed = [OLD, NEW] if known else [None, NEW]
        found = None if entry is None else content_of(cache.get(key))
        if found not in allowed:
            wrong.append(f"served offline is {None if found is None else sorted(found)}")
    come = sum(path.stat().st_size for path in root.glob("partial-v1/*/object/*"))
    before = len(server.seen())
    with Cache(root, retry=RetryPolicy(attempts=1)) as cache:
        if content_of(cache.get_tree(url, max_age=0)) != NEW:
            wrong.append("the next process gets something else")
        if cache.stats().bytes_received + come > len(ARCHIVES["new"]):
            wrong.append(f"{come} bytes were here, and {cache.stats().bytes_received} were asked for")
    if len(server.seen()) - before > 2:
        wrong.append(f"{len(server.seen()) - before} requests")
    sweep(str(root))
    wrong += [f"after recovery: {violation}" for violation in check_cache(root) if violation.kind != "garbage"]
    return wrong + [f"garbage: {name}" for name in leftovers(root) if not name.startswith("partial-v1")]


def test_two_processes_at_once_fetch_and_unpack_once(server: FaultServer, tmp_path: Path) -> None:
    url = server.add("/m.tar.gz", ARCHIVES["new"], [Fault(hold_after=10_000)])
    root = tmp_path / "cache"

    def work() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario("unpacking.before-file=print(unpacked)"), Cache(root) as cache:
            cache.get_tree(url)
        (tmp_path / str(os.getpid())).write_text(sys.stderr.getvalue())

    children = [forked(work) for _ in range(2)]
    server.wait_for_sent(10_000)
    server.release()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]

    said = [(tmp_path / str(child)).read_text().split() for child in children]
    assert sorted(map(len, said)) == [0, len(NEW)]
    assert len(server.seen()) == 1
    assert content_of(Cache(root).get_tree(url)) == NEW
