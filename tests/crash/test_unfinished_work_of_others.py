"""What one process promises must not hang on what another one has begun and not synced.

The other one is killed between a change of names and its sync, or it stands there: the second one runs in between two
steps of the first, at every step. Then the power is cut, as in `test_power_loss`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import failpoints
from modelcache import commit
from modelcache.digest import Digest
from modelcache.objects import Objects
from modelcache.partials import Partials
from modelcache.pins import Pins
from modelcache.sweep import sweep
from modelcache.testing import FaultServer
from tests.crash.disk import MODELS
from tests.crash.test_power_loss import cut
from tests.crash.world import NEW, OLD, Act, Log, Operation, World, digest_of, forked, judge, small_steps

STATES = {"small": 24, "large": 400}
_BETWEEN_LOOK_AND_MOVE = {"ensure_bucket", "_settle", "sync_directory", "rename"}
STATES_BETWEEN = {"small": 4, "large": 60}
_STEPS = (
    "commit_object", "commit_record", "add_name", "rename", "put_back", "remove_record", "ensure_bucket", "make_mark",
    "remove_quietly", "create_file", "sync_directory", "settle", "_make_directory", "discard",
)  # fmt: skip


def killed(spec: str, work: Callable[[], object]) -> None:
    """Do *work* in a process that dies at a fail point."""

    def inner() -> None:
        with failpoints.scenario(spec):
            work()

    child = forked(inner)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, f"{spec} was not reached"


def put_after(point: str, *, first: bytes | None) -> Operation:
    """A put that was killed at *point*, and once more. What is there *first* is under another name."""

    def put(world: World) -> Act:
        world.legit.setdefault("n", set()).add(digest_of(OLD))
        if first is not None:
            world.put(first, "kept")

        def act(log: Log) -> None:
            if first is not None:
                log.expect("kept", digest_of(first))
            killed(f"{point}=kill" if "=" not in point else point, lambda: world.put(OLD, "n"))
            world.put(OLD, "n")
            log.expect("n", digest_of(OLD))

        return act

    put.__name__ = f"put after {point}"
    return put


def get_on_a_root_that_a_put_made(world: World) -> Act:
    """Whoever fetches makes the root's own name durable, although it found the root made."""
    world.serve(OLD)

    def act(log: Log) -> None:
        killed("commit.before-sync-root=kill", lambda: world.put(NEW, "n"))
        world.cache().get(world.url)
        log.expect(world.url, digest_of(OLD))

    return act


def link_by_digest(world: World) -> Act:
    """A put died behind its object's rename; the object is found, and linked, by its digest."""
    world.put(NEW, "kept")
    world.serve(OLD)
    world.legit.setdefault("m.onnx", set()).add(digest_of(OLD))

    def act(log: Log) -> None:
        killed("commit.before-sync-objects=kill", lambda: world.put(OLD, "m.onnx"))
        world.cache().get(world.url, digest=digest_of(OLD))
        log.expect(world.url, digest_of(OLD))

    return act


def remove_again(world: World) -> Act:
    world.put(OLD, "n")

    def act(log: Log) -> None:
        log.expect("n", digest_of(OLD), None)
        killed("commit.before-sync-removal=kill", lambda: world.cache().remove("n"))
        world.cache().remove("n")
        log.expect("n", None)

    return act


def sweep_up(world: World) -> Act:
    """A removal died with the object in trash; somebody has recorded it meanwhile, and the next sweep puts it back."""
    world.put(OLD, "n")
    objects = Objects(str(world.root))
    killed("commit.before-discard=kill", lambda: objects.remove(Digest(digest_of(OLD)), is_named=lambda _: False))

    def act(log: Log) -> None:
        sweep(str(world.root))
        log.expect("n", digest_of(OLD))

    return act


def pin_again(world: World) -> Act:
    world.put(OLD, "n")

    def act(log: Log) -> None:
        killed("commit.before-sync-records=kill", lambda: world.cache().pin("n"))
        world.cache().pin("n")
        log.expect("pinned", "n")

    return act


AFTER_A_KILL: list[Operation] = [
    put_after("commit.before-sync-records=1*off->kill", first=None),
    sweep_up,
    pin_again,
    put_after("commit.before-create-file", first=None),
    put_after("commit.before-rename-record", first=None),
    put_after("commit.before-sync-root", first=None),
    get_on_a_root_that_a_put_made,
    put_after("commit.before-sync-objects", first=NEW),
    put_after("commit.before-sync-link", first=OLD),
    link_by_digest,
    remove_again,
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("operation", AFTER_A_KILL, ids=lambda operation: operation.__name__)
def test_a_promise_does_not_hang_on_what_a_killed_process_left_unsynced(
    operation: Operation,
    model: str,
    server: FaultServer,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_steps(monkeypatch)
    seed, states = pytestconfig.getoption("--crash-seed"), STATES[pytestconfig.getoption("--crash-budget")]

    def judged(world: World, root: Path, expected: dict[str, frozenset[str | None]]) -> list[str]:
        if "pinned" in expected and not Pins(str(root)).has("n"):
            return ["the pin is lost"]
        if operation is sweep_up and not expected:
            return []  # Its record names what is in trash: that is where this one begins.
        return judge(world, root, expected)

    wrong, tried, _ = cut(operation, model, states, server, tmp_path, seed, judged)

    print(f"{operation.__name__}, {model}: {tried} states tried, seed {seed}")
    assert wrong == []


@contextmanager
def at_step(number: int, work: Callable[[], object]) -> Iterator[list[str]]:
    """Do *work* right before the step *number* of `commit` in the block; yield the steps that were reached."""
    reached: list[str] = []

    def hooked(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            reached.append(name)
            if len(reached) == number:
                patch.undo()
                patch.setattr(commit, "_settled", set())  # Another process knows nothing of what this one has synced.
                work()
                patch.undo()
            return call(*arguments, **options)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in _STEPS:
            patch.setattr(commit, name, hooked(name, getattr(commit, name)))
        yield reached


Pair = Callable[[World], tuple[Callable[[Log], None], Callable[[Log], None]]]


def puts_on_a_new_root(world: World) -> tuple[Callable[[Log], None], Callable[[Log], None]]:
    return storing(world, OLD, "n"), storing(world, OLD, "m")


def the_same_second_name(world: World) -> tuple[Callable[[Log], None], Callable[[Log], None]]:
    world.put(OLD, "kept")
    return storing(world, OLD, "n"), storing(world, OLD, "n")


def put_and_remove(world: World) -> tuple[Callable[[Log], None], Callable[[Log], None]]:
    world.put(OLD, "n")
    return dropping(world, OLD, "n"), storing(world, OLD, "m")


def remove_and_put(world: World) -> tuple[Callable[[Log], None], Callable[[Log], None]]:
    removing, putting = put_and_remove(world)
    return putting, removing


def pins(world: World) -> tuple[Callable[[Log], None], Callable[[Log], None]]:
    world.put(OLD, "n")

    def pin(log: Log) -> None:
        world.cache().pin("n")
        log.expect("n", digest_of(OLD))

    return pin, pin


def storing(world: World, content: bytes, name: str) -> Callable[[Log], None]:
    world.legit.setdefault(name, set()).add(digest_of(content))

    def store(log: Log) -> None:
        world.put(content, name)
        log.expect(name, digest_of(content))

    return store


def dropping(world: World, content: bytes, name: str) -> Callable[[Log], None]:
    def drop(log: Log) -> None:
        log.expect(name, digest_of(content), None)
        world.cache().remove(name)
        log.expect(name, None)

    return drop


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pair", [puts_on_a_new_root, the_same_second_name, put_and_remove, remove_and_put, pins])
def test_two_that_are_interleaved_at_every_step_both_keep_their_promises(
    pair: Pair,
    model: str,
    server: FaultServer,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed, states = pytestconfig.getoption("--crash-seed"), STATES_BETWEEN[pytestconfig.getoption("--crash-budget")]
    monkeypatch.setattr("modelcache.objects._REMOVAL_S", 0.0)  # One thread plays both: nobody can wait for the other.
    number, tried, done = 0, 0, False
    while not done:
        number += 1
        monkeypatch.setattr(commit, "_settled", set())
        reached: list[str] = []

        def interleaved(world: World) -> Act:
            first, second = pair(world)

            def act(log: Log) -> None:
                nonlocal reached
                with at_step(number, lambda: second(log)) as reached:  # noqa: B023  # Called in this very turn.
                    first(log)

            return act

        place = tmp_path / str(number)
        place.mkdir()
        wrong, count, _ = cut(interleaved, model, states, server, place, seed)
        tried += count
        if model == "weak" and pair is put_and_remove and reached[-1] in _BETWEEN_LOOK_AND_MOVE:
            # The put has waited `_REMOVAL_S` in vain for a removal that was stopped right there. Where a rename is two
            # changes, a cut may then leave the content without a name (README.md, what is not promised).
            wrong = [what for what in wrong if "I2 dangling: m" not in what and "lost: m is None" not in what]
        assert wrong == [], f"the second one ran before step {number}, {reached[-1]}"
        done = len(reached) < number
    print(f"{pair.__name__}, {model}: {number - 1} interleavings, {tried} states tried, seed {seed}")
    assert number > 5


@pytest.mark.parametrize("model", MODELS)
def test_bytes_that_were_synced_are_resumed_after_a_cut(
    model: str, server: FaultServer, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    states = 4 * STATES[pytestconfig.getoption("--crash-budget")]

    def download(world: World) -> Act:
        world.put(NEW, "kept")

        def act(log: Log) -> None:
            partial = Partials(str(world.root)).create("key", "m.onnx")
            partial.describe({"place": "key"}, len(OLD))
            for start in range(0, 60_000, 20_000):
                chunk = OLD[start : start + 20_000]
                partial.append(chunk)
                partial.hash(chunk)
                if start < 40_000:
                    partial.journal(partial.length, partial.digest)
                    log.expect("key", str(partial.length), *(str(more) for more in range(partial.length + 1, 60_001)))

        return act

    def resumable(_: World, root: Path, expected: dict[str, frozenset[str | None]]) -> list[str]:
        found = Partials(str(root)).claim("key", "m.onnx")
        length = 0 if found is None else found.length
        legit = expected.get("key")
        if found is not None:
            same = digest_of(OLD[:length]) == found.digest
            found.discard()
            if not same:
                return [f"{length} bytes are resumed, and they are not those that came"]
        return [] if legit is None or str(length) in legit else [f"{length} bytes are resumed"]

    wrong, tried, _ = cut(download, model, states, server, tmp_path, 0, judged=resumable)

    print(f"{model}: {tried} states tried")
    assert wrong == []
