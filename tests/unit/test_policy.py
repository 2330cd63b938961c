"""Policies at the door: what they refuse, before what, and that nothing of it is left to be seen."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, HfSource, Policy, RetryPolicy, Signatures, formats
from modelcache.errors import (
    BatchError,
    ConfigurationError,
    ManifestError,
    MirrorsExhaustedError,
    PolicyError,
)
from modelcache.policy import Policies, host_name
from modelcache.reference import parse
from modelcache.testing import Fault, FaultServer
from tests.support.hub import Hub
from tests.support.state import leftovers

CONTENT = b"the bytes of a model" * 1000
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
EVIL = pickle.dumps({"w": 1}, 4)
OPEN = Policy()
RETRY = RetryPolicy(attempts=1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    running = Hub()
    monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
    yield running
    running.close()


def refused(cache: Cache, ref: str, rule: str, **options: Any) -> PolicyError:
    """Return the refusal of *ref*, of which nothing may be left."""
    with pytest.raises(PolicyError) as raised:
        cache.get(ref, **options)
    assert raised.value.rule == rule
    assert raised.value.exit_code == 12
    assert_nothing(cache)
    return raised.value


def assert_nothing(cache: Cache) -> None:
    assert cache.entries() == []
    root = Path(cache.root)
    seen = [path for name in ("objects-v1", "partial-v1", "staging") for path in (root / name).glob("*")]
    assert seen == []
    assert leftovers(root) == []


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_host_that_is_not_allowed_is_never_connected_to(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root, policy=Policy(hosts=["models.example.org"])) as cache:
        error = refused(cache, url, "hosts")

    assert server.seen() == []
    assert "127.0.0.1" in error.summary
    assert error.origin == "the argument policy"


def test_no_connection_is_opened_for_a_redirect_to_another_host(root: Path, server: FaultServer) -> None:
    elsewhere = FaultServer()
    try:
        target = elsewhere.add("/m.onnx", CONTENT).replace("127.0.0.1", "localhost")
        url = server.add("/m.onnx", b"", [Fault(status=302, headers={"Location": target})])

        with Cache(root, policy=Policy(hosts=["127.0.0.1"])) as cache:
            error = refused(cache, url, "hosts")

        assert "localhost" in error.summary
        assert len(server.seen()) == 1
        assert elsewhere.seen() == []
    finally:
        elsewhere.close()


def test_a_redirect_to_a_host_that_is_allowed_is_followed(root: Path, server: FaultServer) -> None:
    target = server.add("/there.onnx", CONTENT).replace("127.0.0.1", "localhost")
    url = server.add("/m.onnx", b"", [Fault(status=302, headers={"Location": target})])

    with Cache(root, policy=Policy(hosts=["127.0.0.1", "LOCALHOST"])) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT


def test_of_several_places_those_that_are_allowed_are_asked(root: Path, server: FaultServer) -> None:
    mirror = server.add("/m.onnx", CONTENT)
    with Cache(root, policy=Policy(hosts=["127.0.0.1"])) as cache:
        path = cache.get("http://no.such.host.example/m.onnx", mirrors=[mirror])
        assert Path(path).read_bytes() == CONTENT
        assert cache.get("http://no.such.host.example/m.onnx") == path  # By its record, it came from the mirror.


def test_if_no_place_is_allowed_the_exit_code_is_that_of_a_refusal(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root, policy=Policy(hosts=["a.example"])) as cache, pytest.raises(MirrorsExhaustedError) as raised:
        cache.get("http://b.example/m.onnx", mirrors=[url])

    assert raised.value.exit_code == 12
    assert server.seen() == []


@pytest.mark.parametrize(
    ("pattern", "host", "allowed"),
    [
        ("models.example.org", "models.example.org", True),
        ("models.example.org", "MODELS.Example.ORG:8443", True),
        ("models.example.org", "models.example.org.", True),
        ("models.example.org", "user:pw@models.example.org", True),
        ("models.example.org", "evil.org", False),
        ("models.example.org", "models.example.org.evil.org", False),
        ("models.example.org", "models.example.org@evil.org", False),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "evilexample.org", False),
        ("::1", "[::1]:80", True),
        ("127.0.0.1", "127.0.0.1:80", True),
        ("*", "anything", True),
    ],
)
def test_hosts_are_patterns_of_names(pattern: str, host: str, allowed: bool) -> None:
    policies = Policies([Policy(hosts=[pattern])])

    if allowed:
        policies.check_hop("r", "https", host)
        policies.check_place(parse("s3://b/k"), host)
        return
    with pytest.raises(PolicyError, match=host_name(host)):
        policies.check_hop("r", "https", host)
    with pytest.raises(PolicyError, match=host_name(host)):
        policies.check_place(parse("s3://b/k"), host)


def test_a_scheme_that_is_not_allowed_is_refused_for_refs_and_mirrors(
    root: Path, server: FaultServer, tmp_path: Path
) -> None:
    url, file = server.add("/m.onnx", CONTENT), tmp_path / "m.onnx"
    file.write_bytes(CONTENT)

    with Cache(root, policy=Policy(schemes=["https"])) as cache:
        refused(cache, url, "schemes")
        refused(cache, str(file), "schemes")
        with pytest.raises(MirrorsExhaustedError):
            cache.get(url, mirrors=[file])
    with Cache(root, policy=Policy(schemes=["file"], hosts=[])) as cache:
        assert Path(cache.get(file)).read_bytes() == CONTENT
    assert server.seen() == []


def test_plain_http_behind_another_scheme_has_to_be_named(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"config.json": b"{}"})

    with Cache(root, policy=Policy(schemes=["hf"])) as cache:
        error = refused(cache, "hf://org/name/config.json", "schemes")
        assert "http://127.0.0.1" in error.summary
    assert hub.seen() == []
    with Cache(root, policy=Policy(schemes=["hf", "http"])) as cache:
        assert Path(cache.get("hf://org/name/config.json")).read_bytes() == b"{}"


def test_the_hub_and_its_content_network_are_hosts_like_others(hub: Hub, root: Path, monkeypatch: Any) -> None:
    hub.add("org/name", {"w.safetensors": CONTENT})
    endpoint = hub.endpoint.replace("127.0.0.1", "localhost")

    def cache(*hosts: str) -> Cache:
        return Cache(root, policy=Policy(hosts=hosts), sources=[HfSource(endpoint=endpoint)])

    with cache("127.0.0.1") as opened:
        refused(opened, "hf://org/name/w.safetensors", "hosts")
        with pytest.raises(PolicyError):
            opened.get_tree("hf://org/name")
        assert hub.seen() == []
    with cache("localhost") as opened:
        with pytest.raises(PolicyError, match=r"127\.0\.0\.1"):
            opened.get("hf://org/name/w.safetensors")
        with pytest.raises(PolicyError, match=r"127\.0\.0\.1"):
            opened.get_tree("hf://org/name")
        assert_nothing(opened)
        assert hub.cdn.seen() == []
    with cache("localhost", "127.0.0.1") as opened:
        assert os.listdir(opened.get_tree("hf://org/name")) == ["w.safetensors"]


# -- content -----------------------------------------------------------------------------------------------------------


def test_what_is_announced_as_too_large_is_refused_before_a_byte_of_it(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root, policy=Policy(max_size=len(CONTENT) - 1)) as cache:
        refused(cache, url, "max-size")
        assert cache.stats().bytes_received == 0
    with Cache(root, policy=Policy(max_size=len(CONTENT))) as cache:
        cache.get(url)


def test_what_turns_out_too_large_is_cut_off(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", b"x" * 5_000_000, [Fault(framing="chunked")] * 2)

    with Cache(root, policy=Policy(max_size="1MB"), retry=RETRY) as cache:
        refused(cache, url, "max-size")
        assert cache.stats().bytes_received < 2_000_000


def test_a_tree_has_the_size_of_all_its_files(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"a.bin": b"a" * 600, "b.bin": b"b" * 600})

    with Cache(root, policy=Policy(max_size=1000)) as cache:
        with pytest.raises(PolicyError) as raised:
            cache.get_tree("hf://org/name")
        assert raised.value.rule == "max-size"
        assert cache.stats().bytes_received == 0
        assert_nothing(cache)
        assert os.listdir(cache.get_tree("hf://org/name", allow_patterns="a.bin")) == ["a.bin"]


@pytest.mark.parametrize("name", ["m.onnx", "m.bin", "m.pkl"])
def test_a_pickle_is_refused_once_any_policy_is_in_force(name: str, root: Path, server: FaultServer) -> None:
    url = server.add(f"/{name}", EVIL)

    with Cache(root, policy=OPEN) as cache:
        refused(cache, url, "allow-pickle")
        refused(cache, url, "allow-pickle", digest=f"sha256:{hashlib.sha256(EVIL).hexdigest()}")
    with Cache(root, policy=Policy(allow_pickle=True)) as cache:
        cache.get(url)


def test_a_pickle_in_a_tree_is_refused(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"config.json": b"{}", "sub/weights.bin": EVIL})

    with Cache(root, policy=OPEN) as cache:
        with pytest.raises(PolicyError, match=r"sub/weights\.bin is a pickle"):
            cache.get_tree("hf://org/name")
        assert cache.entries() == []
        assert list((root / "objects-v1").glob("*")) == []
        cache.get_tree("hf://org/name", allow_patterns="*.json")


def test_only_the_formats_that_are_listed_come_in(root: Path, server: FaultServer, hub: Hub) -> None:
    hub.add("org/name", {"config.json": b"{}", "w.onnx": b"x", "README": b"x"})
    policy = Policy(formats=[".ONNX", "json"])

    with Cache(root, policy=policy) as cache:
        refused(cache, server.add("/m.bin", CONTENT), "formats")
        refused(cache, server.add("/m", CONTENT), "formats")
        seen = len(hub.seen())
        with pytest.raises(PolicyError, match="README"):
            cache.get_tree("hf://org/name")
        assert [asked for asked in hub.seen()[seen:] if "/resolve/" in asked.path] == []
        cache.get(server.add("/M.ONNX", CONTENT))
        cache.get_tree("hf://org/name", ignore_patterns="README")


def test_a_refusal_of_content_asks_no_mirror(root: Path, server: FaultServer) -> None:
    url, mirror = server.add("/m.bin", EVIL), server.add("/mirror.bin", EVIL)

    with Cache(root, policy=OPEN) as cache:
        refused(cache, url, "allow-pickle", mirrors=[mirror])

    assert [seen.path for seen in server.seen()] == ["/m.bin"]


# -- digests -----------------------------------------------------------------------------------------------------------


def test_where_digests_are_required_a_get_says_which_bytes_it_means(
    root: Path, server: FaultServer, tmp_path: Path
) -> None:
    url, file = server.add("/m.onnx", CONTENT), tmp_path / "f.onnx"
    file.write_bytes(CONTENT)

    with Cache(root, policy=Policy(digests="required")) as cache:
        for ref in (url, str(file)):
            refused(cache, ref, "digests")
        assert server.seen() == []
        assert cache.get(url, digest=DIGEST)
        with pytest.raises(PolicyError):
            cache.get(url)  # Also of what is here.
        cache.put(b"mine", name="mine")
        assert cache.get("mine")


def test_a_commit_of_a_hub_says_which_bytes_there_are(hub: Hub, root: Path) -> None:
    commit = hub.add("org/name", {"config.json": b"{}", "w.safetensors": CONTENT})

    with Cache(root, policy=Policy(digests="required")) as cache:
        for ref in ("hf://org/name/w.safetensors", "hf://org/name@main/w.safetensors"):
            refused(cache, ref, "digests")
        with pytest.raises(PolicyError):
            cache.get_tree("hf://org/name")
        assert hub.seen() == []
        # The hub announces no digest of a small file.
        refused(cache, f"hf://org/name@{commit}/config.json", "digests")
        for _ in range(2):
            assert Path(cache.get(f"hf://org/name@{commit}/w.safetensors")).read_bytes() == CONTENT
            assert len(os.listdir(cache.get_tree(f"hf://org/name@{commit}"))) == 2


def test_a_lock_finds_digests_out_and_prewarm_locked_gives_them(
    root: Path, server: FaultServer, tmp_path: Path
) -> None:
    manifest = tmp_path / "models.toml"
    manifest.write_text(
        f'[[model]]\nref = "{server.add("/m.onnx", CONTENT)}"\n\n[policy]\ndigests = "required"\nmax-size = "1MB"\n'
    )

    with Cache(root) as cache:
        with pytest.raises(PolicyError) as raised:
            cache.prewarm(manifest).check()
        assert raised.value.origin == f"{manifest}:4"
        cache.lock(manifest)
        cache.prewarm(manifest, locked=True).check()


# -- several, and what is here already ---------------------------------------------------------------------------------


def test_policies_add_up_and_none_takes_another_away(
    root: Path, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELCACHE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "xdg" / "modelcache").mkdir(parents=True)
    user, project = tmp_path / "xdg" / "modelcache" / "config.toml", tmp_path / "modelcache.toml"
    user.write_text('[policy]\nhosts = ["a.example"]\n')
    project.write_text('[policy]\nhosts = ["*"]\nallow-pickle = true\nmax-size = "1TB"\n')

    with Cache(root, policy=Policy(hosts=["*"], allow_pickle=True)) as cache:
        assert refused(cache, url, "hosts").origin == f"{user}:1"
    user.write_text('[policy]\nhosts = ["127.0.0.1"]\n')
    with Cache(root, policy=Policy(hosts=["*"], allow_pickle=True)) as cache:
        assert refused(cache, server.add("/p", EVIL), "allow-pickle").origin == f"{user}:1"
        cache.get(url)
    project.write_text('[policy]\nmax-size = "1kB"\n')
    with Cache(tmp_path / "second") as cache:
        assert refused(cache, url, "max-size").origin == f"{project}:1"


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (Policy(hosts=["a.example"]), "hosts"),
        (Policy(schemes=["https"]), "schemes"),
        (Policy(max_size=10), "max-size"),
        (Policy(formats=["onnx"]), "formats"),
        (Policy(digests="required"), "digests"),
        (OPEN, "allow-pickle"),
    ],
)
@pytest.mark.parametrize("mode", ["cache-first", "offline", "refresh"])
def test_what_is_here_and_not_allowed_now_is_not_served(
    policy: Policy, rule: str, mode: str, root: Path, server: FaultServer
) -> None:
    url = server.add("/m.bin", EVIL, etag='"v1"')
    with Cache(root) as cache:
        path = cache.get(url)

    with Cache(root, policy=policy, mode=mode) as cache:
        for _ in range(2):
            with pytest.raises(PolicyError) as raised:
                cache.get(url)
            assert raised.value.rule == rule
        entry = cache.lookup(url)
        assert entry is not None
        assert entry.path == path
    with Cache(root) as cache:
        assert cache.get(url) == path


async def _aget(cache: Cache, ref: str) -> str:
    return await cache.aget(ref)


def test_the_asynchronous_get_is_held_to_the_same(root: Path, server: FaultServer) -> None:
    url = server.add("/m.bin", EVIL)
    with Cache(root, policy=OPEN) as cache, pytest.raises(PolicyError):
        asyncio.run(_aget(cache, url))
    with Cache(root) as cache:
        cache.get(url)
    with Cache(root, policy=OPEN) as cache, pytest.raises(PolicyError):
        asyncio.run(_aget(cache, url))


def test_what_was_let_in_is_looked_at_once(root: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    real = formats.pickled

    def spy(path: str, name: str) -> str | None:
        looked.append(name)
        return real(path, name)

    monkeypatch.setattr(formats, "pickled", spy)
    url, other = server.add("/m.onnx", CONTENT), server.add("/other.onnx", CONTENT + b"x")
    with Cache(root) as cache:
        cache.get(other)

    for _ in range(3):
        with Cache(root, policy=OPEN) as cache:
            cache.get(url)
            cache.get(other)
    assert sorted(looked) == ["m.onnx", "other.onnx"]
    with Cache(root, policy=Policy(max_size="1GB")) as cache:
        cache.get(url)
    assert len(looked) == 3


def test_content_that_is_here_by_another_ref_is_held_to_the_policy(root: Path, server: FaultServer) -> None:
    url, other = server.add("/m.bin", EVIL), server.add("/other.bin", EVIL)
    digest = f"sha256:{hashlib.sha256(EVIL).hexdigest()}"
    with Cache(root) as cache:
        cache.get(url)

    with Cache(root, policy=OPEN) as cache:
        with pytest.raises(PolicyError):
            cache.get(other, digest=digest)
        assert [entry.key for entry in cache.entries()] == [url]


@pytest.mark.parametrize("name", ["w.bin", "w.onnx"])
def test_content_that_a_source_announces_and_that_is_here_is_held_to_the_policy(
    name: str, root: Path, hub: Hub
) -> None:
    content = EVIL if name == "w.bin" else CONTENT
    hub.large_bytes = 1
    hub.add("org/name", {name: content})
    hub.add("org/other", {name: content})
    with Cache(root) as cache:
        cache.get(f"hf://org/name/{name}")

    with Cache(root, policy=OPEN) as cache:
        if content is EVIL:
            with pytest.raises(PolicyError):
                cache.get(f"hf://org/other/{name}")
            with pytest.raises(PolicyError):
                asyncio.run(_aget(cache, f"hf://org/other/{name}"))
            assert len(cache.entries()) == 1
        else:
            assert Path(cache.get(f"hf://org/other/{name}")).read_bytes() == CONTENT
            assert all(entry.admitted for entry in cache.entries() if "other" in entry.key)
        assert cache.stats().bytes_received == 0


@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
def test_a_put_is_held_to_size_and_format(kind: str, root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "source"
    directory.mkdir()
    file = directory / "m.bin"
    file.write_bytes(EVIL)

    def content() -> Any:
        return {"bytes": EVIL, "path": file, "stream": io.BytesIO(EVIL)}[kind]

    with Cache(root, policy=Policy(hosts=[], schemes=[], digests="required", max_size=5, allow_pickle=True)) as cache:
        with pytest.raises(PolicyError, match="max-size"):
            cache.put(content(), name="m.bin")
        assert_nothing(cache)
    with Cache(root, policy=Policy(hosts=[], schemes=[], digests="required")) as cache:
        with pytest.raises(PolicyError, match="allow-pickle"):
            cache.put(content(), name="m.bin")
        with pytest.raises(PolicyError, match="allow-pickle"):
            cache.put_tree(directory, name="tree")
        assert_nothing(cache)
        cache.put(CONTENT, name="m.bin")
        assert Path(cache.get("m.bin")).read_bytes() == CONTENT


def test_a_manifest_has_a_policy_for_its_own_models(root: Path, server: FaultServer, tmp_path: Path) -> None:
    manifest = tmp_path / "models.toml"
    good, bad = server.add("/m.onnx", CONTENT), server.add("/m.bin", EVIL)
    manifest.write_text(f'[policy]\nhosts = ["127.0.0.1"]\n\n[[model]]\nref = "{good}"\n\n[[model]]\nref = "{bad}"\n')

    with Cache(root) as cache:
        report = cache.prewarm(manifest)
        assert [type(error) for error in report.failures.values()] == [PolicyError]
        with pytest.raises(BatchError):
            cache.lock(manifest)
        cache.get(bad)


@pytest.mark.parametrize("text", ["[policy]\nhost = []\n", "policy = 1\n", "[[policy]]\n", "[policy]\nhosts = [1]\n"])
def test_a_mistake_in_the_policy_of_a_manifest_names_its_file(text: str, root: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "models.toml"
    manifest.write_text(text)

    with Cache(root) as cache, pytest.raises((ConfigurationError, ManifestError), match=str(manifest)):
        cache.prewarm(manifest)


@pytest.mark.parametrize(
    "given",
    [
        {"hosts": "a.example"},
        {"hosts": [1]},
        {"schemes": 3},
        {"max_size": 0},
        {"max_size": True},
        {"max_size": "much"},
        {"allow_pickle": 1},
        {"digests": True},
        {"signatures": "key.pub"},
    ],
)
def test_a_senseless_policy_is_refused_by_its_name(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"Policy.{next(iter(given))}"):
        Policy(**given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"key": "a", "identity": "b", "issuer": "c"},
        {"key": "a", "issuer": "c"},
        {"identity": "b"},
        {"issuer": "b"},
        {"key": ""},
    ],
)
def test_signatures_are_by_one_of_three(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Signatures(**given)


def test_without_a_policy_nothing_of_it_is_imported(root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    code = (
        "import sys; from modelcache import Cache\n"
        f"with Cache({str(root)!r}) as cache: cache.get({url!r}); cache.get({url!r})\n"
        "print(*sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not set(done.stdout.split()) & {"tarfile", "pickletools", "model_signing", "tomllib"}
