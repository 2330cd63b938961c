"""What every source owes the cache, asked of each: one suite, a short fixture for each source."""

from __future__ import annotations

import hashlib
import random
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme

from modelcache import Cache, HfSource, HttpSource, RetryPolicy, Timeout, errors
from modelcache.retry import Deadline
from modelcache.sources import Registry, Request, Source, Stream, Validators
from modelcache.sources.file import FileSource
from modelcache.testing import FaultServer
from tests.support.hub import Hub

CONTENT = random.Random(12).randbytes(200_000)


@dataclass(frozen=True)
class Subject:
    """A source, and the way to put content where it looks."""

    source: Source
    publish: Callable[[bytes], str]
    missing: str

    def request(self, url: str) -> Request:
        return Request(url=url, ref=url, timeout=Timeout(), deadline=Deadline(30, ref=url))


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(params=["http", "https", "file", "hf", "hf, a small file"])
def subject(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    authority: trustme.CA,
    tls: ssl.SSLContext,
) -> Iterator[Subject]:
    if request.param == "file":
        file = tmp_path / "m.onnx"

        def write(content: bytes) -> str:
            file.write_bytes(content)
            return file.as_uri()

        yield Subject(FileSource(), write, (tmp_path / "missing").as_uri())
        return
    if request.param.startswith("hf"):
        with Hub() as hub:
            if "small" in request.param:
                hub.large_bytes = len(CONTENT) + 1

            def commit(content: bytes) -> str:
                hub.add("org/name", {"m.onnx": content})
                return "hf://org/name/m.onnx"

            commit(CONTENT)
            source = HfSource(endpoint=hub.endpoint)
            yield Subject(source, commit, "hf://org/name/missing")
            source.close()
        return
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with FaultServer(tls=tls if request.param == "https" else None) as server:
        plain = HttpSource()
        yield Subject(plain, lambda content: server.add("/m.onnx", content), server.url("/missing"))
        plain.close()


def read(stream: Stream, limit: int = 10_000) -> bytes:
    parts = []
    try:
        while chunk := stream.read(limit):
            assert len(chunk) <= limit
            parts.append(chunk)
    finally:
        stream.close()
    return b"".join(parts)


def test_a_stream_is_the_content_with_its_size(subject: Subject) -> None:
    stream = subject.source.open(subject.request(subject.publish(CONTENT)))

    assert (stream.start, stream.total, stream.unchanged) == (0, len(CONTENT), False)
    assert read(stream) == CONTENT


def test_a_stream_starts_where_it_is_asked_to(subject: Subject) -> None:
    request = subject.request(subject.publish(CONTENT))
    first = subject.source.open(request)
    validators = first.validators
    read(first)

    stream = subject.source.open(replace(request, start=150_000, same_as=validators))

    assert (stream.start, stream.total) == (150_000, len(CONTENT))
    assert read(stream) == CONTENT[150_000:]


def test_a_part_in_the_middle_is_that_part(subject: Subject) -> None:
    request = replace(subject.request(subject.publish(CONTENT)), start=1000, stop=2500)

    assert read(subject.source.open(request)) == CONTENT[1000:2500]


def test_content_that_changed_comes_from_its_first_byte(subject: Subject) -> None:
    request = subject.request(subject.publish(CONTENT))
    old = subject.source.open(request)
    validators = old.validators
    read(old)
    subject.publish(CONTENT[::-1])

    stream = subject.source.open(replace(request, start=150_000, same_as=validators))

    assert stream.start == 0
    assert read(stream) == CONTENT[::-1]


def test_a_start_behind_the_end_begins_again(subject: Subject) -> None:
    request = replace(subject.request(subject.publish(CONTENT)), start=len(CONTENT) + 1)

    stream = subject.source.open(request)

    assert stream.start == 0
    assert read(stream) == CONTENT


def test_content_that_still_matches_need_not_come(subject: Subject) -> None:
    request = subject.request(subject.publish(CONTENT))
    first = subject.source.open(request)
    validators = first.validators
    read(first)

    again = subject.source.open(replace(request, unless=validators))
    other = subject.source.open(replace(request, unless=Validators(etag='"something else"')))

    assert again.unchanged
    assert not other.unchanged
    again.close()
    assert read(other) == CONTENT


def test_what_does_not_exist_is_not_found_and_not_worth_a_retry(subject: Subject) -> None:
    with pytest.raises(errors.RemoteNotFoundError) as caught:
        subject.source.open(subject.request(subject.missing))

    assert not caught.value.transient


def test_a_stream_can_be_closed_early_and_twice(subject: Subject) -> None:
    stream = subject.source.open(subject.request(subject.publish(CONTENT)))
    stream.read(10)

    stream.close()
    stream.close()


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(tls: ssl.SSLContext, root: Path) -> None:
    with FaultServer(tls=tls) as server:
        url = server.add("/m.onnx", CONTENT)

        with Cache(root) as cache, pytest.raises(errors.UnreachableError, match="TLS") as caught:
            cache.get(url)

    assert not caught.value.transient


def test_https_never_falls_to_http(
    tls: ssl.SSLContext,
    authority: trustme.CA,
    server: FaultServer,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from modelcache.testing import Fault

    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    plain = server.add("/m.onnx", CONTENT)
    with FaultServer(tls=tls) as secure:
        url = secure.add("/m.onnx", CONTENT, [Fault(status=302, headers={"Location": plain})])

        with Cache(root) as cache, pytest.raises(errors.RedirectError, match="unprotected"):
            cache.get(url)

    assert server.seen() == []


def test_a_directory_is_no_model_and_a_fifo_does_not_hang(root: Path, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")

    with Cache(root) as cache:
        for place in (tmp_path, tmp_path / "fifo"):
            with pytest.raises(errors.RemoteNotFoundError):
                cache.get(place)


def test_an_installed_package_can_add_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from modelcache import reference, sources

    point = metadata.EntryPoint("custom", "modelcache.sources.file:FileSource", sources.GROUP)
    monkeypatch.setattr(sources, "entry_points", lambda group: [point] if group == sources.GROUP else [])
    registry = Registry()

    assert isinstance(registry.source(reference.parse("custom://x/y")), FileSource)
    with pytest.raises(errors.UnknownSchemeError, match="custom, file, hf, http, https"):
        registry.check(reference.parse("other://x/y"))


@pytest.mark.parametrize("digest", [None, "known"])
def test_a_file_that_is_rewritten_while_it_is_read_is_no_mixture(
    digest: str | None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place, to the same length: neither the size nor the end tells."""
    from modelcache.partials import Partial

    old, new = bytes([1]) * 2_000_000, bytes([2]) * 2_000_000
    file = tmp_path / "model.onnx"
    file.write_bytes(old)
    receive = Partial.append
    rewritten: list[bool] = []

    def rewrite(self: Partial, chunk: bytes) -> None:
        receive(self, chunk)
        if not rewritten:
            rewritten.append(True)
            file.write_bytes(new)

    monkeypatch.setattr(Partial, "append", rewrite)
    expected = f"sha256:{hashlib.sha256(new).hexdigest()}" if digest else None

    with Cache(root, retry=RetryPolicy(base=0)) as cache:
        path = cache.get(file, digest=expected)

    assert Path(path).read_bytes() == new


@pytest.mark.parametrize(
    ("name", "hint"), [("missing.onnx", "Check the path"), ("n" * 300, "Check the path")], ids=["missing", "too long"]
)
def test_a_file_that_is_not_there_has_a_hint_of_its_own(name: str, hint: str, root: Path, tmp_path: Path) -> None:
    with Cache(root) as cache, pytest.raises(errors.ModelCacheError) as caught:
        cache.get(tmp_path / name / "m.onnx")

    assert isinstance(caught.value, errors.RemoteNotFoundError)
    assert caught.value.hint == hint
