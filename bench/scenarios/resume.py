"""A download that is killed at 60 %: how many bytes are sent in all, and what a large one adds to memory."""

from __future__ import annotations

import random
import subprocess
import sys

from modelcache import Cache
from modelcache.testing import Fault, FaultServer

from ..actors import MB
from ..measure import Check, Context, Result, Row, Table

_GET = "import sys; from modelcache import Cache; Cache(sys.argv[1]).get(sys.argv[2])"


def run(context: Context) -> Result:
    """Kill, go on, count at the server."""
    size = (10 if context.quick else 100) * MB
    content = context.directory / "model.onnx"
    content.write_bytes(random.Random(2).randbytes(size))
    sent, resumed = [], []
    for turn in range(3):
        with FaultServer() as server:
            url = server.add("/model.onnx", content, [Fault(hold_after=size * 6 // 10)])
            root = str(context.directory / f"cache-{turn}")
            victim = subprocess.Popen([sys.executable, "-c", _GET, root, url])
            server.wait_for_sent(size * 6 // 10)
            victim.kill()
            victim.wait()
            server.release()
            with Cache(root) as cache:
                cache.get(url)
                resumed.append(cache.stats().bytes_resumed / size)
            sent.append(server.sent() / size)
    table = Table(f"Killed at 60 % of {size // MB} MB, then asked for again; in sizes of the model", "x")
    table.rows = [Row("bytes sent in all", tuple(sent)), Row("bytes that were not asked for again", tuple(resumed))]
    return Result([table], [Check("-", "bytes sent / size after a kill", tuple(sent), 1.1)])
