"""How HTTP connections are made and cut: proxies, TLS trust, and waits that another thread can end. Over urllib3.

urllib3 bounds each arrival of bytes, not the wait for the head of an answer as a whole, which may drip for ever; and it
offers no way to cut that wait from another thread. So the connection that a request uses makes itself known here.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import urllib3
import urllib3.connection
from urllib3 import HTTPHeaderDict
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    IncompleteRead,
    InvalidHeader,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import BaseHTTPResponse
from urllib3.util import Url, make_headers, parse_url

from ..errors import (
    AccessDeniedError,
    ConfigurationError,
    InterruptedTransferError,
    ModelCacheError,
    ProtocolError,
    StalledError,
    UnreachableError,
)
from ..forks import renew_after_fork
from .base import Request

_CONNECTIONS_KEPT = 16
_READ_AWAY_BYTES_MAX = 16 * 1024


class Connections:
    """The kept connections of one source. What *environ* says of proxies and TLS is read once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._proxies = urllib.request.getproxies()
        self._trusted = _trusted(environ)
        self._pools: dict[tuple[str | None, bool], urllib3.PoolManager] = {}
        self._pid = os.getpid()
        renew_after_fork(self)

    def renew_guard(self) -> None:
        """Replace the lock, which another thread may have held at a fork."""
        self._guard = threading.Lock()

    def send(self, url: Url, headers: HTTPHeaderDict, request: Request) -> Answer:
        """GET *url*; return the answer, whose body is still to come.

        Raises:
            PolicyError: That host may not be connected to; no connection was opened.
            NetworkError, CancelledError, ConfigurationError
        """
        if request.policies:
            request.policies.check_hop(request.ref, url.scheme or "", url.host or "")
        limits = request.timeout
        pool = self._pool(url)
        request.deadline.check()
        timeout = urllib3.Timeout(
            connect=max(0.001, request.deadline.left(limits.connect)),
            read=max(0.001, request.deadline.left(limits.read)),
        )
        within = limits.connect + max(limits.read, limits.stall)
        exchange = _exchange.current = _Exchange()
        try:
            with request.deadline.cutting(exchange.interrupt, within=within):
                response = pool.urlopen(
                    "GET",
                    Url(url.scheme, None, url.host, url.port, url.path, url.query).url,
                    headers=headers,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=timeout,
                )
            answer = Answer(response, exchange)
        except (HTTPError, OSError, ValueError) as error:
            exchange.abandon()
            _check_exchange(exchange, request, within)
            raise network_error(error, request.ref) from error
        except BaseException:
            exchange.abandon()
            raise
        finally:
            _exchange.current = None
        try:
            _check_exchange(exchange, request, within)  # A head that is cut short looks whole to http.client.
        except ModelCacheError:
            answer.close()
            raise
        return answer

    def close(self) -> None:
        """Close what is idle."""
        with self._guard:
            if self._pid == os.getpid():
                for pool in self._pools.values():
                    pool.clear()
            self._pools.clear()

    def _pool(self, url: Url) -> urllib3.PoolManager:
        proxy = self._proxies.get(url.scheme or "")
        if proxy is not None and self._is_direct(url):
            proxy = None
        key = proxy, url.scheme == "https" or (proxy or "").startswith("https:")
        with self._guard:
            if self._pid != os.getpid():
                # A connection that a fork has copied would be used by two processes at once.
                self._pools.clear()
                self._pid = os.getpid()
            if key not in self._pools:
                context = _tls_context(self._trusted) if key[1] else None
                try:
                    self._pools[key] = _make_pool(proxy, context)
                except (HTTPError, ValueError) as error:
                    # The value may hold a password.
                    setting = f"{(url.scheme or '').upper()}_PROXY"
                    expected = "http://host:port or https://host:port"
                    raise ConfigurationError(setting=setting, value="(not shown)", expected=expected) from error
            return self._pools[key]

    def _is_direct(self, url: Url) -> bool:
        """Tell whether NO_PROXY, or what the system has in its place, exempts *url*."""
        place = (url.host or "") + (f":{url.port}" if url.port else "")
        if "no" in self._proxies:
            return bool(urllib.request.proxy_bypass_environment(place, self._proxies))  # type: ignore[attr-defined]
        return bool(urllib.request.proxy_bypass(place))


class Answer:
    """A response whose head is here and whose body is still to come."""

    def __init__(self, response: BaseHTTPResponse, exchange: _Exchange) -> None:
        self.response, self._exchange = response, exchange

    def cut(self) -> None:
        """Make a thread that reads from it fail soon."""
        self._exchange.interrupt()

    def release(self) -> None:
        """Be done with it after its end: its connection can serve again."""
        self.response.release_conn()
        self._exchange.close()

    def close(self) -> None:
        """Be done with it, and with its connection."""
        self.response.close()
        self._exchange.close()

    def settle(self, request: Request) -> None:
        """Be done with a body that nobody wants; a short one is read, so that its connection serves again."""
        length = self.response.length_remaining
        if length is None or length > _READ_AWAY_BYTES_MAX:
            self.close()
            return
        with request.deadline.cutting(self.cut, within=request.timeout.read):
            self.response.drain_conn()
        if self._exchange.interrupted or self.response.length_remaining:
            self.close()
        else:
            self.release()


def network_error(error: Exception, ref: str) -> ModelCacheError:
    """Return the typed error for what urllib3, ssl or the socket raised."""
    text = str(getattr(error, "reason", None) or error.args[-1] if error.args else error)
    if isinstance(error, ProxyError) and " 407 " in f"{error.original_error} ":
        return AccessDeniedError(ref=ref, detail=f"the proxy: {error.original_error}")
    if isinstance(error, ProxyError):
        return UnreachableError(ref=ref, detail=f"the proxy cannot be used: {error.original_error}")
    if isinstance(error, SSLError | ssl.SSLError):
        return UnreachableError(ref=ref, detail=f"TLS failed: {text}", transient="CERTIFICATE" not in text.upper())
    if isinstance(error, InvalidHeader):
        return ProtocolError(ref=ref, detail=text)
    if isinstance(error, NewConnectionError | ConnectTimeoutError):
        return UnreachableError(ref=ref, detail=text.rpartition(": ")[2])
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return StalledError(ref=ref, detail="no byte came within the read timeout")
    if isinstance(getattr(error, "args", (None,))[-1], http.client.IncompleteRead | IncompleteRead):
        # Chunked or not: http.client does not tell a broken chunk from one that was cut.
        return InterruptedTransferError(ref=ref, detail="it ended in the middle of what its framing announced")
    if isinstance(error, ValueError) and not isinstance(error, HTTPError):
        return ProtocolError(ref=ref, detail=text, transient=False)
    return InterruptedTransferError(ref=ref, detail=f"the connection was cut ({text})")


class _Exchange:
    """One request and its answer: a second descriptor of the connection, by which any thread can cut it.

    A descriptor of its own, because what the connection calls its socket is another object before, during and after a
    TLS handshake, and within TLS through a TLS proxy one that cannot be shut down.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.head: http.client.HTTPResponse | None = None
        self._twin: socket.socket | None = None

    def hold(self, descriptor: int) -> None:
        """Take a copy of the connection's *descriptor*; TimeoutError if the exchange was interrupted already."""
        if self._twin is None:
            self._twin = socket.socket(fileno=os.dup(descriptor))
        if self.interrupted:
            raise TimeoutError("given up before the request was sent")

    def interrupt(self) -> None:
        """Make the thread that waits, or reads, fail soon."""
        self.interrupted = True
        if self._twin is None:
            return  # Not connected yet, which has its own limit.
        try:
            self._twin.shutdown(socket.SHUT_RDWR)
        except OSError:  # Over already.
            return

    def abandon(self) -> None:
        """Close what an error has left open: urllib3 forgets a response whose head it refuses."""
        if self.head is not None:
            self.head.close()
        self.close()

    def close(self) -> None:
        """Let go of the copy; the connection itself lives on."""
        if self._twin is not None:
            self._twin.close()


def _check_exchange(exchange: _Exchange, request: Request, within: float) -> None:
    """Raise what ended the wait for the head of an answer, if it was ended."""
    if exchange.interrupted:
        request.deadline.check()
        raise StalledError(ref=request.ref, detail=f"the head of the answer took longer than {within:g} s")


class _Exchanges(threading.local):
    current: _Exchange | None = None


_exchange = _Exchanges()  # What this thread is sending: urllib3 chooses the connection itself.


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if _exchange.current is not None:
            _exchange.current.head = self


class _HttpConnection(urllib3.connection.HTTPConnection):
    response_class = _Response

    def _new_conn(self) -> socket.socket:
        return _held(super()._new_conn())

    def request(self, *args: Any, **options: Any) -> None:
        _hold_kept(self)
        super().request(*args, **options)


class _HttpsConnection(_HttpConnection, urllib3.connection.HTTPSConnection):
    """The same above TLS: ``super()`` in it is urllib3's connection of that kind."""


def _held(new: socket.socket) -> socket.socket:
    if _exchange.current is not None:
        try:
            _exchange.current.hold(new.fileno())
        except BaseException:
            new.close()
            raise
    return new


def _hold_kept(connection: urllib3.connection.HTTPConnection) -> None:
    """Do the same for a connection that is not made anew; one that is will be held when it is made."""
    if _exchange.current is not None and connection.sock is not None:
        _exchange.current.hold(connection.sock.fileno())


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


def _make_pool(proxy: str | None, context: ssl.SSLContext | None) -> urllib3.PoolManager:
    if proxy is None:
        manager = urllib3.PoolManager(maxsize=_CONNECTIONS_KEPT, ssl_context=context)
    else:
        address = proxy if "://" in proxy else f"http://{proxy}"
        parsed = parse_url(address)
        if not parsed.host:
            raise ValueError("a proxy without a host")
        credentials = parsed.auth
        headers = make_headers(proxy_basic_auth=unquote(credentials)) if credentials else None
        manager = urllib3.ProxyManager(
            address, maxsize=_CONNECTIONS_KEPT, ssl_context=context, proxy_ssl_context=context, proxy_headers=headers
        )
    manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return manager


def _trusted(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that say whom to trust, with their values: Python's own, or else one that others read."""
    ours = {name: environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environ.get(name)}
    others = {name: environ[name] for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE") if environ.get(name)}
    return ours or dict([others.popitem()] if others else [])


def _tls_context(trusted: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts what the variables in *trusted* say; the standard library skips what is not there.

    Raises:
        ConfigurationError: One names what is no certificate.
    """
    context = ssl.create_default_context()
    for name, bundle in trusted.items():
        try:
            paths = bundle.split(os.pathsep) if name == "SSL_CERT_DIR" else [bundle]
            # Of several directories, those that are not there are passed over, as OpenSSL does.
            for path in [path for path in paths if os.path.exists(path)] or paths:
                context.load_verify_locations(**{"capath" if os.path.isdir(path) else "cafile": path})
        except OSError as error:  # ssl.SSLError is one: a file that holds no certificate.
            raise ConfigurationError(setting=name, value=bundle, expected="a file of CA certificates (PEM)") from error
    return context
