"""Policies are asked at every door: of archives, of bundles, and of what a tier once unpacked."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from modelcache import Cache, Policy, errors
from modelcache.testing import FaultServer, check_cache
from tests.support.archives import tar_gz
from tests.support.hub import Hub
from tests.support.state import leftovers

WEIGHTS = b"weights" * 5000
PICKLE = pickle.dumps({"weights": [1.0]})


def nothing_in(root: Path) -> None:
    assert Cache(root).entries() == []
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []


@pytest.mark.parametrize(
    "policy",
    [Policy(), Policy(max_size=100), Policy(hosts=("elsewhere.example",)), Policy(formats=("onnx",))],
    ids=["pickle", "size", "host", "format"],
)
def test_what_comes_out_of_an_archive_is_held_to_the_policies(
    policy: Policy, root: Path, server: FaultServer, tmp_path: Path
) -> None:
    content = tar_gz({"weights": PICKLE if policy == Policy() else WEIGHTS})
    url = server.add("/m.tar.gz", content)
    (tmp_path / "m.tar.gz").write_bytes(content)
    with Cache(root, policy=policy) as cache:
        with pytest.raises(errors.PolicyError):
            cache.get_tree(url)
        if policy.hosts is None:
            with pytest.raises(errors.PolicyError):
                cache.put_tree(tmp_path / "m.tar.gz", name="m")
    nothing_in(root)
    with Cache(root) as free:
        assert (Path(free.get_tree(url)) / "weights").read_bytes() in {WEIGHTS, PICKLE}
    with Cache(root, policy=policy) as cache, pytest.raises(errors.PolicyError):
        cache.get_tree(url)  # It is here by now, and is not served for that.


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(
    "policy",
    [Policy(), Policy(max_size=100), Policy(hosts=("elsewhere.example",)), Policy(formats=("onnx",))],
    ids=["pickle", "size", "host", "format"],
)
def test_what_a_bundle_brings_is_held_to_the_policies(
    policy: Policy, tree: bool, root: Path, server: FaultServer, tmp_path: Path
) -> None:
    content = PICKLE if policy == Policy() else WEIGHTS
    url = server.add("/m.tar.gz", tar_gz({"weights": content})) if tree else server.add("/m.weights", content)
    fine = server.add("/fine.onnx", b"fine")
    bundle = tmp_path / "bundle.tar"
    with Cache(tmp_path / "origin") as origin:
        path = origin.get_tree(url) if tree else origin.get(url)
        origin.get(fine)
        refs = [entry.key for entry in origin.entries()]
        origin.export(*refs, to=bundle)

    with Cache(root, policy=policy) as cache, pytest.raises(errors.PolicyError):
        cache.import_(bundle)
    nothing_in(root)
    assert not list(root.glob("staging/*"))

    with Cache(root, policy=Policy(allow_pickle=True)) as cache:
        assert {model.state for model in cache.import_(bundle).models} == {"new"}
        found = cache.get_tree(url) if tree else cache.get(url)
        assert Path(found).name == Path(path).name
    assert leftovers(root) == []


def test_what_a_tier_once_unpacked_is_promoted_without_its_archive(
    root: Path, server: FaultServer, tmp_path: Path
) -> None:
    url = server.add("/m.tar.gz", tar_gz({"weights": WEIGHTS}))
    with Cache(tmp_path / "below") as below:
        below.get_tree(url)
    for policy in (None, Policy()):
        with Cache(root / str(policy is None), tiers=[f"{tmp_path / 'below'},promote"], policy=policy) as cache:
            assert (Path(cache.get_tree(url)) / "weights").read_bytes() == WEIGHTS
    assert len(server.seen()) == 1


def test_a_tree_without_its_listing_is_looked_at_file_by_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "weights").write_bytes(PICKLE)
    with Cache(root) as free:
        path = Path(free.put_tree(tmp_path / "net", name="net").path)
    listing = path.parent / ".listing"
    listing.chmod(0o644)
    listing.write_bytes(b"nonsense")

    with Cache(root, policy=Policy()) as cache, pytest.raises(errors.PolicyError, match="weights"):
        cache.get("net")


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_an_import_is_refused_for_content_that_is_here_already_too(root: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "weights").write_bytes(PICKLE)
    with Cache(tmp_path / "origin") as origin:
        ref = "net" if kind == "tree" else "weights"
        origin.put_tree(tmp_path / "net", name="net") if kind == "tree" else origin.put(PICKLE, name="weights")
        origin.export(ref, to=tmp_path / "bundle")
    with Cache(root) as free:
        free.put_tree(tmp_path / "net", name="other") if kind == "tree" else free.put(PICKLE, name="other")

    with Cache(root, policy=Policy()) as cache:
        with pytest.raises(errors.PolicyError, match="weights"):
            cache.import_(tmp_path / "bundle")
        assert [entry.key for entry in cache.entries()] == ["other"]
    assert leftovers(root) == []


@pytest.mark.parametrize("here", [False, True])
def test_each_name_of_a_content_is_held_to_the_policies_when_it_is_imported(
    root: Path, tmp_path: Path, here: bool
) -> None:
    with Cache(tmp_path / "origin") as origin:
        origin.put(WEIGHTS, name="a.onnx")
        origin.put(WEIGHTS, name="b.exe")
        origin.export("a.onnx", "b.exe", to=tmp_path / "bundle")
    if here:
        with Cache(root) as free:
            free.put(WEIGHTS, name="other.onnx")

    with Cache(root, policy=Policy(formats=["onnx"])) as cache:
        with pytest.raises(errors.PolicyError, match=r"b\.exe"):
            cache.import_(tmp_path / "bundle")
        assert [entry.key for entry in cache.entries()] == (["other.onnx"] if here else [])
        cache.import_(tmp_path / "bundle", "a.onnx")
        assert cache.get("a.onnx")
    assert leftovers(root) == []


@pytest.mark.parametrize("door", ["archive", "hub", "file", "tier", "tier's tree", "bundle"])
def test_a_refusal_leaves_nothing_of_what_had_come(
    door: str, root: Path, tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = []
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        if door == "archive":
            ref = server.add("/m.tar.gz", tar_gz({"weights": PICKLE, "other": WEIGHTS})) + "#tree"
        elif door == "hub":
            hub.add("org/name", {"weights": PICKLE, "other": WEIGHTS})
            ref = "hf://org/name"
        elif door == "file":
            ref = server.add("/weights", PICKLE)
        else:
            (tmp_path / "net").mkdir()
            (tmp_path / "net" / "weights").write_bytes(PICKLE)
            ref, tiers = "net", [tmp_path / "below"]
            with Cache(tmp_path / "below") as below:
                below.put_tree(tmp_path / "net", name=ref) if "tree" in door else below.put(PICKLE, name=ref)
            if door == "bundle":
                Cache(tmp_path / "below").export("net", to=tmp_path / "bundle")
        with (
            Cache(root, policy=Policy(), tiers=[] if door == "bundle" else tiers) as cache,
            pytest.raises(errors.PolicyError),
        ):
            cache.import_(tmp_path / "bundle") if door == "bundle" else cache.get(ref)
    nothing_in(root)
    assert leftovers(root) == []
