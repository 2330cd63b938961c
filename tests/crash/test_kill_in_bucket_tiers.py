"""A process that lives with a bucket is killed at each fail point that it comes by.

It promotes one content from the bucket and fetches another one from its source, which goes to the bucket with the
record of its ref. Whenever it dies: what it serves is whole, what was filed gets there by the next process, a record in
the bucket names only what is there, and nothing is left over.
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
from modelcache import Cache, Tier
from modelcache.archive import DirectoryBackend
from modelcache.backends import contents, refs
from modelcache.outbox import Outbox
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from modelcache.testing import FaultServer
from tests.crash.world import NEW, OLD, digest_of, forked, make_tree, tree_of
from tests.support.state import leftovers

POINTS = sorted({point.name for point in find_points("modelcache")})
OURS = {
    "outbox.before-record", "outbox.before-forget", "archive.carrier.before-put-record", "download.before-record",
    "archive.carrier.before-forget", "backends.directory.before-put", "backends.contents.before-manifest",
    "download.before-record-of-filed", "repository.before-record", "transfer.before-read",
}  # fmt: skip


def tier(root: Path) -> Tier:
    return Tier(f"directory://{root.parent}/bucket", name="bucket", write="direct", timeout=60.0)


def prepared(root: Path) -> Path:
    make_tree(root.parent / "source", tree_of(OLD))
    with Cache(root.parent / "other", tiers=[tier(root)]) as other:
        other.put(OLD, name="b")
        other.put_tree(root.parent / "source", name="t")
        assert other.waiting() == {}
    return root


def live(root: Path, url: str) -> None:
    with Cache(root, tiers=[tier(root)]) as cache:
        cache.get("t")
        cache.get("b")
        cache.get(url)
        assert cache.flush(60)


def in_a_process(root: Path, url: str, spec: str, said: Path) -> int:
    """Live in a process that meets *spec*; return how it ended. What its points print is in *said*."""

    def work() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario(spec):
            live(root, url)
        said.write_text(sys.stderr.getvalue())

    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def judge(root: Path, url: str) -> list[str]:
    """Return what is wrong after the kill, and after the next process has done its part."""
    wrong = [str(violation) for violation in check_cache(root) if violation.kind != "garbage"]
    filed = [filing.record for filing in Outbox(str(root), "bucket").filings()]
    backend = DirectoryBackend(root.parent / "bucket")
    for name in backend.names("refs/"):
        record = refs.read_file(backend, name)  # Raises for one that is torn.
        if record is None or not contents.has(backend, record.digest):
            wrong.append(f"{name} names what is not there")
    if Cache(root).lookup(url) is not None and not filed and refs.read(backend, url) is None:
        wrong.append(f"{url} is on record, and no tier will ever get it")
    with Cache(root, tiers=[tier(root)]) as cache:
        if not cache.flush(60):
            wrong.append("what was filed is not delivered")
        keys = [record["key"] for record in filed if record is not None]
        wrong += [f"the record of {key} is lost" for key in keys if refs.read(backend, key) is None]
        cache.get(url)
        cache.get("t")
        if digest_of(Path(cache.get("b")).read_bytes()) != digest_of(OLD):
            wrong.append("b is wrong")
        if not cache.flush(60):
            wrong.append("something waits for ever")
    record = refs.read(backend, url)
    in_bucket = None if record is None else record.digest
    recorded = Cache(root).lookup(url)
    if recorded is None or recorded.digest != digest_of(NEW):
        wrong.append(f"{url} is {recorded}")
    if filed and in_bucket != digest_of(NEW):
        wrong.append(f"{url} is {in_bucket} in the bucket")
    backend.close()
    sweep(str(root))
    wrong += [f"garbage in the bucket: {name}" for name in os.listdir(root.parent / "bucket/staging")]
    wrong += [f"after recovery: {violation}" for violation in check_cache(root) if violation.kind != "garbage"]
    return wrong + [f"garbage: {name}" for name in leftovers(root)]


def test_a_kill_at_any_point_of_a_life_with_a_bucket_loses_nothing(
    tmp_path: Path, server: FaultServer, pytestconfig: pytest.Config
) -> None:
    url, said = server.add("/model.onnx", NEW), tmp_path / "said"
    spec = ";".join(f"{point}=print({point})" for point in POINTS)
    assert in_a_process(prepared(tmp_path / "whole" / "cache"), url, spec, said) == 0
    reached = said.read_text().split()
    assert set(reached) >= OURS
    large = pytestconfig.getoption("--crash-budget") == "large"
    wrong, kills = [], 0
    for point in sorted(set(reached) if large else OURS):
        for passed in range(min(8 if large else 2, reached.count(point))):
            root = prepared(tmp_path / f"{point}-{passed}" / "cache")
            spec = f"{point}={f'{passed}*off->' if passed else ''}kill"
            code = in_a_process(root, url, spec, said)
            assert code in {0, -signal.SIGKILL}, f"{point}: {code}"
            kills += code < 0
            wrong += [f"{spec}: {what}" for what in judge(root, url)]
    print(f"{kills} kills")
    assert wrong == []
    assert kills >= len(OURS)
