"""Tiers: caches below this one, which are read and never written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Event, Policy, RetryPolicy, Tier, errors, files
from modelcache.archive import MemoryBackend
from modelcache.breaker import Breaker
from modelcache.levels import base, directory
from modelcache.levels.directory import DirectoryLevel
from modelcache.levels.health import Look
from modelcache.promises import check_cache
from modelcache.records import Entries
from modelcache.testing import Fault, FaultServer
from tests.support.hub import Hub, blob_id
from tests.support.state import leftovers

CONTENT = b"a model" * 20_000
OTHER = b"another one" * 9_000


@pytest.fixture
def below(tmp_path: Path) -> Path:
    return tmp_path / "below"


@pytest.fixture(autouse=True)
def _tell_everything_again() -> None:
    base._complained.clear()


def cache(root: Path, *below: object, **options: object) -> Cache:
    return Cache(root, tiers=list(below), retry=RetryPolicy(attempts=1), **options)  # type: ignore[arg-type]


def sum_of(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Return what a write would change in *directory*."""
    found = {}
    for path in sorted(directory.rglob("*")):
        facts = path.lstat()
        found[str(path)] = facts.st_mode, facts.st_size, facts.st_mtime_ns
    return found


def whole(root: Path) -> None:
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []
    assert leftovers(root) == []


def stored(below: Path, server: FaultServer, content: bytes = CONTENT) -> str:
    url = server.add("/model.onnx", content)
    with Cache(below) as filled:
        filled.get(url)
    return url


def test_what_a_tier_has_is_served_where_it_is_without_a_request_and_without_a_write(
    root: Path, below: Path, server: FaultServer
) -> None:
    url = stored(below, server)
    before, asked = sum_of(below), len(server.seen())

    with cache(root, below) as upper:
        path = upper.get(url)
        assert upper.get(url) == path
        assert upper.lookup(url) is not None

    assert Path(path).is_relative_to(below)
    assert Path(path).read_bytes() == CONTENT
    assert (sum_of(below), len(server.seen())) == (before, asked)
    assert not root.exists()


@pytest.mark.parametrize("spelling", ["{},promote", "tier"])
def test_what_a_tier_has_is_promoted_and_stays_when_the_tier_goes(
    root: Path, below: Path, server: FaultServer, spelling: str
) -> None:
    url = stored(below, server)
    before, asked = sum_of(below), len(server.seen())
    tier = Tier(str(below), promote=True) if spelling == "tier" else spelling.format(below)

    with cache(root, tier) as upper:
        path = upper.get(url)
        below.rename(below.with_name("gone"))
        assert upper.get(url) == path
        entry, stats = upper.lookup(url), upper.stats()

    assert Path(path).read_bytes() == CONTENT
    assert (stats.requests, stats.bytes_received, stats.bytes_promoted) == (0, 0, len(CONTENT))
    assert entry is not None
    assert entry.source == url
    assert entry.etag is not None
    assert len(server.seen()) == asked
    below.with_name("gone").rename(below)
    assert sum_of(below) == before
    whole(root)


def test_the_first_tier_that_has_it_serves_and_the_own_cache_comes_before_all(
    root: Path, below: Path, tmp_path: Path, server: FaultServer
) -> None:
    url = stored(below, server)
    with cache(tmp_path / "empty", below) as one:
        assert Path(one.get(url)).is_relative_to(below)
    with cache(root, tmp_path / "none", f"{below},promote") as two:
        own = two.get(url)
    with cache(root, below) as three:
        assert three.get(url) == own
    assert Path(own).is_relative_to(root)


def test_what_no_tier_has_is_fetched(root: Path, below: Path, server: FaultServer) -> None:
    stored(below, server)
    other = server.add("/other.onnx", OTHER)
    with cache(root, below) as upper:
        path = upper.get(other)
    assert Path(path).is_relative_to(root)
    assert Path(path).read_bytes() == OTHER


def test_offline_a_tier_serves_and_a_miss_is_told(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    for suffix in ("", ",promote"):
        with cache(root, f"{below}{suffix}", offline=True) as upper:
            assert Path(upper.get(url)).read_bytes() == CONTENT
            with pytest.raises(errors.LocalNotFoundError):
                upper.get(f"{url}.none")
            with pytest.raises(errors.LocalNotFoundError):
                upper.get("https://host.invalid/x", force_download=True)
    for name in ("", ",promote"):
        with cache(root / "other", f"{below}{name}", offline=True) as upper:
            with pytest.raises(errors.LocalNotFoundError):
                upper.get(url, force_download=True)
            assert Path(upper.get(url, max_age=0)).read_bytes() == CONTENT
    assert len(server.seen()) == 1


def test_a_name_that_was_put_in_a_tier_is_served_from_it(root: Path, below: Path, tmp_path: Path) -> None:
    directory = tmp_path / "Net.mlpackage"
    (directory / "bin").mkdir(parents=True)
    (directory / "Manifest.json").write_text("{}")
    (directory / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (directory / "bin" / "tool").chmod(0o755)
    with Cache(below) as filled:
        filled.put(CONTENT, name="resnet.onnx")
        digest = filled.put_tree(directory, name="Net.mlpackage").digest

    for suffix in ("", ",promote"):
        with cache(root, f"{below}{suffix}") as upper:
            assert Path(upper.get("resnet.onnx")).read_bytes() == CONTENT
            tree = Path(upper.get_tree("Net.mlpackage"))
            assert (tree / "bin" / "tool").stat().st_mode & 0o111
            assert upper.lookup("Net.mlpackage").digest == digest  # type: ignore[union-attr]
            assert upper.get("Net.mlpackage") == str(tree)
            assert tree.is_relative_to(root if suffix else below)
            with pytest.raises(errors.EntryNotFoundError):
                upper.get("nothing")
    whole(root)


def test_content_with_the_digest_that_is_asked_for_is_taken_whatever_its_name(
    root: Path, below: Path, server: FaultServer
) -> None:
    digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    with Cache(below) as filled:
        filled.put(CONTENT, name="x.bin")
    with cache(root, below) as upper:
        path = upper.get("https://host.invalid/model.onnx", digest=digest)
        assert upper.get("https://host.invalid/model.onnx") == path
    assert Path(path).name == "model.onnx"
    assert Path(path).is_relative_to(root)
    whole(root)


@pytest.mark.parametrize("suffix", ["", ",promote"])
def test_what_a_tier_has_of_another_digest_is_not_taken(
    root: Path, below: Path, server: FaultServer, suffix: str
) -> None:
    url = stored(below, server, OTHER)
    server.add("/model.onnx", CONTENT)
    with cache(root, f"{below}{suffix}") as upper:
        path = upper.get(url, digest=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
    assert Path(path).read_bytes() == CONTENT


@pytest.mark.parametrize("suffix", ["", ",promote"])
def test_an_altered_object_of_a_tier_is_never_served(
    root: Path, below: Path, server: FaultServer, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = stored(below, server)
    with Cache(below) as filled:
        path = Path(filled.get(url))
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1] + b"?")
    before = sum_of(below)

    with cache(root, f"{below}{suffix}") as upper:
        found = Path(upper.get(url))

    assert found.is_relative_to(root)
    assert found.read_bytes() == CONTENT
    assert sum_of(below) == before  # Not even set aside: it is somebody else's.
    assert "is not what was stored" in caplog.text


@pytest.mark.parametrize("verify", ["sample", "full"])
def test_a_get_that_verifies_reads_what_a_tier_serves_in_place(
    root: Path, below: Path, server: FaultServer, verify: str
) -> None:
    url = stored(below, server)
    with Cache(below) as filled:
        path = Path(filled.get(url))
    with cache(root, below) as upper:
        assert upper.get(url, verify=verify) == str(path)
    facts = path.stat()
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    with cache(root, below) as upper:
        found = Path(upper.get(url, verify=verify))

    assert found.is_relative_to(root)
    assert found.read_bytes() == CONTENT


def test_bytes_that_are_altered_while_they_are_promoted_are_not_stored(
    root: Path, below: Path, server: FaultServer
) -> None:
    url = stored(below, server)
    with Cache(below) as filled:
        path = Path(filled.get(url))
    facts = path.stat()
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1] + b"?")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # A look cannot tell; only the bytes can.
    events: list[Event] = []

    with cache(root, f"{below},promote", on_event=events.append) as upper:
        found = Path(upper.get(url))

    assert found.is_relative_to(root)
    assert found.read_bytes() == CONTENT
    assert any(event.kind == "mirror" and url in event.detail for event in events)
    whole(root)


def test_a_touched_object_is_hashed_once_and_served(
    root: Path, below: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stored(below, server)
    with Cache(below) as filled:
        path = Path(filled.get(url))
    os.utime(path, ns=(1, 1))
    reads = []
    digest_of = files.digest_of
    monkeypatch.setattr(files, "digest_of", lambda path: reads.append(path) or digest_of(path))  # type: ignore[func-returns-value]

    with cache(root, below) as upper:
        assert upper.get(url) == str(path)
        assert upper.get(url) == str(path)
        assert upper._warm.uses == 1  # From memory, by its stat.
        upper._warm.clear()
        assert upper.get(url) == str(path)
    assert reads == [str(path)]
    assert path.stat().st_mtime_ns == 1


def test_records_that_everybody_may_write_are_not_believed(
    root: Path, below: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = stored(below, server, OTHER)
    url = server.add("/model.onnx", CONTENT)  # What the tier holds is a stranger's.
    (below / "entries-v1").chmod(0o777)
    with cache(root, below) as upper:
        assert Path(upper.get(url)).read_bytes() == CONTENT
        digest = f"sha256:{hashlib.sha256(OTHER).hexdigest()}"
        taken = upper.get("https://host.invalid/o", digest=digest)  # Bytes that prove themselves.
        assert Path(taken).read_bytes() == OTHER
        assert "can be written by everybody" in upper.tiers()[0].problem
    assert caplog.text.count("can be written by everybody") == 1


def test_a_tier_that_is_not_there_or_no_cache_or_newer_is_passed_over_and_told_once(
    root: Path, tmp_path: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.add("/model.onnx", CONTENT)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "newer" / "entries-v1").mkdir(parents=True)
    (tmp_path / "newer" / "format").write_text("99\n")
    names = ["none", "file", "empty", "newer"]
    with cache(root, *(tmp_path / name for name in names)) as upper:
        assert Path(upper.get(url)).read_bytes() == CONTENT
        upper.get(server.add("/other.onnx", OTHER))
        states = upper.tiers()
    assert [(Path(state.path).name, bool(state.problem)) for state in states] == [(name, True) for name in names]
    assert caplog.text.count("is passed over") == 3  # An empty directory is no mistake.
    assert sorted(os.listdir(tmp_path / "empty")) == []


def test_a_tier_that_hangs_is_left_alone_after_its_time(
    root: Path, below: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.add("/model.onnx", CONTENT)
    below.mkdir()
    release, looks = threading.Event(), []

    def hang(*args: object) -> None:
        looks.append(args)
        release.wait()

    monkeypatch.setattr(DirectoryLevel, "_find", hang)
    try:
        with cache(root, Tier(str(below), timeout=0.05)) as upper:
            assert Path(upper.get(url)).read_bytes() == CONTENT
            upper.get(server.add("/other.onnx", OTHER))
    finally:
        release.set()
    assert len(looks) == 1
    assert "has not answered for 0.05 s" in caplog.text


def test_the_state_of_a_tier_that_hangs_is_that(root: Path, below: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(directory, "_why_not", lambda _: release.wait())
    try:
        with cache(root, Tier(str(below), timeout=0.05)) as upper:
            (state,) = upper.tiers()
            assert "answer" in state.problem
            assert state.state == "down"
    finally:
        release.set()


def test_a_look_that_begins_when_its_time_is_over_is_told_as_one_that_hangs(
    root: Path, below: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tripped, ended = threading.Event(), threading.Event()
    call, trip, run = Breaker.call, Breaker.trip, Look.run

    def late(self: Breaker, *arguments: Any, **options: Any) -> Any:
        tripped.wait()
        return call(self, *arguments, **options)

    def told(self: Breaker, *arguments: Any) -> None:
        trip(self, *arguments)
        tripped.set()
        ended.wait()

    def noted(self: Look, work: Any) -> None:
        run(self, work)
        ended.set()

    monkeypatch.setattr(Breaker, "call", late)
    monkeypatch.setattr(Breaker, "trip", told)
    monkeypatch.setattr(Look, "run", noted)
    with cache(root, Tier(str(below), timeout=0.05)) as upper:
        assert [state.problem for state in upper.tiers()] == ["does not answer"]


def test_what_is_too_old_in_a_tier_is_promoted_and_confirmed_without_its_bytes(
    root: Path, below: Path, server: FaultServer
) -> None:
    url = stored(below, server)
    received = []
    for suffix in ("", ",promote"):
        with cache(root / suffix[1:], f"{below}{suffix}") as upper:
            path = upper.get(url, max_age=0)
            received.append((Path(path).is_relative_to(root), upper.stats().unchanged, server.seen()[-1].sent))
    assert received == [(True, 1, [0])] * 2


def test_what_is_too_old_in_a_tier_is_served_when_the_source_cannot_be_reached(
    root: Path, below: Path, server: FaultServer
) -> None:
    url = stored(below, server)
    for suffix in ("", ",promote"):
        with cache(root / suffix[1:], f"{below}{suffix}") as upper:
            server.add("/model.onnx", CONTENT, [Fault(status=503)] * 20)
            assert Path(upper.get(url, max_age=0)).read_bytes() == CONTENT


def test_what_changed_at_the_source_replaces_what_a_tier_had(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    server.add("/model.onnx", OTHER)
    with cache(root, below) as upper:
        assert Path(upper.get(url)).read_bytes() == CONTENT
        assert Path(upper.get(url, force_download=True)).read_bytes() == OTHER
        assert Path(upper.get(url)).read_bytes() == OTHER
    whole(root)


def test_many_threads_promote_once(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    with cache(root, f"{below},promote") as upper:
        threads = [threading.Thread(target=upper.get, args=(url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert upper.stats().fetched == 1


def test_repair_brings_back_what_a_tier_has_without_a_source(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    with Cache(below) as filled, Cache(root) as upper:
        filled.put(OTHER, name="o.bin")
        entries = [upper.lookup(url), upper.put(OTHER, name="o.bin")]
        upper.get(url)
        entries[0] = upper.lookup(url)
    server.close()
    for entry in entries:
        assert entry is not None
        Path(entry.path).chmod(0o644)
        Path(entry.path).write_bytes(b"altered")
    with cache(root, below) as upper:
        report = upper.verify(repair=True)
        assert [finding.repaired for finding in report.findings] == [True, True]
        assert upper.verify().ok
    whole(root)


def test_a_lease_and_a_pin_of_what_a_tier_serves_in_place(
    root: Path, below: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = stored(below, server)
    with cache(root, below) as upper:
        with upper.lease(url) as lease:
            assert Path(lease.path).read_bytes() == CONTENT
            assert not lease.protected
        with pytest.raises(errors.EntryNotFoundError):
            upper.pin(url)
    assert "served from a tier" in caplog.text


def test_prewarm_promotes_what_it_pins(root: Path, below: Path, server: FaultServer, tmp_path: Path) -> None:
    url = stored(below, server)
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[[model]]\nref = "{url}"\npin = true\n')
    with cache(root, below) as upper:
        upper.prewarm(manifest).check()
        assert Path(upper.get(url)).is_relative_to(root)


@pytest.mark.parametrize("bad", [[""], [" "], [3], "a/path", [",promote"], 7])
def test_senseless_tiers_are_refused(root: Path, bad: object) -> None:
    with pytest.raises(errors.UsageError):
        Cache(root, tiers=bad)  # type: ignore[arg-type]


def test_tiers_come_from_the_environment(
    root: Path, below: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = stored(below, server)
    monkeypatch.setenv("MODELCACHE_TIERS", f"/nowhere:{below}:huggingface")
    monkeypatch.setenv("HF_HUB_CACHE", "/somewhere/hub")
    with Cache(root) as upper:
        assert [state.path for state in upper.tiers()] == ["/nowhere", str(below), "/somewhere/hub"]
        assert Path(upper.get(url)).is_relative_to(below)
    with Cache(root, tiers=()) as upper:
        assert upper.tiers() == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/b"),
        ({"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({"HF_HOME": ""}, "{home}/.cache/huggingface/hub"),
    ],
)
def test_the_hub_s_cache_is_where_its_own_client_has_it(said: dict[str, str], expected: str) -> None:
    home = os.path.expanduser("~")
    assert Tier.parse("huggingface,in-place", said) == Tier(expected.format(home=home), promote=False)


# -- huggingface_hub's cache ---------------------------------------------------------------------------------------

FILES = {"config.json": b'{"a": 1}', "sub/model.onnx": CONTENT, "empty": b""}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """Lay out FILES as huggingface_hub 2.4 does; tests/e2e/test_real_hub_client.py has it do so itself."""
    repository = tmp_path / "hub" / "models--org--name"
    listed = {}
    for inside, content in FILES.items():
        large = len(content) > 1000
        name = hashlib.sha256(content).hexdigest() if large else blob_id(content)
        blob = repository / "blobs" / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = repository / "snapshots" / COMMIT / inside
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        listed[inside] = {"size": len(content), "blob_id": blob_id(content)}
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "trees").mkdir()
    (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": listed}))
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_what_the_hub_s_client_has_goes_to_no_shared_tier_unless_the_hub_shows_it_to_all(
    root: Path, hub_cache: Path
) -> None:
    bucket = MemoryBackend()
    shared = Tier("shared", backend=bucket, write="direct", timeout=30.0)
    with cache(root, shared, str(hub_cache), offline=True) as upper:
        upper.get("hf://org/name/sub/model.onnx")
        upper.get_tree("hf://org/name")
        assert upper.stats().bytes_promoted > 0
    assert list(bucket.names()) == []


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("ref", ["hf://org/name/sub/model.onnx", f"hf://org/name@{COMMIT}/config.json"])
def test_a_file_of_the_hub_s_cache_is_promoted_verified(root: Path, hub_cache: Path, ref: str) -> None:
    before = sum_of(hub_cache)
    with cache(root, hub_cache) as upper:
        path = Path(upper.get(ref))
        entry = upper.lookup(ref)
    assert path.read_bytes() == FILES["sub/model.onnx" if "onnx" in ref else "config.json"]
    assert path.is_relative_to(root)
    assert not path.is_symlink()
    assert entry is not None
    assert entry.revision == COMMIT
    assert sum_of(hub_cache) == before
    whole(root)


@pytest.mark.usefixtures("no_network")
def test_a_file_of_the_hub_s_cache_can_be_served_in_place(root: Path, hub_cache: Path) -> None:
    with cache(root, f"{hub_cache},in-place") as upper:
        path = Path(upper.get("hf://org/name/sub/model.onnx"))
    assert path.is_relative_to(hub_cache)
    assert path.name == "model.onnx"
    assert path.read_bytes() == CONTENT


@pytest.mark.usefixtures("no_network")
def test_a_repository_of_the_hub_s_cache_is_a_tree(root: Path, hub_cache: Path) -> None:
    with cache(root, hub_cache) as upper:
        tree = Path(upper.get_tree("hf://org/name"))
        part = Path(upper.get_tree("hf://org/name", allow_patterns="*.json"))
    assert {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()} == FILES
    assert [path.name for path in part.iterdir()] == ["config.json"]
    whole(root)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("damage", ["no list", "a file is missing", "a blob is altered", "a link leads out"])
def test_a_repository_that_is_not_known_to_be_whole_is_none(root: Path, hub_cache: Path, damage: str) -> None:
    repository = hub_cache / "models--org--name"
    link = repository / "snapshots" / COMMIT / "sub" / "model.onnx"
    if damage == "no list":
        (repository / "trees" / f"{COMMIT}.json").unlink()
    elif damage == "a file is missing":
        link.unlink()
    elif damage == "a blob is altered":
        link.resolve().write_bytes(b"?" + CONTENT[1:])
    else:
        (hub_cache.parent / "outside").write_bytes(CONTENT)
        link.unlink()
        link.symlink_to(hub_cache.parent / "outside")
    with cache(root, hub_cache, offline=True) as upper, pytest.raises(errors.ModelCacheError):
        upper.get_tree("hf://org/name")
    if damage != "no list":
        for suffix in ("", ",in-place"):
            with cache(root, f"{hub_cache}{suffix}", offline=True) as upper, pytest.raises(errors.ModelCacheError):
                upper.get("hf://org/name/sub/model.onnx")
    assert list(root.glob("entries-v1/*")) == []


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("suffix", ["", ",in-place"])
def test_a_small_file_that_is_not_what_its_git_id_says_is_not_taken(root: Path, hub_cache: Path, suffix: str) -> None:
    link = hub_cache / "models--org--name" / "snapshots" / COMMIT / "config.json"
    link.resolve().write_bytes(b'{"a": 2}')
    with cache(root, f"{hub_cache}{suffix}", offline=True) as upper, pytest.raises(errors.LocalNotFoundError):
        upper.get("hf://org/name/config.json")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def test_of_another_revision_only_what_differs_comes_from_the_hub(root: Path, hub_cache: Path, hub: Hub) -> None:
    hub.add("org/name", {**FILES, "new.onnx": OTHER})
    (hub_cache / "models--org--name" / "refs" / "main").unlink()
    with cache(root, hub_cache) as upper:
        tree = Path(upper.get_tree("hf://org/name"))
    assert (tree / "sub" / "model.onnx").read_bytes() == CONTENT
    assert (tree / "new.onnx").read_bytes() == OTHER
    assert [request.path for request in hub.cdn.seen()] == [Hub.address(OTHER)]
    whole(root)


def test_files_of_a_repository_come_from_a_tier_that_has_them_under_any_name(
    root: Path, below: Path, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    hub.add("org/name", FILES)
    with Cache(below) as filled:
        filled.put(CONTENT, name="something")
    with cache(root, below) as upper:
        tree = Path(upper.get_tree("hf://org/name"))
    assert (tree / "sub" / "model.onnx").read_bytes() == CONTENT
    assert hub.cdn.seen() == []
    assert caplog.text == ""


def test_when_a_repository_of_the_hub_s_cache_was_confirmed_stays_on_record(
    root: Path, hub_cache: Path, hub: Hub
) -> None:
    hub.add("org/name", {**FILES, "new.onnx": OTHER})
    os.utime(hub_cache / "models--org--name" / "refs" / "main", (1000, 1000))
    with cache(root, hub_cache) as upper:
        old = upper.get_tree("hf://org/name")
        entry = upper.entries()[0]
        assert entry.checked == 1000
        new = upper.get_tree("hf://org/name", max_age=3600)
    assert old != new
    assert (Path(new) / "new.onnx").read_bytes() == OTHER


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("suffix", ["", ",promote"])
def test_a_tree_without_its_listing_is_passed_over_and_no_connection_is_opened_for_it(
    root: Path, below: Path, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "repo"
    directory.mkdir()
    (directory / "a.bin").write_bytes(CONTENT)
    ref = f"hf://org/name@{COMMIT}"
    with Cache(below) as filled:
        entry = filled.put_tree(directory, name="net")
        Entries(str(below)).write(replace(entry, key=f"{ref}#tree", source=f"{ref}#tree"))
    listing = Path(entry.path).parent / ".listing"
    listing.chmod(0o644)
    listing.write_bytes(b"nonsense")
    with cache(root, f"{below}{suffix}", offline=True) as upper:
        with pytest.raises(errors.LocalNotFoundError):
            upper.get_tree(ref)
        with pytest.raises(errors.NotFoundError):
            upper.get("net")
        with pytest.raises(errors.LocalNotFoundError):
            upper.get_tree(ref, digest=entry.digest)
    assert "is broken" in caplog.text


@pytest.mark.usefixtures("no_network")
def test_how_long_a_content_takes_to_be_read_is_no_sign_that_its_tier_hangs(
    root: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Event()
    real = files.digest_of

    def slow(path: str) -> object:
        reading.set()
        while any(thread.name == "modelcache-tier" for thread in threading.enumerate()):
            pass  # Until whoever waits for the tier has gone on.
        return real(path)

    monkeypatch.setattr(files, "digest_of", slow)
    with cache(root, Tier(str(hub_cache), promote=False)) as upper:
        path = Path(upper.get("hf://org/name/sub/model.onnx"))
    assert reading.is_set()
    assert path.is_relative_to(hub_cache)


# -- policies ------------------------------------------------------------------------------------------------------


def test_under_a_policy_what_a_tier_has_is_looked_at_before_it_is_stored_or_served(
    root: Path, below: Path, server: FaultServer
) -> None:
    pickled = pickle.dumps({"weights": [1.0, 2.0]})
    bad, good = server.add("/model.bin", pickled), server.add("/model.onnx", CONTENT)
    with Cache(below) as filled:
        filled.get(bad)
        filled.get(good)
    asked = len(server.seen())
    for suffix in ("", ",promote"):
        with cache(root, f"{below}{suffix}", policy=Policy(), offline=True) as upper:
            assert Path(upper.get(good)).is_relative_to(root)
            with pytest.raises(errors.PolicyError):
                upper.get(bad)
            assert [entry.key for entry in upper.entries()] == [good]
    assert len(server.seen()) == asked
    whole(root)


def test_where_a_tier_had_it_from_is_what_a_policy_asks_of(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    with cache(root / "a", below, policy=Policy(hosts=("elsewhere.example",))) as upper:
        with pytest.raises(errors.PolicyError):
            upper.get(url)
        assert upper.entries() == []
    with cache(root / "b", below, policy=Policy(hosts=("127.0.0.1",), schemes=("http",))) as upper:
        assert Path(upper.get(url)).read_bytes() == CONTENT
    assert len(server.seen()) == 1


def test_a_digest_that_a_policy_requires_is_not_the_tier_s_to_give(
    root: Path, below: Path, server: FaultServer
) -> None:
    url = stored(below, server)
    with cache(root, below, policy=Policy(digests="required"), offline=True) as upper:
        with pytest.raises(errors.PolicyError):
            upper.get(url)
        assert upper.entries() == []
        digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        assert Path(upper.get(url, digest=digest)).read_bytes() == CONTENT
