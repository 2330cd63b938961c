"""What a cache does at its limits: of time, of memory, of what it may write, of what a ref means."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from modelcache import Cache, HttpSource, RetryPolicy, Timeout, errors, files
from modelcache.reference import Ref, parse
from modelcache.retry import Deadline
from modelcache.testing import Fault, FaultServer

CONTENT = b"a model" * 1000
OTHER = b"something else" * 1000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


def test_a_relative_path_means_what_it_means_now(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("a", CONTENT), ("b", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.onnx").write_bytes(content)

    with Cache(root) as cache:
        for ref in ("./m.onnx", Path("m.onnx"), "~/m.onnx"):
            for name, content in (("a", CONTENT), ("b", OTHER), ("a", CONTENT)):
                monkeypatch.chdir(tmp_path / name)
                monkeypatch.setenv("HOME", str(tmp_path / name))
                assert Path(cache.get(ref)).read_bytes() == content


def test_a_name_that_was_put_is_not_turned_into_other_content(root: Path) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="mine")
        other = cache.put(OTHER, name="other").digest

        with pytest.raises(errors.DigestMismatchError):
            cache.get("mine", digest=other)
        with pytest.raises(errors.EntryNotFoundError):
            cache.get("never put", digest=other)

        assert Path(cache.get("mine")).read_bytes() == CONTENT
        assert cache.lookup("never put") is None


@pytest.mark.parametrize("kind", ["fifo", "directory", "missing"])
def test_a_put_of_what_is_no_file_is_told_and_does_not_hang(kind: str, root: Path, tmp_path: Path) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / kind)
    elif kind == "directory":
        (tmp_path / kind).mkdir()

    with Cache(root) as cache, pytest.raises(errors.NotFoundError):
        cache.put(tmp_path / kind, name="m")


def test_a_put_of_a_file_that_is_written_meanwhile_stores_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m"
    file.write_bytes(CONTENT)
    chunks = files.chunks

    def rewriting(descriptor: int) -> list[bytes]:
        found = list(chunks(descriptor))
        file.write_bytes(OTHER)
        return found

    monkeypatch.setattr(files, "chunks", rewriting)

    with Cache(root) as cache:
        with pytest.raises(errors.StorageError, match="written to meanwhile"):
            cache.put(file, name="m")
        assert cache.lookup("m") is None


def test_hashing_leaves_the_event_loop_free(server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.add("/m.onnx", CONTENT)
    digest_of = files.digest_of
    threads: set[int] = set()

    def noted(path: str) -> object:
        threads.add(threading.get_ident())
        return digest_of(path)

    monkeypatch.setattr(files, "digest_of", noted)

    async def ask() -> None:
        with Cache(root) as cache:
            path = await cache.aget(url)
            await cache.aget(url, verify="full")
            await cache.aget("https://host.invalid/m.onnx", digest=DIGEST)
            os.utime(path)
            await cache.aget(url)

    asyncio.run(ask())

    assert threads
    assert threading.get_ident() not in threads


def test_the_total_time_of_one_of_many_begins_with_its_own_work(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one clock for all, the last ones would have no time left before they begin."""
    refs = [server.add(f"/{n}.onnx", CONTENT, [Fault(hold_head=True)]) for n in range(4)]
    begun: list[str] = []
    with Cache(root) as cache:
        deadline = cache._getter.deadline

        def noted(ref: Ref) -> Deadline:
            begun.append(ref.key)
            return deadline(ref)

        monkeypatch.setattr(cache._getter, "deadline", noted)
        thread = threading.Thread(target=cache.get_many, args=(refs,), kwargs={"jobs": 1})
        thread.start()
        server.wait_for_requests(1)
        first = list(begun)
        server.release()
        thread.join(60)

    assert first == refs[:1]
    assert begun == refs


def test_what_is_cached_is_served_stale_when_nothing_can_be_written(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelcache import roots

    url = server.add("/m.onnx", CONTENT)
    Cache(root).get(url)

    def refused(path: str) -> None:
        raise errors.RootError(path=path, reason="its file system is mounted read-only", hint="")

    monkeypatch.setattr(roots, "make_root", refused)
    events: list[str] = []

    with Cache(root, on_event=lambda event: events.append(event.kind)) as cache:
        assert Path(cache.get(url, max_age=0)).read_bytes() == CONTENT
        with pytest.raises(errors.RootError):
            cache.get(url, force_download=True)

    assert events == ["stale"]


def test_content_that_was_here_by_its_digest_was_confirmed_by_nobody(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root) as cache:
        cache.put(CONTENT, name="m")
        cache.get(url, digest=DIGEST)
        assert server.seen() == []
        cache.get(url, digest=DIGEST, max_age=3600)

    assert len(server.seen()) == 1


def test_a_refresh_of_the_same_content_keeps_the_time_when_it_came(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT, etag=None)
    with Cache(root) as cache:
        cache.get(url)
        before = cache.lookup(url)
        monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)
        cache.get(url, force_download=True)
        after = cache.lookup(url)

    assert before is not None
    assert after is not None
    assert (after.created, after.checked) == (before.created, 4_000_000_000)


def test_followers_with_a_mirror_do_not_share_the_failure_of_who_had_none(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=404, hold_head=True)])
    mirror = server.add("/mirror.onnx", CONTENT)
    outcomes: list[object] = []

    def ask(cache: Cache, mirrors: list[str]) -> None:
        try:
            outcomes.append(Path(cache.get(url, mirrors=mirrors)).read_bytes() == CONTENT)
        except errors.ModelCacheError as error:
            outcomes.append(type(error))

    with Cache(root) as first, Cache(root, retry=RetryPolicy(base=0)) as second:
        one = threading.Thread(target=ask, args=(first, []))
        one.start()
        server.wait_for_requests(1)
        others = [threading.Thread(target=ask, args=(cache, [mirror])) for cache in (first, second)]
        for thread in others:
            thread.start()
        server.release()
        for thread in (one, *others):
            thread.join(60)

    assert sorted(map(str, outcomes)) == sorted(map(str, [errors.RemoteNotFoundError, True, True]))


def test_a_listener_that_asks_for_what_is_being_fetched_does_not_hang(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    said: list[BaseException] = []

    def listen(_event: object) -> None:
        try:
            cache.get(url)
        except errors.UsageError as error:
            said.append(error)

    with Cache(root, on_event=listen) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT

    assert said


@pytest.mark.parametrize(
    "options",
    [
        {"lock_timeout": -1},
        {"lock_timeout": "x"},
        {"lock_timeout": float("nan")},
        {"max_bandwidth": 1.5},
        {"max_bandwidth": "9"},
        {"max_bandwidth": 0},
        {"max_bandwidth": True},
    ],
    ids=repr,
)
def test_senseless_limits_are_refused(options: dict[str, object], root: Path) -> None:
    with pytest.raises(errors.UsageError):
        Cache(root, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_senseless_numbers_of_jobs_are_refused(jobs: int, root: Path) -> None:
    with Cache(root) as cache:
        for call in (cache.verify, lambda jobs: cache.get_many([], jobs=jobs)):
            with pytest.raises(errors.UsageError):
                call(jobs=jobs)


def test_a_warmed_model_is_one_miss(server: FaultServer, root: Path, tmp_path: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[[model]]\nref = "{url}"\n')

    with Cache(root) as cache:
        cache.prewarm(manifest)
        cache.prewarm(manifest)

        assert (cache.stats().misses, cache.stats().hits) == (1, 1)


def test_a_repair_of_what_cannot_be_read_is_a_repair(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as cache:
        path = cache.get(url)
        unreadable = files.digest_of

        def failing(name: str) -> object:
            if Path(name).stat().st_ino == inode:
                raise OSError(5, "Input/output error", name)
            return unreadable(name)

        inode = Path(path).stat().st_ino
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "digest_of", failing)
            before = cache.verify()
            after = cache.verify(repair=True)
        assert [finding.state for finding in before.findings] == ["unreadable"]
        assert after.ok
        assert after.findings[0].repaired
        assert Path(cache.get(url)).stat().st_ino != inode
        assert cache.verify().bad == ()


@pytest.mark.parametrize("many", ["get_many", "aget_many"])
def test_a_path_and_a_name_of_one_text_stay_two_models(
    many: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    with Cache(root) as cache:
        cache.put(OTHER, name="m.onnx")

        if many == "get_many":
            found = cache.get_many([Path("m.onnx"), "m.onnx"])
        else:
            found = asyncio.run(cache.aget_many([Path("m.onnx"), "m.onnx"]))

        assert Path(found[Path("m.onnx")]).read_bytes() == CONTENT
        assert Path(found["m.onnx"]).read_bytes() == OTHER
        assert Path(cache.get("m.onnx")).read_bytes() == OTHER


def test_many_are_checked_before_the_first_is_asked_for(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as cache:
        for call in (cache.get_many, lambda refs: asyncio.run(cache.aget_many(refs))):
            with pytest.raises(errors.UsageError):
                call([url, "bad:ref"])
            with pytest.raises(errors.UsageError):
                call([url, 5])  # type: ignore[list-item]

    assert server.seen() == []


def test_as_many_tasks_run_at_once_as_were_asked_for(server: FaultServer, root: Path) -> None:
    refs = [server.add(f"/{n}.onnx", CONTENT, [Fault(hold_head=True)]) for n in range(8)]

    async def ask() -> dict[str | os.PathLike[str], str]:
        with Cache(root) as cache:
            asking = asyncio.create_task(cache.aget_many(refs, jobs=8))
            await asyncio.to_thread(server.wait_for_requests, 8)
            server.release()
            return await asking

    assert len(asyncio.run(ask())) == 8


def test_wrong_credentials_of_one_are_not_the_failure_of_another(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=401, hold_head=True)])
    outcomes: dict[str, object] = {}

    def ask(cache: Cache, user: str) -> None:
        try:
            outcomes[user] = Path(cache.get(url.replace("://", f"://{user}@"))).read_bytes() == CONTENT
        except errors.ModelCacheError as error:
            outcomes[user] = type(error)

    with Cache(root) as cache, Cache(root) as another:
        threads = [threading.Thread(target=ask, args=(cache, "bad:1"))]
        threads[0].start()
        server.wait_for_requests(1)
        threads += [threading.Thread(target=ask, args=pair) for pair in ((cache, "good:1"), (another, "good:2"))]
        for thread in threads[1:]:
            thread.start()
        server.release()
        for thread in threads:
            thread.join(60)

    assert outcomes == {"bad:1": errors.AccessDeniedError, "good:1": True, "good:2": True}


@pytest.mark.parametrize("total", [None, 0.5])
def test_an_end_during_the_last_attempt_is_told_as_what_it_is(
    total: float | None, server: FaultServer, root: Path
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(stall_after=1000)])
    cache = Cache(root, retry=RetryPolicy(attempts=1), timeout=Timeout(read=60, total=total))
    outcomes: list[BaseException] = []

    def ask() -> None:
        try:
            cache.get(url)
        except errors.ModelCacheError as error:
            outcomes.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    if total is None:
        server.wait_for_sent(1000)
        cache.close()
    thread.join(60)

    assert [type(error) for error in outcomes] == [errors.CancelledError if total is None else errors.DeadlineError]


def test_a_fork_while_another_thread_holds_every_lock_of_a_cache_still_works(server: FaultServer, root: Path) -> None:
    import signal
    import warnings

    url = server.add("/m.onnx", CONTENT)
    cache = Cache(root)
    cache.get(server.add("/first.onnx", CONTENT))  # All that it makes is made.
    fetcher, flights = cache._getter._fetching  # type: ignore[misc]
    source = fetcher.means.registry.source(parse(url))
    assert isinstance(source, HttpSource)
    guards = [cache._getter._guard, fetcher.means.registry._guard, flights._guard, source._connections._guard]
    for guard in guards:
        guard.acquire()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if Path(cache.get(url)).read_bytes() == CONTENT else 1)
    for guard in guards:
        guard.release()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(("age", "counts"), [(0, True), (3000, True), (3700, False)])
def test_a_mark_of_a_process_that_cannot_be_looked_for_counts_for_an_hour(age: int, counts: bool, root: Path) -> None:
    from modelcache.objects import Objects
    from modelcache.sweep import sweep

    digest = Cache(root).put(CONTENT, name="m").digest
    mark = root / "staging" / f"another1-machine1-1-2-3-abcdef01.{digest.hex}.removal"
    mark.touch()
    os.utime(mark, (time.time() - age, time.time() - age))

    assert Objects(str(root))._is_marked(digest, "removal") is counts
    sweep(str(root))
    assert mark.exists() is counts


def test_a_mark_of_a_live_process_counts_as_long_as_it_lives(root: Path) -> None:
    from modelcache import process
    from modelcache.objects import Objects
    from modelcache.sweep import sweep

    digest = Cache(root).put(CONTENT, name="m").digest
    mark = root / "staging" / f"{process.token()}.{digest.hex}.wanted"
    mark.touch()
    os.utime(mark, (time.time() - 86_400, time.time() - 86_400))  # It hashes a very large object, on a slow disk.
    sweep(str(root))

    assert mark.exists()
    assert not Objects(str(root)).remove(digest, is_named=lambda _: False)
    assert Cache(root).lookup("m") is not None


def test_a_fifo_in_an_objects_place_does_not_hang(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as cache:
        path = Path(cache.get(url))
        path.unlink()
        os.mkfifo(path)

        assert Path(cache.get(url)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "options", [{"timeout": 30}, {"retry": 3}, {"offline": "no"}, {"sources": 5}, {"sources": object()}], ids=repr
)
def test_arguments_of_another_kind_are_refused(options: dict[str, object], root: Path) -> None:
    with pytest.raises(errors.UsageError):
        Cache(root, **options)  # type: ignore[arg-type]
