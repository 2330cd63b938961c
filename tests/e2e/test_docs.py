"""The examples in docs/ do what they say: each is run as it is printed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
