"""Derived artefacts: builds and callers that do what they should not, and what must not come of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from modelcache import Cache, Event, Input, Policy, Workspace, failures, files, init, layout
from modelcache.errors import (
    CancelledError,
    CapacityError,
    NoSpaceError,
    ProductError,
    RepeatedFailureError,
    UsageError,
)
from modelcache.isolation import DiedError, run
from modelcache.testing import check_cache
from tests.support.users import User


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


def test_a_record_whose_product_has_gone_is_not_what_others_wait_for(cache: Cache) -> None:
    path = derive(cache, small)
    shutil.rmtree(os.path.dirname(path))

    assert Path(derive(cache, small)).read_bytes() == b"small"


def test_forced_and_other_calls_at_once_are_two_builds(cache: Cache) -> None:
    path = derive(cache, small)

    def other(workspace: Workspace) -> None:
        assert derive(Cache(cache.root), small) == path  # A hit meanwhile: it waits for nobody.
        Path(workspace, "small.bin").write_bytes(b"other")

    assert Path(derive(cache, other, force=True)).read_bytes() == b"other"


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_an_input_that_is_given_by_its_path_makes_no_room_for_its_product(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache", capacity=10_000, grace=0) as cache:
        cache.put(bytes(4000), name="m.bin")

        def build(workspace: Workspace) -> None:
            Path(workspace, "product").write_bytes(os.urandom(7000))

        for inputs in (["m.bin"], [cache.get("m.bin")]):
            with pytest.raises(CapacityError):
                derive(cache, build, inputs=inputs)
            assert cache.lookup("m.bin") is not None


def test_a_part_of_a_tree_that_counts_as_something_else_counts_without_its_path(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(b"a")
    tree = cache.put_tree(tmp_path / "tree", name="tree")
    digest = f"sha256:{'1' * 64}"

    whole = derive(cache, small, inputs=[Input("m.bin", digest=digest)])

    def never(_workspace: Workspace) -> None:
        raise AssertionError("it is here")

    assert derive(cache, never, inputs=[Input(f"{tree.path}/a", digest=digest)]) == whole


def test_offline_a_local_file_is_what_it_was(cache: Cache, tmp_path: Path) -> None:
    local = tmp_path / "local.bin"
    local.write_bytes(b"as it was")
    path = derive(cache, small, inputs=[local])
    local.unlink()

    with Cache(cache.root, offline=True) as offline:
        assert derive(offline, small, inputs=[local]) == path


# -- tiers and policies ------------------------------------------------------------------------------------------------


def with_parts(workspace: Workspace) -> None:
    for name in ("a", "b"):
        path = Path(workspace, "parts", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())


def test_a_product_of_a_tier_that_was_touched_is_built_here_and_left_alone_there(cache: Cache, tmp_path: Path) -> None:
    path = derive(cache, with_parts)
    os.utime(f"{path}/b", (1, 1))

    with Cache(tmp_path / "above", tiers=[cache.root]) as above:
        own = derive(above, with_parts)

        assert own.startswith(f"{above.root}/")
    assert os.stat(f"{path}/b").st_mtime == 1
    assert Path(derive(cache, with_parts)) == Path(path)


def test_under_a_policy_no_product_of_a_tier_is_served(cache: Cache, tmp_path: Path) -> None:
    derive(cache, small)

    with Cache(tmp_path / "above", tiers=[cache.root], policy=Policy(max_size="1MB")) as above:
        assert derive(above, small).startswith(f"{above.root}/")
        assert [entry.source for entry in above.entries() if entry.derivation] == ["derived"]


# -- what a build leaves -----------------------------------------------------------------------------------------------


def test_a_file_with_a_name_elsewhere_is_copied(cache: Cache, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"shared")

    def links(workspace: Workspace) -> None:
        os.link(outside, f"{workspace}/m.bin")

    path = derive(cache, links)

    outside.write_bytes(b"written to later")
    assert Path(path).read_bytes() == b"shared"


def test_directories_of_any_mode_and_files_that_run_are_made_like_all_others(cache: Cache, tmp_path: Path) -> None:
    def build(workspace: Workspace) -> None:
        path = Path(workspace, "d", "run.sh")
        path.parent.mkdir(0o700)
        path.write_bytes(b"#!/bin/sh\n")
        path.chmod(0o700)

    path = derive(cache, build)

    assert os.stat(path).st_mode & 0o777 == os.stat(os.path.dirname(path)).st_mode & 0o777
    assert os.access(f"{path}/run.sh", os.X_OK)


def test_a_file_that_runs_is_no_other_name_of_one_that_does_not(cache: Cache) -> None:
    cache.put(b"#!/bin/sh\n", name="plain.sh")

    def build(workspace: Workspace) -> None:
        path = Path(workspace, "d", "run.sh")
        path.parent.mkdir()
        path.write_bytes(b"#!/bin/sh\n")
        path.chmod(0o700)

    assert os.access(f"{derive(cache, build)}/run.sh", os.X_OK)
    assert os.stat(cache.get("plain.sh")).st_mode & 0o111 == 0


def test_in_a_shared_cache_a_product_is_made_as_that_says(tmp_path: Path) -> None:
    init(tmp_path / "shared", access="group", group=str(os.getgid()))
    with Cache(tmp_path / "shared") as cache:
        cache.put(b"the weights of a model", name="m.bin")

        def build(workspace: Workspace) -> None:
            Path(workspace, "d").mkdir()
            Path(workspace, "d", "a").write_bytes(b"a")

        path, file = derive(cache, build), derive(cache, small, version="2")

    assert os.stat(file).st_mode & 0o777 == 0o440
    assert os.stat(path).st_mode & 0o7777 == os.stat(os.path.dirname(path)).st_mode & 0o7777
    assert os.stat(path).st_mode & 0o070 == 0o070


def test_what_was_replaced_stays_for_a_while(cache: Cache) -> None:
    path = derive(cache, small)
    os.utime(os.path.dirname(path), (1, 1))

    def other(workspace: Workspace) -> None:
        Path(workspace, "small.bin").write_bytes(b"other")

    assert derive(cache, other, force=True) != path
    assert cache.plan_gc().items == ()


# -- builds in a process of their own ----------------------------------------------------------------------------------


def test_a_build_in_a_process_of_its_own_is_at_home_in_its_workspace_and_no_danger(cache: Cache) -> None:
    assert derive(cache, looks_around, isolate=True, params={"failures": f"{cache.root}/{layout.FAILURES}"})


def looks_around(workspace: Workspace) -> None:
    assert os.getcwd() == workspace
    # Its own death harms nobody: nothing is noted for the case that it takes somebody along.
    assert not os.path.exists(workspace.params["failures"]) or not os.listdir(workspace.params["failures"])
    small(workspace)


def hangs(_workspace: Workspace) -> None:
    signal.pause()


def raises(_workspace: Workspace) -> None:
    raise OddError(1, 2)


class OddError(Exception):
    """One that does not come out of a pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def dies(_workspace: Workspace) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_closing_a_cache_ends_its_build_in_another_process(cache: Cache) -> None:
    closing: list[Cache] = []

    def told(event: Event) -> None:
        if event.kind == "building":
            closing[0].close()

    closing.append(Cache(cache.root, on_event=told))
    with pytest.raises(CancelledError):
        derive(closing[0], hangs, isolate=True, timeout=60)


@pytest.mark.parametrize("build", [dies, raises])
def test_a_full_disk_is_to_blame_whatever_a_process_says(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    def no_room(_path: str, _needed: int, *, what: str) -> None:
        raise NoSpaceError(what=what, needed=1, free=0)

    monkeypatch.setattr(files, "check_space", no_room)
    for _ in range(4):
        with pytest.raises(NoSpaceError):
            derive(cache, build, isolate=True)


def test_a_build_that_was_interrupted_leaves_no_note(cache: Cache) -> None:
    def interrupted(_workspace: Workspace) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive(cache, interrupted)
    assert os.listdir(f"{cache.root}/{layout.FAILURES}") == []


_PROGRAM = """
import sys
import tempfile
from modelcache import Cache

def build(workspace):
    with open(f"{workspace}/m.bin", "w") as file:
        file.write("built")

with Cache(sys.argv[1]) as cache:
    cache.derive(build, recipe="r", version="1", inputs=["m.bin"], isolate=True)
"""


def test_a_program_that_derives_while_it_is_loaded_is_told_and_waits_for_nobody(cache: Cache, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)

    done = subprocess.run(
        [sys.executable, program, cache.root], capture_output=True, text=True, timeout=60, check=False
    )

    assert "UsageError" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr


def test_a_function_that_another_process_cannot_find_is_a_wrong_call_and_no_failed_build(cache: Cache) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, cache.root], capture_output=True, text=True, timeout=60, check=False
    )

    assert "UsageError" in done.stderr
    assert "cannot be loaded in another process" in done.stderr
    assert not os.path.exists(f"{cache.root}/{layout.FAILURES}") or not os.listdir(f"{cache.root}/{layout.FAILURES}")


def test_a_product_that_is_its_input_goes_with_it_and_no_other_ref_of_it(cache: Cache) -> None:
    def same(workspace: Workspace) -> None:
        shutil.copyfile(workspace.inputs["0"], Path(workspace, "m.bin"))

    derive(cache, same)
    cache.remove("m.bin")
    assert list(cache.entries()) == []

    for name in ("m.bin", "again.bin"):
        cache.put(b"the weights of a model", name=name)
    derive(cache, same)
    cache.remove("m.bin")
    assert len(list(cache.entries())) == 2


def when_told(word: str, value: int) -> int:
    Path(word).read_bytes()
    return value


def test_who_does_not_wait_for_children_gets_results_as_well(tmp_path: Path) -> None:
    word, looks = tmp_path / "word", 0
    os.mkfifo(word)

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:  # By now it was looked twice whether the process is still there.
            word.write_bytes(b"go on")

    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel reaps them then.
    try:
        assert run(when_told, str(word), 42, timeout=60, check=look) == 42
        with pytest.raises(DiedError):
            run(forks, str(tmp_path / "pid"), signal.SIGSEGV.value, timeout=60)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert looks >= 3


def test_a_product_that_its_owner_cannot_read_is_the_fault_of_the_build(cache: Cache) -> None:
    def locks(workspace: Workspace) -> None:
        small(workspace)
        Path(workspace, "small.bin").chmod(0)

    if os.geteuid() == 0:
        User(12345).does(_refused, locks)
    else:
        with pytest.raises(ProductError, match="cannot be read"):
            derive(cache, locks)


def _refused(build: Any) -> None:
    with tempfile.TemporaryDirectory() as place, Cache(f"{place}/cache") as cache:
        cache.put(b"the weights of a model", name="m.bin")
        with pytest.raises(ProductError, match="cannot be read"):
            derive(cache, build)


def test_what_failed_for_another_user_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcache.failures import Failures

    failures = Failures(str(tmp_path))
    (tmp_path / "staging").mkdir()
    for _ in range(3):
        failures.failed("0" * 64, "it raised", "no library")
    found = failures.of("0" * 64)
    assert found is not None
    assert found.left > 0

    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert failures.of("0" * 64) is None
    assert failures.sweep() == 0  # It is not this user's to forget.
    monkeypatch.undo()
    assert failures.of("0" * 64) is not None
