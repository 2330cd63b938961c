"""The bucket ``models`` of an S3 server: moto's, in a process of its own, or the one that ``--s3-endpoint`` names."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_ANSWER_S = 60.0
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
KEYS = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}


_given: list[str] = []


def use(endpoint: str) -> None:
    """Take the server at *endpoint*, which has the bucket, in place of moto's; the environment has its credentials."""
    _given[:] = [endpoint.rstrip("/")]
    KEYS.update(access_key_id=os.environ["AWS_ACCESS_KEY_ID"], secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"])


def needs_obstore() -> None:
    if importlib.util.find_spec("obstore") is None:
        pytest.skip("obstore is not installed: pip install 'modelcache[s3]'")


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server with the bucket ``models``; yield its address."""
    needs_obstore()
    if _given:
        yield _given[0]
        return
    for library in ("moto", "flask", "flask_cors"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed: pip install 'moto[s3]' flask flask-cors")
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SERVER],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()  # Said when it answers.
            assert url, "the server ended"
            make = urllib.request.Request(f"{url}/models", method="PUT")
            urllib.request.urlopen(make, timeout=_ANSWER_S).close()
            yield url
        finally:
            server.kill()
