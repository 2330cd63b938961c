"""A bucket of a real S3 server in a process of its own: moto's. None where it is not installed."""

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


def needs_obstore() -> None:
    if importlib.util.find_spec("obstore") is None:
        pytest.skip("obstore is not installed: pip install 'modelcache[s3]'")


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server with the bucket ``models``; yield its address."""
    needs_obstore()
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
