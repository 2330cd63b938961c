"""The examples in docs/ do what they say: each is run as it is printed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.archive import Archivist, MemoryBackend, Registration
from modelcache.metrics.samples import Sampler
from tests.support.coreml import need_coremltools

DOCS = Path(__file__).parent.parent.parent / "docs"
CONTENT = b"x" * 5000
BEFORE = {
    "archive.md": """
import os
content, root, directory = b"x" * 5000, sys.argv[1], sys.argv[1] + ".archive"
os.mkdir(directory)
""",
    "trees.md": """
import os
root, directory = sys.argv[1], sys.argv[1] + ".source"
os.makedirs(directory)
open(directory + "/a", "w").write("a")
""",
    "hub.md": """
import os
from tests.support.hub import Hub
hub = Hub()
hub.add("sentence-transformers/all-MiniLM-L6-v2", {"onnx/model.onnx": b"the bytes of a model"})
os.environ |= {"HF_ENDPOINT": hub.endpoint, "MODELCACHE_DIR": sys.argv[1]}
""",
    "coreml.md": "root = sys.argv[1]",
    "gc.md": """
content, root = b"x" * 5000, sys.argv[1]
""",
    "policy.md": "root = sys.argv[1]",
    "sources.md": "",
    "usage.md": """
root, url = sys.argv[1], "m"
from modelcache import Cache
Cache(root).put(b"x" * 5000, name="m")
""",
    "testing.md": f"""
content = b"x" * {len(CONTENT)}
digest = "sha256:{hashlib.sha256(CONTENT).hexdigest()}"
root = sys.argv[1]
""",
}
AFTER = {
    "archive.md": """
with open(f"{directory}/copy.onnx", "rb") as file:
    assert file.read() == content
assert not archivist.health()["usage"].depth
""",
    "trees.md": "assert os.listdir(path) == ['a']",
    "hub.md": """
with open(path, "rb") as file:
    assert file.read() == b"the bytes of a model"
hub.close()
""",
    "coreml.md": """
import os
assert small.endswith("/Net8.mlpackage")
weights = "Data/com.apple.CoreML/weights/weight.bin"
assert 1.5 * os.path.getsize(f"{small}/{weights}") < os.path.getsize(f"{net}/{weights}")
""",
    "gc.md": "assert report.removed == ()",
    "policy.md": "assert cache.root == root",
    "sources.md": """
from modelcache import Cache
with Cache(sys.argv[1], sources=[MemorySource()]) as cache:
    with open(cache.get("memory://x/net.onnx"), "rb") as file:
        assert file.read() == MODELS["net.onnx"]
""",
    "usage.md": "assert (report.total.hit_ratio, report.total.bytes_saved) == (1.0, 10_000)",
    "testing.md": "",
}


@pytest.mark.parametrize("page", sorted(BEFORE))
def test_the_example_of_a_page_runs(page: str, root: Path) -> None:
    if page == "coreml.md":
        need_coremltools()
    found = re.search(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found is not None
    code = f"import sys\n{BEFORE[page]}\n{found[1]}\n{AFTER[page]}"

    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_the_formatter_of_the_page_on_usage_writes_json(root: Path) -> None:
    formatter = re.findall(r"```python\n(.*?)```", (DOCS / "usage.md").read_text(), re.DOTALL)[-1]
    code = f"""
import sys
{formatter}
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(JsonFormatter())
log = logging.getLogger("modelcache")
log.addHandler(handler)
log.setLevel(logging.INFO)
from modelcache import Cache
with Cache(sys.argv[1]) as cache:
    cache.put(b"x", name="m")
    cache.verify()
"""
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["kind"], line["level"]) for line in lines] == [("verified", "INFO")]


def test_the_metrics_of_the_page_on_usage_are_those_that_there_are(root: Path) -> None:
    page = (DOCS / "usage.md").read_text().partition("## Metrics")[2].partition("## Logging")[0]
    with Cache(root, usage=True) as cache, Archivist([Registration("b", MemoryBackend())], root=root) as archivist:
        cache.put(b"x", name="m")
        cache.get("m")
        metrics = Sampler(cache, archivist, models=True).read()

    for metric in metrics:
        short = metric.name.removeprefix("modelcache")
        tails = {short, "_" + short.split("_", 2)[-1], "modelcache" + short}
        assert any(f"`{tail}{end}" in page for tail in tails for end in ("`", "_total", "{")), metric.name
