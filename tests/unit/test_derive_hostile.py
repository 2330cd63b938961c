"""Derived artefacts: builds and callers that do what they should not, and what must not come of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from modelcache import Cache, Workspace, failures
from modelcache.errors import ProductError, RepeatedFailureError, UsageError
from modelcache.isolation import DiedError, run
from modelcache.testing import check_cache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as found:
        found.put(b"the weights of a model", name="m.bin")
        yield found
    assert [one for one in check_cache(tmp_path / "cache") if one.promise != "I7"] == []  # What was replaced waits.


def derive(cache: Cache, build: Any, **options: Any) -> str:
    return cache.derive(build, **{"recipe": "r", "version": "1", "inputs": ["m.bin"], **options})


def small(workspace: Workspace) -> None:
    Path(workspace, "small.bin").write_bytes(b"small")


# -- the key -----------------------------------------------------------------------------------------------------------


def test_a_build_that_changes_what_it_was_told_changes_no_key(cache: Cache) -> None:
    def quantise(workspace: Workspace) -> None:
        bits = workspace.params["options"].pop("bits", None)
        Path(workspace, "m.bin").write_text(f"{bits} bits")

    path = derive(cache, quantise, params={"options": {"bits": 8}})

    assert cache.explain(path).params == {"options": {"bits": 8}}
    assert Path(derive(cache, quantise, params={"options": {}})).read_text() == "None bits"
    assert derive(cache, small, params={"options": {"bits": 8}}) == path


def test_a_number_that_cannot_be_written_is_no_part_of_a_key(cache: Cache) -> None:
    with pytest.raises(UsageError, match="too large"):
        derive(cache, small, params={"n": 10**5000})


def test_the_listing_of_a_tree_is_no_input(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(b"a")
    tree = cache.put_tree(tmp_path / "tree", name="tree")
    derive(cache, small, inputs=["tree"])  # Both would count as the same.

    with pytest.raises(UsageError, match="a file of the cache itself"):
        derive(cache, small, inputs=[f"{os.path.dirname(tree.path)}/.listing"])


# -- the product -------------------------------------------------------------------------------------------------------


def test_who_still_has_a_product_open_for_writing_cannot_change_it(cache: Cache) -> None:
    kept: list[BinaryIO] = []

    def keeps(workspace: Workspace) -> None:
        names = workspace.params.get("names", ["m.bin"])
        for name in names:
            kept.append(open(os.path.join(workspace, name), "w+b"))  # noqa: SIM115
            kept[-1].write(b"good")
            kept[-1].flush()

    paths = [derive(cache, keeps), *[f"{derive(cache, keeps, params={'names': ['a', 'b']}, name='both')}/b"]]

    for file in kept:
        os.pwrite(file.fileno(), b"evil", 0)
        file.close()
    assert [Path(path).read_bytes() for path in paths] == [b"good", b"good"]


def test_a_build_that_writes_into_an_input_that_is_a_tree_is_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(b"a")
    cache.put_tree(tmp_path / "tree", name="tree")

    def writes(workspace: Workspace) -> None:
        small(workspace)
        written = Path(workspace.inputs["0"], "a")
        written.chmod(0o644)
        written.write_bytes(b"b")

    with pytest.raises(ProductError, match="wrote to its input"):
        derive(cache, writes, inputs=["tree"])
    cache.remove("tree")


# -- processes of their own --------------------------------------------------------------------------------------------


def forks(place: str, end: int) -> str:
    """Leave a child behind that lives until it is killed, and die of *end* unless that is 0."""
    child = os.fork()
    if child == 0:
        signal.pause()
    Path(place).write_text(str(child))
    if end:
        os.kill(os.getpid(), end)
    return "done"


def test_a_child_that_is_left_behind_delays_no_result(tmp_path: Path) -> None:
    assert run(forks, str(tmp_path / "pid"), 0, timeout=60) == "done"
    with pytest.raises(DiedError, match="SIGSEGV"):
        run(forks, str(tmp_path / "pid"), signal.SIGSEGV.value, timeout=60)


def test_the_process_of_a_check_imports_nothing_that_a_build_has_written(cache: Cache) -> None:
    assert derive(cache, hides_a_module, check=fine, isolate=True)


def hides_a_module(workspace: Workspace) -> None:
    Path(workspace, "pickle.py").write_text("raise SystemExit(3)")


def fine(_path: str) -> None:
    pass


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_build_that_took_its_process_along_is_left_alone_for_a_while_and_no_longer(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_workspace: Workspace) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        child = os.fork()
        if child == 0:
            derive(Cache(cache.root), dies)
        os.waitpid(child, 0)
    with pytest.raises(RepeatedFailureError):
        derive(cache, small)

    later = time.monotonic() + 601
    monkeypatch.setattr(failures.time, "monotonic", lambda: later)  # type: ignore[attr-defined]
    assert derive(cache, small)


# -- what goes ---------------------------------------------------------------------------------------------------------


def test_what_was_derived_from_what_a_tier_has_does_not_go_for_that(tmp_path: Path) -> None:
    with Cache(tmp_path / "tier") as tier:
        tier.put(b"the weights of a model", name="m.bin")
    with Cache(tmp_path / "cache", tiers=[tmp_path / "tier"], grace=0) as cache:
        path = derive(cache, small)

        assert cache.plan_gc().items == ()
        assert cache.explain(path).inputs[0].below


# -- one build ---------------------------------------------------------------------------------------------------------


def test_what_arrives_just_after_it_was_looked_for_is_not_built_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, built = cache._found, []

    def late(*asked: Any) -> Any:
        found = look(*asked)
        monkeypatch.undo()
        with Cache(cache.root) as faster:
            built.append(derive(faster, small))
        return found

    monkeypatch.setattr(cache, "_found", late)

    def never(_workspace: Workspace) -> None:
        raise AssertionError("it is here")

    assert [derive(cache, never)] == built
