"""What the network does to a download, one fault at a time: a typed error or the right bytes, nothing left behind."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, Timeout, errors
from modelcache.events import Event
from modelcache.testing import OK, Fault, FaultServer
from tests.support.state import leftovers, wrong_objects

CONTENT = random.Random(1).randbytes(3_000_000)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
WRONG = f"sha256:{hashlib.sha256(b'something else').hexdigest()}"
QUICK = RetryPolicy(attempts=3, base=0)


def make(root: Path, **options: object) -> Cache:
    options.setdefault("retry", QUICK)
    options.setdefault("timeout", Timeout(connect=5, read=5, stall=5))
    return Cache(root, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(hang_up=True),
        Fault(hang_up=True, reset=True),
        Fault(abort_after=1_000_000),
        Fault(abort_after=1_000_000, reset=True),
        Fault(abort_after=0),
        Fault(status=500),
        Fault(status=502),
        Fault(status=503),
        Fault(status=504),
        Fault(status=408),
        Fault(status=425),
        Fault(status=429),
        Fault(framing="broken-chunks"),
        Fault(framing="chunked", abort_after=1_000_000),
    ],
    ids=repr,
)
def test_a_fault_that_passes_is_retried_and_leaves_no_trace(fault: Fault, server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [fault])

    with make(root) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT
    assert len(server.seen()) == 2
    assert leftovers(root) == []


@pytest.mark.parametrize(
    ("fault", "error", "requests", "code"),
    [
        (Fault(status=404), errors.RemoteNotFoundError, 1, 4),
        (Fault(status=410), errors.RemoteNotFoundError, 1, 4),
        (Fault(status=401), errors.AccessDeniedError, 1, 5),
        (Fault(status=403), errors.AccessDeniedError, 1, 5),
        (Fault(status=451), errors.AccessDeniedError, 1, 5),
        (Fault(status=418), errors.HttpStatusError, 1, 6),
        (Fault(status=500), errors.HttpStatusError, 3, 6),
        (Fault(status=429), errors.HttpStatusError, 3, 6),
        (Fault(hang_up=True), errors.InterruptedTransferError, 3, 6),
        (Fault(hang_up=True, reset=True), errors.InterruptedTransferError, 3, 6),
        (Fault(headers={"Content-Encoding": "gzip"}), errors.ProtocolError, 1, 6),
        (Fault(framing="close"), errors.ProtocolError, 1, 6),
        (Fault(body=b""), errors.EmptyContentError, 2, 7),
        (Fault(status=301, headers={"Location": "/m.onnx"}), errors.RedirectError, 2, 6),
        (Fault(status=302, headers={"Location": "file:///etc/passwd"}), errors.RedirectError, 1, 6),
        (Fault(status=302, headers={"Location": "ftp://127.0.0.1/x"}), errors.RedirectError, 1, 6),
        (Fault(status=302), errors.ProtocolError, 1, 6),
        (Fault(status=302, headers={"Location": "http://[::1"}), errors.RedirectError, 1, 6),
        (Fault(status=204), errors.HttpStatusError, 1, 6),
        (Fault(framing="chunked", headers={"Transfer-Encoding": "gzip, chunked"}), errors.ProtocolError, 1, 6),
    ],
    ids=lambda value: repr(value) if isinstance(value, Fault) else "",
)
def test_a_fault_that_stays_is_its_own_error_and_leaves_nothing(
    fault: Fault,
    error: type[errors.ModelCacheError],
    requests: int,
    code: int,
    server: FaultServer,
    root: Path,
) -> None:
    url = server.add("/m.onnx", CONTENT, [fault] * 20)

    with make(root) as cache, pytest.raises(error) as caught:
        cache.get(url)

    assert caught.value.exit_code == code
    assert caught.value.hint
    assert len(server.seen()) == requests
    assert leftovers(root) == []
    assert not list(root.glob("objects-v1/*"))


def test_broken_chunks_are_an_interrupted_transfer_whose_whole_chunks_are_kept(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(framing="broken-chunks", ignore_range=True)] * 20)

    with make(root) as cache, pytest.raises(errors.InterruptedTransferError, match="framing"):
        cache.get(url)

    assert [name.partition("/")[0] for name in leftovers(root)] == ["partial-v1"]


def test_a_refused_connection_is_unreachable(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    server.unplug()

    with make(root) as cache, pytest.raises(errors.UnreachableError):
        cache.get(url)


def test_a_host_that_does_not_exist_is_unreachable(root: Path) -> None:
    with make(root) as cache, pytest.raises(errors.UnreachableError):
        cache.get("http://no-such-host.invalid/m.onnx")


def test_a_stalled_stream_is_cut_and_resumed(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(stall_after=1_000_000)])

    with make(root, timeout=Timeout(read=0.5)) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT
    assert server.sent() < len(CONTENT) * 1.1


def test_a_stream_that_drips_is_cut_although_bytes_keep_coming(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(rate=1000)] * 9)

    timeout = Timeout(read=60, stall=0.5)
    with make(root, retry=RetryPolicy(attempts=1), timeout=timeout) as cache, pytest.raises(errors.StalledError):
        cache.get(url)


def test_a_truncated_download_is_resumed_and_not_begun_again(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=2_000_000)])

    with make(root) as cache:
        cache.get(url)
        stats = cache.stats()

    second = server.seen()[1]
    assert second.headers["range"] == "bytes=2000000-"
    assert second.headers["if-range"]
    assert server.sent() == len(CONTENT)
    assert stats.bytes_received == len(CONTENT)


def test_only_attempts_without_progress_count(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=200_000)] * 14)

    with make(root) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT


def test_a_source_that_never_gets_further_is_given_up(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=200_000, ignore_range=True)] * 50, etag=None)

    with make(root) as cache, pytest.raises(errors.InterruptedTransferError):
        cache.get(url)

    assert len(server.seen()) == QUICK.attempts


def test_content_that_changed_between_two_parts_is_fetched_whole(server: FaultServer, root: Path) -> None:
    other = random.Random(2).randbytes(len(CONTENT))
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000)])

    def replace(event: Event) -> None:
        if event.kind == "retry":
            server.add("/m.onnx", other)

    with make(root, on_event=replace) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == other


def test_a_server_that_ignores_if_range_cannot_mix_two_versions(server: FaultServer, root: Path) -> None:
    other = random.Random(2).randbytes(len(CONTENT))
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000)], etag='"same"')

    def replace(event: Event) -> None:
        if event.kind == "retry":
            # The condition still matches, and yet the answer is a part of something else.
            server.add("/m.onnx", other, [Fault(headers={"ETag": '"other"'})], etag='"same"')

    with make(root, on_event=replace) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == other


def test_a_server_without_ranges_sends_it_whole_again(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000), Fault(ignore_range=True)])

    with make(root) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT


def test_without_a_strong_validator_and_a_digest_nothing_is_resumed(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000)], etag='W/"weak"')

    with make(root) as cache:
        cache.get(url)

    assert "range" not in server.seen()[1].headers


def test_with_a_digest_a_download_is_resumed_even_without_validators(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000)], etag=None)

    with make(root) as cache:
        cache.get(url, digest=DIGEST)

    assert server.seen()[1].headers["range"] == "bytes=1000000-"
    assert "if-range" not in server.seen()[1].headers


def test_a_date_is_a_strong_validator_when_it_is_old_enough(server: FaultServer, root: Path) -> None:
    date = "Thu, 19 Nov 2026 12:00:00 GMT"
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000)], etag=None, last_modified=date)

    with make(root) as cache:
        cache.get(url)

    assert server.seen()[1].headers["if-range"] == date


def test_a_wrong_content_range_is_refused(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000), *[Fault(shift_range=7)] * 9])

    with make(root) as cache, pytest.raises(errors.ProtocolError, match="Content-Range"):
        cache.get(url)

    assert wrong_objects(root) == []


def test_more_bytes_than_announced_never_become_part_of_the_model(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=1_000_000), *[Fault(extra=5)] * 50])

    with make(root) as cache:
        try:
            # Where the excess comes with the last bytes it is an error; where it comes alone, all is here already.
            assert Path(cache.get(url, digest=DIGEST)).read_bytes() == CONTENT
        except errors.ProtocolError:
            pass

    assert wrong_objects(root) == []


def test_content_that_is_longer_than_its_digest_says_is_refused(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(framing="chunked", extra=5)] * 9)

    with make(root) as cache, pytest.raises(errors.DigestMismatchError):
        cache.get(url, digest=DIGEST)


def test_a_wrong_digest_is_asked_for_once_more_and_then_names_both(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with make(root) as cache, pytest.raises(errors.DigestMismatchError) as caught:
        cache.get(url, digest=WRONG)

    assert WRONG in str(caught.value)
    assert DIGEST in str(caught.value)
    assert len(server.seen()) == 2
    assert leftovers(root) == []


def test_a_corrupted_transfer_is_repaired_by_the_second_try(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(corrupt_at=1_500_000)])

    with make(root) as cache:
        path = cache.get(url, digest=DIGEST)

    assert Path(path).read_bytes() == CONTENT


def test_content_without_a_length_is_taken_if_the_digest_is_known(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(framing="close")])

    with make(root) as cache:
        assert Path(cache.get(url, digest=DIGEST)).read_bytes() == CONTENT


def test_chunked_content_is_taken(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(framing="chunked")])

    with make(root) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT


def test_mirrors_are_asked_in_order_and_the_entry_says_which_one_served(server: FaultServer, root: Path) -> None:
    first = server.add("/a/m.onnx", CONTENT, [Fault(status=404)] * 9)
    second = server.add("/b/m.onnx", CONTENT, [Fault(status=500)] * 9)
    third = server.add("/c/m.onnx", CONTENT)

    with make(root) as cache:
        cache.get(first, mirrors=[second, third])
        entry = cache.lookup(first)

    assert entry is not None
    assert entry.source == third
    assert [seen.path for seen in server.seen()] == ["/a/m.onnx", *["/b/m.onnx"] * 3, "/c/m.onnx"]


def test_the_bytes_of_two_places_are_never_mixed(server: FaultServer, root: Path) -> None:
    one, other = (random.Random(seed).randbytes(200_000) for seed in (1, 2))
    first = server.add("/a/m.onnx", one, [Fault(abort_after=100_000), *[Fault(status=500)] * 5])
    second = server.add("/b/m.onnx", other)

    with Cache(root, retry=RetryPolicy(attempts=1)) as cache:
        assert Path(cache.get(first, mirrors=[second])).read_bytes() == other


def test_a_mirror_with_other_bytes_is_not_believed(server: FaultServer, root: Path) -> None:
    first = server.add("/a/m.onnx", CONTENT, [Fault(status=404)] * 9)
    evil = server.add("/b/m.onnx", b"evil")
    good = server.add("/c/m.onnx", CONTENT)

    with make(root) as cache:
        assert Path(cache.get(first, digest=DIGEST, mirrors=[evil, good])).read_bytes() == CONTENT


def test_when_all_mirrors_fail_every_error_is_told(server: FaultServer, root: Path) -> None:
    first = server.add("/a/m.onnx", CONTENT, [Fault(status=404)] * 9)
    second = server.add("/b/m.onnx", CONTENT, [Fault(status=403)] * 9)

    with make(root) as cache, pytest.raises(errors.MirrorsExhaustedError) as caught:
        cache.get(first, mirrors=[second])

    assert [type(error) for error in caught.value.errors] == [errors.RemoteNotFoundError, errors.AccessDeniedError]


@pytest.mark.parametrize("value", ["1", "Fri, 20 Nov 2026 12:00:01 GMT"])
def test_retry_after_is_obeyed_in_seconds_and_as_a_date(value: str, server: FaultServer, root: Path) -> None:
    headers = {"Retry-After": value, "Date": "Fri, 20 Nov 2026 12:00:00 GMT"}
    url = server.add("/m.onnx", CONTENT, [Fault(status=503, headers=headers)])
    waits: list[float] = []

    with make(root, on_event=lambda e: waits.append(e.seconds or 0) if e.kind == "retry" else None) as cache:
        cache.get(url)

    assert waits == [1.0]


def test_a_retry_after_beyond_the_limit_is_not_waited_for(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=503, headers={"Retry-After": "86400"})] * 5)

    with make(root) as cache, pytest.raises(errors.HttpStatusError) as caught:
        cache.get(url)

    assert caught.value.retry_after == 86400
    assert len(server.seen()) == 1


def test_a_deadline_shorter_than_the_wait_is_told_at_once(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=503, headers={"Retry-After": "60"})] * 5)

    with make(root, timeout=Timeout(total=5)) as cache, pytest.raises(errors.DeadlineError):
        cache.get(url)


def test_a_deadline_cuts_a_stream_that_goes_on_for_ever(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(stall_after=1_000_000)])

    with make(root, timeout=Timeout(read=60, total=1.5)) as cache, pytest.raises(errors.DeadlineError):
        cache.get(url)
    with make(root) as cache:
        cache.get(url)

    assert server.seen()[1].headers["range"] == "bytes=1000000-"


def test_credentials_do_not_cross_to_another_origin(server: FaultServer, root: Path) -> None:
    from modelcache import HttpSource

    with FaultServer() as other:
        target = other.add("/m.onnx", CONTENT)
        url = server.add("/m.onnx", CONTENT, [Fault(status=302, headers={"Location": target})])
        source = HttpSource(headers={"Authorization": "Bearer secret", "X-Api-Key": "secret"})

        with make(root, sources=[source]) as cache:
            cache.get(url)

        assert server.seen()[0].headers["authorization"] == "Bearer secret"
        assert "authorization" not in other.seen()[0].headers
        assert "x-api-key" not in other.seen()[0].headers


def test_credentials_in_the_url_are_sent_and_never_recorded(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT).replace("http://", "http://user:hunter2@")
    told: list[str] = []

    with make(root, on_event=lambda event: told.append(repr(event))) as cache:
        cache.get(url)

    assert server.seen()[0].headers["authorization"] == "Basic dXNlcjpodW50ZXIy"
    everything = b"".join(file.read_bytes() for file in root.rglob("*") if file.is_file()) + "".join(told).encode()
    assert b"hunter2" not in everything


def test_netrc_is_used_when_nothing_else_is_given(
    server: FaultServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelcache import HttpSource

    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    url = server.add("/m.onnx", CONTENT)

    with make(root) as cache:
        cache.get(url)
    with make(root, sources=[HttpSource(headers={"Authorization": "Bearer token"})]) as cache:
        cache.get(url, force_download=True)

    assert server.seen()[0].headers["authorization"].startswith("Basic ")
    assert server.seen()[1].headers["authorization"] == "Bearer token"


def test_a_proxy_from_the_environment_is_used(server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    server.add("http://models.example/m.onnx", CONTENT)

    with make(root) as cache:
        path = cache.get("http://models.example/m.onnx")

    assert Path(path).read_bytes() == CONTENT
    assert server.seen()[0].path == "http://models.example/m.onnx"


def test_only_gets_are_sent(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=503), Fault(abort_after=10), OK])

    with make(root) as cache:
        cache.get(url)
        cache.get(url, force_download=True)

    assert set(server.methods()) == {"GET"}


def test_a_forced_download_of_the_same_content_is_one_conditional_request(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with make(root) as cache:
        cache.get(url)
        cache.get(url, force_download=True)
        stats = cache.stats()

    assert stats.unchanged == 1
    assert server.sent() == len(CONTENT)


def test_what_is_younger_than_max_age_is_not_asked_for(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with make(root) as cache:
        cache.get(url)
        cache.get(url, max_age=3600)

    assert len(server.seen()) == 1


def test_what_is_older_than_max_age_is_replaced_when_the_source_has_changed(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with make(root) as cache:
        old = cache.get(url)
        server.add("/m.onnx", b"new content")
        new = cache.get(url, max_age=0)

    assert Path(new).read_bytes() == b"new content"
    assert Path(old).read_bytes() == CONTENT  # Whoever uses it keeps it.


def test_what_is_stale_is_served_when_the_source_cannot_be_reached(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with make(root) as cache:
        path = cache.get(url)
        server.unplug()

        assert cache.get(url, max_age=0) == path
        with pytest.raises(errors.UnreachableError):
            cache.get(url, force_download=True)


def test_a_host_that_asks_to_wait_is_left_alone_by_every_cache_of_the_machine(server: FaultServer, root: Path) -> None:
    first = server.add("/a.onnx", CONTENT, [Fault(status=429, headers={"Retry-After": "30"})] * 9)
    second = server.add("/b.onnx", CONTENT)

    with make(root, timeout=Timeout(total=1)) as cache, pytest.raises(errors.DeadlineError):
        cache.get(first)
    with make(root, timeout=Timeout(total=1)) as cache, pytest.raises(errors.DeadlineError):
        cache.get(second)

    assert len(server.seen("/a.onnx")) == 1
    assert server.seen("/b.onnx") == []


def test_parallel_ranges_are_used_on_a_slow_link_and_give_the_same_bytes(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelcache import ranges, transfer

    monkeypatch.setattr(transfer, "_JUDGE_AFTER_S", 0.05)
    monkeypatch.setattr(transfer, "_WORTH_S", 0.0)
    monkeypatch.setattr(ranges, "PIECE_BYTES", 128 * 1024)
    url = server.add("/m.onnx", CONTENT, [Fault(rate=4_000_000)])
    connections: list[int] = []

    with make(root, on_event=lambda e: connections.append(e.done) if e.kind == "ranges" else None) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT
    assert connections[0] == 2
    assert all("if-range" in seen.headers for seen in server.seen()[1:])


def test_a_part_that_fails_costs_a_retry_and_not_the_download(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelcache import ranges, transfer

    monkeypatch.setattr(transfer, "_JUDGE_AFTER_S", 0.05)
    monkeypatch.setattr(transfer, "_WORTH_S", 0.0)
    monkeypatch.setattr(ranges, "PIECE_BYTES", 128 * 1024)
    url = server.add("/m.onnx", CONTENT, [Fault(rate=4_000_000), OK, OK, Fault(status=500), OK])

    with make(root) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT
    assert leftovers(root) == []
