"""SIGKILL at every fail point of every operation: what was acknowledged is there, nothing wrong is, and work goes on.

The points are collected from the source, so that a new mark is tested at once; one that no operation reaches is a
failure of its own. The victim is a forked child, so that some hundred kills take seconds. With ``--crash-budget=large``
each point also kills at its second and third passage, and later ones.
"""

from __future__ import annotations

import ast
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import failpoints
import modelcache
from modelcache import Cache, Entry, RetryPolicy, commit, errors
from modelcache.objects import Objects
from modelcache.records import Entries
from modelcache.sweep import sweep
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers, wrong_objects

OLD = random.Random(10).randbytes(1_500_000)
NEW = random.Random(11).randbytes(1_500_000)


def points() -> list[str]:
    found = []
    for path in sorted(Path(modelcache.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fail_point":
                assert isinstance(node.args[0], ast.Constant)
                found.append(str(node.args[0].value))
    return found


POINTS = points()


class World:
    """A server, a root, and what an operation may have changed in it."""

    def __init__(self, server: FaultServer, root: Path) -> None:
        self.server, self.root = server, root
        self.url = server.url("/m.onnx")
        self.must: set[bytes] = set()  # What was acknowledged.

    def cache(self) -> Cache:
        return Cache(self.root, retry=RetryPolicy(attempts=2, base=0))

    def child(self, work: Callable[[Cache], object], spec: str = "") -> int:
        """Do *work* in a forked child with the fail points of *spec*; return its exit code."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # The server has threads; the child does not use them.
            pid = os.fork()
        if pid == 0:
            try:
                with failpoints.scenario(spec):
                    work(self.cache())
                os._exit(0)
            except BaseException:  # noqa: BLE001  # Whatever it is, the child must not go on as pytest.
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def cold_get(world: World) -> Iterator[Callable[[Cache], object]]:
    world.server.add("/m.onnx", OLD)
    yield lambda cache: cache.get(world.url)
    assert Path(world.cache().get(world.url)).read_bytes() == OLD


def resumed_get(world: World) -> Iterator[Callable[[Cache], object]]:
    world.server.add("/m.onnx", OLD, [Fault(abort_after=700_000)])
    stopped = world.child(lambda cache: Cache(world.root, retry=RetryPolicy(attempts=1)).get(world.url))
    assert stopped == 1
    yield lambda cache: cache.get(world.url)
    assert Path(world.cache().get(world.url)).read_bytes() == OLD


def restarted_get(world: World) -> Iterator[Callable[[Cache], object]]:
    world.server.add("/m.onnx", NEW, [Fault(abort_after=700_000)])
    world.child(lambda cache: Cache(world.root, retry=RetryPolicy(attempts=1)).get(world.url))
    world.server.add("/m.onnx", OLD)
    yield lambda cache: cache.get(world.url)
    assert Path(world.cache().get(world.url)).read_bytes() == OLD


def refresh(world: World) -> Iterator[Callable[[Cache], object]]:
    world.server.add("/m.onnx", OLD)
    world.cache().get(world.url)
    world.server.add("/m.onnx", NEW)
    yield lambda cache: cache.get(world.url, force_download=True)
    assert Path(world.cache().get(world.url)).read_bytes() in {OLD, NEW}
    assert Path(world.cache().get(world.url, force_download=True)).read_bytes() == NEW


def throttled_get(world: World) -> Iterator[Callable[[Cache], object]]:
    world.server.add("/m.onnx", OLD, [Fault(status=429, headers={"Retry-After": "0"}), Fault(status=429)])
    yield lambda cache: Cache(world.root, retry=RetryPolicy(attempts=5, base=0.01)).get(world.url)
    assert Path(Cache(world.root, retry=RetryPolicy(attempts=5, base=0.01)).get(world.url)).read_bytes() == OLD


def interrupted_get(world: World) -> Iterator[Callable[[Cache], object]]:
    world.server.add("/m.onnx", OLD, [Fault(abort_after=700_000)])

    def work(_cache: Cache) -> None:
        try:
            Cache(world.root, retry=RetryPolicy(attempts=1)).get(world.url)
        except errors.NetworkError:
            return

    yield work
    assert Path(world.cache().get(world.url)).read_bytes() == OLD


def put(world: World) -> Iterator[Callable[[Cache], object]]:
    world.cache().put(OLD, name="m")
    yield lambda cache: cache.put(NEW, name="m")
    assert Path(world.cache().get("m")).read_bytes() in {OLD, NEW}
    world.cache().put(NEW, name="m")
    assert Path(world.cache().get("m")).read_bytes() == NEW


def second_name(world: World) -> Iterator[Callable[[Cache], object]]:
    entry = world.cache().put(OLD, name="m")
    yield lambda cache: cache.get("https://unreachable.invalid/other.onnx", digest=entry.digest)
    again = world.cache().get("https://unreachable.invalid/other.onnx", digest=entry.digest)
    assert Path(again).read_bytes() == OLD


def remove(world: World) -> Iterator[Callable[[Cache], object]]:
    world.cache().put(OLD, name="keep")
    world.cache().put(NEW, name="m")
    yield lambda cache: cache.remove("m")
    assert world.cache().lookup("m") is None or Path(world.cache().get("m")).read_bytes() == NEW
    assert Path(world.cache().get("keep")).read_bytes() == OLD
    world.cache().remove("m")
    assert world.cache().lookup("m") is None


def remove_what_is_wanted(world: World) -> Iterator[Callable[[Cache], object]]:
    """Another process is about to record the very content that is being removed."""
    digest = world.cache().put(NEW, name="m").digest
    objects = Objects(str(world.root))
    with objects.announced(digest):
        yield lambda cache: cache.remove("m")
        # What that process does next, and that process has not died.
        staged = commit.stage_directory(str(world.root))
        Path(staged, "n").write_bytes(NEW)
        stored = objects.publish(staged, digest, "n")
        now = int(time.time())
        Entries(str(world.root)).write(
            Entry("n", digest, stored.path, stored.size, stored.name, "put", now, now, stored.mtime_ns)
        )
    assert Path(world.cache().get("n")).read_bytes() == NEW


def died_in_remove(world: World) -> Iterator[Callable[[Cache], object]]:
    """A process died with an object in trash that another one had named meanwhile; the victim brings it back."""
    world.cache().put(NEW, name="n")
    digest = world.cache().put(NEW, name="m").digest
    died = world.child(
        lambda cache: Objects(str(world.root)).remove(digest, is_named=lambda _: False), "commit.before-discard=kill"
    )
    assert died == -signal.SIGKILL
    yield lambda cache: cache.get("n")
    assert Path(world.cache().get("n")).read_bytes() == NEW


def pin_and_unpin(world: World) -> Iterator[Callable[[Cache], object]]:
    world.cache().put(OLD, name="m")

    def work(cache: Cache) -> None:
        cache.pin("m")
        cache.unpin("m")

    yield work
    assert Path(world.cache().get("m")).read_bytes() == OLD


def repair(world: World) -> Iterator[Callable[[Cache], object]]:
    world.server.add("/m.onnx", OLD)
    path = Path(world.cache().get(world.url))
    path.chmod(0o644)
    path.write_bytes(NEW)
    yield lambda cache: cache.verify(repair=True)
    assert Path(world.cache().get(world.url)).read_bytes() == OLD


def contended_get(world: World) -> Iterator[Callable[[Cache], object]]:
    """The victim waits for a lock that its parent holds in another process."""
    world.server.add("/m.onnx", OLD, [Fault(hold_after=200_000)])
    ready, told = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        holder = os.fork()
    if holder == 0:
        try:
            os.write(told, b"x")
            world.cache().get(world.url)
            os._exit(0)
        except BaseException:  # noqa: BLE001  # As above.
            os._exit(1)
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    world.server.wait_for_sent(200_000)
    yield lambda cache: Cache(world.root, lock_timeout=0.05).get(world.url)
    world.server.release()
    os.waitpid(holder, 0)
    assert Path(world.cache().get(world.url)).read_bytes() == OLD


OPERATIONS = [
    cold_get, resumed_get, restarted_get, interrupted_get, refresh, throttled_get, contended_get,
    put, second_name, remove, remove_what_is_wanted, died_in_remove, pin_and_unpin, repair,
]  # fmt: skip
reached: set[str] = set()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_kill_at_any_point_leaves_a_cache_that_serves_only_whole_content(
    operation: Callable[[World], Iterator[Callable[[Cache], object]]],
    tmp_path: Path,
    pytestconfig: pytest.Config,
) -> None:
    large = pytestconfig.getoption("--crash-budget") == "large"
    kills = 0
    for point in POINTS:
        for passed in range(8 if large else 1):
            root = tmp_path / f"{point}-{passed}"
            with FaultServer() as server:
                world = World(server, root)
                story = operation(world)
                work = next(story)

                code = world.child(work, f"{point}={f'{passed}*off->' if passed else ''}kill")
                if code == -signal.SIGKILL:
                    kills += 1
                    reached.add(point)
                assert code in {0, -signal.SIGKILL}, f"{point}: the victim failed by itself"
                if operation is not repair:  # There the damage is done beforehand, and not by us.
                    assert wrong_objects(root) == [], point
                with pytest.raises(StopIteration):
                    next(story)

            sweep(str(root))
            assert wrong_objects(root) == [], point
            assert [name for name in leftovers(root) if not name.startswith("partial-v1")] == [], point
            if code != -signal.SIGKILL:
                break
    print(f"{operation.__name__}: {kills} kills")
    assert kills > 0


@pytest.mark.parametrize("size", [0, 1, 60, 4000])
@pytest.mark.parametrize(
    ("operation", "point"),
    [
        (cold_get, "partials.before-append"), (resumed_get, "partials.before-append"), (put, "intake.before-write"),
        (put, "commit.before-write-record"), (refresh, "commit.before-write-record"),
        (pin_and_unpin, "commit.before-write-record"),
    ],
)  # fmt: skip
def test_a_kill_in_the_middle_of_a_write_is_no_other_than_one_before_it(
    operation: Callable[[World], Iterator[Callable[[Cache], object]]], point: str, size: int, tmp_path: Path
) -> None:
    for passed in range(4):
        root = tmp_path / f"{passed}"
        with FaultServer() as server:
            world = World(server, root)
            story = operation(world)

            code = world.child(next(story), f"{point}={f'{passed}*off->' if passed else ''}torn({size})")

            assert code in {0, -signal.SIGKILL}, "the victim failed by itself"
            assert passed > 0 or code == -signal.SIGKILL, "it was never reached"
            with pytest.raises(StopIteration):
                next(story)
        sweep(str(root))
        assert wrong_objects(root) == []
        assert [name for name in leftovers(root) if not name.startswith("partial-v1")] == []


def test_every_fail_point_was_reached_by_some_operation() -> None:
    if len(reached) == 0:
        pytest.skip("the operations above did not run in this session")
    assert sorted(set(POINTS) - reached) == []
