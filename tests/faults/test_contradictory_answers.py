"""Answers that contradict themselves, or never come: refused or cut, and never half a model."""

from __future__ import annotations

import gc
import hashlib
import random
import ssl
import threading
from pathlib import Path

import pytest
import trustme

from modelcache import Cache, RetryPolicy, Timeout, errors
from modelcache.sources.http import HttpSource
from modelcache.testing import OK, Fault, FaultServer
from tests.support.state import leftovers, wrong_objects

CONTENT = random.Random(1).randbytes(3_000_000)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
HALF = len(CONTENT) // 2
ONCE = RetryPolicy(attempts=1)


def make(root: Path, **options: object) -> Cache:
    options.setdefault("retry", RetryPolicy(attempts=3, base=0))
    options.setdefault("timeout", Timeout(connect=5, read=5, stall=5))
    return Cache(root, **options)  # type: ignore[arg-type]


def stop_in_the_middle(root: Path, url: str, **options: object) -> None:
    with make(root, retry=ONCE) as cache, pytest.raises(errors.NetworkError):
        cache.get(url, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("digest", [None, DIGEST])
def test_a_part_of_an_unknown_whole_that_is_cut_is_no_whole(
    digest: str | None, server: FaultServer, root: Path
) -> None:
    """RFC 9110, 14.4: the total may be ``*``. The end of such a part says nothing of the end of the content."""
    unknown = {"Content-Range": f"bytes {HALF}-{len(CONTENT) - 1}/*"}
    url = server.add(
        "/m.onnx", CONTENT, [Fault(abort_after=HALF), Fault(headers=unknown, framing="chunked", abort_after=1000)]
    )
    stop_in_the_middle(root, url, digest=digest)

    with make(root) as cache:
        path = cache.get(url, digest=digest)

    assert Path(path).read_bytes() == CONTENT
    assert leftovers(root) == []
    assert wrong_objects(root) == []


def test_a_part_shorter_than_it_says_is_no_whole_even_if_its_framing_is_right(server: FaultServer, root: Path) -> None:
    body = CONTENT[HALF:-1000]
    lying = Fault(headers={"Content-Range": f"bytes {HALF}-{len(CONTENT) - 1}/*"}, body=CONTENT[: HALF + len(body)])
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=HALF), lying])
    stop_in_the_middle(root, url)

    with make(root) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT


def test_a_part_that_nobody_asked_for_is_refused(server: FaultServer, root: Path) -> None:
    part = Fault(status=206, headers={"Content-Range": f"bytes 0-999/{len(CONTENT)}"})
    url = server.add("/m.onnx", CONTENT, [part] * 3)

    with make(root) as cache, pytest.raises(errors.ProtocolError, match="asked for the whole content"):
        cache.get(url)

    assert leftovers(root) == []


def test_content_of_unknown_length_that_cannot_be_resumed_safely_begins_anew(server: FaultServer, root: Path) -> None:
    """Nobody ever said how long it is: neither the first answer (chunked) nor the part that goes on with it."""
    unknown = {"Content-Range": f"bytes {HALF}-{len(CONTENT) - 1}/*"}
    url = server.add("/m.onnx", CONTENT, [Fault(framing="chunked", abort_after=HALF), Fault(headers=unknown)])
    stop_in_the_middle(root, url)

    with make(root) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT
    assert "range" not in server.seen()[-1].headers


def test_two_lengths_are_a_contradiction_and_the_connection_is_closed(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(headers={"Content-Length": "5, 7"})] * 3)

    with make(root) as cache, pytest.raises(errors.ProtocolError):
        cache.get(url)
    gc.collect()  # A socket that nobody closed is a warning here, and so a failure.


def test_a_head_that_drips_for_ever_is_cut(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(drip_head=True)])

    with make(root, timeout=Timeout(connect=2, read=1, stall=1)) as cache:
        path = cache.get(url)

    assert Path(path).read_bytes() == CONTENT


@pytest.mark.parametrize("secure", [False, True])
def test_a_deadline_holds_while_a_head_drips(
    secure: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultServer(tls=context if secure else None) as server:
        url = server.add("/m.onnx", CONTENT, [Fault(drip_head=True)])

        with make(root, timeout=Timeout(read=60, total=0.5)) as cache, pytest.raises(errors.DeadlineError):
            cache.get(url)

        assert len(server.seen()) <= 1


@pytest.mark.parametrize("length", [1000, 10**9])
def test_the_body_of_a_redirect_is_not_waited_for(length: int, server: FaultServer, root: Path) -> None:
    content = server.add("/content.onnx", CONTENT)
    url = server.add("/m.onnx", b"", [Fault(status=302, headers={"Location": content}, extra=length, stall_after=10)])

    with make(root, timeout=Timeout(read=0.5)) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT
    gc.collect()  # As above: the answer that was left is closed.


def test_a_304_that_announces_chunks_has_none(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [OK, Fault(framing="chunked")])

    with make(root, timeout=Timeout(read=600, total=20)) as cache:
        path = cache.get(url)
        assert cache.get(url, force_download=True) == path
        assert cache.stats().unchanged == 1


def test_a_close_ends_the_wait_for_an_answer(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_head=True)])
    outcomes: list[BaseException] = []

    def ask(cache: Cache) -> None:
        try:
            cache.get(url)
        except errors.ModelCacheError as error:
            outcomes.append(error)

    cache = make(root, timeout=Timeout(read=600, stall=600))
    thread = threading.Thread(target=ask, args=(cache,))
    thread.start()
    server.wait_for_requests(1)
    cache.close()
    thread.join(60)

    assert [type(error) for error in outcomes] == [errors.CancelledError]


def test_the_first_mirror_serves_when_the_source_asks_to_wait(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=429, headers={"Retry-After": "300"})] * 2)
    with FaultServer() as other, make(root) as cache:
        mirror = other.add("/m.onnx", CONTENT)
        for ref in (url, f"{url}?again"):  # The second time by the stamp alone, without asking.
            assert Path(cache.get(ref, mirrors=[mirror])).read_bytes() == CONTENT
            assert cache.lookup(ref).source == mirror  # type: ignore[union-attr]

    assert len(server.seen()) == 1


def test_a_host_that_asked_for_longer_than_is_waited_is_not_asked_again(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(status=503, headers={"Retry-After": "86400"})] * 2)

    for _ in range(3):
        with make(root) as cache, pytest.raises(errors.HttpStatusError) as caught:
            cache.get(url)
        assert caught.value.status == 503

    assert len(server.seen()) == 1


def test_a_source_that_asked_to_wait_is_waited_for_when_no_mirror_can_serve(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelcache import fetch

    monkeypatch.setattr(fetch, "_BRIEF_S", 0.0)
    url = server.add("/m.onnx", CONTENT, [Fault(status=429, headers={"Retry-After": "1"})])
    with FaultServer() as other, make(root) as cache:
        assert Path(cache.get(url, mirrors=[other.url("/missing.onnx")])).read_bytes() == CONTENT
        assert len(other.seen()) == 1

    assert len(server.seen()) == 2


def test_one_authorization_header_is_sent_the_most_precise_one(
    server: FaultServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login netrc password netrc\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    url = server.add("/m.onnx", CONTENT)
    plain = server.add("/n.onnx", CONTENT)
    source = HttpSource(headers={"authorization": "Bearer token", "user-agent": "mine"})

    with make(root, sources=[source]) as cache:
        cache.get(url.replace("://", "://user:pass@"))
        cache.get(plain)

    basic, bearer = server.seen()
    assert basic.headers["authorization"] == "Basic dXNlcjpwYXNz"
    assert bearer.headers["authorization"] == "Bearer token"
    assert bearer.headers["user-agent"] == "mine"


@pytest.mark.parametrize("headers", [{"range": "bytes=0-1"}, {"X-Key": "a\r\nHost: b"}, {"X-Key": 1}])
def test_headers_that_are_ours_to_set_or_cannot_be_sent_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(errors.ConfigurationError):
        HttpSource(headers=headers)


def test_a_location_in_utf8_is_understood(server: FaultServer, root: Path) -> None:
    server.add("/mod%C3%A8le.onnx", CONTENT)
    location = "/modèle.onnx".encode().decode("latin-1")  # What a careless server puts on the wire.
    url = server.add("/m.onnx", b"", [Fault(status=302, headers={"Location": location})])

    with make(root) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_bundle_that_holds_no_certificate_is_named_and_only_when_it_is_needed(
    name: str, kind: str, server: FaultServer, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "empty":
        (tmp_path / "bundle.pem").write_text("no certificate")
    monkeypatch.setenv(name, str(tmp_path / "bundle.pem"))
    url = server.add("/m.onnx", CONTENT)

    with make(root) as cache:
        cache.get(url)
        with pytest.raises(errors.ConfigurationError, match=name):
            cache.get("https://127.0.0.1:9/m.onnx")


@pytest.mark.parametrize(
    "value", ["bytes 0-\xb2/10", f"bytes 0-{'9' * 5000}/*", "bytes -1-5/6", "bytes 0-5", "lines 0-5/6"]
)
def test_a_range_that_is_none_is_refused(value: str, server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=HALF), Fault(headers={"Content-Range": value})])
    stop_in_the_middle(root, url)

    with make(root, retry=ONCE) as cache, pytest.raises(errors.NetworkError):
        cache.get(url)


def test_a_redirect_to_no_url_shows_no_signature(server: FaultServer, root: Path) -> None:
    location = "http://127.0.0.1:70000/x?X-Amz-Signature=s3cret"
    url = server.add("/m.onnx", b"", [Fault(status=302, headers={"Location": location})])

    with make(root) as cache, pytest.raises(errors.RedirectError) as caught:
        cache.get(url)

    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("hosts", ["models.127.0.0.1.example.org", "127.0.0.1"])
def test_hosts_are_a_list_and_not_a_text(hosts: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        HttpSource(headers={"Authorization": "Bearer token"}, hosts=hosts)  # type: ignore[arg-type]


def test_hosts_are_compared_whole_and_in_any_case(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT).replace("127.0.0.1", "localhost")
    for hosts, sent in ((("LOCALHOST",), True), (("my.localhost.example.org",), False)):
        with make(root, sources=[HttpSource(headers={"X-Key": "k"}, hosts=hosts)]) as cache:
            cache.get(url, force_download=True)
        assert ("x-key" in server.seen()[-1].headers) is sent


@pytest.mark.parametrize("value", ["socks5://user:s3cret@h:1", "http://user:s3cret@127.0.0.1:99999", "http://"])
def test_a_proxy_variable_that_makes_no_sense_is_named_without_its_value(
    value: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)

    with make(root) as cache, pytest.raises(errors.ConfigurationError, match="HTTP_PROXY") as caught:
        cache.get("http://host.invalid/m.onnx")

    assert "s3cret" not in str(caught.value)


def test_a_close_ends_a_tls_handshake_that_is_never_answered(root: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        cache = make(root, timeout=Timeout(connect=600), retry=ONCE)
        outcomes: list[BaseException] = []

        def ask() -> None:
            try:
                cache.get(f"https://127.0.0.1:{listener.getsockname()[1]}/m.onnx")
            except errors.ModelCacheError as error:
                outcomes.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        connection, _ = listener.accept()
        assert connection.recv(1)  # The client's hello: it waits for ours now.
        cache.close()
        thread.join(60)
        connection.close()

    assert [type(error) for error in outcomes] == [errors.CancelledError]
