"""A process that brings objects and events to a tier is killed at each fail point that it comes by.

What `put_object` has acknowledged is delivered by the next process, once, and whole; an event is there once if its
batch was written, and once or not at all if not. Reading back is killed, too: the target is absent or whole.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import failpoints
from failpoints.source import find_points
from modelcache import Cache
from modelcache.archive import DirectoryBackend
from modelcache.backends import contents, refs
from modelcache.digest import Digest
from modelcache.outbox import Outbox
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from tests.crash.world import archivist, digest_of, forked, found_at, make_tree, tree_digest, tree_of
from tests.support.state import leftovers

FILE = bytes(range(256)) * 400
TREE = tree_of(FILE)
DIGESTS = [digest_of(FILE), tree_digest(TREE)]
RECORD = refs.RefRecord("https://host/m", Digest(DIGESTS[0]), "m", len(FILE), "https://host/m", 1)
POINTS = sorted({point.name for point in find_points("modelcache")})
OURS = {point for point in POINTS if point.startswith(("outbox.", "archive.", "backends."))}


def prepared(root: Path) -> Path:
    make_tree(root.parent / f"{root.name}-source", TREE)
    with Cache(root) as cache:
        cache.put(FILE, name="m")
        cache.put_tree(root.parent / f"{root.name}-source", name="t")
    return root


def in_a_process(root: Path, work: Callable[[Path], None], spec: str, said: Path) -> int:
    """Do *work* in a process that meets *spec*; return how it ended. What its points print is in *said*."""

    def live() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario(spec):
            work(root)
        said.write_text(sys.stderr.getvalue())

    return os.waitstatus_to_exitcode(os.waitpid(forked(live), 0)[1])


def replicate(root: Path) -> None:
    with archivist(root) as archive:
        archive.append_events("k", ["first"])
        assert archive.flush(60)
        for digest in DIGESTS:
            archive.put_object(digest)
        Outbox(str(root), "below").add(Digest(DIGESTS[0]), record=RECORD.facts())
        archive.resume("below")
        archive.append_events("k", ["second"])
        assert archive.flush(60)


def read_back(root: Path) -> None:
    with archivist(root) as archive:
        for digest in DIGESTS:
            archive.read_object(digest, root.parent / f"out-{digest[:4]}")


def spec_of(point: str, passed: int) -> str:
    return f"{point}={f'{passed}*off->' if passed else ''}kill"


def test_a_kill_at_any_point_of_a_replication_loses_and_doubles_nothing(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    said = tmp_path / "said"
    whole = prepared(tmp_path / "whole" / "cache")
    assert in_a_process(whole, replicate, ";".join(f"{point}=print({point})" for point in POINTS), said) == 0
    reached = said.read_text().split()
    wrong, kills = [], 0
    for point in sorted(set(reached)):
        passages = min(8, reached.count(point)) if pytestconfig.getoption("--crash-budget") == "large" else 2
        for passed in range(min(passages, reached.count(point))):
            root = prepared(tmp_path / f"{point}-{passed}" / "cache")
            code = in_a_process(root, replicate, spec_of(point, passed), said)
            assert code in {0, -signal.SIGKILL}, f"{point}: {code}"
            assert code < 0 or passed, f"{point} was reached, and is not"
            kills += code < 0
            wrong += [f"{spec_of(point, passed)}: {what}" for what in judge(root)]
    print(f"{kills} kills")
    assert wrong == []
    assert kills > 20
    unreached = {point for point in OURS if not point.startswith("archive.reading.")} - set(reached)
    assert unreached == set()


def judge(root: Path) -> list[str]:
    """Return what is wrong after the kill, and after the next processes have done their part."""
    wrong = [str(violation) for violation in check_cache(root) if violation.kind != "garbage"]
    waiting = Outbox(str(root), "below").all()
    recorded = any(filing.record for filing in Outbox(str(root), "below").filings())
    backend = DirectoryBackend(root.parent / "replicas")
    there = {digest for digest in map(Digest, DIGESTS) if contents.has(backend, digest)}
    with archivist(root) as archive:
        if not archive.flush(60):
            wrong.append("what waits is not delivered")
        found = [one.event for one in archive.read_events()]
    if found not in ([], ["first"], ["first", "second"]):
        wrong.append(f"the events are {found}")
    due = {*waiting, *there}
    wrong += [f"{digest} is lost" for digest in due if not contents.has(backend, digest)]
    record = refs.read(backend, RECORD.key)  # Raises for one that is torn.
    if record is not None and record.digest not in there | due:
        wrong.append("a record names what is not there")
    if recorded and record is None:
        wrong.append("the record is lost")
    replicate(root)
    if refs.read(backend, RECORD.key) != RECORD:
        wrong.append("the record is not there in the end")
    with archivist(root) as archive:
        for digest in DIGESTS:
            out = Path(archive.read_object(digest, root.parent / f"judged-{digest[:4]}"))
            if found_at(out) != digest:
                wrong.append(f"{digest} is {found_at(out)}")
    backend.close()
    if Outbox(str(root), "below").all():
        wrong.append("something waits for ever")
    sweep(str(root))
    staged = os.listdir(root.parent / "replicas/staging")
    wrong += [f"garbage in the tier: {name}" for name in staged]
    wrong += [f"after recovery: {violation}" for violation in check_cache(root) if violation.kind != "garbage"]
    return wrong + [f"garbage: {name}" for name in leftovers(root)]


def test_a_kill_at_any_point_of_reading_back_leaves_the_target_absent_or_whole(tmp_path: Path) -> None:
    said = tmp_path / "said"
    whole = prepared(tmp_path / "whole" / "cache")
    replicate(whole)
    assert in_a_process(whole, read_back, ";".join(f"{point}=print({point})" for point in POINTS), said) == 0
    reached = said.read_text().split()
    assert "archive.reading.before-publish" in reached
    wrong = []
    for point in sorted(set(reached)):
        for passed in range(min(3, reached.count(point))):
            root = prepared(tmp_path / f"{point}-{passed}" / "cache")
            replicate(root)
            assert in_a_process(root, read_back, spec_of(point, passed), said) in {0, -signal.SIGKILL}
            for again in (False, True):
                if again:
                    for path in root.parent.glob("out-tree"):
                        path.rename(root.parent / "first-tree")  # A tree replaces nothing.
                    read_back(root)
                for digest in DIGESTS:
                    out = root.parent / f"out-{digest[:4]}"
                    if out.exists() and found_at(out) != digest:
                        wrong.append(f"{spec_of(point, passed)}: {digest} is {found_at(out)}")
            wrong += [f"{point}: garbage: {path.name}" for path in root.parent.glob(".*.partial")]
    assert wrong == []


@pytest.mark.parametrize("size", [0, 1, 60, 200])
def test_a_torn_line_of_events_is_no_event_and_comes_again(tmp_path: Path, size: int) -> None:
    root = prepared(tmp_path / "cache")
    point = "backends.directory.before-append"

    assert in_a_process(root, replicate, f"{point}=1*off->torn({size})", tmp_path / "said") == -signal.SIGKILL

    assert judge(root) == []
