"""The calls of `Cache`, one rule at a time; the network is a local server, all else is real."""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
from pathlib import Path

import pytest

import modelcache
from modelcache import Cache, Event, RetryPolicy, commit, errors, layout
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers

CONTENT = random.Random(9).randbytes(300_000)


def test_a_hit_is_the_same_path_and_costs_no_request(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root) as cache:
        paths = {cache.get(url) for _ in range(100)}
        stats = cache.stats()

    assert len(paths) == 1
    assert (stats.hits, stats.misses, stats.fetched, stats.requests) == (99, 1, 1, 1)


def test_the_path_ends_in_the_models_own_name(server: FaultServer, root: Path) -> None:
    url = server.add("/dir/my%20model.onnx?download=1", CONTENT)

    with Cache(root) as cache:
        assert cache.get(url).endswith("/my model.onnx")


def test_objects_are_read_only(server: FaultServer, root: Path) -> None:
    with Cache(root) as cache:
        path = cache.get(server.add("/m.onnx", CONTENT))

    assert os.stat(path).st_mode & 0o777 == 0o444


def test_a_known_digest_is_a_hit_whatever_the_ref(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root) as cache:
        first = cache.get(url)
        entry = cache.lookup(url)
        assert entry is not None
        other = cache.get("https://unreachable.invalid/other.onnx", digest=entry.digest)

    assert other.endswith("/other.onnx")
    assert os.path.samefile(first, other)
    assert len(server.seen()) == 1


def test_an_altered_object_is_no_hit_for_its_digest(server: FaultServer, root: Path) -> None:
    url, mirror = server.add("/m.onnx", CONTENT), server.add("/mirror.onnx", CONTENT)
    with Cache(root) as cache:
        entry = cache.put(CONTENT, name="m.onnx")
        path = Path(entry.path)
        path.chmod(0o644)
        path.write_bytes(b"X" + CONTENT[1:])

        assert Path(cache.get(url, digest=entry.digest)).read_bytes() == CONTENT
        assert Path(cache.get(mirror, digest=entry.digest)).read_bytes() == CONTENT

    assert [seen.path for seen in server.seen()] == ["/m.onnx"]


def test_a_digest_that_contradicts_what_is_cached_is_fetched_and_checked(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root) as cache:
        cache.get(url)
        with pytest.raises(errors.DigestMismatchError):
            cache.get(url, digest="sha256:" + "0" * 64)
        assert Path(cache.get(url)).read_bytes() == CONTENT


def test_an_object_that_was_deleted_is_fetched_again(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root) as cache:
        Path(cache.get(url)).unlink()
        assert Path(cache.get(url)).read_bytes() == CONTENT

    assert len(server.seen()) == 2


def test_a_touched_but_unharmed_object_is_served_without_a_fetch(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root) as cache:
        path = cache.get(url)
        os.utime(path, ns=(0, 0))
        assert cache.get(url) == path
        assert cache.lookup(url) is not None

    assert len(server.seen()) == 1


def test_verify_full_notices_what_stat_cannot(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as cache:
        path = Path(cache.get(url))
        facts = path.stat()
        path.chmod(0o644)
        path.write_bytes(b"X" + CONTENT[1:])
        os.utime(path, ns=(facts.st_mtime_ns, facts.st_mtime_ns))

        again = cache.get(url, verify="full")

    assert Path(again).read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
def test_what_is_put_is_a_ref(kind: str, root: Path, tmp_path: Path) -> None:
    file = tmp_path / "source.bin"
    file.write_bytes(CONTENT)
    content = {"bytes": CONTENT, "path": file, "stream": io.BytesIO(CONTENT)}[kind]

    with Cache(root) as cache:
        entry = cache.put(content, name="vision/net.onnx")  # type: ignore[arg-type]
        path = cache.get("vision/net.onnx")

    assert Path(path).read_bytes() == CONTENT
    assert (entry.path, entry.name, entry.size, entry.source) == (path, "net.onnx", len(CONTENT), "put")
    assert leftovers(root) == []


def test_a_second_put_replaces_what_the_name_means(root: Path) -> None:
    with Cache(root) as cache:
        cache.put(b"one", name="m")
        cache.get("m")
        cache.put(b"two", name="m")

        assert Path(cache.get("m")).read_bytes() == b"two"


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/abs", "a\0b", "n" * 300, "http://h/x", "a:b", "a\\b", "a/"])
def test_a_name_that_could_leave_the_root_is_refused(name: str, root: Path) -> None:
    with Cache(root) as cache, pytest.raises(errors.InvalidReferenceError):
        cache.put(b"x", name=name)

    assert not root.exists() or list((root / "objects-v1").iterdir()) == []


def test_a_put_with_a_wrong_digest_stores_nothing(root: Path) -> None:
    with Cache(root) as cache:
        with pytest.raises(errors.DigestMismatchError):
            cache.put(b"x", name="m", digest="sha256:" + "0" * 64)
        assert cache.lookup("m") is None

    assert leftovers(root) == []


def test_a_put_of_text_or_of_nothing_is_refused(root: Path, tmp_path: Path) -> None:
    with Cache(root) as cache:
        with pytest.raises(errors.UsageError):
            cache.put(io.StringIO("text"), name="m")  # type: ignore[arg-type]
        with pytest.raises(errors.UsageError):
            cache.put(3, name="m")  # type: ignore[arg-type]
        with pytest.raises(errors.NotFoundError):
            cache.put(tmp_path / "missing", name="m")
        with pytest.raises(errors.NotFoundError):
            cache.put(tmp_path, name="m")

    assert leftovers(root) == []


def test_threads_share_one_download(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=1000)])
    with Cache(root) as cache:
        paths: list[str] = []
        threads = [threading.Thread(target=lambda: paths.append(cache.get(url))) for _ in range(16)]
        for thread in threads:
            thread.start()
        server.wait_for_requests(1)
        server.release()
        for thread in threads:
            thread.join()

    assert len(paths) == 16
    assert len(set(paths)) == 1
    assert len(server.seen()) == 1


def test_tasks_share_one_download_and_leave_the_loop_free(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=1000)])

    async def ask() -> set[str]:
        with Cache(root) as cache:
            tasks = [asyncio.create_task(cache.aget(url)) for _ in range(50)]
            await asyncio.to_thread(server.wait_for_requests, 1)
            server.release()
            return set(await asyncio.gather(*tasks))

    assert len(asyncio.run(ask())) == 1
    assert len(server.seen()) == 1


def test_a_cancelled_task_does_not_take_the_download_from_the_others(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=1000)])

    async def ask() -> str:
        with Cache(root) as cache:
            first = asyncio.create_task(cache.aget(url))
            await asyncio.to_thread(server.wait_for_requests, 1)
            second = asyncio.create_task(cache.aget(url))
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            server.release()
            return await second

    assert Path(asyncio.run(ask())).read_bytes() == CONTENT


def test_when_every_task_is_cancelled_the_download_stops_and_another_can_begin(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(stall_after=100_000)])

    async def ask() -> None:
        with Cache(root) as cache:
            task = asyncio.create_task(cache.aget(url))
            await asyncio.to_thread(server.wait_for_sent, 100_000)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())
    with Cache(root) as cache:
        cache.get(url)

    assert len(server.seen()) == 2
    assert leftovers(root) == []


def test_get_many_returns_paths_by_ref(server: FaultServer, root: Path) -> None:
    urls = [server.add(f"/{n}.onnx", CONTENT[n:]) for n in range(8)]

    with Cache(root) as cache:
        found = cache.get_many(urls, jobs=3)
        again = asyncio.run(cache.aget_many(urls))

    assert found == again
    assert [Path(found[url]).read_bytes() for url in urls] == [CONTENT[n:] for n in range(8)]


def test_get_many_caches_what_it_can_and_names_what_failed(server: FaultServer, root: Path) -> None:
    good, bad = server.add("/good.onnx", CONTENT), server.url("/missing.onnx")

    with Cache(root) as cache:
        with pytest.raises(errors.BatchError) as caught:
            cache.get_many([good, bad])
        assert cache.lookup(good) is not None

    assert set(caught.value.failures) == {bad}
    assert caught.value.exit_code == 3


def test_a_single_ref_is_not_a_list_of_letters(root: Path) -> None:
    with Cache(root) as cache, pytest.raises(errors.UsageError):
        cache.get_many("https://host/m.onnx")


@pytest.mark.parametrize(
    "options",
    [
        {"max_age": -1},
        {"verify": "maybe"},
        {"digest": "sha256:xyz"},
        {"force_download": True, "local_files_only": True},
    ],
)
def test_a_senseless_argument_raises_before_any_io(options: dict[str, object], root: Path) -> None:
    with Cache(root) as cache, pytest.raises(errors.UsageError):
        cache.get("https://host/m.onnx", **options)  # type: ignore[arg-type]

    assert not root.exists()


def test_an_empty_root_is_a_mistake_and_not_the_default(root: Path) -> None:
    with pytest.raises(errors.UsageError):
        Cache("")


@pytest.mark.parametrize("name", ["50%.onnx", "a#b.onnx", "a?b.onnx", "with space.onnx", "ümlaut.onnx"])
def test_any_file_name_can_be_a_source(name: str, root: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(CONTENT)

    with Cache(root) as cache:
        path = cache.get(file)

    assert Path(path).name == name
    assert Path(path).read_bytes() == CONTENT


@pytest.mark.parametrize("ref", [None, 3, b"bytes", [], {}])
def test_what_is_no_ref_is_a_usage_error(ref: object, root: Path) -> None:
    with Cache(root) as cache, pytest.raises(errors.UsageError):
        cache.get(ref)  # type: ignore[arg-type]


def test_a_closed_cache_says_so(root: Path) -> None:
    cache = Cache(root)
    cache.close()
    cache.close()

    with pytest.raises(errors.ClosedError):
        cache.get("m")


def test_events_tell_the_story_of_a_download(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=100_000)])
    events: list[Event] = []

    with Cache(root, retry=RetryPolicy(base=0), on_event=events.append) as cache:
        cache.get(url)

    kinds = [event.kind for event in events if event.kind != "progress"]
    assert kinds == ["started", "received", "retry", "started", "received", "fetched"]
    assert events[-1].done == len(CONTENT)


def test_a_listener_that_raises_costs_no_download(server: FaultServer, root: Path) -> None:
    def broken(_event: Event) -> None:
        raise RuntimeError

    with Cache(root, on_event=broken) as cache:
        assert Path(cache.get(server.add("/m.onnx", CONTENT))).read_bytes() == CONTENT


def test_a_forked_child_uses_the_cache_of_its_parent(server: FaultServer, root: Path) -> None:
    first, second = server.add("/a.onnx", CONTENT), server.add("/b.onnx", CONTENT[1:])
    with Cache(root) as cache:
        cache.get(first)
        child = os.fork()
        if child == 0:
            try:
                whole = Path(cache.get(second)).read_bytes() == CONTENT[1:]
                os._exit(0 if whole else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert cache.lookup(second) is not None


def test_a_memory_of_what_another_cache_removed_is_not_served(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as one, Cache(root) as other:
        one.get(url)
        other.remove(url)

        assert Path(one.get(url)).read_bytes() == CONTENT

    assert len(server.seen()) == 2


def test_what_was_put_and_is_damaged_cannot_be_repaired_and_says_so(root: Path) -> None:
    with Cache(root) as cache:
        Path(cache.put(CONTENT, name="m").path).unlink()

        report = cache.verify(repair=True)

    assert not report.ok
    assert isinstance(report.findings[0].error, errors.NoSourceError)


@pytest.mark.parametrize("damage", ["record", "unnamed object", "empty object"])
def test_a_repair_sets_aside_what_nothing_can_bring_back(damage: str, root: Path) -> None:
    with Cache(root) as cache:
        kept, harmed = cache.put(CONTENT, name="kept"), cache.put(b"other", name="harmed")
        if damage == "record":
            Path(cache._entries.path("harmed")).write_bytes(b"mc1 torn")
        else:
            Path(cache._entries.path("harmed")).unlink()
            Path(harmed.path).unlink()
        if damage == "unnamed object":
            Path(harmed.path).write_bytes(b"altered")
        assert [violation.promise for violation in cache.verify().violations] == ["I6" if damage == "record" else "I1"]

        assert cache.verify(repair=True).ok
        assert cache.verify().ok
        assert len(list((root / layout.QUARANTINE).iterdir())) >= 1
        assert cache.get("kept") == kept.path


def test_a_record_written_anew_while_its_broken_one_is_set_aside_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(root)
    entry = cache.put(CONTENT, name="m")
    record = Path(cache._entries.path("m"))
    record.write_bytes(b"mc1 torn")
    move = commit.move_durably

    def overtaken(source: str, target: str) -> None:
        cache._entries.write(entry)
        move(source, target)

    monkeypatch.setattr(commit, "move_durably", overtaken)

    assert not cache._entries.set_aside(record.name)
    assert Cache(root).lookup("m") is not None
    assert list((root / layout.QUARANTINE).iterdir()) == []


@pytest.mark.parametrize("mirror", ["a-name", "nope://host/m.onnx"])
def test_a_mirror_that_cannot_be_asked_is_told_before_anything_is(mirror: str, server: FaultServer, root: Path) -> None:
    with Cache(root) as cache, pytest.raises(errors.UsageError):
        cache.get(server.add("/m.onnx", CONTENT), mirrors=[mirror])

    assert server.seen() == []


def test_a_file_in_the_place_of_an_object_is_set_aside(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as cache:
        path = Path(cache.get(url))
        path.unlink()
        path.parent.rmdir()
        path.parent.write_text("in the way")

        assert Path(cache.get(url)).read_bytes() == CONTENT


def test_reading_calls_make_no_root(root: Path) -> None:
    cache = Cache(root)
    cache.lookup("http://host/m")
    cache.entries()
    cache.disk_usage()
    cache.health()
    cache.verify()
    cache.remove("http://host/m")
    cache.unpin("http://host/m")

    assert not root.exists()


def test_removing_one_of_two_names_keeps_the_shared_content(root: Path) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="one.onnx")
        cache.put(CONTENT, name="two.onnx")

        assert cache.remove("one.onnx")
        assert Path(cache.get("two.onnx")).read_bytes() == CONTENT
        assert cache.remove("two.onnx")

        assert cache.disk_usage().objects == 0
        assert not cache.remove("two.onnx")


def test_health_names_what_is_wrong(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = Cache(root)

    assert cache.health().ok
    root.mkdir()
    (root / "format").mkdir()
    assert not cache.health().ok
    for occupied in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(errors.RootError, match="not a directory"):
            Cache(occupied)


def test_the_module_level_functions_are_one_shared_cache(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELCACHE_DIR", str(root))
    url = server.add("/m.onnx", CONTENT)
    try:
        first, second, third = modelcache.get(url), modelcache.get(url), modelcache.get(url)

        assert first == second == third
        assert modelcache.lookup(url) is not None
        assert modelcache.put(b"x", name="m").digest in {entry.digest for entry in modelcache.entries()}
        assert modelcache.verify().ok
        assert modelcache.health().ok
        assert modelcache.stats().fetched == 1
        assert asyncio.run(modelcache.aget(url)) == first
    finally:
        modelcache.close()


def test_a_file_is_a_source_like_any_other(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(CONTENT)

    with Cache(root) as cache:
        paths = {cache.get(file), cache.get(str(file)), cache.get(file.as_uri())}
        file.unlink()
        assert Path(paths.pop()).read_bytes() == CONTENT

    assert paths == set()


def test_a_third_partys_scheme_is_served_by_the_source_that_was_given(root: Path) -> None:
    from modelcache.sources import Request, Source, Stream

    class Fixed(Stream):
        total = len(CONTENT)

        def __init__(self) -> None:
            self._left = [CONTENT]

        def read(self, limit: int) -> bytes:
            return self._left.pop() if self._left else b""

        def close(self) -> None:
            pass

    class Custom(Source):
        schemes = ("custom",)

        def open(self, request: Request) -> Stream:
            return Fixed()

    with Cache(root, sources=[Custom()]) as cache:
        assert Path(cache.get("custom://any/m.onnx")).read_bytes() == CONTENT


@pytest.mark.parametrize("source", ["put", "url"])
def test_an_entry_whose_own_name_is_lost_is_served_from_another_name_of_its_content(
    source: str, server: FaultServer, root: Path
) -> None:
    cache = Cache(root)
    other = cache.put(CONTENT, name="other")
    ref = "m" if source == "put" else server.add("/m.onnx", CONTENT)
    path = cache.put(CONTENT, name="m").path if source == "put" else cache.get(ref)
    before = cache.lookup(ref)
    Path(path).unlink()

    with Cache(root, offline=True) as again:
        assert Path(again.get(ref)).read_bytes() == CONTENT
        assert again.lookup(ref) == before
    assert Path(other.path).read_bytes() == CONTENT
