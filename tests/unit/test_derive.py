"""Derived artefacts: what makes a key, what a build may leave, and how one that fails is remembered."""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Derivation, Event, Input, ModelCacheError, Workspace, errors, failures, files, layout
from modelcache.errors import (
    BuildDiedError,
    BuildFailedError,
    BuildTimeoutError,
    DerivationError,
    EntryNotFoundError,
    NoSpaceError,
    NotReproducibleError,
    ProductError,
    ProductRefusedError,
    RepeatedFailureError,
    UsageError,
)
from modelcache.testing import check_cache
from tests.support.state import leftovers

SOURCE = b"the weights of a model"


class Counting:
    """A build that counts how often it was called."""

    def __init__(self, content: bytes = b"product", name: str = "model.bin") -> None:
        self.content, self.name, self.calls = content, name, 0

    def __call__(self, workspace: Workspace) -> None:
        self.calls += 1
        Path(workspace, self.name).write_bytes(self.content)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache") as found:
        found.put(SOURCE, name="m.bin")
        yield found
    assert [one for one in check_cache(tmp_path / "cache") if one.promise != "I7"] == []  # What was replaced waits.
    assert [one for one in leftovers(tmp_path / "cache") if not one.startswith(layout.FAILURES)] == []


def derive(cache: Cache, build: Any, **options: Any) -> str:
    return cache.derive(build, **{"recipe": "r", "version": "1", "inputs": ["m.bin"], **options})


# -- the key -----------------------------------------------------------------------------------------------------------


def test_what_was_built_once_is_not_built_again(cache: Cache) -> None:
    build = Counting()

    paths = {derive(cache, build) for _ in range(3)}

    assert build.calls == 1
    assert Path(paths.pop()).read_bytes() == b"product"
    assert not paths


def test_another_cache_object_finds_it_as_well(cache: Cache) -> None:
    first = derive(cache, Counting())
    never = Counting()

    with Cache(cache.root) as other:
        assert derive(other, never) == first
    assert never.calls == 0


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": "other"}, {"version": "2"}, {"inputs": ["n.bin"]}, {"inputs": ["m.bin", "n.bin"]},
        {"inputs": {"weights": "m.bin"}}, {"params": {"bits": 4}}, {"params": {"bits": "8"}}, {"params": {"bits": [8]}},
        {"platform": {"cpu": ["avx2", "avx512"]}}, {"platform": {}}, {"params": {"bits": 8.5}},
        {"params": {"bits": True}}, {"params": {"bits": None}}, {"params": {}},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_differs_is_another_key(cache: Cache, change: dict[str, Any]) -> None:
    cache.put(b"other weights", name="n.bin")
    usual = {"params": {"bits": 8}, "platform": {"cpu": ["avx2"]}}
    derive(cache, Counting(), **usual)
    build = Counting()

    derive(cache, build, **{**usual, **change})

    assert build.calls == 1


def test_the_order_of_names_is_no_difference_and_that_of_a_list_is(cache: Cache) -> None:
    cache.put(b"other weights", name="n.bin")
    build = Counting()

    for inputs in ({"a": "m.bin", "b": "n.bin"}, {"b": "n.bin", "a": "m.bin"}):
        derive(cache, build, inputs=inputs, params={"x": 1, "y": 2})
        derive(cache, build, inputs=inputs, params={"y": 2, "x": 1})
    assert build.calls == 1
    for listed in (["m.bin", "n.bin"], ["n.bin", "m.bin"]):
        derive(cache, build, inputs=listed)
    assert build.calls == 3


def test_the_same_content_under_another_name_is_the_same_input(cache: Cache) -> None:
    cache.put(SOURCE, name="again.bin")
    build = Counting()

    assert derive(cache, build) == derive(cache, build, inputs=["again.bin"])
    assert build.calls == 1


def test_new_content_of_an_input_is_a_miss(cache: Cache) -> None:
    build = Counting()
    derive(cache, build)

    cache.put(b"new weights", name="m.bin")
    derive(cache, build)

    assert build.calls == 2


def test_an_input_can_be_an_entry_a_path_that_get_returned_or_one_within_a_tree(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "repository/onnx").mkdir(parents=True)
    (tmp_path / "repository/onnx/model.onnx").write_bytes(SOURCE)
    (tmp_path / "repository/other.onnx").write_bytes(SOURCE)
    tree = cache.put_tree(tmp_path / "repository", name="t")
    build = Counting()
    entry = cache.lookup("m.bin")
    assert entry is not None

    same = {derive(cache, build, inputs=[one]) for one in ("m.bin", entry, entry.path, Path(entry.path))}
    assert (len(same), build.calls) == (1, 1)
    for inside in ("onnx/model.onnx", "onnx/../onnx/model.onnx", "other.onnx", ""):
        derive(cache, build, inputs=[os.path.join(tree.path, inside)])
    assert build.calls == 4  # Which of the two files counts, and however it is written.
    assert cache.explain(derive(cache, build, inputs=[f"{tree.path}/onnx/model.onnx"])).inputs[0].digest == tree.digest


def test_an_entry_that_has_gone_is_asked_for_by_its_ref(cache: Cache) -> None:
    entry = cache.lookup("m.bin")
    assert entry is not None
    cache.remove("m.bin")
    cache.put(SOURCE, name="m.bin")

    derive(cache, Counting(), inputs=[entry])

    cache.remove("m.bin")
    with pytest.raises(EntryNotFoundError):
        derive(cache, Counting(), inputs=[entry], version="2")


def test_a_file_of_this_machine_is_another_input_when_it_has_changed(cache: Cache, tmp_path: Path) -> None:
    source, build = tmp_path / "local.bin", Counting()
    source.write_bytes(b"one")
    first = derive(cache, build, inputs=[source])
    assert derive(cache, build, inputs=[source]) == first
    fetched = cache.stats().fetched

    source.write_bytes(b"two")
    build.content = b"of two"
    second = derive(cache, build, inputs=[source])

    assert (build.calls, Path(second).read_bytes()) == (2, b"of two")
    assert cache.stats().fetched == fetched + 1  # The one that did not change was looked at, and not read.


def test_a_directory_of_this_machine_is_another_input_when_a_file_in_it_has_changed(
    cache: Cache, tmp_path: Path
) -> None:
    source, build = tmp_path / "local", Counting()
    (source / "deep").mkdir(parents=True)
    (source / "deep/weights").write_bytes(b"one")
    (source / "config").write_bytes(b"{}")
    derive(cache, build, inputs=[source])
    derive(cache, build, inputs=[source])
    assert (build.calls, cache.stats().fetched) == (1, 1)

    (source / "deep/weights").write_bytes(b"two")
    derive(cache, build, inputs=[source])
    (source / "another").write_bytes(b"")
    derive(cache, build, inputs=[source])

    assert build.calls == 3


def test_an_input_that_has_rotted_is_set_aside_and_nothing_is_built_of_it(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "local.bin"
    source.write_bytes(b"one")
    entry = cache.lookup(cache.get(source) and str(source))
    assert entry is not None
    Path(entry.path).chmod(0o644)
    Path(entry.path).write_bytes(b"two")
    os.utime(entry.path, ns=(entry.mtime_ns, entry.mtime_ns))  # As a disk does it.
    build = Counting()

    def copy(workspace: Workspace) -> None:
        build.content = Path(workspace.inputs["0"]).read_bytes()
        build(workspace)

    assert Path(derive(cache, copy, inputs=[source])).read_bytes() == b"one"
    assert build.calls == 1
    assert len(os.listdir(f"{cache.root}/{layout.QUARANTINE}")) == 1


def test_an_input_counts_as_what_the_caller_says(cache: Cache) -> None:
    cache.put(b"the same but for its ids", name="n.bin")
    build, identity = Counting(), f"tree:{'0' * 64}"

    first = derive(cache, build, inputs=[Input("m.bin", digest=identity)])

    assert derive(cache, build, inputs=[Input("n.bin", digest=identity)]) == first
    assert build.calls == 1
    assert derive(cache, build, inputs=[Input("n.bin")]) == first  # Another action, the same bytes.
    assert build.calls == 2
    with pytest.raises(errors.InvalidDigestError):
        derive(cache, build, inputs=[Input("m.bin", digest="canonical")])


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": ""}, {"recipe": "a/b"}, {"recipe": "Upper"}, {"recipe": "x" * 65}, {"recipe": None},
        {"recipe": ".a"}, {"version": ""}, {"version": 1}, {"inputs": "m.bin"}, {"inputs": None}, {"inputs": [7]},
        {"inputs": {7: "m.bin"}},
        {"params": {"a": object()}}, {"params": {"a": float("nan")}}, {"params": {7: 1}}, {"params": [1]},
        {"params": {"a": b""}}, {"platform": "linux"}, {"timeout": 0}, {"timeout": "1"}, {"name": 7}, {"check": 7},
        {"verify": "maybe"}, {"name": "a/b"},
    ],
    ids=str,
)  # fmt: skip
def test_a_senseless_argument_is_told(cache: Cache, wrong: dict[str, Any]) -> None:
    with pytest.raises((UsageError, ProductError)):
        derive(cache, Counting(), **wrong)
    with pytest.raises(UsageError):
        derive(cache, "not callable")
    assert [entry.key for entry in cache.entries()] == ["m.bin"]


def test_a_closed_cache_derives_nothing(cache: Cache) -> None:
    with Cache(cache.root) as closed:
        pass
    with pytest.raises(errors.ClosedError):
        derive(closed, Counting())


# -- what is on record -------------------------------------------------------------------------------------------------


def test_explain_shows_all_that_it_depends_on(cache: Cache) -> None:
    path = derive(cache, Counting(), params={"bits": 8, "deep": {"list": (1, 2)}}, platform={"runtime": "1.2"})

    found = cache.explain(path)

    assert (found.recipe, found.version, found.params) == ("r", "1", {"bits": 8, "deep": {"list": [1, 2]}})
    assert (found.platform, found.path) == ({"runtime": "1.2"}, path)
    assert [(part.name, part.ref) for part in found.inputs] == [("0", "m.bin")]
    assert found.ref == f"derived:r/{found.action}"
    assert cache.explain(found.ref) == found
    assert cache.get(found.ref) == path
    assert found.created > 0
    assert found.seconds >= 0
    assert json.loads(found.canonical)["params"] == {"bits": 8, "deep": {"list": [1, 2]}}


def test_explain_knows_nothing_of_what_was_not_derived(cache: Cache) -> None:
    for ref in ("m.bin", f"derived:r/{'0' * 64}", cache.get("m.bin")):
        with pytest.raises(EntryNotFoundError):
            cache.explain(ref)


def test_a_build_says_in_what_it_differs_from_what_is_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Event] = []
    caplog.set_level(logging.INFO, "modelcache")
    with Cache(tmp_path / "cache", on_event=told.append) as cache:
        cache.put(SOURCE, name="m.bin")
        derive(cache, Counting(), platform={"runtime": "1.30", "cpu": "a"})
        derive(cache, Counting(), platform={"runtime": "1.31", "cpu": "a"})

    building = [event.detail for event in told if event.kind == "building"]
    assert building == ["", "platform.runtime: '1.30' → '1.31'"]
    assert "platform.runtime: '1.30' → '1.31'" in caplog.text
    assert [event.total for event in told if event.kind == "derived"] == [7, 7]


def test_a_derived_ref_is_no_name_to_put_under(cache: Cache) -> None:
    ref = f"derived:r/{'0' * 64}"

    with pytest.raises(errors.InvalidReferenceError):
        cache.put(b"x", name=ref)
    with pytest.raises(errors.InvalidReferenceError):
        cache.get("derived:r/../../etc/passwd")
    with pytest.raises(EntryNotFoundError):
        cache.get(ref)


def test_a_record_that_makes_no_sense_is_a_miss(cache: Cache) -> None:
    build = Counting()
    path = derive(cache, build)
    record = next(Path(cache.root, layout.DERIVED).iterdir())
    record.write_bytes(record.read_bytes()[:-20])

    assert derive(cache, build) == path
    assert build.calls == 2


def test_pin_info_verify_and_remove_take_what_was_derived(cache: Cache) -> None:
    ref = cache.explain(derive(cache, Counting())).ref

    cache.pin(ref)
    with pytest.raises(errors.PinnedError):
        cache.remove(ref)
    assert cache.unpin(ref)
    assert cache.verify(ref).ok
    assert cache.lookup(ref) is not None
    assert cache.remove(ref)
    assert cache.lookup(ref) is None
    assert cache.lookup("m.bin") is not None


# -- what a build may leave --------------------------------------------------------------------------------------------


def write(path: str, content: bytes = b"x") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def a_directory(workspace: Workspace) -> None:
    write(f"{workspace}/Net.dir/deep/weights")
    write(f"{workspace}/Net.dir/run.sh")
    Path(f"{workspace}/Net.dir/run.sh").chmod(0o700)


def several(workspace: Workspace) -> None:
    write(f"{workspace}/one")
    write(f"{workspace}/two/three")


def returning(workspace: Workspace) -> str:
    write(f"{workspace}/scratch")
    write(f"{workspace}/out/model.bin", b"returned")
    return "out/model.bin"


def test_a_product_is_a_file_a_directory_or_what_the_build_returns(cache: Cache) -> None:
    tree = derive(cache, a_directory, version="tree")
    together = derive(cache, several, version="several", name="all")
    returned = derive(cache, returning, version="returned")
    renamed = derive(cache, Counting(), version="named", name="other.bin")

    assert sorted(str(one.relative_to(tree)) for one in Path(tree).rglob("*")) == ["deep", "deep/weights", "run.sh"]
    assert os.access(f"{tree}/run.sh", os.X_OK)
    assert os.stat(f"{tree}/deep/weights").st_mode & 0o777 == 0o444
    assert sorted(os.listdir(together)) == ["one", "two"]
    assert [os.path.basename(path) for path in (tree, together, returned, renamed)] == [
        "Net.dir", "all", "model.bin", "other.bin",
    ]  # fmt: skip
    assert Path(returned).read_bytes() == b"returned"


def test_hidden_directories_and_second_names_of_files_are_made_like_all_others(cache: Cache, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"shared")

    def build(workspace: Workspace) -> None:
        os.mkdir(f"{workspace}/d", 0o700)
        os.link(outside, f"{workspace}/d/linked")

    path = derive(cache, build)

    assert os.stat(path).st_mode & 0o777 == os.stat(os.path.dirname(path)).st_mode & 0o777
    outside.write_bytes(b"written to later")
    assert Path(path, "linked").read_bytes() == b"shared"


def test_a_file_that_is_here_already_is_not_stored_again(cache: Cache) -> None:
    source = cache.get("m.bin")

    def build(workspace: Workspace) -> None:
        write(f"{workspace}/d/copy", SOURCE)
        write(f"{workspace}/d/new", b"new")

    path = derive(cache, build)

    assert os.path.samefile(f"{path}/copy", source)


def nothing(_workspace: Workspace) -> None:
    pass


def an_empty_file(workspace: Workspace) -> None:
    write(f"{workspace}/model.bin", b"")


def an_empty_directory(workspace: Workspace) -> None:
    Path(workspace, "d/e").mkdir(parents=True)


def beside_it(workspace: Workspace) -> None:
    write(f"{workspace}/model.bin")
    write(f"{os.path.dirname(workspace)}/elsewhere")


def a_link(workspace: Workspace) -> None:
    os.symlink("/etc/passwd", f"{workspace}/model.bin")


def a_link_inside(workspace: Workspace) -> None:
    write(f"{workspace}/d/model.bin")
    os.symlink("/etc/passwd", f"{workspace}/d/passwd")


def a_fifo(workspace: Workspace) -> None:
    os.mkfifo(f"{workspace}/model.bin")


def a_path_outside(_workspace: Workspace) -> str:
    return "/etc/passwd"


def a_path_through_a_link(workspace: Workspace) -> str:
    os.symlink("/etc", f"{workspace}/etc")
    return f"{workspace}/etc/passwd"


def a_path_where_nothing_is(workspace: Workspace) -> str:
    write(f"{workspace}/model.bin")
    return f"{workspace}/other.bin"


def a_number(workspace: Workspace) -> int:
    write(f"{workspace}/model.bin")
    return 7


def two_names_that_are_one(workspace: Workspace) -> None:
    write(f"{workspace}/d/Model.bin")
    write(f"{workspace}/d/model.bin")


def a_listing(workspace: Workspace) -> None:
    write(f"{workspace}/.listing/x")


def writes_to_its_input(workspace: Workspace) -> None:
    write(f"{workspace}/model.bin")
    Path(workspace.inputs["0"]).chmod(0o644)
    os.utime(workspace.inputs["0"], ns=(1, 1))


@pytest.mark.parametrize(
    "build",
    [
        nothing, an_empty_file, an_empty_directory, beside_it, a_link, a_link_inside, a_fifo, a_path_outside,
        a_path_through_a_link, a_path_where_nothing_is, a_number, two_names_that_are_one, several, writes_to_its_input,
    ],
    ids=lambda build: build.__name__,
)  # fmt: skip
@pytest.mark.parametrize("isolate", [False, True], ids=["here", "apart"])
def test_what_is_no_product_is_refused_and_nothing_is_left(cache: Cache, build: Any, isolate: bool) -> None:
    with pytest.raises(ProductError) as caught:
        derive(cache, build, isolate=isolate)

    assert "nothing was cached" in str(caught.value)
    assert [entry.key for entry in cache.entries()] == ["m.bin"]
    assert derive(cache, Counting())


def test_a_name_of_the_cache_itself_is_no_name_of_a_product(cache: Cache) -> None:
    with pytest.raises((DerivationError, UsageError)):
        derive(cache, a_listing)


def test_a_product_that_is_still_being_written_is_refused(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = files.digest_of

    def late(path: str) -> Any:
        found = hashing(path)
        if path.endswith("late.bin"):
            Path(path).write_bytes(b"more")
        return found

    monkeypatch.setattr(files, "digest_of", late)

    with pytest.raises(ProductError, match="still being written"):
        derive(cache, Counting(name="late.bin"))


# -- checks ------------------------------------------------------------------------------------------------------------


def refuses(_path: str) -> None:
    raise ValueError("it answers 43")


def dies(_path: object) -> None:
    print("the runtime gives up")
    os.kill(os.getpid(), signal.SIGSEGV)


def writes_beside(path: str) -> None:
    write(f"{path}/more")


def test_a_product_is_checked_before_anybody_can_see_it(cache: Cache) -> None:
    seen = []

    def check(path: str) -> None:
        seen.append(Path(path).read_bytes())
        assert not Path(cache.root, layout.DERIVED).exists()

    derive(cache, Counting(), check=check)
    derive(cache, Counting(), check=check)

    assert seen == [b"product"]


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "apart"])
def test_a_product_that_its_check_refuses_is_not_cached(cache: Cache, isolate: bool) -> None:
    with pytest.raises(ProductRefusedError, match="it answers 43"):
        derive(cache, a_directory, check=refuses, isolate=isolate)
    with pytest.raises(ProductError, match="its check wrote to it"):
        derive(cache, a_directory, check=writes_beside, isolate=isolate)

    assert derive(cache, a_directory)


def test_a_product_that_kills_its_check_is_set_aside_for_who_looks_why(cache: Cache) -> None:
    for _ in range(2):
        with pytest.raises(BuildDiedError, match="SIGSEGV") as caught:
            derive(cache, a_directory, check=dies, isolate=True)

    moved = Path(caught.value.moved_to)
    assert [one.name for one in moved.parent.iterdir()] == [moved.name]  # One of an action is kept.
    assert (moved / "Net.dir/deep/weights").exists()
    reason = json.loads((moved / "REASON.json").read_text())
    assert reason["recipe"] == "r"
    assert "SIGSEGV" in reason["reason"]
    assert "the runtime gives up" in caught.value.said


# -- builds that fail --------------------------------------------------------------------------------------------------


def raises(_workspace: Workspace, what: str = "no such operator") -> None:
    raise ValueError(what)


def exits(_workspace: Workspace) -> None:
    os._exit(3)


def hangs(_workspace: Workspace) -> None:
    signal.pause()


def typed(_workspace: Workspace) -> None:
    raise UsageError(problem="the model is too old")


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "apart"])
def test_a_build_that_raises_is_a_typed_error(cache: Cache, isolate: bool) -> None:
    with pytest.raises(BuildFailedError, match="ValueError: no such operator") as caught:
        derive(cache, raises, isolate=isolate)
    assert (caught.value.exit_code, caught.value.error, caught.value.model) == (13, "ValueError", "m.bin")
    with pytest.raises(UsageError, match="too old"):
        derive(cache, typed, isolate=isolate)


def test_a_build_that_dies_hangs_or_cannot_travel_is_a_typed_error(cache: Cache) -> None:
    with pytest.raises(BuildDiedError, match="SIGSEGV"):
        derive(cache, dies, isolate=True)
    with pytest.raises(BuildDiedError, match="exit code 3"):
        derive(cache, exits, isolate=True)
    with pytest.raises(BuildTimeoutError) as caught:
        derive(cache, hangs, isolate=True, timeout=0.3)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        derive(cache, lambda workspace: None, isolate=True)
    assert derive(cache, partial(a_directory), isolate=True)


def test_a_build_here_is_told_when_its_time_is_over(cache: Cache) -> None:
    def patient(workspace: Workspace) -> None:
        while True:
            workspace.check()

    with pytest.raises(BuildTimeoutError):
        derive(cache, patient, timeout=0.05)


def test_a_build_that_fails_the_same_way_three_times_is_left_alone(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        with pytest.raises(BuildFailedError):
            derive(cache, raises)

    never = Counting()
    with pytest.raises(RepeatedFailureError) as caught:
        derive(cache, never)
    assert (never.calls, caught.value.count) == (0, 3)
    assert 500 < caught.value.retry_after <= 600
    assert "no such operator" in str(caught.value)

    assert derive(cache, Counting(), version="2")  # Another action is not concerned.
    later = time.monotonic() + 601
    monkeypatch.setattr(failures.time, "monotonic", lambda: later)  # type: ignore[attr-defined]
    with pytest.raises(BuildFailedError):
        derive(cache, raises)
    with pytest.raises(RepeatedFailureError, match="4 times") as caught:
        derive(cache, raises)
    assert 1100 < caught.value.retry_after <= 1200


def test_force_tries_what_has_failed_and_success_forgets_it(cache: Cache) -> None:
    for _ in range(3):
        with pytest.raises(BuildFailedError):
            derive(cache, raises)

    assert derive(cache, Counting(), force=True)
    assert os.listdir(f"{cache.root}/{layout.FAILURES}") == []


def test_failures_of_several_ways_are_not_added_up(cache: Cache) -> None:
    for number in range(6):
        with pytest.raises(DerivationError) as caught:
            derive(cache, (raises, nothing)[number % 2])
        assert not isinstance(caught.value, RepeatedFailureError)


def test_what_is_not_the_fault_of_a_build_is_not_remembered(cache: Cache) -> None:
    def interrupted(_workspace: Workspace) -> None:
        raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            derive(cache, interrupted)
    assert derive(cache, Counting())


def test_a_build_that_took_its_process_along_three_times_is_left_alone(cache: Cache) -> None:
    for _ in range(3):
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # It would tell on stderr what this test is about.
            derive(Cache(cache.root), dies)
        assert os.waitpid(child, 0)[1] & 0x7F == signal.SIGSEGV

    with pytest.raises(RepeatedFailureError, match="the process that built it died"):
        derive(cache, Counting())
    assert derive(cache, Counting(), force=True)


def test_a_disk_that_is_full_is_not_the_fault_of_a_build(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_workspace: Workspace) -> None:
        raise OSError(28, "No space left on device", "/somewhere")

    for _ in range(4):
        with pytest.raises(NoSpaceError):
            derive(cache, full)

    def no_room(_path: str, _needed: int, *, what: str) -> None:
        raise NoSpaceError(what=what, needed=1, free=0)

    monkeypatch.setattr(files, "check_space", no_room)
    with pytest.raises(NoSpaceError):  # Whatever a runtime makes of it.
        derive(cache, raises)
    monkeypatch.undo()
    assert derive(cache, Counting())


# -- what is here is looked at -----------------------------------------------------------------------------------------


def test_a_file_of_a_product_that_was_written_to_is_noticed(cache: Cache) -> None:
    path = derive(cache, a_directory)
    weights = Path(path, "deep/weights")
    weights.chmod(0o644)
    weights.write_bytes(b"y")

    assert derive(cache, a_directory) == path

    assert weights.read_bytes() == b"x"
    assert len(os.listdir(f"{cache.root}/{layout.QUARANTINE}")) == 1


def test_a_file_of_a_product_that_is_gone_is_noticed(cache: Cache) -> None:
    path = derive(cache, a_directory)
    Path(path, "deep/weights").unlink()

    assert Path(derive(cache, a_directory), "deep/weights").read_bytes() == b"x"


def test_a_product_that_was_only_touched_is_read_once_and_served(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    path = derive(cache, a_directory)
    os.utime(f"{path}/deep/weights")
    never = Counting()

    assert derive(cache, never) == path
    monkeypatch.setattr(files, "digest_of", None)  # It is not read a second time.
    assert derive(cache, never) == path
    monkeypatch.undo()
    assert never.calls == 0


def test_rot_that_leaves_no_trace_is_found_by_a_full_look(cache: Cache) -> None:
    path = derive(cache, a_directory)
    weights = Path(path, "deep/weights")
    before = weights.stat()
    weights.chmod(0o644)
    weights.write_bytes(b"y")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert derive(cache, a_directory, verify="full") == path
    assert weights.read_bytes() == b"x"


def test_verify_repair_forgets_a_product_that_is_corrupt(cache: Cache) -> None:
    path = derive(cache, Counting())
    Path(path).chmod(0o644)
    Path(path).write_bytes(b"another")

    report = cache.verify(repair=True)

    assert [finding.state for finding in report.bad] == ["corrupt"]
    assert report.ok
    build = Counting()
    assert derive(cache, build)
    assert build.calls == 1


def test_rebuild_compares_and_finds_what_depends_on_more_than_its_key(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Counting()
    path = derive(cache, build)
    monkeypatch.setenv("MODELCACHE_VERIFY_DERIVED", "1")

    with Cache(cache.root) as looking:
        assert derive(looking, build) == path
        build.content = b"another"
        with pytest.raises(NotReproducibleError, match="the whole file"):
            derive(looking, build)
        derive(looking, a_directory, version="tree")
        with pytest.raises(NotReproducibleError, match=r"deep/weights, one, run\.sh"):
            derive(looking, several, version="tree", name="Net.dir")
    assert Path(path).read_bytes() == b"product"
    assert build.calls == 3


def test_force_builds_what_is_here_anew(cache: Cache) -> None:
    build = Counting()
    derive(cache, build)
    build.content = b"new product"

    path = derive(cache, build, force=True)

    assert Path(path).read_bytes() == b"new product"
    assert derive(cache, build) == path
    assert build.calls == 2


def test_a_tier_serves_what_another_cache_has_built(cache: Cache, tmp_path: Path) -> None:
    path = derive(cache, a_directory)
    for mode in ("in-place", "promote"):
        never = Counting()
        with Cache(tmp_path / mode, tiers=[f"{cache.root},{mode}"]) as above:
            above.put(SOURCE, name="m.bin")
            found = [derive(above, never) for _ in range(2)]
            assert (found[0] == path) == (mode == "in-place")
            assert Path(found[1], "deep/weights").read_bytes() == b"x"
            assert above.explain(found[0]).recipe == "r" if mode == "promote" else True
        assert never.calls == 0


def test_what_was_derived_is_not_exported(cache: Cache, tmp_path: Path) -> None:
    ref = cache.explain(derive(cache, Counting())).ref

    with pytest.raises(UsageError, match="was derived, and is not exported"):
        cache.export("m.bin", ref, to=tmp_path / "b")
    assert not (tmp_path / "b").exists()


# -- gc ----------------------------------------------------------------------------------------------------------------


def collected(cache: Cache, **options: Any) -> list[tuple[str, str]]:
    plan = cache.plan_gc(grace=0, **options)
    report = plan.execute()
    return [(key, item.reason) for item in report.removed for key in item.keys]


def test_what_was_derived_goes_before_its_input_and_that_stays_if_there_is_room_then(cache: Cache) -> None:
    ref = cache.explain(derive(cache, Counting(bytes(5000)))).ref
    record = Path(cache.root, layout.ENTRIES, layout.key_id("m.bin"))
    os.utime(record, (1, 1))  # The input was last used long before.

    gone = collected(cache, capacity=3000)

    assert gone == [(ref, "what it was derived from goes")]
    assert cache.lookup("m.bin") is not None


def test_an_input_goes_with_all_that_was_derived_from_it(cache: Cache) -> None:
    first = derive(cache, Counting(b"1"))
    ref = cache.explain(first).ref
    second = cache.explain(derive(cache, Counting(b"2"), inputs=[first], version="2")).ref

    gone = [key for key, _ in collected(cache, unused_for=0)]

    assert gone.index(second) < gone.index(ref) < gone.index("m.bin")
    assert cache.entries() == []


def test_an_input_stays_while_what_was_derived_from_it_must(cache: Cache) -> None:
    path = derive(cache, Counting())
    ref = cache.explain(path).ref

    cache.pin(ref)
    assert collected(cache, unused_for=0) == []
    cache.unpin(ref)
    with cache.lease(ref):
        assert collected(cache, unused_for=0) == []
        with pytest.raises(errors.LeasedError):
            cache.remove("m.bin")
    assert len(collected(cache, unused_for=0)) == 2


def test_what_was_derived_from_what_has_gone_goes(cache: Cache) -> None:
    ref = cache.explain(derive(cache, Counting())).ref
    cache.put(b"other weights", name="m.bin")  # The old ones are named by nobody now.

    assert collected(cache) == [(ref, "what it was derived from goes")]
    assert [entry.key for entry in cache.entries()] == ["m.bin"]


def test_what_two_inputs_lead_to_needs_neither(cache: Cache) -> None:
    cache.put(b"other weights", name="n.bin")
    assert derive(cache, Counting()) == derive(cache, Counting(), inputs=["n.bin"])
    cache.put(b"newer weights", name="n.bin")

    assert collected(cache) == []
    assert derive(cache, nothing)


def test_an_input_stays_while_it_is_read(cache: Cache) -> None:
    def build(workspace: Workspace) -> None:
        with Cache(cache.root) as other:
            assert collected(other, unused_for=0) == []
            with pytest.raises(errors.LeasedError):
                other.remove("m.bin")
        write(f"{workspace}/out", Path(workspace.inputs["0"]).read_bytes())

    assert Path(derive(cache, build)).read_bytes() == SOURCE


def test_a_product_makes_room_for_itself_and_one_that_cannot_fit_is_remembered(cache: Cache, tmp_path: Path) -> None:
    with Cache(tmp_path / "small", capacity=10_000, grace=0) as small:
        small.put(bytes(3000), name="old")
        small.put(SOURCE, name="m.bin")
        derive(small, Counting(bytes(7000)))
        assert small.lookup("old") is None
        for _ in range(3):
            with pytest.raises(errors.CapacityError) as caught:
                derive(small, Counting(bytes(20_000)), version="2")
            facts = caught.value.facts
            assert (facts["needed"], facts["capacity"]) == (20_000, 10_000)
            assert facts["used"] < 10_000  # Without the product itself, which lies in staging.
        with pytest.raises(RepeatedFailureError):
            derive(small, Counting(bytes(20_000)), version="2")
        assert small.lookup("m.bin") is not None


def test_remove_takes_what_was_derived_along_unless_another_ref_has_the_content(cache: Cache) -> None:
    cache.put(SOURCE, name="again.bin")
    ref = cache.explain(derive(cache, Counting())).ref

    cache.remove("m.bin")
    assert cache.lookup(ref) is not None
    cache.remove("again.bin")
    assert cache.lookup(ref) is None
    assert os.listdir(f"{cache.root}/{layout.OBJECTS}") == []


# -- many at once ------------------------------------------------------------------------------------------------------


def test_tasks_that_ask_at_once_share_one_build(cache: Cache) -> None:
    build = Counting()

    async def all_of_them() -> list[str]:
        options: dict[str, Any] = {"recipe": "r", "version": "1", "inputs": ["m.bin"]}
        return await asyncio.gather(*(cache.aderive(build, **options) for _ in range(20)))

    assert len(set(asyncio.run(all_of_them()))) == 1
    assert build.calls == 1


def test_a_task_that_is_cancelled_ends_its_build(cache: Cache) -> None:
    started = asyncio.Event()

    async def give_up() -> None:
        loop = asyncio.get_running_loop()

        def forever(workspace: Workspace) -> None:
            loop.call_soon_threadsafe(started.set)
            while True:
                workspace.check()

        task = asyncio.create_task(cache.aderive(forever, recipe="r", version="1", inputs=["m.bin"]))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())


def test_a_build_may_derive_what_it_needs(cache: Cache) -> None:
    def outer(workspace: Workspace) -> None:
        inner = derive(cache, Counting(b"inner"), recipe="inner")
        write(f"{workspace}/outer", Path(inner).read_bytes() * 2)

    assert Path(derive(cache, outer)).read_bytes() == b"innerinner"


def test_a_build_that_asks_for_itself_is_told(cache: Cache) -> None:
    def endless(_workspace: Workspace) -> None:
        derive(cache, endless)

    with pytest.raises(ModelCacheError, match="asked for by"):
        derive(cache, endless)


def test_the_key_is_what_the_documentation_says() -> None:
    what = Derivation("r", "1", (), {"b": [1, None], "a": "é"}, {})

    text = '{"inputs":[],"params":{"a":"\\u00e9","b":[1,null]},"platform":{},"recipe":"r","version":"1"}'
    assert (what.canonical, what.action) == (text, hashlib.sha256(text.encode()).hexdigest())
