"""The example of an inference service, as `make serve` runs it: real workers, real models, the same answers."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MISSING = [name for name in ("gunicorn", "numpy", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell shared memory")
def test_workers_of_a_service_share_the_memory_of_one_model(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")  # It works beside its own directory.

    done = subprocess.run(
        [sys.executable, tmp_path / "examples/inference_service.py"],
        capture_output=True, text=True, check=False, timeout=300, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = {line.split("  ")[0]: int(re.findall(r"(\d+) MB", line)[0]) for line in done.stdout.splitlines()[1:]}
    assert list(found) == ["onnxruntime", "modelcache, cold", "modelcache, warm"]
    assert found["modelcache, warm"] < found["onnxruntime"] / 2
