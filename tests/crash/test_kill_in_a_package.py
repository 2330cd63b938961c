"""A process that puts or compiles a Core ML package is killed at each fail point that it comes by.

The package is there whole, or not at all, and so is the compiled model; the next process ends what was begun. What
compiles is a stand-in for Core ML's compiler, in a child of the process that is killed.
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
from modelcache import Cache, coreml
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from tests.crash.world import forked
from tests.support.coreml import package
from tests.support.state import leftovers

POINTS = sorted({point.name for point in find_points("modelcache")})
NAME = "Net.mlpackage"


def compile_(model: str, destination: str) -> None:
    """Stand in for Core ML's compiler."""
    Path(destination).mkdir()
    Path(destination, "model.mil").write_text(coreml.canonical_digest(model))


def put(root: Path, source: Path) -> str:
    return coreml.put_package(source, name=NAME, cache=Cache(root)).path


def compiled(root: Path, source: Path) -> str:
    return coreml.compiled(NAME, cache=Cache(root), compiler=compile_)


def in_a_process(work: Callable[[], object], spec: str, said: Path) -> int:
    """Do *work* in a process that meets *spec*; return how it ended. What its points print is in *said*."""

    def inside() -> None:
        sys.stderr = io.StringIO()
        with failpoints.scenario(spec):
            work()
        said.write_text(sys.stderr.getvalue())

    return os.waitstatus_to_exitcode(os.waitpid(forked(inside), 0)[1])


@pytest.mark.parametrize("act", [put, compiled])
def test_a_kill_at_any_point_leaves_it_whole_or_not_there(
    act: Callable[[Path, Path], str], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    source = package(tmp_path / "source" / NAME, weights=None)

    def prepared(name: str) -> Path:
        if act is compiled:
            put(tmp_path / name, source)
        else:
            Cache(tmp_path / name).put(b"something", name="other")
        return tmp_path / name

    said = tmp_path / "said"
    root = prepared("whole")
    assert in_a_process(lambda: act(root, source), ";".join(f"{one}=print({one})" for one in POINTS), said) == 0
    reached = said.read_text().split()
    assert ("deriving.before-record" if act is compiled else "intake.before-record-tree") in reached
    wrong, kills = [], 0
    for point in sorted(set(reached)):
        passages = min(12, reached.count(point)) if pytestconfig.getoption("--crash-budget") == "large" else 1
        for passed in range(passages):
            root = prepared(f"{point}-{passed}")
            spec = f"{point}={f'{passed}*off->' if passed else ''}kill"
            code = in_a_process(lambda root=root: act(root, source), spec, said)  # type: ignore[misc]
            assert code in {0, -signal.SIGKILL}, f"{spec}: {code}"
            assert code < 0 or passed, f"{point} was reached, and is not"
            kills += code < 0
            wrong += [f"{spec}: {what}" for what in judge(root, source)]
    print(f"{act.__name__}: {kills} kills")
    assert wrong == []
    assert kills > 15


def judge(root: Path, source: Path) -> list[str]:
    """Return what is wrong after the kill, and after the next process has done both."""
    wrong = [str(violation) for violation in check_cache(root) if violation.kind != "garbage"]
    digest = coreml.canonical_digest(source)
    entry = Cache(root).lookup(NAME)
    if entry is not None and coreml.canonical_digest(entry.path) != digest:
        wrong.append(f"{NAME} is another package")
    put(root, source)
    if Path(compiled(root, source), "model.mil").read_text() != digest:
        wrong.append("what is compiled is another package")
    sweep(str(root))
    wrong += [f"after recovery: {violation}" for violation in check_cache(root) if violation.kind != "garbage"]
    return wrong + [f"garbage: {name}" for name in leftovers(root)]
