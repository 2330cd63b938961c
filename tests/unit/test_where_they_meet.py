"""Where features meet: tiers, policies, archives, bundles, times to live, samples."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache import Cache, Policy, RetryPolicy, errors
from modelcache.gate import Gate
from modelcache.levels import base
from modelcache.policy import Policies, Signatures
from modelcache.records import Entries
from modelcache.testing import FaultServer
from tests.support.archives import tar_gz
from tests.support.hub import Hub

CONTENT, OTHER = b"a model" * 20_000, b"another" * 9_000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
DAY = 86_400.0


@pytest.fixture
def below(tmp_path: Path) -> Path:
    return tmp_path / "below"


@pytest.fixture(autouse=True)
def _tell_everything_again() -> None:
    base._complained.clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def cache(root: Path, *below: object, **options: object) -> Cache:
    return Cache(root, tiers=list(below), retry=RetryPolicy(attempts=1), **options)  # type: ignore[arg-type]


def stored(below: Path, server: FaultServer, **options: object) -> str:
    url = server.add("/model.onnx", CONTENT)
    with Cache(below) as filled:
        filled.get(url, **options)  # type: ignore[arg-type]
    return url


def flip(path: str | Path, at: int) -> None:
    """Change a byte of *path* as a disk does: size and times stay."""
    before = os.stat(path)
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.chmod(path, 0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("verify", ["full", "sample"])
def test_what_a_tier_serves_in_place_is_read_when_the_get_says_so(
    root: Path, below: Path, server: FaultServer, verify: str
) -> None:
    url = stored(below, server)
    with cache(root, below) as upper:
        path = upper.get(url, verify=verify)
        assert Path(path).read_bytes() == CONTENT
    before = Cache(below).lookup(url)
    assert before is not None
    flip(before.path, 5)

    with cache(root, below) as upper:
        found = upper.get(url, verify=verify)

    assert Path(found).read_bytes() == CONTENT


def test_a_tree_that_a_tier_serves_in_place_is_read_when_the_get_says_so(
    root: Path, below: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "net"
    directory.mkdir()
    (directory / "a.bin").write_bytes(CONTENT)
    with Cache(below) as filled:
        path = Path(filled.put_tree(directory, name="net").path)
    flip(path / "a.bin", 5)

    with cache(root, below) as upper, pytest.raises(errors.ModelCacheError):
        upper.get("net", verify="full")


def test_a_promoted_content_has_no_mark_of_policies_but_ours(root: Path, below: Path, server: FaultServer) -> None:
    url = server.add("/model.bin", pickle.dumps({"weights": [1.0]}))
    with Cache(root, policy=Policy()) as strict, pytest.raises(errors.PolicyError):
        strict.get(url)
    mark = Gate(str(root), Policies((Policy(),))).mark
    with Cache(below) as filled:
        filled.get(url)
        entry = filled.lookup(url)
        assert entry is not None
        Entries(str(below)).write(replace(entry, admitted=mark))

    with cache(root, f"{below},promote") as upper:
        upper.get(url)
        entry = upper.lookup(url)
        assert entry is not None
        assert entry.admitted == ""
    with cache(root, policy=Policy()) as strict, pytest.raises(errors.PolicyError):
        strict.get(url)


def test_what_a_policy_let_in_from_a_tier_is_looked_at_once(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    with cache(root, below, policy=Policy()) as upper:
        upper.get(url)
        entry = upper.lookup(url)

    assert entry is not None
    assert entry.admitted == Gate(str(root), Policies((Policy(),))).mark


def test_a_promoted_content_came_when_it_came_here(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    records = Entries(str(below))
    old = records.read(url)
    assert old is not None
    records.write(replace(old, created=1000, checked=1000))

    with cache(root, f"{below},promote", offline=True) as upper:
        since = time.time() - 1
        upper.get(url, ttl=DAY)
        report = upper.verify(since=since)
        entry = upper.lookup(url)

    assert [finding.entry.key for finding in report.findings] == [url]
    assert entry is not None
    assert entry.expires > time.time()
    assert entry.checked == 1000


def test_the_time_that_a_tier_wants_something_for_is_its_own(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server, ttl=DAY)

    with cache(root, f"{below},promote") as upper:
        upper.get(url)
        entry = upper.lookup(url)

    assert entry is not None
    assert entry.ttl is None


@pytest.mark.parametrize("way", ["repair", "announced", "digest", "import"])
def test_the_time_on_record_holds_until_another_is_given(
    way: str, root: Path, below: Path, tmp_path: Path, server: FaultServer, hub: Hub
) -> None:
    url = stored(below, server)
    with cache(root, below) as upper:
        if way == "repair":
            with Cache(root) as alone:
                path = alone.get(url, ttl=DAY)
            flip(path, 3)
            report = upper.verify(repair=True)
            assert report.ok
        elif way == "announced":
            hub.add("org/name", {"model.onnx": OTHER})
            url = "hf://org/name/model.onnx"
            upper.get(url, ttl=DAY)
            upper.put(CONTENT, name="mine")
            hub.add("org/name", {"model.onnx": CONTENT})
            upper.get(url, max_age=0)
            assert upper.stats().fetched == 1
        elif way == "digest":
            url = server.add("/other.onnx", OTHER)
            upper.get(url, ttl=DAY)
            upper.put(CONTENT, name="mine")
            upper.get(url, digest=DIGEST)
        else:
            url = server.add("/other.onnx", OTHER)
            upper.get(url, ttl=DAY)
            server.add("/other.onnx", CONTENT)
            with Cache(below) as filled:
                filled.get(url)
                filled.export(url, to=tmp_path / "bundle")
            upper.import_(tmp_path / "bundle", conflict="replace")
        entry = Entries(str(root)).read(url)

    assert entry is not None
    assert entry.digest == DIGEST
    assert entry.ttl == DAY


def test_an_archive_that_is_here_is_not_unpacked_for_a_host_that_is_not_allowed(
    root: Path, server: FaultServer, tmp_path: Path
) -> None:
    content = tar_gz({"weights": CONTENT})
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    url = server.add("/m.tar.gz", content)
    with Cache(root, policy=Policy(hosts=("elsewhere.example",))) as one:
        one.put(content, name="m.tar.gz")
        with pytest.raises(errors.PolicyError):
            one.get_tree(url, digest=digest)
        assert [entry.key for entry in one.entries()] == ["m.tar.gz"]


def test_what_cannot_be_asked_when_its_time_is_over_is_served_with_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as one:
        one.put(CONTENT, name="mine", ttl=DAY)
        one.get(url, ttl=DAY)
    for module in ("getting", "question", "hit", "memory"):
        monkeypatch.setattr(f"modelcache.{module}.time", lambda: time.time() + 2 * DAY)

    with Cache(root, offline=True) as one, caplog.at_level(logging.WARNING, logger="modelcache"):
        one.get("mine")
        assert "mine" in caplog.text
        caplog.clear()
        one.get(url)
        assert url in caplog.text


def test_a_record_is_not_written_for_what_a_collection_takes_away_meanwhile(
    root: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as one:
        one.get(url)
    seen: list[bool] = []
    real = Entries.write

    def write(self: Entries, entry: object) -> None:
        marks = [name for name in os.listdir(f"{root}/staging") if name.endswith(".wanted")]
        seen.append(bool(marks))
        real(self, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(Entries, "write", write)
    with Cache(root, policy=Policy()) as one:
        one.get(url)
    assert seen == [True]


def test_a_key_that_is_not_there_is_told_with_the_place_that_names_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "modelcache.toml"
    file.write_text('[policy.signatures]\nkey = "nowhere.pub"\n')
    monkeypatch.setenv("MODELCACHE_CONFIG", str(file))
    monkeypatch.setattr("modelcache.signatures._library", lambda: None)

    with (
        Cache(root) as one,
        pytest.raises(errors.ConfigurationError, match=r"the policy in .*modelcache\.toml") as caught,
    ):
        one.put(CONTENT, name="m.bin")
    assert str(tmp_path / "nowhere.pub") in str(caught.value)


def test_what_a_get_by_digest_takes_the_place_of_is_kept_a_while(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", OTHER)
    with Cache(root) as one:
        before = one.get(url)
        os.utime(Path(before).parent, (1000, 1000))
        os.utime(Entries(str(root)).path(url), (1000, 1000))
        one.put(CONTENT, name="mine")

        assert one.get(url, digest=DIGEST) != before

        plan = one.plan_gc()
    assert [item.name for item in plan.items] == []


def test_the_mirrors_of_a_get_that_promotes_are_on_record(root: Path, below: Path, server: FaultServer) -> None:
    url = stored(below, server)
    mirror = server.url("/mirror.onnx")

    with cache(root, f"{below},promote") as upper:
        upper.get(url, mirrors=[mirror])
        entry = upper.lookup(url)

    assert entry is not None
    assert entry.mirrors == (mirror,)


@pytest.mark.parametrize("policy", [None, Policy()])
def test_a_time_given_while_the_source_is_away_is_on_record(
    root: Path, server: FaultServer, policy: Policy | None
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root, policy=policy, retry=RetryPolicy(attempts=1)) as one:
        one.get(url)
        server.unplug()
        one.get(url, max_age=0, ttl=DAY)
        asyncio.run(one.aget(url, max_age=0, ttl=2 * DAY))
        entry = one.lookup(url)
    assert entry is not None
    assert entry.ttl == 2 * DAY


@pytest.mark.parametrize("ttl", [1e300, 10**400, float("inf"), float("nan"), -1, True, "5", 0])
def test_a_time_that_makes_no_sense_is_refused(root: Path, ttl: float) -> None:
    with Cache(root) as one:
        with pytest.raises(errors.UsageError, match="ttl="):
            one.put(CONTENT, name="m.bin", ttl=ttl)
        with pytest.raises(errors.UsageError, match="ttl="):
            one.get("m.bin", ttl=ttl)
        assert one.entries() == []


@pytest.mark.parametrize("since", ["2d", float("nan"), float("inf")])
def test_a_moment_that_makes_no_sense_is_refused(root: Path, since: float) -> None:
    with Cache(root) as one, pytest.raises(errors.UsageError, match="since="):
        one.verify(since=since)


def test_patterns_and_tiers_that_make_no_sense_are_refused(root: Path) -> None:
    with pytest.raises(errors.UsageError, match="makes no sense"):
        Cache(root, tiers=["/a\0b"])
    with Cache(root) as one, pytest.raises(errors.UsageError, match="allow_patterns=5"):
        one.get_tree("hf://org/name", allow_patterns=5)  # type: ignore[arg-type]


def test_what_a_tier_has_on_record_and_lost_is_looked_for_under_its_other_names(
    root: Path, below: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = stored(below, server)
    entry = Entries(str(below)).read(url)
    assert entry is not None
    os.rename(entry.path, f"{Path(entry.path).parent}/other.onnx")

    with cache(root, below, offline=True) as upper:
        with pytest.raises(errors.LocalNotFoundError):
            upper.get(url)
        assert Path(upper.get(url, digest=DIGEST)).read_bytes() == CONTENT
    assert caplog.text == ""


def test_nothing_is_noted_of_an_object_that_is_gone_by_then(
    root: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root) as one:
        path = Path(one.get(url))
    before = Entries(str(root)).read(url)
    assert before is not None
    real = Gate.check_entry

    def check(self: Gate, *args: object) -> object:
        found = real(self, *args)  # type: ignore[arg-type]
        path.parent.rename(root / "elsewhere")
        return found

    monkeypatch.setattr(Gate, "check_entry", check)
    with Cache(root, policy=Policy(), offline=True) as one:
        one.get(url)

    after = Entries(str(root)).read(url)
    assert after is not None
    assert after.serial == before.serial


def test_so_many_hits_are_remembered_and_no_more(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcache.memory._REFS_MAX", 3)
    with Cache(root) as one:
        for number in range(10):
            one.put(CONTENT, name=f"m{number}")
            one.get(f"m{number}")
            assert 1 <= len(one._warm) <= 3


def test_a_signature_that_is_too_large_is_read_no_further(
    root: Path, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pub").write_text("key")
    monkeypatch.setattr("modelcache.signatures._library", lambda: None)
    monkeypatch.setattr("modelcache.signatures.BYTES_MAX", 100)
    url = server.add("/m.onnx", CONTENT)
    server.add("/m.onnx.sig", b"s" * 101)
    policy = Policy(signatures=Signatures(key=str(tmp_path / "key.pub")))

    with Cache(root, policy=policy) as one, pytest.raises(errors.SignatureError, match="too large"):
        one.get(url)
    assert [seen.path for seen in server.seen()] == ["/m.onnx", "/m.onnx.sig"]
