"""Buckets that cannot be reached, answer wrongly, or are not what they should be: a real S3 server, and bad ones."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Tier, Timeout, errors
from modelcache.archive import ObjectStoreBackend
from modelcache.backends import ahead, contents, refs
from modelcache.backends import base as backends_base
from modelcache.digest import Digest
from modelcache.levels import base
from modelcache.promises import check_cache
from modelcache.testing import FaultServer
from tests.crash.world import forked
from tests.support.buckets import KEYS, needs_obstore, s3_server
from tests.support.state import leftovers

CONTENT = bytes(range(256)) * 8000
DIGEST = Digest.of_bytes([CONTENT])
PATIENT = 60.0


@pytest.fixture(autouse=True)
def _tell_everything_again() -> None:
    base._complained.clear()
    needs_obstore()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


def bucket(endpoint: str, prefix: str, **options: Any) -> Tier:
    config = {"endpoint": endpoint, **KEYS, **options.pop("config", {})}
    place = f"s3://{options.pop('bucket', 'models')}/{prefix}"
    return Tier(place, **{"timeout": PATIENT, **options}, config=config, client_options={"allow_http": True})


def backend_of(tier: Tier) -> ObjectStoreBackend:
    return ObjectStoreBackend(tier.path, config=tier.config, client_options=tier.client_options)


def whole(root: Path) -> None:
    assert check_cache(root) == []
    assert leftovers(root) == []


def test_a_file_and_a_tree_go_to_a_bucket_and_come_from_it(
    root: Path, s3: str, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_base, "PIECE_BYTES", 300_000)  # Seven pieces, and then one stream.
    monkeypatch.setattr(ahead, "_JUDGE_AFTER_S", 0.0)
    monkeypatch.setattr(ahead, "_WORTH_BYTES", 0)
    monkeypatch.setattr(ahead, "FAST_BYTES_PER_S", 1 << 60)
    url = server.add("/model.onnx", CONTENT)
    (tmp_path / "t/inside").mkdir(parents=True)
    (tmp_path / "t/inside/weights").write_bytes(CONTENT)
    (tmp_path / "t/config").write_bytes(b"{}")
    with Cache(root.parent / "first", tiers=[bucket(s3, tmp_path.name, write="direct")]) as first:
        first.get(url)
        tree = first.put_tree(tmp_path / "t", name="t")
        state = first.tiers()[0]
    seen = len(server.seen())

    with Cache(root, tiers=[bucket(s3, tmp_path.name)]) as second:
        assert Path(second.get(url)).read_bytes() == CONTENT
        path = Path(second.get("t"))
        assert second.lookup("t").digest == tree.digest  # type: ignore[union-attr]
        assert second.stats().bytes_promoted == len(CONTENT) + 2  # The weights were here.

    assert (path / "inside/weights").read_bytes() == CONTENT
    assert len(server.seen()) == seen
    assert (state.kind, state.state, state.waiting) == ("s3", "healthy", 0)
    whole(root)


def test_what_was_changed_in_a_bucket_is_refused_and_healed(
    root: Path, s3: str, server: FaultServer, tmp_path: Path
) -> None:
    url = server.add("/model.onnx", CONTENT)
    tier = bucket(s3, tmp_path.name, write="direct")
    with Cache(root.parent / "first", tiers=[tier]) as first:
        first.get(url)
    blob = contents.blob_name(DIGEST)
    backend_of(tier).put(blob, CONTENT[::-1])

    with Cache(root, tiers=[tier]) as second:
        assert Path(second.get(url)).read_bytes() == CONTENT
        assert second.stats().refused == 1

    assert backend_of(tier).read(blob) == CONTENT
    whole(root)


def test_a_bucket_that_is_not_there_is_a_typed_error_of_the_first_get(root: Path, s3: str, server: FaultServer) -> None:
    with Cache(root, tiers=[bucket(s3, "p", bucket="nobody")]) as upper:
        with pytest.raises(errors.BackendSetupError, match="no such bucket"):
            upper.get(server.add("/model.onnx", CONTENT))
        with pytest.raises(errors.BackendSetupError, match="no such bucket"):
            upper.tiers()


class _Answering(http.server.BaseHTTPRequestHandler):
    status = 503
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering(status: int) -> Iterator[tuple[str, type[_Answering]]]:
    handler = type("Handler", (_Answering,), {"status": status, "asked": 0})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_wrong_credentials_are_a_typed_error_of_the_first_get(root: Path, server: FaultServer) -> None:
    wanted = server.add("/model.onnx", CONTENT)
    with answering(403) as (url, _), Cache(root, tiers=[bucket(url, "p")]) as upper:  # noqa: SIM117
        with pytest.raises(errors.BackendAccessError):
            upper.get(wanted)


def test_a_server_that_is_overloaded_is_asked_once_and_then_left_alone(
    root: Path, server: FaultServer, caplog: Any
) -> None:
    urls = [server.add(f"/{n}.onnx", CONTENT) for n in range(3)]
    with answering(503) as (url, handler), Cache(root, tiers=[bucket(url, "p")]) as upper:
        for one in urls:
            assert Path(upper.get(one)).read_bytes() == CONTENT
        assert handler.asked == 1
    assert caplog.text.count("is passed over") == 1


def test_a_port_that_refuses_costs_one_connection_and_is_told_once(
    root: Path, server: FaultServer, caplog: Any
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Cache(root, tiers=[bucket(address, "p", write=True)]) as upper:
            for n in range(3):
                assert Path(upper.get(server.add(f"/{n}.onnx", CONTENT))).read_bytes() == CONTENT
            state = upper.tiers()[0]
            waiting = upper.waiting()

    assert (state.state, state.write) == ("down", "queued")
    assert sum(waiting.values()) == 1  # Of one content.
    assert caplog.text.count("is passed over") == 1
    whole(root)


def test_a_black_hole_is_waited_for_once_by_all_processes_of_a_boot(root: Path, server: FaultServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:  # It takes connections, and never says a word.
        address = f"http://127.0.0.1:{hole.getsockname()[1]}"
        with Cache(root, tiers=[bucket(address, "p", timeout=0.2)]) as first:
            first.get(server.add("/0.onnx", CONTENT))
            first.get(server.add("/1.onnx", CONTENT))
        with Cache(root, tiers=[bucket(address, "p", timeout=PATIENT)]) as second:
            second.get(server.add("/2.onnx", CONTENT))
            assert second._getter.tiers is not None
            assert second._getter.tiers.levels[0].breaker.state == "down"  # `tiers()` would ask it now.


def test_a_bucket_that_stops_in_the_middle_of_a_content_is_left_for_the_source(
    root: Path, s3: str, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/model.onnx", CONTENT)
    tier = bucket(s3, tmp_path.name, write="direct")
    with Cache(root.parent / "first", tiers=[tier]) as first:
        first.get(url)
    release = threading.Event()
    stream = ObjectStoreBackend.stream

    def stalling(self: ObjectStoreBackend, name: str, start: int = 0) -> Iterator[bytes]:
        whole = b"".join(stream(self, name, start))
        if not name.startswith("blobs/"):
            yield whole
            return
        yield whole[: 600_000 - start]
        release.wait()

    monkeypatch.setattr(ObjectStoreBackend, "stream", stalling)
    try:
        with Cache(root, tiers=[tier], timeout=Timeout(stall=1.0)) as second:
            assert Path(second.get(url)).read_bytes() == CONTENT
            stats = second.stats()
    finally:
        release.set()

    assert (stats.bytes_promoted, stats.bytes_received) == (600_000, len(CONTENT) - 600_000)
    assert refs.read(backend_of(tier), url) is not None
    whole(root)


def test_in_a_forked_child_a_bucket_is_passed_over_and_its_writes_wait_for_others(
    root: Path, s3: str, server: FaultServer, tmp_path: Path
) -> None:
    url, other = server.add("/model.onnx", CONTENT), server.add("/other.onnx", CONTENT[::-1])
    tier = bucket(s3, tmp_path.name, write=True)
    with Cache(root, tiers=[tier]) as upper:
        upper.get(url)
        assert upper.flush(60)

        def work() -> None:
            assert Path(upper.get(other)).read_bytes() == CONTENT[::-1]

        assert os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]) == 0
        assert upper.flush(60)

    assert refs.read(backend_of(tier), other) is not None
    whole(root)


def test_a_bucket_is_found_by_the_variables_of_its_store(
    root: Path, s3: str, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "REGION": "us-east-1", "ENDPOINT_URL": s3}
    for name, value in {**said, "ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("MODELCACHE_TIERS", f"s3://models/{tmp_path.name},write-direct")
    url = server.add("/model.onnx", CONTENT)

    with Cache(root) as upper:
        upper.get(url)
        assert upper.waiting() == {}

    assert refs.read(backend_of(bucket(s3, tmp_path.name)), url) is not None
