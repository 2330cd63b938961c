"""A cache over a tier with single flight, in one process: with a bucket that is bad, and with bad parts."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import failpoints
from modelcache import Cache, HttpSource, RetryPolicy, Tier, Timeout, errors, tier
from modelcache.archive import DirectoryBackend, MemoryBackend
from modelcache.backends import refs
from modelcache.cli import run
from modelcache.fleet import bucket as buckets
from modelcache.fleet import collect, flight, growing, parts
from modelcache.fleet.claims import Beat, Claims
from modelcache.layout import key_id
from modelcache.promises import check_cache
from modelcache.sealed import seal, unseal
from modelcache.testing import Fault, FaultServer

CONTENT = random.Random(83).randbytes(500_000)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
PIECE = 100_000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(growing, "PIECE_BYTES_MAX", PIECE)
    monkeypatch.setattr(buckets, "_probed", set())
    monkeypatch.setattr(flight, "_AFTER_FAILURE_S", 0.1)
    monkeypatch.setattr(tier, "LEASE_MIN_S", 0.4)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def cache_of(tmp_path: Path, backend: MemoryBackend) -> Iterator[Callable[..., Cache]]:
    made = []

    def make(number: int = 0, *, below: dict[str, Any] | None = None, **options: Any) -> Cache:
        options.setdefault("retry", RetryPolicy(attempts=2, base=0))
        top = Tier("bucket", backend=backend, single_flight=True, name="bucket", **{"lease": 15.0, **(below or {})})
        made.append(Cache(tmp_path / f"root-{number}", tiers=[top], **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def traces(backend: MemoryBackend) -> list[str]:
    return [name for top in ("claims/", "parts/", "probes/") for name in backend.names(top)]


def content_at(path: str) -> bytes:
    return Path(path).read_bytes()


def shared(backend: MemoryBackend, url: str, content: bytes, **facts: Any) -> str:
    """Put parts of *content* in the bucket, as a claimer leaves them that is killed; return their directory."""
    top, identity = parts.directory_of(url), key_id(url)
    pieces = []
    for at in range(0, len(content) - PIECE, PIECE):
        name, data = f"{identity}.0123456789abcdef.{at:016d}", content[at : at + PIECE]
        backend.put(f"{top}{name}", data)
        pieces.append((name, len(data), hashlib.sha256(data).hexdigest()))
    known = {
        "place": url, "announced": None, "etag": None, "last_modified": None, "strong_date": False, "revision": None,
        **facts,
    }  # fmt: skip
    index = {"key": identity, "facts": known, "total": len(content), "pieces": pieces}
    backend.put(f"{top}{identity}.0123456789abcdef", seal(index))
    return top


def test_one_fetches_the_others_promote_and_nothing_is_left(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT)
    caches = [cache_of(number) for number in range(4)]

    threads = [threading.Thread(target=cache.get, args=(url,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert server.methods() == ["GET"]
    assert [content_at(cache.get(url)) for cache in caches] == [CONTENT] * 4
    assert sum(cache.stats().bytes_promoted for cache in caches) == 3 * len(CONTENT)
    assert traces(backend) == []


def test_a_bucket_without_conditional_writes_is_refused_with_the_reason(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    monkeypatch.setattr(backend, "create", lambda name, data: backend.put(name, data) or True)  # type: ignore[func-returns-value]

    for _ in range(2):
        with pytest.raises(errors.NoConditionalWritesError, match="bucket"):
            cache_of().get(url)

    assert server.seen() == []
    assert traces(backend) == []


def test_a_store_that_looks_first_and_writes_then_is_found_out_by_racing(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Barrier(4)

    def create(name: str, data: bytes) -> bool:
        there = backend.size(name) is not None
        if not there:
            looked.wait(10)
            backend.put(name, data)
        return not there

    monkeypatch.setattr(backend, "create", create)

    with pytest.raises(errors.NoConditionalWritesError):
        backend.check_conditional()


def test_a_probe_whose_answer_was_lost_accuses_no_store(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = backend.create
    monkeypatch.setattr(backend, "create", lambda name, data: create(name, data) and False)

    backend.check_conditional()


def test_a_bucket_that_is_down_costs_its_tries_and_then_the_origin_is_asked(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache], caplog: pytest.LogCaptureFixture
) -> None:
    urls = [server.add(f"/{number}.onnx", CONTENT) for number in range(3)]
    backend.down = True
    cache = cache_of()

    with caplog.at_level(logging.WARNING, "modelcache"):
        assert [content_at(cache.get(url)) for url in urls] == [CONTENT] * 3

    assert server.methods() == ["GET"] * 3
    assert len([one for one in caplog.messages if "without the fleet" in one]) >= 1


def test_a_deadline_ends_a_wait_for_another_machine(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT)
    claims = Claims(backend, url, "somebody")
    mine = claims.next()
    assert claims.acquire(mine)

    with pytest.raises(errors.DeadlineError):
        cache_of(timeout=Timeout(total=0.3), below={"lease": 1000.0}).get(url)

    assert server.seen() == []
    assert claims.current() == mine


def test_who_gives_up_while_it_waits_is_let_go_at_once(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT)
    claims = Claims(backend, url, "somebody")
    assert claims.acquire(claims.next())
    heard, failed = threading.Event(), []

    def hear(event: Any) -> None:
        if event.kind == "waiting" and "somebody" in event.detail:
            heard.set()

    cache = cache_of(on_event=hear, below={"lease": 1000.0})

    def get() -> None:
        try:
            cache.get(url)
        except errors.ModelCacheError as error:
            failed.append(type(error))

    thread = threading.Thread(target=get)
    thread.start()
    assert heard.wait(30)
    cache.close()
    thread.join(10)

    assert not thread.is_alive()
    assert failed == [errors.CancelledError]


def test_a_dead_claim_is_taken_over_and_its_parts_are_gone_on_with(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')
    claims = Claims(backend, url, "somebody")
    mine = claims.next()
    assert claims.acquire(mine)
    assert claims.beat(mine, Beat())
    shared(backend, url, CONTENT, etag='"v1"')

    assert content_at(cache_of(below={"lease": 0.4}).get(url)) == CONTENT

    assert [seen.headers.get("range") for seen in server.seen()] == [f"bytes={4 * PIECE}-"]
    assert traces(backend) == []


def test_parts_of_an_older_version_are_not_mixed_with_the_new_one(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v2"')
    shared(backend, url, bytes(len(CONTENT)), etag='"v1"')

    assert content_at(cache_of().get(url)) == CONTENT
    assert traces(backend) == []


def test_wrong_parts_under_the_right_version_cost_one_clean_download(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')
    shared(backend, url, bytes(len(CONTENT)), etag='"v1"')

    assert content_at(cache_of().get(url, digest=DIGEST)) == CONTENT

    assert [seen.headers.get("range") for seen in server.seen()] == [f"bytes={4 * PIECE}-", None]
    assert traces(backend) == []


@pytest.mark.parametrize("damage", ["piece", "short", "gone", "index"])
def test_damaged_parts_count_up_to_the_damage(
    damage: str, server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')
    top = shared(backend, url, CONTENT, etag='"v1"')
    third = f"{top}{key_id(url)}.0123456789abcdef.{2 * PIECE:016d}"
    if damage == "piece":
        backend.put(third, bytes(PIECE))
    elif damage == "short":
        backend.put(third, b"")
    elif damage == "gone":
        backend.delete(third)
    else:
        backend.put(f"{top}{key_id(url)}.0123456789abcdef", b"damaged")

    assert content_at(cache_of().get(url)) == CONTENT

    expected = None if damage == "index" else f"bytes={2 * PIECE}-"
    assert [seen.headers.get("range") for seen in server.seen()] == [expected]
    assert traces(backend) == []


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {}}, {"facts": None}, {"total": "x"}, {"total": 5}, {"pieces": None}, {"pieces": [["x", 1, "y"]]},
        {"pieces": [1]}, {"key": "other"}, {"etag": '"v1"\r\nX-Evil: 1'}, {"etag": '"\u20ac"'}, {"etag": "x" * 9000},
    ],
    ids=str,
)  # fmt: skip
def test_an_index_of_a_stranger_is_not_believed(
    change: dict[str, Any], server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')
    name = f"{shared(backend, url, CONTENT, etag=chr(34) + 'v1' + chr(34))}{key_id(url)}.0123456789abcdef"
    index = unseal(backend.read(name)) or {}
    if "etag" in change:  # It would go into the head of a request.
        change = {"facts": {**index["facts"], **change}}
    backend.put(name, seal({**index, **change}))

    assert content_at(cache_of().get(url)) == CONTENT
    assert [seen.headers.get("range") for seen in server.seen()] == [None]


def test_a_claim_that_none_can_follow_is_passed_over(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache], caplog: pytest.LogCaptureFixture
) -> None:
    url = server.add("/m.onnx", CONTENT)
    name = f"claims/{key_id(url)}/9999999999"
    backend.put(name, seal({"key": url, "mark": "0" * 16, "host": "stranger"}))

    with caplog.at_level(logging.WARNING, "modelcache"):
        assert content_at(cache_of(timeout=Timeout(total=30), below={"lease": 0.4}).get(url)) == CONTENT

    assert any(name in one for one in caplog.messages)
    assert traces(backend) == [name]


def test_who_gives_up_lets_go_at_once_and_leaves_what_it_has_shared(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=2 * PIECE)], etag='"v1"')
    named = threading.Event()
    put = backend.put

    def spy(name: str, data: bytes) -> None:
        put(name, data)
        if name.startswith("parts/") and name.count(".") == 1 and len((unseal(data) or {})["pieces"]) == 2:
            named.set()

    monkeypatch.setattr(backend, "put", spy)
    first = cache_of(below={"lease": 1000.0})
    failed: list[type] = []

    def get() -> None:
        try:
            first.get(url)
        except errors.ModelCacheError as error:
            failed.append(type(error))

    thread = threading.Thread(target=get)
    thread.start()
    assert named.wait(30)
    first.close()
    thread.join(30)
    server.release()

    assert failed == [errors.CancelledError]
    assert [name for name in traces(backend) if name.startswith("claims/")] == []
    assert content_at(cache_of(1, below={"lease": 1000.0}).get(url)) == CONTENT
    assert [seen.headers.get("range") for seen in server.seen()] == [None, f"bytes={2 * PIECE}-"]
    assert traces(backend) == []


def test_a_machine_whose_disk_fills_while_it_takes_parts_up_leaves_them_to_the_next(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache], tmp_path: Path
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')
    shared(backend, url, CONTENT, etag='"v1"')

    with failpoints.scenario("partials.before-append=2*off->1*raise(ENOSPC)"), pytest.raises(errors.NoSpaceError):
        cache_of().get(url)
    assert server.seen() == []
    assert content_at(cache_of(1).get(url)) == CONTENT

    assert [seen.headers.get("range") for seen in server.seen()] == [f"bytes={4 * PIECE}-"]
    assert traces(backend) == []
    assert [one for one in check_cache(tmp_path / "root-0") if one.kind != "garbage"] == []
    assert content_at(cache_of().get(url)) == CONTENT


def test_where_only_content_is_trusted_parts_need_a_digest(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')
    shared(backend, url, bytes(len(CONTENT)), etag='"v1"')

    assert content_at(cache_of(below={"trust": "content"}).get(url)) == CONTENT
    assert [seen.headers.get("range") for seen in server.seen()] == [None]


def test_what_cannot_be_resumed_is_not_shared(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(rate=1_000_000)], etag=None)
    put, names = backend.put, []

    def spy(name: str, data: bytes) -> None:
        names.append(name)
        put(name, data)

    monkeypatch.setattr(backend, "put", spy)

    assert content_at(cache_of().get(url)) == CONTENT
    assert [name for name in names if name.startswith("parts/")] == []


def test_what_somebody_fetches_with_credentials_is_no_matter_of_the_fleet(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT)
    source = HttpSource(headers={"Authorization": "Bearer secret"})

    assert content_at(cache_of(sources=[source]).get(url)) == CONTENT
    assert list(backend.names()) == []


def test_a_refresh_is_asked_for_once_and_all_have_the_news(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", b"old")
    caches = [cache_of(number) for number in range(3)]
    for cache in caches:
        cache.get(url)
    server.add("/m.onnx", CONTENT, [Fault(hold_after=PIECE)])
    found: list[bytes] = []

    threads = [
        threading.Thread(target=lambda cache=cache: found.append(content_at(cache.get(url, force_download=True))))
        for cache in caches
    ]
    for thread in threads:
        thread.start()
    server.wait_for_sent(PIECE)
    server.release()
    for thread in threads:
        thread.join()

    assert found == [CONTENT] * 3
    assert server.sent() == 3 + len(CONTENT)
    record = refs.read(backend, url)
    assert record is not None
    assert record.digest == DIGEST


def test_the_error_of_a_claimer_is_left_for_all_and_cleared_up_by_the_next(
    server: FaultServer, backend: MemoryBackend, cache_of: Callable[..., Cache]
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=404)])
    with pytest.raises(errors.RemoteNotFoundError):
        cache_of().get(url)
    assert len(traces(backend)) == 2

    assert content_at(cache_of(1).get(url)) == CONTENT  # It came too late to have waited for that error.
    assert traces(backend) == []


def test_what_nobody_moves_is_collected_and_what_moves_stays(backend: MemoryBackend) -> None:
    dead, alive = Claims(backend, "https://a/dead"), Claims(backend, "https://a/alive")
    first, second = dead.next(), alive.next()
    assert dead.acquire(first)
    assert alive.acquire(second)
    shared(backend, "https://a/dead", CONTENT)

    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        assert alive.beat(second, Beat(count=len(waited)))

    expected = [name for name in traces(backend) if key_id("https://a/dead") in name]
    assert collect(backend, lease=15.0, wait=wait, dry_run=True) == tuple(expected)
    assert len(traces(backend)) == len(expected) + 2
    assert collect(backend, lease=1.0, wait=wait) == tuple(expected)

    assert waited == [22.5, 20.0]
    assert traces(backend) == [second.name, second.beat_name]


def test_who_comes_while_it_is_collected_keeps_its_claim(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(backend, "https://a/dead")
    first = claims.next()
    assert claims.acquire(first)
    again = claims.next()  # Its number is that of the dead one, which somebody clears up.
    looks = []
    names = backend.names

    def listed(prefix: str = "") -> Iterator[str]:
        looks.append(prefix)
        if looks.count("probes/") == 2:  # The second look is over.
            looks.clear()
            claims.release(first)
            assert claims.acquire(again)
        return names(prefix)

    monkeypatch.setattr(backend, "names", listed)

    assert collect(backend, lease=15.0, wait=lambda _: None) == ()
    assert claims.stands(again)


def test_the_command_that_collects_says_what_it_would_remove(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = DirectoryBackend(tmp_path / "bucket")
    claims = Claims(bucket, "https://a/dead")
    dead = claims.next()
    assert claims.acquire(dead)
    monkeypatch.setenv("MODELCACHE_TIERS", f"directory://{tmp_path / 'bucket'},single-flight")
    monkeypatch.setattr("time.sleep", lambda _: None)
    root = ["--root", str(tmp_path / "root")]

    assert run(["tiers", "collect", *root, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dry_run": True, "files": [dead.name]}
    assert claims.stands(dead)
    assert run(["tiers", "collect", *root]) == 0
    assert capsys.readouterr().out.split() == [dead.name]
    assert not claims.stands(dead)
    monkeypatch.setenv("MODELCACHE_TIERS", f"directory://{tmp_path / 'bucket'},write")
    assert run(["tiers", "collect", *root]) == 2
    assert "single-flight" in capsys.readouterr().err
