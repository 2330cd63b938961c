"""A plan of what would go, its execution, and the room that a fetch needs."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fasteners
import pytest

from modelcache import Cache, Entry, Event, commit, errors, footprint, gc, layout, locks, process
from modelcache.digest import Digest
from modelcache.download import Job
from modelcache.gc import Plan
from modelcache.leases import InUse, Leases
from modelcache.objects import Objects
from modelcache.records import Entries
from modelcache.reference import parse
from modelcache.testing import FaultServer, check_cache
from tests.support.state import leftovers, wrong_objects

HOUR, DAY = 3600.0, 86_400.0
SIZE = 1000


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache(root)


def store(cache: Cache, name: str, *, days: float = 0, size: int = SIZE) -> Entry:
    """Put a model that was last used *days* ago."""
    entry = cache.put(name.encode().ljust(size, b"."), name=name)
    used(cache, name, days)
    return entry


def used(cache: Cache, key: str, days: float) -> None:
    when = time.time() - days * DAY
    os.utime(Entries(cache.root).path(key), (when, when))


def refs(plan: Plan) -> list[str]:
    return [key for item in plan.items for key in item.keys]


def here(cache: Cache) -> list[str]:
    return [entry.key for entry in cache.entries()]


def test_a_plan_changes_nothing_and_its_execution_leaves_the_rest_whole(cache: Cache, root: Path) -> None:
    for days, name in enumerate("abcd"):
        store(cache, name, days=days)

    plan = cache.plan_gc(capacity=2 * SIZE)

    assert refs(plan) == ["d", "c"]
    assert (plan.used_bytes, plan.freed_bytes, plan.missing_bytes) == (4 * SIZE, 2 * SIZE, 0)
    assert here(cache) == ["a", "b", "c", "d"]
    report = plan.execute()
    assert report.freed_bytes == 2 * SIZE
    assert report.stayed == {}
    assert here(cache) == ["a", "b"]
    assert len(list((root / layout.OBJECTS).iterdir())) == 2
    assert check_cache(root) == []
    assert leftovers(root) == []
    assert refs(cache.plan_gc(capacity=2 * SIZE)) == []


def test_what_is_pinned_leased_or_used_of_late_stays_and_the_plan_says_how_much_that_is(cache: Cache) -> None:
    for name in ("pinned", "leased", "late", "free"):
        store(cache, name, days=9)
    cache.pin("pinned")
    with cache.lease("leased"):
        for name in ("pinned", "leased", "free"):
            used(cache, name, 9)
        used(cache, "late", 0.01)

        plan = cache.plan_gc(capacity=1, unused_for=0)

        assert refs(plan) == ["free"]
        assert plan.kept == {
            "pinned": SIZE, "leased": SIZE, "used within the grace period": SIZE, "wanted by a fetch": 0
        }  # fmt: skip
        assert plan.missing_bytes == 3 * SIZE - 1
        plan.execute()
        assert here(cache) == ["late", "leased", "pinned"]


def test_an_object_of_two_names_goes_with_both_and_is_counted_once(cache: Cache) -> None:
    for name in ("one", "two"):
        cache.put(b"x" * SIZE, name=name)
        used(cache, name, 9)

    plan = cache.plan_gc(unused_for=DAY)

    assert refs(plan) == ["one", "two"]
    assert plan.freed_bytes == plan.used_bytes == SIZE
    plan.execute()
    assert here(cache) == []


@pytest.mark.parametrize("keep", ["pin", "lease", "use"])
def test_an_object_of_two_names_stays_with_both_while_one_must_stay(keep: str, cache: Cache) -> None:
    for name in ("one", "two"):
        cache.put(b"x" * SIZE, name=name)
        used(cache, name, 9)
    if keep == "pin":
        cache.pin("two")
    elif keep == "lease":
        cache.lease("two")
    else:
        used(cache, "two", 0)

    assert refs(cache.plan_gc(unused_for=DAY, capacity=1)) == []


def _pin(cache: Cache, _entry: Entry) -> None:
    cache.pin("m")


def _lease(cache: Cache, _entry: Entry) -> None:
    cache.lease("m")


def _use(cache: Cache, _entry: Entry) -> None:
    cache.get("m")


def _put_again(cache: Cache, _entry: Entry) -> None:
    cache.put(b"m".ljust(SIZE, b"."), name="m")


def _name_anew(cache: Cache, _entry: Entry) -> None:
    cache.put(b"m".ljust(SIZE, b"."), name="n")


MEANWHILE = [_pin, _lease, _use, _put_again, _name_anew]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_what_is_wanted_since_the_plan_was_made_stays(
    meanwhile: Callable[[Cache, Entry], None], cache: Cache, root: Path
) -> None:
    entry = store(cache, "m", days=9)
    plan = cache.plan_gc(unused_for=DAY)
    meanwhile(Cache(root), entry)

    report = plan.execute()

    assert report.removed == ()
    assert list(report.stayed) == [layout.object_name(entry.digest)]
    assert Path(entry.path).exists()
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []


def test_what_is_leased_since_the_plan_was_made_keeps_its_entry_too(cache: Cache, root: Path) -> None:
    """By its lease alone: a get would have left a stamp."""
    name = layout.object_name(store(cache, "m", days=9).digest)
    plan = cache.plan_gc(unused_for=DAY)
    Leases(str(root)).hold(name)

    report = plan.execute()

    assert report.stayed == {name: "leased"}
    assert here(cache) == ["m"]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize(
    ("step", "passage"),
    [("make_mark", 1), ("move_durably", 1), ("remove_quietly", 1), ("move_durably", 2), ("discard", 1)],
)
def test_what_is_wanted_at_the_last_moment_is_there_afterwards(
    step: str,
    passage: int,
    meanwhile: Callable[[Cache, Entry], None],
    cache: Cache,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if gc had been stopped for longer than the others wait for it: who is told that it is there, has it."""
    monkeypatch.setattr("modelcache.objects._REMOVAL_S", 0.0)
    entry = store(cache, "m", days=9)
    plan = cache.plan_gc(unused_for=DAY)
    call = getattr(commit, step)
    outcome: list[str] = []
    calls: list[object] = []

    def hooked(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == passage:
            monkeypatch.setattr(commit, step, call)
            try:
                meanwhile(Cache(root), entry)
                outcome.append("there")
            except errors.EntryNotFoundError:
                outcome.append("gone")
            monkeypatch.setattr(commit, step, hooked)
        return call(*arguments)

    monkeypatch.setattr(commit, step, hooked)
    plan.execute()

    assert outcome == ["there"] or (outcome == ["gone"] and meanwhile in {_pin, _lease, _use})
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []
    if outcome == ["there"] and meanwhile in {_lease, _pin}:
        assert Path(entry.path).read_bytes() == b"m".ljust(SIZE, b".")
    if meanwhile in {_put_again, _name_anew}:
        assert cache.lookup("m" if meanwhile is _put_again else "n") is not None
    assert wrong_objects(root) == []


@pytest.mark.parametrize("look", [1, 2, 3])
def test_what_nobody_can_tell_whether_it_is_wanted_stays(
    look: int, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its records go, after that, and when it is in trash."""
    entry = store(cache, "m", days=9)
    plan = cache.plan_gc(unused_for=DAY)
    in_use, looks = Leases.in_use, []

    def failing(self: Leases) -> InUse:
        looks.append(self)
        if len(looks) == look:
            raise errors.StorageError(path=cache.root, action="list", reason="Too many open files")
        return in_use(self)

    with monkeypatch.context() as patch:
        patch.setattr(Leases, "in_use", failing)
        with pytest.raises(errors.StorageError):
            plan.execute()

    assert Path(entry.path).exists()
    assert leftovers(Path(cache.root)) == []


@pytest.mark.parametrize("step", ["sync_directory", "rename"])
def test_records_that_cannot_all_be_taken_away_all_stay(
    step: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        cache.put(b"x" * SIZE, name=name)
        used(cache, name, 9)
    plan = cache.plan_gc(unused_for=DAY)
    call, second = getattr(commit, step), Entries(cache.root).path("two")
    calls: list[tuple[object, ...]] = []

    def failing(*arguments: str) -> object:
        calls.append(arguments)
        if arguments[0] == second or (step == "sync_directory" and not os.path.exists(second)):
            monkeypatch.setattr(commit, step, call)
            raise OSError(errno.EIO, os.strerror(errno.EIO), arguments[0])
        return call(*arguments)

    monkeypatch.setattr(commit, step, failing)
    with pytest.raises(errors.StorageError):
        plan.execute()

    assert here(cache) == ["one", "two"]
    assert check_cache(cache.root) == []
    assert leftovers(Path(cache.root)) == []


def test_what_nothing_names_goes_unless_it_was_replaced_within_the_grace_period(cache: Cache, root: Path) -> None:
    old = cache.put(b"old" * 100, name="m")
    os.utime(Path(old.path).parent, (1, 1))
    cache.put(b"new" * 100, name="m")

    assert cache.plan_gc().items == ()  # Whoever has just got its path may be loading it.
    os.utime(Path(old.path).parent, (1, 1))
    (item,) = cache.plan_gc().items
    assert (item.name, item.reason) == (layout.object_name(old.digest), "nothing names it")
    cache.plan_gc().execute()
    assert check_cache(root) == []


def test_an_object_that_a_refresh_replaced_stays_for_the_grace_period(server: FaultServer, cache: Cache) -> None:
    url = server.add("/m.onnx", b"old" * 100)
    path = cache.get(url)
    os.utime(Path(path).parent, (1, 1))
    server.add("/m.onnx", b"new" * 100)
    cache.get(url, force_download=True)

    cache.plan_gc(capacity=1).execute()

    assert Path(path).exists()


def test_objects_of_other_kinds_are_known_by_the_name_of_their_directory(cache: Cache, root: Path) -> None:
    """Trees, say: what nothing names goes, and what is leased stays. What is no object at all is left alone."""
    store(cache, "m")
    names = [f"tree-{digit * 64}" for digit in "ab"]
    for name in (*names, "readme"):
        (root / layout.OBJECTS / name / "inner").mkdir(parents=True)
        (root / layout.OBJECTS / name / "inner" / "file").write_bytes(b"x" * SIZE)
        os.utime(root / layout.OBJECTS / name, (1, 1))
    Leases(str(root)).hold(names[0])

    plan = cache.plan_gc()

    assert [(item.name, item.size) for item in plan.items] == [(names[1], SIZE)]
    plan.execute()
    assert sorted(path.name for path in (root / layout.OBJECTS).iterdir() if path.name[:4] != "sha2") == [
        "readme", names[0]
    ]  # fmt: skip


def test_what_crashed_processes_left_goes_and_what_others_may_still_fill_stays(cache: Cache, root: Path) -> None:
    store(cache, "m")
    dead = f"{process.machine_id()}-00000000-1-1-1-00000000"
    unknown = "00000000-00000000-1-1-1-00000000"
    identity = "0" * 64
    for path in (
        f"{layout.STAGING}/{dead}", f"{layout.TRASH}/{dead}.x",
        *(f"{layout.PARTIALS}/{identity}.{owner}/object" for owner in (dead, unknown, "free-1", process.token())),
    ):  # fmt: skip
        (root / path).mkdir(parents=True)
        (root / path / "file").write_bytes(b"x" * SIZE)
    (root / layout.LEASES).mkdir()
    (root / layout.LEASES / dead).write_bytes(b"")
    fresh = cache.plan_gc()
    for file in root.glob(f"{layout.PARTIALS}/*/object/file"):
        os.utime(file, (1, 1))

    plan = cache.plan_gc()

    assert [item.kind for item in fresh.items] == ["staging", "trash", "lease"]
    assert [item.kind for item in plan.items] == ["staging", "trash", "lease", "partial", "partial", "partial"]
    assert plan.freed_bytes == 5 * SIZE
    plan.execute()
    assert len(list((root / layout.PARTIALS).iterdir())) == 1
    assert cache.plan_gc().items == ()


def test_a_lock_file_that_nobody_holds_goes(cache: Cache, root: Path) -> None:
    store(cache, "m")
    (root / layout.LOCKS / "x.lock").write_bytes(b"")

    cache.plan_gc().execute()

    assert leftovers(root) == []


def test_a_second_collector_is_told_who_is_at_work(cache: Cache, root: Path) -> None:
    store(cache, "m", days=9)
    lock = f"{root}/{layout.LOCKS}/{layout.GC_LOCK}"
    told = pytest.raises(errors.LockTimeoutError, match=str(os.getpid()))
    with locks.exclusive(lock, timeout=0, what="it"), told:
        cache.plan_gc(unused_for=DAY).execute()
    assert here(cache) == ["m"]


@pytest.mark.parametrize("how", ["none", "idle"])
def test_gc_does_not_run_where_locks_do_not_work(how: str, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store(cache, "m", days=9)
    monkeypatch.setattr(locks, "_excluding", set())
    if how == "idle":
        monkeypatch.setattr(fasteners.InterProcessLock, "trylock", lambda _self: None)
        monkeypatch.setattr(fasteners.InterProcessLock, "unlock", lambda _self: None)
    else:

        def without(_path: str) -> None:
            raise locks.LockUnavailableError("no locks available")

        monkeypatch.setattr(locks, "_try", without)

    with pytest.raises(errors.NoLocksError):
        cache.plan_gc(unused_for=DAY).execute()
    assert here(cache) == ["m"]


def test_a_cache_that_does_not_exist_has_nothing_to_collect(cache: Cache, root: Path) -> None:
    plan = cache.plan_gc(capacity="1GB")

    assert plan.items == plan.execute().removed == ()
    assert not root.exists()


@pytest.mark.parametrize(
    "options", [{"capacity": 0}, {"capacity": "50 parsecs"}, {"unused_for": -1}, {"grace": -1}, {"grace": "soon"}]
)
def test_a_senseless_argument_is_refused(options: dict[str, Any], cache: Cache) -> None:
    with pytest.raises(errors.UsageError):
        cache.plan_gc(**options)


def test_the_table_of_a_plan_names_what_goes_and_why(cache: Cache) -> None:
    store(cache, "vision/m.onnx", days=9)

    lines = cache.plan_gc(unused_for=DAY).table().splitlines()

    assert lines[0].split() == ["BYTES", "DAYS", "REASON", "WHAT"]
    assert lines[1].split() == [str(SIZE), "9.0", "unused", "for", "too", "long", "vision/m.onnx"]


# -- room for a fetch --------------------------------------------------------------------------------------------------


def test_a_fetch_evicts_what_was_least_recently_used_when_it_would_not_fit(server: FaultServer, root: Path) -> None:
    events: list[Event] = []
    cache = Cache(root, capacity=3 * SIZE, on_event=events.append)
    for days, name in enumerate("abc"):
        store(cache, name, days=days)
    url = server.add("/m.onnx", b"m" * SIZE)

    cache.get(url)

    assert here(cache) == ["a", "b", url]
    assert [event.ref for event in events if event.kind == "evicted"] == ["c"]
    assert check_cache(root) == []


def test_a_fetch_that_fits_evicts_nothing(server: FaultServer, root: Path) -> None:
    cache = Cache(root, capacity=3 * SIZE)
    for name in "ab":
        store(cache, name, days=9)

    cache.get(server.add("/m.onnx", b"m" * SIZE))

    assert len(here(cache)) == 3


def test_what_is_larger_than_the_whole_capacity_is_refused_before_its_bytes_are_fetched(
    server: FaultServer, root: Path
) -> None:
    cache = Cache(root, capacity=5 * SIZE)
    store(cache, "old", days=9)
    url = server.add("/m.onnx", b"m" * 6 * SIZE)

    with pytest.raises(errors.CapacityError) as caught:
        cache.get(url)

    assert (caught.value.facts["needed"], caught.value.facts["capacity"]) == (6 * SIZE, 5 * SIZE)
    assert here(cache) == ["old"]  # Nothing goes for what cannot be.
    assert cache.stats().bytes_received == 0
    assert leftovers(root) == []


def test_a_fetch_for_which_nothing_may_go_is_refused_and_told_what_stays(server: FaultServer, root: Path) -> None:
    cache = Cache(root, capacity=3 * SIZE)
    for name in ("pinned", "leased", "late"):
        store(cache, name, days=0 if name == "late" else 9)
    cache.pin("pinned")
    told = pytest.raises(errors.CapacityError, match="1000 pinned, 1000 leased, 1000 used within")
    with cache.lease("leased"), told as caught:
        cache.get(server.add("/m.onnx", b"m" * SIZE))

    assert caught.value.exit_code == 8
    assert isinstance(caught.value, errors.NoSpaceError)
    assert len(here(cache)) == 3


def test_a_fetch_while_somebody_else_collects_goes_on(server: FaultServer, root: Path) -> None:
    cache = Cache(root, capacity=SIZE)
    store(cache, "old", days=9)
    with locks.exclusive(f"{root}/{layout.LOCKS}/{layout.GC_LOCK}", timeout=0, what="it"):
        cache.get(server.add("/m.onnx", b"m" * SIZE))

    assert len(here(cache)) == 2


def test_a_refusal_for_want_of_capacity_speaks_only_for_those_with_the_same_one(root: Path) -> None:
    def asked(**options: Any) -> list[str]:
        getter = Cache(root, **options)._getter
        getter._flights()
        assert getter._fetching is not None
        return getter._fetching[0]._asked(Job(parse("https://host.invalid/m.onnx")))

    assert asked(capacity=10) == asked(capacity=10)
    assert len({tuple(asked(**options)) for options in ({}, {"capacity": 10}, {"capacity": 10, "grace": 0})}) == 3


def test_a_resumed_fetch_needs_room_for_the_rest_alone(server: FaultServer, root: Path) -> None:
    from modelcache import RetryPolicy
    from modelcache.testing import Fault

    url = server.add("/m.onnx", b"m" * 100 * SIZE, [Fault(abort_after=60 * SIZE)])
    with Cache(root, retry=RetryPolicy(attempts=1)) as first, pytest.raises(errors.NetworkError):
        first.get(url)

    path = Cache(root, capacity=100 * SIZE).get(url)

    assert Path(path).stat().st_size == 100 * SIZE


def test_a_refresh_does_not_evict_what_it_refreshes(server: FaultServer, root: Path) -> None:
    cache = Cache(root, capacity=3 * SIZE)
    url = server.add("/m.onnx", b"m" * SIZE)
    cache.get(url)
    used(cache, url, 9)
    store(cache, "other", days=5)
    server.add("/m.onnx", b"n" * 2 * SIZE)

    cache.get(url, force_download=True)

    assert here(cache) == [url]


def test_what_stays_free_is_looked_at_without_counting_the_cache(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(root, capacity="free:1")
    monkeypatch.setattr(gc.Collector, "plan", None)

    cache.get(server.add("/m.onnx", b"m" * SIZE))


def test_what_must_stay_free_is_made_free(server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(root, capacity="free:10000")
    for days, name in enumerate("abc"):
        store(cache, name, days=days)
    real = os.statvfs

    class Disk:
        f_frsize = 1
        f_blocks = 20_000

        @property
        def f_bavail(self) -> int:
            objects = sum(path.stat().st_size for path in (root / layout.OBJECTS).glob("*/*"))
            return 12_500 - objects  # Others have the rest.

    monkeypatch.setattr(os, "statvfs", lambda path: Disk() if str(path) == str(root) else real(path))
    monkeypatch.setattr("modelcache.download.Means.check_space", lambda *_: None)

    cache.get(server.add("/m.onnx", b"m" * SIZE))

    assert here(cache) == ["a", server.url("/m.onnx")]


def test_the_environment_sets_capacity_and_grace(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELCACHE_CAPACITY", str(SIZE))
    monkeypatch.setenv("MODELCACHE_GRACE", "0")
    cache = Cache(root)
    store(cache, "old")

    url = server.add("/m.onnx", b"m" * SIZE)
    cache.get(url)

    assert here(cache) == [url]


def test_marks_of_a_removal_are_there_before_anybody_is_asked(
    cache: Cache, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4 hangs on it: who leases or pins looks for them."""
    store(cache, "m", days=9)
    asked = []
    objection = gc.Collector._objection

    def look(self: gc.Collector, item: gc.Item) -> str:
        asked.append([name.rpartition(".")[2] for name in os.listdir(root / layout.STAGING)])
        return objection(self, item)

    monkeypatch.setattr(gc.Collector, "_objection", look)
    cache.plan_gc(unused_for=DAY).execute()

    assert asked == [["removal"]]
    assert Objects(str(root)).all() is not None


def test_the_work_of_a_collection_does_not_grow_with_what_goes_times_what_stays(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(70):
        store(cache, f"n{number}", days=3)
    plan = cache.plan_gc(capacity=1)
    looks = 0
    real = Entries.named

    def named(entries: Entries) -> Callable[[Digest], bool]:
        nonlocal looks
        looks += 1
        return real(entries)

    monkeypatch.setattr(Entries, "named", named)

    assert len(plan.execute().removed) == 70
    assert looks <= 2 * 3, "twice for each batch of 32"


def test_what_fails_half_way_leaves_each_object_where_it_was_or_gone(
    cache: Cache, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        store(cache, f"n{number}", days=3)
    plan = cache.plan_gc(capacity=1)
    real, moved = commit.move_durably, []

    def third_fails(source: str, target: str) -> None:
        if "/objects-v1/" in source:
            moved.append(source)
            if len(moved) == 3:
                raise OSError(errno.EIO, "Input/output error", source)
        real(source, target)

    monkeypatch.setattr(commit, "move_durably", third_fails)

    with pytest.raises(errors.StorageError):
        plan.execute()

    assert all(os.path.isdir(path) for path in moved)
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []
    monkeypatch.undo()
    assert len(cache.plan_gc(grace=0).execute().removed) == 5
    assert leftovers(root) == []


def test_a_file_that_goes_while_it_is_counted_is_passed_over(
    cache: Cache, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / layout.STAGING).mkdir(parents=True)
    (root / layout.STAGING / "file").write_bytes(b"x")
    real = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("/file"):
            os.unlink(path)
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    assert footprint.footprint_of(str(root / layout.STAGING / "file")).size == 0  # The race, held still.
