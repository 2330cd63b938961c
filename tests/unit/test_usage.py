"""Usage: what is counted, how it gets on record, what it comes to, and that it never costs anybody a get."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, RetryPolicy, Workspace, commit, errors, files, layout, looks, process
from modelcache.archive import Archivist, Registration, SqliteBackend
from modelcache.backends import locations
from modelcache.sealed import seal
from modelcache.testing import Fault, FaultServer
from modelcache.usage import archive, recorder, store, tally
from modelcache.usage.summary import summed
from modelcache.usage.tally import KEYS_MAX, OTHERS, SAMPLES_MAX, Tally, Usage, add, of, thinned

CONTENT = b"x" * 5000
NEVER = RetryPolicy(attempts=1, base=0)


def counted(root: Path) -> Tally:
    found: Tally = {}
    for part in store.read(str(root)):
        add(found, part.tally)
    return found


def names(root: Path) -> list[str]:
    return sorted(os.listdir(root / layout.USAGE)) if (root / layout.USAGE).exists() else []


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_nothing_is_counted_unless_somebody_asks_for_it(root: Path) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="m")
        cache.get("m")

    assert not (root / layout.USAGE).exists()
    assert threading.active_count() == 1 or "modelcache-usage" not in {one.name for one in threading.enumerate()}


def test_a_fetch_and_its_hits_are_counted_by_model(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root, usage=True) as cache:
        for _ in range(11):
            path = cache.get(url)

    one = counted(root)[url]
    assert (one.hits, one.misses, one.fetches) == (10, 1, 1)
    assert (one.hit_bytes, one.source_bytes, one.tier_bytes, one.size) == (10 * 5000, 5000, 0, 5000)
    assert len(one.fetch_seconds) == 1
    assert f"objects-v1/{layout.object_name(one.digest)}/" in path


def test_hits_of_a_tree_count_what_is_in_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a").write_bytes(CONTENT)
    with Cache(root, usage=True) as cache:
        cache.put_tree(tmp_path / "t", name="t")
        for _ in range(3):
            cache.get_tree("t")

    assert counted(root)["t"].hit_bytes == 3 * 5000


def test_bytes_of_a_fetch_that_failed_count_too(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=2000)])
    with Cache(root, usage=True, retry=NEVER) as cache:
        with pytest.raises(errors.NetworkError) as caught:
            cache.get(url)
        cache.get(url)

    one = counted(root)[url]
    assert (one.misses, one.fetches, one.source_bytes) == (2, 1, 5000)
    assert one.errors == {type(caught.value).__name__: 1}


def test_what_comes_from_a_tier_is_told_from_what_comes_from_a_source(root: Path, tmp_path: Path) -> None:
    with Cache(tmp_path / "below") as below:
        below.put(CONTENT, name="m")
    with Cache(root, usage=True, tiers=[f"{tmp_path}/below,promote"]) as cache:
        cache.get("m")

    one = counted(root)["m"]
    assert (one.tier_bytes, one.source_bytes, one.fetches) == (5000, 0, 1)


def test_files_of_a_tree_count_for_the_tree(root: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in "ab":
        (tmp_path / "source" / name).write_bytes(name.encode() * 700)
    with Cache(root, usage=True) as cache:
        cache.get_tree(tmp_path / "source")

    (key,) = counted(root)
    assert key.startswith("file://")
    assert counted(root)[key].source_bytes == 1400


def test_threads_and_tasks_that_share_a_fetch_are_coalesced(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT * 100)

    async def all_at_once(cache: Cache) -> None:
        await asyncio.gather(*(cache.aget(url) for _ in range(5)))

    with Cache(root, usage=True) as cache:
        asyncio.run(all_at_once(cache))

    one = counted(root)[url]
    assert (one.misses, one.fetches, one.coalesced, one.hits) == (5, 1, 4, 0)


def test_a_get_that_its_source_confirms_or_cannot_answer_is_a_use(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root, usage=True, retry=NEVER) as cache:
        for _ in range(4):
            cache.get(url, max_age=0)
        server.add("/m.onnx", CONTENT, [Fault(status=503)])
        cache.get(url, max_age=0)
        asyncio.run(cache.aget(url, max_age=0))

    one = counted(root)[url]
    assert (one.misses, one.fetches, one.kept, one.uses) == (6, 1, 5, 6)


def test_a_prewarm_is_no_use_for_what_every_node_is_given_would_never_leave_the_manifest(
    root: Path, tmp_path: Path, server: FaultServer
) -> None:
    given, wanted = (server.add(f"/{name}.onnx", CONTENT + name.encode()) for name in "ab")
    (tmp_path / "models.toml").write_text(f'[[model]]\nref = "{given}"\n')
    with Cache(root, usage=True) as cache:
        for _ in range(3):
            cache.prewarm(tmp_path / "models.toml").check()
            cache.lock(tmp_path / "models.toml")
        cache.get(wanted)
        refs = cache.usage_manifest(tmp_path / "used.toml", top=5)
        cache.get(given)
        total = cache.usage().total

    one = counted(root)[given]
    assert refs == [wanted]
    assert (one.prewarms, one.hits, one.misses, one.fetches, one.uses) == (6, 1, 0, 1, 1)
    assert (total.hit_ratio, total.usage.source_bytes) == (1 / 2, 2 * 5001)


def test_evictions_quarantines_and_errors_are_counted(root: Path) -> None:
    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="gone")
        entry = cache.put(b"y" * 10, name="broken")
        cache.pin("broken")
        cache.plan_gc(unused_for=0, grace=0).execute()
        os.chmod(entry.path, 0o644)
        Path(entry.path).write_bytes(b"z" * 10)
        with pytest.raises(errors.ModelCacheError):
            cache.get("broken", verify="full")

    found = counted(root)
    assert (found["gone"].evictions, found["gone"].evicted_bytes > 0) == (1, True)
    assert found["broken"].quarantines == 1
    assert found["broken"].errors == {"EntryNotFoundError": 1}


def test_what_is_derived_counts_builds_and_hits(root: Path) -> None:
    def build(workspace: Workspace) -> None:
        Path(workspace, "out").write_bytes(b"product")

    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="m")
        for _ in range(3):
            cache.derive(build, recipe="r", version="1", inputs=["m"])

    (key,) = (key for key in counted(root) if key.startswith("derived:"))
    one = counted(root)[key]
    assert (one.builds, one.hits, one.misses, one.errors) == (1, 2, 1, {})
    assert one.build_seconds > 0


def test_stats_count_hits_also_of_what_was_forgotten_or_replaced(root: Path) -> None:
    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="m")
        for _ in range(3):
            cache.get("m")
        cache.put(b"other", name="m")
        for _ in range(3):
            cache.get("m")
        assert cache.stats().hits == 6
        cache.remove("m")
        assert cache.stats().hits == 6

    one = counted(root)["m"]
    assert (one.hits, one.hit_bytes) == (6, 3 * 5000 + 3 * 5)


# -- how it gets on record ---------------------------------------------------------------------------------------------


def test_a_thread_writes_while_there_is_something_and_ends_by_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "FLUSH_S", 0.01)
    monkeypatch.setattr(recorder, "FLUSH_S_MAX", 0.01)
    cache = Cache(root, usage=True)
    cache.put(CONTENT, name="m")
    cache.get("m")

    (thread,) = (one for one in threading.enumerate() if one.name == "modelcache-usage")
    thread.join(30)
    assert counted(root)["m"].hits == 1
    cache._warm.distrust()  # As time does.
    cache.get("m")  # It begins anew.
    cache.close()
    assert counted(root)["m"].hits == 2


def test_a_handler_of_a_signal_may_get_a_model_while_another_get_is_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_a_tally, raised = tally.of, list[bool]()

    def interrupted(counts: Tally, key: str) -> Usage:
        if not raised:
            raised.append(True)
            signal.raise_signal(signal.SIGUSR1)
        return of_a_tally(counts, key)

    monkeypatch.setattr(tally, "of", interrupted)
    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="m")
        cache.put(CONTENT, name="n")
        before = signal.signal(signal.SIGUSR1, lambda *_: cache.get("n"))
        try:
            cache.get("m")
        finally:
            signal.signal(signal.SIGUSR1, before)

    assert (counted(root)["m"].hits, counted(root)["n"].hits) == (1, 1)


def test_a_cache_that_nobody_closed_is_not_kept_for_ever(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcache.archive import exits

    monkeypatch.setattr(recorder, "FLUSH_S", 0.01)
    before = len(exits._live)
    cache = Cache(root, usage=True)
    cache.put(CONTENT, name="m")
    cache.get("m")
    (thread,) = (one for one in threading.enumerate() if one.name == "modelcache-usage")
    del cache
    thread.join(30)
    gc.collect()

    assert len(exits._live) == before
    assert counted(root)["m"].hits == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_usage_that_cannot_be_written_fails_nothing_is_told_once_and_written_later(
    number: int, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="m")
        with monkeypatch.context() as patch:
            patch.setattr(commit, "replace_hint", refuse)
            for _ in range(3):
                cache.get("m")
                cache.usage()
        assert caplog.text.count("cannot be recorded") == 1
        assert cache.stats().usage_failures == 3
        assert cache.usage().total.usage.hits == 3


def test_a_cache_that_is_not_there_is_not_made_for_usage(root: Path) -> None:
    with Cache(root, usage=True, offline=True) as cache, pytest.raises(errors.LocalNotFoundError):
        cache.get("https://unreachable.invalid/m.onnx")

    assert not root.exists()


def test_the_next_day_has_a_file_of_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000_000.0
    monkeypatch.setattr(recorder, "time", lambda: now)
    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="m")
        cache.get("m")
        cache.usage()
        now += 86_400
        cache.get("m")
        report = cache.usage(by="day")

    assert [(row.name, row.usage.hits) for row in report.rows] == [("2001-09-09", 1), ("2001-09-10", 1)]


def test_models_beyond_a_number_are_counted_together() -> None:
    tally: Tally = {}
    for number in range(KEYS_MAX + 5):
        of(tally, f"m{number}").hits += 1

    assert len(tally) == KEYS_MAX + 1
    assert tally[OTHERS].hits == 5


def test_samples_are_thinned_to_the_same_median() -> None:
    samples = [float(number) for number in range(1001)]

    kept = thinned(samples)

    assert len(kept) == SAMPLES_MAX
    assert abs(sorted(kept)[len(kept) // 2] - 500) < 20


# -- the store ---------------------------------------------------------------------------------------------------------


def write(root: str, day: str, hits: int, *, host: str = "host") -> str:
    name = f"{day}.{process.token()}"
    store.write(root, name, host, {"m": Usage(hits=hits, fetch_seconds=[1.0])})
    return name


@pytest.mark.parametrize(
    "harm",
    [
        lambda _data: b"", lambda data: data[:-20], lambda data: b"\0" * len(data),
        lambda data: data[:30] + b"!" + data[31:],
        lambda _data: b"not ours\n",
    ],
)  # fmt: skip
def test_a_torn_file_counts_for_nothing_and_harms_nobody(store_root: str, harm: Callable[[bytes], bytes]) -> None:
    path = Path(store_root, layout.USAGE, write(store_root, "2026-01-01", 3))
    write(store_root, "2026-01-01", 4)
    path.write_bytes(harm(path.read_bytes()))

    assert [part.tally["m"].hits for part in store.read(store_root)] == [4]
    store.fold(store_root)
    assert [part.tally["m"].hits for part in store.read(store_root)] == [4]


@pytest.fixture
def store_root(store: str) -> str:
    return store


def test_days_that_are_over_are_folded_into_one_file_each_and_hosts_stay_apart(store_root: str) -> None:
    now = time.time()
    day, today = store.day_of(now - 5 * 86_400), store.day_of(now)
    for host in ("one", "two", "one"):
        write(store_root, day, 1, host=host)
    write(store_root, today, 1)

    assert store.fold(store_root) == 3
    assert store.fold(store_root) == 0
    found = {(part.day, part.host): part.tally["m"].hits for part in store.read(store_root)}
    assert found == {(day, "one"): 2, (day, "two"): 1, (today, "host"): 1}
    assert len(names(Path(store_root))) == 2


def test_days_of_long_ago_are_folded_into_one_and_sums_never_shrink(store_root: str) -> None:
    for number in range(5):
        write(store_root, f"2020-01-0{number + 1}", 2)
    store.fold(store_root)
    write(store_root, "2020-02-01", 3)
    store.fold(store_root)

    (part,) = store.read(store_root)
    assert (part.day, part.tally["m"].hits) == (store.EARLIER, 13)
    assert len(names(Path(store_root))) == 1


def test_files_of_processes_that_live_are_left_to_them(store_root: str) -> None:
    for _ in range(3):
        write(store_root, store.day_of(time.time()), 1)

    assert store.fold(store_root) == 0


def test_a_file_that_a_fold_holds_is_not_counted_beside_it(store_root: str) -> None:
    """A power cut has brought back what a fold had removed."""
    kept = write(store_root, "2020-01-01", 2)
    data = Path(store_root, layout.USAGE, kept).read_bytes()
    store.fold(store_root)
    Path(store_root, layout.USAGE, kept).write_bytes(data)

    assert [part.tally["m"].hits for part in store.read(store_root)] == [2]
    store.fold(store_root)
    assert [part.tally["m"].hits for part in store.read(store_root)] == [2]
    assert len(names(Path(store_root))) == 1


def test_who_cannot_read_a_fold_does_not_fold_what_it_holds(store_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = write(store_root, "2020-01-01", 2)
    data = Path(store_root, layout.USAGE, kept).read_bytes()
    store.fold(store_root)
    (fold,) = names(Path(store_root))
    Path(store_root, layout.USAGE, kept).write_bytes(data)
    write(store_root, "2020-01-02", 3)
    read = files.read

    def short(path: str, *, follow: bool = False) -> bytes | None:
        if path.endswith(fold):
            raise OSError(errno.EMFILE, "no descriptor is left")
        return read(path, follow=follow)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read", short)
        with pytest.raises(OSError, match="no descriptor"):
            store.fold(store_root)
    store.fold(store_root)

    assert sum(part.tally["m"].hits for part in store.read(store_root)) == 5


def test_what_a_later_modelcache_wrote_is_left_to_it(store_root: str) -> None:
    path = Path(store_root, layout.USAGE, write(store_root, "2020-01-01", 3))
    path.write_bytes(seal({"version": 2, "hosts": {"host": {}}}))
    for _ in range(2):
        write(store_root, "2020-01-01", 4)

    store.fold(store_root)

    assert path.exists()
    assert [part.tally["m"].hits for part in store.read(store_root)] == [8]


def test_gc_folds(store_root: str) -> None:
    for _ in range(3):
        write(store_root, "2020-01-01", 1)
    with Cache(store_root) as cache:
        cache.plan_gc().execute()

    assert len(names(Path(store_root))) == 1


def test_names_that_are_none_of_ours_are_passed_over(store_root: str) -> None:
    write(store_root, "2020-01-01", 2)
    for name in (".hidden", "README", "2020-01-01", "2020-01-01.a.b", "x.y", "2020-01-02.looks"):
        Path(store_root, layout.USAGE, name).write_text("x")
    os.mkdir(Path(store_root, layout.USAGE, "2020-01-03.directory"))

    assert sum(part.tally["m"].hits for part in store.read(store_root)) == 2
    store.fold(store_root)
    assert sum(part.tally["m"].hits for part in store.read(store_root)) == 2


# -- looks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["m", "https://host/ä b.onnx", "two\nlines", "\udc80", "back\\slash"])
def test_a_look_says_its_model(store_root: str, key: str) -> None:
    looks.add(store_root, key, 7)
    looks.add(store_root, key, 7)

    (path,) = Path(store_root, layout.USAGE).iterdir()
    assert [line[1:] for line in looks.lines(path.read_bytes())] == [(7, os.uname().nodename, key)] * 2
    (part,) = store.read(store_root)
    (one,) = part.tally.values()
    assert (part.host, one.hits, one.hit_bytes) == (os.uname().nodename, 2, 14)


def test_a_torn_look_harms_no_other(store_root: str) -> None:
    looks.add(store_root, "a", 1)
    (path,) = Path(store_root, layout.USAGE).iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    looks.add(store_root, "b", 1)

    (part,) = store.read(store_root)
    assert set(part.tally) == {"b"}


def test_looks_of_a_day_that_is_over_are_folded_once_they_are_settled(
    store_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks.add(store_root, "a", 1)
    (path,) = Path(store_root, layout.USAGE).iterdir()
    path.rename(path.with_name(path.name.replace(path.name[:10], "2020-01-01")))

    store.fold(store_root)
    (name,) = names(Path(store_root))
    assert name.endswith(".looks")
    assert name.count("-") > 2, "it has a name of ours by now"
    os.utime(Path(store_root, layout.USAGE, name), (1, 1))
    store.fold(store_root)

    (part,) = store.read(store_root)
    assert (part.day, part.tally["a"].hits) == (store.EARLIER, 1)
    assert not names(Path(store_root))[0].endswith(".looks")


def test_a_look_that_cannot_be_written_is_dropped(tmp_path: Path) -> None:
    looks.add(str(tmp_path / "nowhere"), "m", 1)

    assert list(tmp_path.iterdir()) == []


# -- what it comes to --------------------------------------------------------------------------------------------------


def test_time_saved_is_hits_times_the_median_fetch_of_the_model() -> None:
    parts = [
        store.Part("2026-01-01", "a", {"m": Usage(hits=10, hit_bytes=100, misses=1, fetch_seconds=[1.0, 2.0, 60.0])}),
        store.Part("2026-01-02", "b", {"n": Usage(hits=5, hit_bytes=5, fetch_seconds=[3.0])}),
    ]

    report = summed(parts)

    assert [(row.name, row.seconds_saved) for row in report.rows] == [("m", 20.0), ("n", 15.0)]
    assert (report.total.seconds_saved, report.total.bytes_saved) == (35.0, 105)
    assert report.total.hit_ratio == 15 / 16
    assert [row.name for row in report.slowest] == ["n", "m"]
    assert [row.name for row in summed(parts, by="host").rows] == ["a", "b"]
    assert summed(parts, since="2026-01-02").total.usage.hits == 5
    json.dumps(report.as_dict())


@pytest.mark.parametrize(
    "facts",
    [
        None,
        [],
        {"hits": -1},
        {"hits": True},
        {"hits": "1"},
        {"errors": []},
        {"seconds": 1e999},
        {"hits": 10**400},
        {"seconds": 10**400},
        {"size": 10**400},
    ],
)
def test_counts_that_make_no_sense_are_none(facts: Any) -> None:
    assert Usage.from_dict(facts) is None


def test_counts_that_make_no_sense_beside_others_are_left_out() -> None:
    absurd = {"hits": 2, "fetch_seconds": [1, 10**400, math.inf, True], "errors": {"E": 1, "F": 10**400, 'x"\n': 1}}

    assert Usage.from_dict(absurd) == Usage(hits=2, fetch_seconds=[1.0], errors={"E": 1})


@pytest.mark.parametrize("strange", ["\udcff", "a\nb", "\x1b[31m", "x" * 8193, ""])
def test_a_name_that_no_model_has_is_one_of_the_others(strange: str, store_root: str, tmp_path: Path) -> None:
    (Path(store_root) / layout.USAGE).mkdir(exist_ok=True)
    facts = {"h": {strange: {"hits": 1}, "m": {"hits": 1}}, "\udcff": {strange: {"hits": 1}}}
    (Path(store_root) / layout.USAGE / "2026-01-01.of-another").write_bytes(seal({"version": 1, "hosts": facts}))
    looks.add(store_root, strange, 1)
    place = f"directory://{tmp_path}/archive"
    with Archivist([Registration("a", locations.opened(place))], root=tmp_path / "cache") as archivist:
        event = {"kind": "usage", "day": "2026-01-01", "host": "h", "hits": 1}
        archivist.append_events("m", [{**event, "model": strange.replace("\udcff", "\0")}] * 2)

    here, there = summed(store.read(store_root)), summed(archive.read(place))

    assert {key: one.hits for key, one in here.models.items()} == {OTHERS: 3, "m": 1}
    assert {key: one.hits for key, one in there.models.items()} == {OTHERS: 2}


def test_counts_survive_json() -> None:
    one = Usage(hits=3, seconds=1.5, errors={"E": 2}, fetch_seconds=[1.0], size=4, digest="sha256:x")

    assert Usage.from_dict(json.loads(json.dumps(one.as_dict()))) == one
    assert Usage.from_dict({**one.as_dict(), "of a later version": 1}) == one


def test_size_and_digest_are_of_one_content() -> None:
    one = Usage(size=5, digest="sha256:a")

    one.add(Usage(size=7))  # As an earlier modelcache counted a fetch.
    assert (one.size, one.digest) == (5, "sha256:a")
    one.add(Usage(size=0, digest="sha256:b"))
    assert (one.size, one.digest) == (0, "sha256:b")


# -- archives ----------------------------------------------------------------------------------------------------------


def test_an_archive_gets_what_was_counted_each_once(root: Path, tmp_path: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    place = f"sqlite://{tmp_path}/usage.db"
    with Cache(root, usage_archive=[place]) as cache:
        for _ in range(3):
            cache.get(url)
        cache.usage()
        cache.get(url)

    with Cache(tmp_path / "elsewhere") as other:
        total = other.usage(archive=place).total.usage
    assert (total.hits, total.misses, total.fetches, total.source_bytes) == (3, 1, 1, 5000)
    backend = SqliteBackend(tmp_path / "usage.db")
    events = list(backend.read_events())
    backend.close()
    assert len({one.id for one in events}) == len(events) == 2
    assert {one.event["host"] for one in events} == {os.uname().nodename}
    assert {one.event["pid"] for one in events} == {os.getpid()}


def test_events_of_others_and_what_makes_no_sense_is_passed_over(tmp_path: Path) -> None:
    place = f"directory://{tmp_path}/archive"
    (tmp_path / "archive").mkdir()
    with Archivist([Registration("a", locations.opened(place))], root=tmp_path / "cache") as archivist:
        archivist.append_events("m", [{"kind": "other"}, "text", {"kind": "usage", "hits": -1}, {"kind": "usage"}])
        archivist.append_events("m", [{"kind": "usage", "model": "m", "day": "zzzz-zz-zz", "host": "h", "hits": 2}])
        archivist.append_events("m", [{"kind": "usage", "model": "m", "day": "2026-01-01", "host": "h", "hits": 2}])

    (part,) = archive.read(place)
    assert part == store.Part("2026-01-01", "h", {"m": Usage(hits=2)})


def test_an_archive_that_cannot_be_had_fails_nothing(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no directory")
    with Cache(root, usage_archive=[f"sqlite://{tmp_path}/file/usage.db"]) as cache:
        cache.put(CONTENT, name="m")
        cache.get("m")
        cache.usage()
        cache.get("m")

    assert caplog.text.count("usage is not archived") == 1
    assert counted(root)["m"].hits == 2


@pytest.mark.parametrize(
    "place",
    [
        "",
        "relative/path",
        "ftp://host/x",
        "sqlite://relative",
        "sqlite:///",
        "s3://",
        "s3://key:secret@bucket",
        "s3://b?secret=1",
    ],
)
def test_a_location_that_is_none_is_told_and_no_secret_with_it(place: str, root: Path) -> None:
    with pytest.raises(errors.UsageError) as caught:
        Cache(root, usage_archive=[place])

    assert "secret" not in str(caught.value)


def test_a_location_to_read_must_be_there(root: Path, tmp_path: Path) -> None:
    with Cache(root) as cache, pytest.raises(errors.BackendSetupError):
        cache.usage(archive=f"sqlite://{tmp_path}/nowhere.db")

    assert not (tmp_path / "nowhere.db").exists()


# -- manifests ---------------------------------------------------------------------------------------------------------


def test_the_most_used_models_with_a_source_make_a_manifest_that_warms_an_empty_node(
    root: Path, tmp_path: Path, server: FaultServer
) -> None:
    urls = [server.add(f"/m{number}.onnx", CONTENT + bytes([number])) for number in range(4)]
    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="name")
        for _ in range(9):
            cache.get("name")
        for number, url in enumerate(urls):
            for _ in range(number + 1):
                cache.get(url)
        refs = cache.usage_manifest(tmp_path / "models.toml", top=2)

    assert refs == [urls[3], urls[2]]
    assert (tmp_path / "models.lock").exists()
    with Cache(tmp_path / "node") as node:
        report = node.prewarm(tmp_path / "models.toml", locked=True)
        report.check()
        assert [one.ref for one in report.models] == refs
    assert [one.digest for one in Cache(tmp_path / "node").entries()]


def test_a_manifest_from_an_archive_has_digests_and_no_credentials(
    root: Path, tmp_path: Path, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT)
    secret = url.replace("://", "://user:secret@")
    place = f"sqlite://{tmp_path}/usage.db"
    with Cache(root, usage_archive=[place]) as cache:
        for _ in range(3):
            cache.get(secret)
    with Cache(tmp_path / "elsewhere") as other:
        assert other.usage_manifest(tmp_path / "models.toml", top=9, archive=place) == [url]

    text = (tmp_path / "models.toml").read_text() + (tmp_path / "models.lock").read_text()
    assert "secret" not in text
    assert "sha256:" in text
    assert "secret" not in (tmp_path / "usage.db").read_bytes().decode(errors="replace")
    assert all("secret" not in path.read_text() for path in (root / layout.USAGE).iterdir())


@pytest.mark.parametrize("size", [5000, 6000], ids=["the same size", "another size"])
def test_a_model_that_was_replaced_and_not_asked_for_again_is_locked_as_it_is_now(
    size: int, root: Path, tmp_path: Path, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT)
    place = f"sqlite://{tmp_path}/usage.db"
    with Cache(root, usage_archive=[place]) as cache:
        cache.get(url)
        cache.get(url)
        cache.usage()
        server.add("/m.onnx", b"y" * size)
        cache.get(url, force_download=True)
    with Cache(tmp_path / "node") as node:
        node.usage_manifest(tmp_path / "models.toml", top=1, archive=place)
        node.prewarm(tmp_path / "models.toml", locked=True).check()
        with open(node.get(url), "rb") as file:
            assert file.read() == b"y" * size


def test_a_manifest_that_somebody_wrote_is_not_replaced_by_one_of_usage(
    root: Path, tmp_path: Path, server: FaultServer
) -> None:
    (tmp_path / "models.toml").write_text("# by hand")
    os.mkfifo(tmp_path / "pipe.toml")
    with Cache(root, usage=True) as cache:
        cache.get(server.add("/m.onnx", CONTENT))
        for name in ("models.toml", "pipe.toml"):
            with pytest.raises(errors.UsageError, match="would be lost"):
                cache.usage_manifest(tmp_path / name, top=1)
        cache.usage_manifest(tmp_path / "used.toml", top=1)
        cache.usage_manifest(tmp_path / "used.toml", top=1)

    assert (tmp_path / "models.toml").read_text() == "# by hand"


def test_a_lock_file_does_not_outlive_the_manifest_that_it_locked(
    root: Path, tmp_path: Path, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root, usage=True) as cache:
        cache.get(url)
        cache.usage_manifest(tmp_path / "models.toml", top=1)
        assert (tmp_path / "models.lock").exists()
        cache.remove(url)
        cache.usage()
    for path in (root / layout.USAGE).iterdir():
        path.write_bytes(seal({"version": 1, "hosts": {"h": {url: {"fetches": 1}}}}))  # As an earlier one counted.
    with Cache(root) as cache:
        cache.usage_manifest(tmp_path / "models.toml", top=1)

    assert not (tmp_path / "models.lock").exists()


def test_without_usage_of_models_that_have_a_source_no_manifest_is_written(root: Path, tmp_path: Path) -> None:
    with Cache(root, usage=True) as cache:
        cache.put(CONTENT, name="m")
        cache.get("m")
        with pytest.raises(errors.UsageError):
            cache.usage_manifest(tmp_path / "models.toml", top=3)

    assert not (tmp_path / "models.toml").exists()


@pytest.mark.parametrize(
    "wrong", [{"by": "week"}, {"since": "30d"}, {"since": float("nan")}, {"archive": "nothing"}]
)  # fmt: skip
def test_senseless_questions_are_told(root: Path, wrong: dict[str, Any]) -> None:
    with Cache(root) as cache, pytest.raises(errors.UsageError):
        cache.usage(**wrong)
