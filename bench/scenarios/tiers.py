"""Tiers on buckets: a large content from an S3 server on loopback, and what tiers that are dead cost a get."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from modelcache import Cache, Tier
from modelcache.archive import ObjectStoreBackend
from modelcache.backends import contents
from modelcache.testing import FaultServer

from ..measure import Check, Context, MissingError, Result, ratios, tabulate
from ..measure import alternate as alternately

_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
_CONFIG = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}
_CLIENT = {"allow_http": True}
_FLOOR, _WRITTEN, _GET = "obstore and SHA-256", "the same, written and synced", "get, promoted"


def run(context: Context) -> Result:
    """Time a promotion, and the gets of a cache whose tiers are dead."""
    result = Result()
    _large(context, result)
    _dead(context, result)
    return result


def _large(context: Context, result: Result) -> None:
    size = 100_000_000 if context.quick else 1_000_000_000
    try:
        with _s3_server() as endpoint:
            _promotions(context, result, endpoint, size)
    except MissingError as error:
        result.notes.append(str(error))


def _promotions(context: Context, result: Result, endpoint: str, size: int) -> None:
    config = {"endpoint": endpoint, **_CONFIG}
    tier = Tier("s3://models/bench", name="s3", timeout=60.0, config=config, client_options=_CLIENT)
    content = context.directory / "content"
    with content.open("wb") as file:
        for _ in range(size // 1_000_000):
            file.write(os.urandom(1_000_000))
    first = context.directory / "first"
    with Cache(first, tiers=[Tier(tier.path, name="s3", write=True, config=config, client_options=_CLIENT)]) as cache:
        digest = cache.put(content, name="m").digest
        assert cache.flush(600)
    shutil.rmtree(first)
    content.unlink()
    backend = ObjectStoreBackend(tier.path, config=config, client_options=_CLIENT)
    turns = itertools.count()

    def floor(path: Path | None = None) -> float:
        state, started = hashlib.sha256(), time.perf_counter()
        with contextlib.ExitStack() as stack:
            file = None if path is None else stack.enter_context(path.open("wb", buffering=0))
            for chunk in backend.stream(contents.blob_name(digest)):
                state.update(chunk)
                if file is not None:
                    file.write(chunk)
            if file is not None:
                os.fdatasync(file.fileno())
        seconds = time.perf_counter() - started
        assert digest.endswith(state.hexdigest())
        if path is not None:
            path.unlink()
        return seconds

    def get() -> float:
        root = context.directory / f"promoted-{next(turns)}"
        with Cache(root, tiers=[tier]) as cache:
            started = time.perf_counter()
            cache.get("m")
            seconds = time.perf_counter() - started
        shutil.rmtree(root)
        return seconds

    subjects = {_FLOOR: floor, _WRITTEN: lambda: floor(context.directory / "copy"), _GET: get}
    table = tabulate(f"{size // 1_000_000} MB from moto on loopback", "s", alternately(subjects, 3), floor=_FLOOR)
    result.tables.append(table)
    result.checks.append(Check("tiers", "promotion / obstore and SHA-256", ratios(table, _GET), 1.5))


def _dead(context: Context, result: Result) -> None:
    """Time first and later gets with three tiers that take a connection and never answer."""
    turns = itertools.count()
    with FaultServer() as server, _black_hole() as endpoint:
        config = {"endpoint": endpoint, **_CONFIG}
        dead = [Tier(f"s3://b{n}/p", name=f"d{n}", config=config, client_options=_CLIENT) for n in range(3)]
        later: dict[str, list[float]] = {"no tiers": [], "three dead tiers": []}

        def gets(name: str, tiers: list[Tier]) -> float:
            turn = next(turns)
            with Cache(context.directory / f"dead-{turn}", tiers=tiers) as cache:
                seconds = []
                for number in range(4):
                    url = server.add(f"/{turn}/{number}.onnx", b"model")
                    started = time.perf_counter()
                    cache.get(url)
                    seconds.append(time.perf_counter() - started)
            later[name].extend(seconds[1:])
            return seconds[0]

        found = alternately(
            {"no tiers": lambda: gets("no tiers", []), "three dead tiers": lambda: gets("three dead tiers", dead)}, 3
        )
    first = tabulate("the first cold get of a cache", "ms", found, scale=1e3)
    result.tables.append(first)
    result.tables.append(tabulate("those after it", "ms", dict(later), floor="no tiers", scale=1e3))
    extra = tuple((b - a) / 1e3 for a, b in zip(first.rows[0].samples, first.rows[1].samples, strict=True))
    result.checks.append(Check("tiers", "the first get with dead tiers takes longer by, s", extra, 1.0))


@contextlib.contextmanager
def _s3_server() -> Iterator[str]:
    for library in ("obstore", "moto", "flask", "flask_cors"):
        if importlib.util.find_spec(library) is None:
            raise MissingError(f"{library} is not installed")
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _MOTO],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            endpoint = server.stdout.readline().strip()  # Said when it answers.
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/models", method="PUT")).close()  # noqa: S310  # Our own.
            yield endpoint
        finally:
            server.stdin.close()
            server.terminate()


@contextlib.contextmanager
def _black_hole() -> Iterator[str]:
    """Yield the address of what takes connections, and never answers."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(64)
        yield f"http://127.0.0.1:{hole.getsockname()[1]}"
