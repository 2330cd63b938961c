"""A bucket of a real S3 server in a process of its own: moto's. None where it is not installed."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_START_S = 60.0
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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + _START_S
        while True:
            assert server.poll() is None, "the server ended"
            try:
                make = urllib.request.Request(f"{url}/models", method="PUT")
                urllib.request.urlopen(make, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until, "the server did not start"
                time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait()
