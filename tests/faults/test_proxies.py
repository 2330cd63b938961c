"""https through a proxy: a tunnel by CONNECT (RFC 9110, 9.3.6), with the proxy's own credentials, and its refusals."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from modelcache import Cache, RetryPolicy, Timeout, errors
from modelcache.testing import Fault, FaultServer

CONTENT = b"a model" * 10_000


class Tunnel:
    """Answers CONNECT and passes bytes on; it remembers what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heads: list[str] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self._sockets.append(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.heads.append(head.decode())
        client.sendall(self.answer)
        if b" 200 " not in self.answer:
            client.close()
            return
        host, _, port = head.split()[1].decode().partition(":")
        server = socket.create_connection((host, int(port)))
        self._sockets.append(server)
        self._start(self._pass, server, client)
        self._pass(client, server)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # One of the two has gone.

    def _start(self, work: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for taken in self._sockets:
            try:
                taken.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # Gone already.
            taken.close()
        for thread in self._threads:
            thread.join(30)


@contextmanager
def tunnel(answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Iterator[Tunnel]:
    running = Tunnel(answer)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultServer(tls=context) as server:
        yield server


def test_https_goes_through_a_tunnel_and_the_proxy_gets_its_credentials_alone(
    secure: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = secure.add("/m.onnx", CONTENT).replace("://", "://user:secret@")
    with tunnel() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://proxyuser:proxypass@127.0.0.1:{proxy.port}")

        with Cache(root) as cache:
            assert Path(cache.get(url)).read_bytes() == CONTENT

    basic = base64.b64encode(b"proxyuser:proxypass").decode()
    assert f"proxy-authorization: basic {basic}".lower() in proxy.heads[0].lower()
    assert base64.b64encode(b"user:secret").decode() not in proxy.heads[0]
    assert "proxy-authorization" not in secure.seen()[0].headers


def test_a_proxy_that_refuses_is_named(secure: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = secure.add("/m.onnx", CONTENT)
    with tunnel(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")

        with (
            Cache(root, retry=RetryPolicy(attempts=1)) as cache,
            pytest.raises(errors.AccessDeniedError, match=r"proxy.*407"),
        ):
            cache.get(url)

    assert secure.seen() == []


def test_a_deadline_holds_through_a_tunnel(secure: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = secure.add("/m.onnx", CONTENT, [Fault(drip_head=True)])
    with tunnel() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")

        with Cache(root, timeout=Timeout(read=60, total=0.5)) as cache, pytest.raises(errors.DeadlineError):
            cache.get(url)
