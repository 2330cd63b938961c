"""Signatures at the door, by the real library and a real key: what is not signed as asked is never visible."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Policy, RetryPolicy, Signatures
from modelcache.errors import ConfigurationError, MissingLibraryError, SignatureError
from modelcache.testing import FaultServer
from tests.support.hub import Hub
from tests.support.state import leftovers

FILES = {"config.json": b"{}", "sub/w.safetensors": b"weights" * 5000, ".gitattributes": b"*.bin lfs\n"}
missing_library = find_spec("model_signing") is None or find_spec("OpenSSL") is None
with_library = pytest.mark.skipif(
    missing_library, reason="the library model-signing is not installed: pip install 'modelcache[signing]'"
)


class Signer:
    """Signs with an elliptic-curve key of its own."""

    def __init__(self, directory: Path, name: str = "key") -> None:
        from cryptography.hazmat.primitives import serialization as forms
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        self.private, self.public = directory / f"{name}.pem", directory / f"{name}.pub"
        self.private.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
        self.public.write_bytes(
            key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
        )

    def sign(self, path: Path, signature: Path, *, ignored: tuple[str, ...] = ()) -> bytes:
        from model_signing import hashing, signing

        config = hashing.Config().set_ignored_paths(
            paths=[signature, *(path / name for name in ignored)], ignore_git_paths=True
        )
        signing.Config().use_elliptic_key_signer(private_key=self.private).set_hashing_config(config).sign(
            path, signature
        )
        return signature.read_bytes()

    @property
    def policy(self) -> Policy:
        return Policy(signatures=Signatures(key=str(self.public)))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    running = Hub()
    monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
    yield running
    running.close()


def tree(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def assert_refused(cache: Cache, call: Callable[[], object], said: str) -> None:
    with pytest.raises(SignatureError, match=said) as raised:
        call()
    assert raised.value.exit_code == 12
    assert cache.entries() == []
    assert list((Path(cache.root) / "objects-v1").glob("*")) == []


# -- trees -------------------------------------------------------------------------------------------------------------


@with_library
def test_a_signed_tree_comes_in_and_is_verified_once(
    hub: Hub, root: Path, tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tree(tmp_path / "signed", FILES)
    signature = signer.sign(source, source / "model.sig")
    hub.add("org/name", {**FILES, "model.sig": signature})

    with Cache(root, policy=signer.policy) as cache:
        path = cache.get_tree("hf://org/name")
    assert (Path(path) / "sub/w.safetensors").read_bytes() == FILES["sub/w.safetensors"]

    from modelcache import signatures

    monkeypatch.setattr(signatures, "verify", None)  # Whoever calls it fails.
    with Cache(root, policy=signer.policy, mode="offline") as cache:
        assert cache.get_tree("hf://org/name") == path


SPOILT: dict[str, tuple[str, Callable[[dict[str, bytes]], dict[str, bytes]]]] = {
    "a changed byte": (
        "Hash mismatch for 'sub/w",
        lambda files: {**files, "sub/w.safetensors": b"Weights" + files["sub/w.safetensors"][7:]},
    ),
    "a missing file": ("Missing files in model", lambda files: without("config.json", files)),
    "an extra file": ("Extra files found in model", lambda files: {**files, "extra.py": b"import os\n"}),
    "an extra file among git's own": (
        r"leaves out \.github/setup\.py",
        lambda files: {**files, ".github/setup.py": b"import os\n"},
    ),
    "no signature": ("there is no signature in it", lambda files: without("model.sig", files)),
    "a signature that is none": ("not verified", lambda files: {**files, "model.sig": b"signed!"}),
    "an empty signature": ("not verified", lambda files: {**files, "model.sig": b""}),
    "a signature that was edited": ("not verified", lambda files: {**files, "model.sig": edited(files["model.sig"])}),
}


def without(name: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if path != name}


def edited(signature: bytes) -> bytes:
    """Return *signature* with a payload that leaves a file out."""
    bundle = json.loads(signature)
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    payload["predicate"]["serialization"]["ignore_paths"].append("extra.py")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    return json.dumps(bundle).encode()


@with_library
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("door", ["get", "put"])
def test_a_tree_that_is_not_as_it_was_signed_is_refused(
    how: str, door: str, hub: Hub, root: Path, tmp_path: Path, signer: Signer
) -> None:
    source = tree(tmp_path / "signed", FILES)
    said, spoil = SPOILT[how]
    files = spoil({**FILES, "model.sig": signer.sign(source, source / "model.sig")})

    with Cache(root, policy=signer.policy) as cache:
        if door == "get":
            hub.add("org/name", files)
            assert_refused(cache, lambda: cache.get_tree("hf://org/name"), said)
        else:
            spoilt = tree(tmp_path / "spoilt", files)
            assert_refused(cache, lambda: cache.put_tree(spoilt, name="tree"), said)
            assert leftovers(root) == []


@with_library
def test_what_the_signer_left_out_is_vouched_for_by_nobody(root: Path, tmp_path: Path, signer: Signer) -> None:
    source = tree(tmp_path / "signed", {**FILES, "loader.py": b"import os\n"})
    signer.sign(source, source / "model.sig", ignored=("loader.py",))

    with Cache(root, policy=signer.policy) as cache:
        assert_refused(cache, lambda: cache.put_tree(source, name="tree"), r"leaves out loader\.py")


@with_library
def test_another_key_is_refused(root: Path, tmp_path: Path, signer: Signer) -> None:
    source = tree(tmp_path / "signed", FILES)
    Signer(tmp_path, "other").sign(source, source / "model.sig")

    with Cache(root, policy=signer.policy) as cache:
        assert_refused(cache, lambda: cache.put_tree(source, name="tree"), "not verified")


@with_library
def test_a_key_that_is_replaced_makes_all_be_verified_anew(root: Path, tmp_path: Path, signer: Signer) -> None:
    source = tree(tmp_path / "signed", FILES)
    signer.sign(source, source / "model.sig")
    with Cache(root, policy=signer.policy) as cache:
        cache.put_tree(source, name="tree")

    signer.public.write_bytes(Signer(tmp_path, "other").public.read_bytes())

    with Cache(root, policy=signer.policy) as cache, pytest.raises(SignatureError):
        cache.get_tree("tree")


def certificate(directory: Path, name: str) -> tuple[Path, Path, Path]:
    """Make a root, and a certificate that it signs: return the paths of the root, of that, and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} {which}")]) for which in ("root", "signer")
    ]
    made = []
    for which in range(2):
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[which])
            .issuer_name(names[0])
            .public_key(keys[which].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=9))
            .add_extension(x509.BasicConstraints(ca=which == 0, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(which == 1, False, False, False, False, which == 0, which == 0, False, False),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[which].public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
            .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        )
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(forms.Encoding.PEM))
    root, cert, key = (directory / f"{name}.{part}" for part in ("root", "cert", "key"))
    root.write_bytes(made[0])
    cert.write_bytes(made[1])
    key.write_bytes(keys[1].private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    return root, cert, key


@with_library
def test_a_signing_certificate_must_descend_from_those_that_are_trusted(root: Path, tmp_path: Path) -> None:
    from model_signing import hashing, signing

    source, signature = tree(tmp_path / "signed", FILES), tmp_path / "signed" / "model.sig"
    trusted, cert, key = certificate(tmp_path, "ours")
    other, _, _ = certificate(tmp_path, "other")
    signing.Config().use_certificate_signer(
        private_key=key, signing_certificate=cert, certificate_chain=[trusted]
    ).set_hashing_config(hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=True)).sign(
        source, signature
    )

    with Cache(root, policy=Policy(signatures=Signatures(certificates=[str(other)]))) as cache:
        assert_refused(cache, lambda: cache.put_tree(source, name="tree"), "not verified")
    with Cache(root, policy=Policy(signatures=Signatures(certificates=[str(trusted)]))) as cache:
        assert cache.put_tree(source, name="tree").admitted


# -- files -------------------------------------------------------------------------------------------------------------


@with_library
def test_a_file_is_verified_by_the_signature_beside_it(
    root: Path, server: FaultServer, tmp_path: Path, signer: Signer
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"net" * 1000)
    url = server.add("/net.onnx?v=1", file.read_bytes())
    server.add("/net.onnx.sig?v=1", signer.sign(file, tmp_path / "net.onnx.sig"))

    with Cache(root, policy=signer.policy) as cache:
        path = cache.get(url)
        assert Path(path).read_bytes() == file.read_bytes()
        assert len(cache.entries()) == 1
        assert leftovers(root) == []
    seen = len(server.seen())
    with Cache(root, policy=signer.policy, mode="offline") as cache:
        assert cache.get(url) == path
    assert len(server.seen()) == seen


@with_library
def test_the_signature_of_a_file_of_a_hub_is_that_of_its_revision(
    hub: Hub, root: Path, tmp_path: Path, signer: Signer
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"net" * 1000)
    hub.add("org/name", {"net.onnx": file.read_bytes(), "net.onnx.sig": signer.sign(file, tmp_path / "net.onnx.sig")})
    with Cache(root) as cache:
        path = cache.get("hf://org/name/net.onnx")
    manifest = tmp_path / "models.toml"
    manifest.write_text('[[model]]\nref = "hf://org/name/net.onnx"\n')
    with Cache(tmp_path / "builder") as cache:
        cache.lock(manifest)
    hub.add("org/name", {"net.onnx": b"another"})

    with Cache(root, policy=signer.policy) as cache:
        assert cache.get("hf://org/name/net.onnx") == path
    with Cache(tmp_path / "other", policy=signer.policy) as cache:
        cache.prewarm(manifest, locked=True).check()


@with_library
@pytest.mark.parametrize("how", ["changed", "unsigned", "another key"])
def test_a_file_that_is_not_signed_as_asked_is_refused(
    how: str, root: Path, server: FaultServer, tmp_path: Path, signer: Signer
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"net" * 1000)
    whose = Signer(tmp_path, "other") if how == "another key" else signer
    signature = whose.sign(file, tmp_path / "net.onnx.sig")
    url = server.add("/net.onnx", b"Net" + file.read_bytes()[3:] if how == "changed" else file.read_bytes())
    if how != "unsigned":
        server.add("/net.onnx.sig", signature)

    with Cache(root, policy=signer.policy, retry=RetryPolicy(attempts=1)) as cache:
        said = "there is no signature at" if how == "unsigned" else "not verified"
        assert_refused(cache, lambda: cache.get(url), said)
        assert leftovers(root) == []


@with_library
def test_a_file_that_was_here_before_the_policy_is_verified_when_it_is_served(
    root: Path, server: FaultServer, tmp_path: Path, signer: Signer
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"net" * 1000)
    url = server.add("/net.onnx", file.read_bytes())
    with Cache(root) as cache:
        path = cache.get(url)

    with Cache(root, policy=signer.policy) as cache:
        with pytest.raises(SignatureError, match="there is no signature at"):
            cache.get(url)
        server.add("/net.onnx.sig", signer.sign(file, tmp_path / "net.onnx.sig"))
        with pytest.raises(SignatureError, match="offline"):
            cache.get(url, local_files_only=True)
        assert cache.get(url) == path
        assert cache.get(url, local_files_only=True) == path


@with_library
@pytest.mark.parametrize("signed", [True, False])
def test_a_put_of_a_file_looks_for_the_signature_beside_it(
    signed: bool, root: Path, tmp_path: Path, signer: Signer
) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"net" * 1000)
    if signed:
        signer.sign(file, tmp_path / "net.onnx.sig")

    with Cache(root, policy=signer.policy) as cache:
        if signed:
            cache.put(file, name="net")
            assert cache.get("net")
        else:
            assert_refused(cache, lambda: cache.put(file, name="net"), "no signature that can be read")
        with pytest.raises(SignatureError, match="bytes or a stream"):
            cache.put(b"net", name="other")


@with_library
def test_a_key_that_is_missing_is_told_before_anything_is_fetched(root: Path, server: FaultServer) -> None:
    url = server.add("/net.onnx", b"net")

    policy = Policy(signatures=Signatures(key="/no/such/key"))
    with Cache(root, policy=policy) as cache, pytest.raises(ConfigurationError, match="/no/such/key"):
        cache.get(url)

    assert server.seen() == []


def test_without_the_library_the_error_says_how_to_get_it_before_anything_is_fetched(
    root: Path, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/net.onnx", b"net")
    (tmp_path / "key").write_text("key")
    monkeypatch.setitem(sys.modules, "model_signing", None)

    with Cache(root, policy=Policy(signatures=Signatures(key=str(tmp_path / "key")))) as cache:
        for call in (lambda: cache.get(url), lambda: cache.put(b"x", name="x")):
            with pytest.raises(MissingLibraryError) as raised:
                call()
            assert "pip install 'modelcache[signing]'" in raised.value.hint

    assert server.seen() == []


def test_the_library_is_imported_only_where_a_policy_asks_for_signatures(root: Path, server: FaultServer) -> None:
    url = server.add("/net.onnx", b"net")
    code = (
        "import sys; from modelcache import Cache, Policy\n"
        f"with Cache({str(root)!r}, policy=Policy()) as cache: cache.get({url!r})\n"
        "print(*sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "model_signing" not in done.stdout.split()


def test_the_keys_of_a_file_start_at_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELCACHE_CONFIG")
    found: list[Any] = []
    for text in ('key = "a.pub"', 'certificates = ["b.pem", "/c.pem"]', 'identity = "i"\nissuer = "https://j"'):
        (tmp_path / "modelcache.toml").write_text(f"[policy.signatures]\n{text}\n")
        with Cache(root) as cache:
            found += [policy.signatures for policy in cache._limits.policies]

    assert found == [
        Signatures(key=str(tmp_path / "a.pub")),
        Signatures(certificates=(str(tmp_path / "b.pem"), "/c.pem")),
        Signatures(identity="i", issuer="https://j"),
    ]
