"""One fresh process of the scenario ``onnx``: make a session, run it once, say how long that took and what it holds.

python bench/onnx_worker.py plain|cached MODEL ROOT [wait]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

THREADS = 2


def pss_bytes() -> int:
    """Return the proportional share of memory of this process: what it shares counts in parts."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def options() -> Any:
    """Return the options that both sessions have."""
    found = onnxruntime.SessionOptions()
    found.intra_op_num_threads, found.log_severity_level = THREADS, 3
    return found


def main(kind: str, model: str, root: str, wait: str = "") -> None:
    """Do it."""
    started = time.perf_counter()
    imported = started
    if kind == "plain":
        session = onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    else:
        from modelcache.onnx import session as cached
        from modelcache.onnx import sessions  # noqa: F401  # What the first call would import.

        imported = time.perf_counter()
        session = cached(model, session_options=options())
    created = time.perf_counter()
    feeds = {
        one.name: np.ones([size if isinstance(size, int) else 16 for size in one.shape], dtype=np.float32)
        for one in session.get_inputs()
    }
    session.run(None, feeds)
    ran = time.perf_counter()
    print(json.dumps({"import": imported - started, "create": created - imported, "first": ran - imported}), flush=True)
    if wait:
        sys.stdin.readline()  # All processes are there now.
        print(json.dumps({"pss": pss_bytes(), "root": root}), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
