"""huggingface_hub itself, on the hub that the other tests use: that it is one, and that both clients get the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from modelcache import Cache, HfSource, Timeout
from modelcache.reference import parse
from modelcache.retry import Deadline
from modelcache.sources import Request
from tests.support.hub import Hub

pytestmark = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="huggingface_hub is in the extra dev")

LARGE = random.Random(3).randbytes(300_000)
FILES = {"config.json": b'{"a": 1}', "empty": b"", "onnx/a b.onnx": LARGE, "onnx/é%20.txt": b"text"}
# In a process of its own: it reads its variables when it is imported.
CLIENT = """
import hashlib, json, os, sys
import huggingface_hub as hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError
told = {}
kind, repository, revision = sys.argv[1:]
folder = hub.snapshot_download(repository, repo_type=kind, revision=revision)
told["folder"] = os.path.basename(folder)
told["files"] = {}
for base, _, names in os.walk(folder):
    for name in names:
        path = os.path.join(base, name)
        told["files"][os.path.relpath(path, folder)] = hashlib.sha256(open(path, "rb").read()).hexdigest()
told["tree"] = [
    [item.path, item.size, item.lfs.sha256 if item.lfs else None, None if item.lfs else item.blob_id]
    for item in hub.HfApi().list_repo_tree(repository, recursive=True, revision=revision, repo_type=kind)
    if isinstance(item, hub.hf_api.RepoFile)
]
fs = hub.HfFileSystem()
prefix = "" if kind == "model" else f"{kind}s/"
told["resolved"] = [
    [found.repo_id, found.revision, found.path_in_repo]
    for found in [fs.resolve_path(f"hf://{prefix}{repository}@{revision.replace('/', '%2F')}/onnx/a b.onnx")]
]
told["errors"] = []
for repository, revision, name in [
    ("org/none", "main", "x"), ("org/gated", "main", "x"), (repository, "v9", "x"), (repository, revision, "none"),
]:
    try:
        hub.hf_hub_download(repository, name, revision=revision, repo_type=kind)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        told["errors"].append(type(error).__name__)
print(json.dumps(told))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def client(hub: Hub, home: Path, *arguments: str, token: str = "") -> dict[str, object]:
    environment = {
        **os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": token,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(("kind", "prefix"), [("model", ""), ("dataset", "datasets/")])
@pytest.mark.parametrize(("revision", "token"), [("main", ""), ("refs/pr/1", "hf_s3cret")])
def test_both_clients_see_the_same_files_of_the_same_commit(
    kind: str, prefix: str, revision: str, token: str, hub: Hub, root: Path, tmp_path: Path
) -> None:
    hub.token = token or None
    hub.page_files = 2
    commit = hub.add(f"{prefix}org/name", FILES, revision=revision, token=token or None)
    hub.add(f"{prefix}org/gated", FILES, gated=True)
    ref = parse(f"hf://{prefix}org/name@{revision}")

    theirs = client(hub, tmp_path / "hf", kind, "org/name", revision, token=token)
    source = HfSource(token or False, endpoint=hub.endpoint)
    listed = source.listing(Request(ref.url, ref.key, Timeout(), Deadline(30, ref=ref.key)))
    with Cache(root, sources=[source]) as cache:
        paths = {file.path: cache.get(file.ref.key, digest=file.digest) for file in listed.files}
    ours = {path: hashlib.sha256(Path(found).read_bytes()).hexdigest() for path, found in paths.items()}

    assert ours == theirs["files"] == {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}
    assert listed.revision == theirs["folder"] == commit
    tree = [
        [file.path, file.size, file.digest.hex if file.digest and file.size else None, file.blob]
        for file in listed.files
    ]
    assert tree == sorted(theirs["tree"])  # type: ignore[call-overload]
    place = ref.hub.at(ref.hub.revision, "onnx/a b.onnx").hub
    assert theirs["resolved"] == [[place.repository, place.revision or "main", place.path]]
    assert theirs["errors"] == [
        "RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "RemoteEntryNotFoundError",
    ]  # fmt: skip


def test_what_huggingface_hub_has_cached_is_served_from_there_without_the_hub(
    hub: Hub, root: Path, tmp_path: Path
) -> None:
    commit = hub.add("org/name", FILES)
    hub.add("org/gated", FILES, gated=True)
    theirs = client(hub, tmp_path / "hf", "model", "org/name", "main")

    with Cache(root, tiers=[tmp_path / "hf" / "hub"], offline=True) as cache:
        tree = Path(cache.get_tree("hf://org/name"))
        one = cache.get("hf://org/name/onnx/a b.onnx")
        state = cache.tiers()[0]
        entry = cache.lookup("hf://org/name")

    files = [path for path in tree.rglob("*") if path.is_file()]
    assert {str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == theirs[
        "files"
    ]
    assert Path(one).read_bytes() == LARGE
    assert (state.kind, state.promote, state.problem) == ("huggingface_hub", True, "")
    assert entry is not None
    assert entry.revision == commit
