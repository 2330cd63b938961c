"""dask.distributed, as far as a prewarm needs it: who is there, and three short calls on a worker. Its only import.

The calls are `Client.run`: outside of the scheduling of tasks, because a task that is pinned to a worker that dies is
never finished, and one on a busy cluster waits for its turn behind others. A synchronous function that is run so holds
the worker's event loop, and with it its heartbeat: so what is called only begins the work, or asks for it (`onhost`).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from importlib.util import find_spec
from typing import Any, Self
from urllib.parse import urlsplit

from ..errors import (
    ClusterError,
    ClusterTLSError,
    MissingLibraryError,
    ModelCacheError,
    NoSchedulerError,
    NotASchedulerError,
    UsageError,
)
from . import onhost
from .hosts import GoneError, SilentError, UnfitError, Worker

PORT = 8786
_SCHEMES = {"dask": "tcp", "tcp": "tcp", "tls": "tls"}
_LOOK_S = 1.5  # At what answers and is no scheduler.


def address_of(cluster: str) -> str:
    """Return the address in *cluster* (``dask://host[:port]``, ``tcp://…``, ``tls://…``) as the engine takes it.

    Raises:
        UsageError: It is none.
    """
    hint = "Give dask://host:8786, tcp://host:8786 or tls://host:8786"
    try:
        parts = urlsplit(cluster)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        raise UsageError(problem=f"{cluster!r:.200} is no address of a scheduler", hint=hint) from None
    if parts.scheme not in _SCHEMES or not host or parts.path.strip("/") or parts.query or "@" in parts.netloc:
        raise UsageError(problem=f"{cluster!r:.200} is no address of a scheduler", hint=hint)
    return f"{_SCHEMES[parts.scheme]}://{f'[{host}]' if ':' in host else host}:{port}"


def check_installed() -> None:
    """Raise MissingLibraryError if dask.distributed cannot be imported."""
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise MissingLibraryError(
            library="dask.distributed", extra="fleet", purpose="prewarm a cluster", reason=str(error)
        ) from error


class Dask:
    """A scheduler, connected to. ``async with Dask(address, timeout) as engine``.

    Args:
        address: Of the scheduler, from `address_of`.
        timeout: Longest wait for it, in seconds.
        silence: Longest wait for an answer of a worker, in seconds.

    Raises:
        ClusterError: A leaf of it: nobody is there, it is something else, or TLS.
    """

    def __init__(self, address: str, *, timeout: float, silence: float) -> None:
        self.address, self._timeout, self._silence = address, timeout, silence
        self._client: Any = None

    async def __aenter__(self) -> Self:
        import distributed

        try:
            # It is told to give up by itself; something that takes a connection and says nothing makes it forget that.
            async with asyncio.timeout(self._timeout + _LOOK_S / 2):
                client: Any = distributed.Client  # Its constructor has no types.
                self._client = client(
                    self.address, asynchronous=True, timeout=self._timeout, name="modelcache", set_as_default=False
                )
                await self._client
                if (await self._identity())["type"] != "Scheduler":
                    raise NotASchedulerError(address=self.address, detail="it is another part of dask")
        except ModelCacheError:
            await self._close()
            raise
        except Exception as error:
            await self._close()
            raise await self._why(error) from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def look(self) -> dict[str, tuple[Worker, ...]]:
        """Return the workers of each host, those that work first.

        Raises:
            GoneError: The scheduler does not answer.
        """
        try:
            async with asyncio.timeout(self._silence):
                found = await self._identity()
        except Exception as error:
            raise GoneError(_said(error)) from error
        hosts: dict[str, list[tuple[bool, str]]] = {}
        for address, facts in found["workers"].items():
            hosts.setdefault(facts["host"], []).append((facts.get("status") != "running", address))
        return {host: tuple(address for _, address in sorted(workers)) for host, workers in sorted(hosts.items())}

    async def start(self, worker: Worker, token: str, order: dict[str, Any]) -> dict[str, Any]:
        """Begin *order* on *worker*; see `onhost.start`, and `ask` for what it raises."""
        return await self._call(worker, onhost.start, token, order)

    async def ask(self, worker: Worker, token: str) -> dict[str, Any]:
        """Return what has become of it.

        Raises:
            GoneError: The worker has died, or gone.
            SilentError: It does not answer.
            UnfitError: It has no modelcache, or another one.
        """
        return await self._call(worker, onhost.ask, token)

    async def stop(self, worker: Worker, token: str) -> None:
        """End it; what `ask` raises."""
        await self._call(worker, onhost.stop, token)

    async def _call(self, worker: Worker, function: Any, *arguments: Any) -> dict[str, Any]:
        answer = await self._run(worker, function, *arguments)
        if isinstance(answer, BaseException):
            # What a worker cannot unpickle it tells in an error without a type of its own: so it is asked what it has.
            has = await self._run(worker, find_spec, onhost.__name__)
            if has is None or isinstance(has, ImportError) or isinstance(answer, ImportError | AttributeError):
                raise UnfitError(f"modelcache is not installed there as it is here ({_said(answer)})")
            raise GoneError(_said(answer))
        if not isinstance(answer, dict):
            raise UnfitError(f"it answers {answer!r:.100}")
        return answer

    async def _run(self, worker: Worker, function: Any, *arguments: Any) -> Any:
        """Return what *function* returns on *worker*, or the error that it raises there."""
        try:
            async with asyncio.timeout(self._silence):
                found = await self._client.run(function, *arguments, workers=[worker], on_error="return")
        except TimeoutError as error:
            raise SilentError(f"it has not answered for {self._silence:g} s") from error
        except Exception as error:
            raise GoneError(_said(error)) from error
        return found.get(worker, GoneError("the scheduler does not know its worker any more"))

    async def _identity(self) -> Any:
        try:
            return await self._client.scheduler.identity(n_workers=-1)
        except TypeError:  # A scheduler from before 2025.4 has no such limit; a worker has none either.
            return await self._client.scheduler.identity()

    async def _close(self) -> None:
        if self._client is None:
            return
        client, self._client = self._client, None
        try:
            async with asyncio.timeout(_LOOK_S):
                await client.close()
        except Exception:  # noqa: BLE001, S110  # It is over either way.
            pass

    async def _why(self, error: Exception) -> ClusterError:
        """Return what *error* means: what is at that address is looked at once more, more closely."""
        parts = urlsplit(self.address)
        assert parts.hostname is not None
        there = await asyncio.to_thread(_what_is_there, parts.hostname, parts.port or PORT)
        if there not in {"tls", "dask", "other"}:
            return NoSchedulerError(address=self.address, detail=there)
        if parts.scheme == "tls" and there == "dask":
            return ClusterTLSError(address=self.address, detail="it speaks no TLS, and tls:// asks for it")
        if parts.scheme == "tcp" and there == "tls":
            return ClusterTLSError(address=self.address, detail="it speaks TLS, and tcp:// does not")
        if parts.scheme == "tls" and there == "tls":
            return ClusterTLSError(address=self.address, detail=_said(error))
        what = "it does not speak as dask does"
        if there == "dask":
            what = f"it is another part of dask, or of another time ({_said(error)})"
        return NotASchedulerError(address=self.address, detail=what)


def _what_is_there(host: str, port: int) -> str:
    """Return ``dask``, ``tls`` or ``other``, or why there is no connection."""
    connected = False
    try:
        with socket.create_connection((host, port), _LOOK_S) as plain:
            connected = True
            # A part of dask speaks first: eight bytes, the number of its frames.
            plain.settimeout(_LOOK_S / 2)
            try:
                first = plain.recv(8, socket.MSG_WAITALL)
            except OSError:
                first = b""
        if first:
            return "dask" if len(first) == 8 and struct.unpack("<Q", first)[0] < 1 << 16 else "other"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # Nothing is said; is it TLS at all?
        with socket.create_connection((host, port), _LOOK_S) as plain, context.wrap_socket(plain):
            return "tls"
    except ssl.SSLError as error:
        # Whoever refuses us in the words of TLS speaks it: it asked for our certificate.
        return "tls" if "ALERT" in (error.reason or "") else "other"
    except ConnectionResetError:
        return "other"
    except TimeoutError:
        return "other" if connected else "no connection in time"
    except OSError as error:
        return _said(error)


def _said(error: BaseException) -> str:
    """Return what *error* says, and its first cause, which is as a rule the one that says something."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
