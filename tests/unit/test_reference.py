"""What may name a model, and what it is called then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache import reference
from modelcache.errors import InvalidReferenceError


def key(text: str | os.PathLike[str]) -> str:
    return reference.parse(text).key


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("HTTPS://Example.ORG/Model.onnx", "https://example.org/Model.onnx"),
        ("https://example.org:443/m", "https://example.org/m"),
        ("http://example.org:80/m", "http://example.org/m"),
        ("http://example.org:443/m", "http://example.org:443/m"),
        ("https://example.org:8443/m", "https://example.org:8443/m"),
        ("https://example.org:08443/m", "https://example.org:8443/m"),
        ("https://example.org:/m", "https://example.org/m"),
        ("https://example.org", "https://example.org/"),
        ("https://example.org/m#part", "https://example.org/m"),
        ("https://example.org/m?", "https://example.org/m"),
        ("https://example.org?id=7", "https://example.org/?id=7"),
        ("https://example.org/m?b=2&a=1", "https://example.org/m?b=2&a=1"),
        ("https://[2001:DB8::1]/m", "https://[2001:db8::1]/m"),
        ("https://[::1]:443/m", "https://[::1]/m"),
        ("https://[::1]:8443/m", "https://[::1]:8443/m"),
        ("https://exämple.org/modèle.onnx", "https://exämple.org/modèle.onnx"),
        ("S3://Bucket/a/b", "s3://bucket/a/b"),
    ],
)
def test_two_ways_to_write_one_url_have_one_key(written: str, canonical: str) -> None:
    assert key(written) == canonical


def test_a_query_that_holds_a_slash_is_part_of_the_key() -> None:
    assert key("https://example.org?model=a/b") != key("https://example.org?model=a/c")


@pytest.mark.parametrize(
    "written",
    [
        "https://alice:s3cret@example.org/m",
        "https://alice:s3cret@example.org:443/m",
        "https://s3cret@example.org/m",
        "https://alice:p@s3cret@example.org/m",
        "https://example.org/m?access_token=s3cret",
        "https://example.org/m?token=s3cret#s3cret",
    ],
)
def test_a_key_holds_no_credentials_and_the_url_keeps_them(written: str) -> None:
    ref = reference.parse(written)

    assert ref.key == "https://example.org/m"
    assert "s3cret" in ref.url
    assert "s3cret" not in repr(ref)


@pytest.mark.parametrize(
    "query",
    [
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AK%2F2026&X-Amz-Security-Token=t&X-Amz-Signature=abc",
        "AWSAccessKeyId=AK&Expires=1700000000&Signature=abc%3D",
        "X-Goog-Algorithm=GOOG4-RSA-SHA256&X-Goog-Credential=c&X-Goog-Expires=1&X-Goog-Signature=abc",
        "GoogleAccessId=me&Expires=1700000000&Signature=abc",
        "sv=2024-11-04&ss=b&srt=o&st=2026-01-01&se=2026-01-02&sr=b&sp=r&spr=https&sip=10.0.0.1&sig=abc%3D",
        "sv=2024-11-04&si=readers&skoid=a&sktid=b&skt=c&ske=d&sks=b&skv=e&saoid=f&scid=g&sig=abc",
        "Expires=1700000000&Signature=abc&Key-Pair-Id=K1",
        "Policy=eyJ&Signature=abc&Key-Pair-Id=K1",
    ],
    ids=["s3-v4", "s3-v2", "gcs-v4", "gcs-v2", "azure-account", "azure-delegation", "cloudfront", "cloudfront-policy"],
)
def test_a_presigned_url_has_the_key_of_the_plain_one(query: str) -> None:
    assert key(f"https://bucket.example.org/m.onnx?{query}") == "https://bucket.example.org/m.onnx"
    assert key(f"https://bucket.example.org/m.onnx?versionId=3&{query}").endswith("/m.onnx?versionId=3")


@pytest.mark.parametrize("name", ["expires", "policy", "sp", "sr", "st", "si"])
def test_a_parameter_that_only_a_signature_makes_a_credential_counts_without_one(name: str) -> None:
    assert key(f"https://example.org/m?{name}=1") != key(f"https://example.org/m?{name}=2")


@pytest.mark.parametrize("written", ["file:///models/a.onnx", "FILE://localhost/models/a.onnx", "/models/x/../a.onnx"])
def test_a_file_url_and_a_path_to_the_same_file_have_one_key(written: str) -> None:
    assert key(written) == key(Path("/models/a.onnx")) == "file:///models/a.onnx"


def test_a_relative_path_means_the_file_it_means_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert key("./m.onnx") == key(Path("m.onnx")) == f"file://{tmp_path}/m.onnx"
    assert key("../m.onnx") == f"file://{tmp_path.parent}/m.onnx"


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")

    assert key("~/m.onnx") == "file:///home/somebody/m.onnx"


@pytest.mark.parametrize("path", ["/m/a#b.onnx", "/m/a?b.onnx", "/m/a%20b.onnx", "/m/100%", "/m/a b.onnx", "/m/ü.onnx"])
def test_the_key_of_a_path_means_that_very_file(path: str) -> None:
    ref = reference.parse(path)

    assert ref.path == path
    assert ref.name == os.path.basename(path)
    assert reference.parse(ref.key).path == path


def test_two_files_whose_names_differ_behind_a_hash_are_two_models() -> None:
    assert key("/models/a#1.onnx") != key("/models/a#2.onnx")


def test_a_percent_encoded_file_url_names_the_decoded_path() -> None:
    assert reference.parse("file:///models/a%20b%23.onnx").path == "/models/a b#.onnx"


@pytest.mark.parametrize("name", ["resnet50", "vision/resnet50.onnx", "a b", "100%25", "a%2fb", "größe", "-x", "a?b#c"])
def test_a_name_is_its_own_key_and_its_last_part_the_file_name(name: str) -> None:
    ref = reference.parse(name)

    assert (ref.key, ref.url, ref.scheme) == (name, name, "")
    assert ref.name == name.rpartition("/")[2]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("https://example.org/a/m.onnx?x=/y", "m.onnx"),
        ("https://example.org/a%20b.onnx", "a b.onnx"),
        ("https://example.org", "model"),
        ("https://example.org/dir/", "model"),
        ("https://example.org?file=m.onnx", "model"),
    ],
)
def test_the_file_name_is_the_last_segment_of_the_path(written: str, name: str) -> None:
    assert reference.parse(written).name == name


@pytest.mark.parametrize(
    "segment",
    ["..", ".", "%2e%2e", "%2E%2E%2Fetc", "..%2f", "a%5Cb", "a\\b", "%00", "a%0Ab", "%C2%85", "x" * 300, "%41" * 300],
)
def test_a_url_whose_last_segment_cannot_be_a_file_name_is_refused(segment: str) -> None:
    ref = reference.parse(f"https://example.org/a/{segment}")

    with pytest.raises(InvalidReferenceError):
        _ = ref.name


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        " resnet",
        "resnet ",
        "resnet\n",
        "res\0net",
        "res\x1bnet",
        "res\u202enet",
        "res\ud800net",
        "..",
        ".",
        "a/../b",
        "a//b",
        "a/",
        "a\\b",
        "C:\\models\\m.onnx",
        "http:/example.org/m",
        "user:s3cret@example.org",
        "x" * 256,
        "x/" * 5000,
        "://example.org/m",
        "ht tp://example.org/m",
        "hätp://example.org/m",
        "https://",
        "https:///m",
        "https://:443/m",
        "https://user@/m",
        "https://example.org/a b",
        "https://exa mple.org/m",
        "https://example.org\\@evil.org/m",
        "https://example.org:http/m",
        "https://example.org:65536/m",
        "https://example.org:-1/m",
        "https://example.org:٣/m",
        "https://example.org:80:80/m",
        "https://::1/m",
        "https://[::1/m",
        "https://::1]/m",
        "file://example.org/m",
        "file://m",
        "file:///",
        "file:///m%00",
        "file:///m%0a",
        "file:///m%20",
        "file:///m%ff",
        "/",
    ],
)
def test_hostile_text_is_refused_with_a_typed_error(written: str) -> None:
    with pytest.raises(InvalidReferenceError) as raised:
        reference.parse(written)

    assert str(raised.value).isprintable(), "the message can be shown on any terminal"


@pytest.mark.parametrize("written", [None, 7, b"resnet50", ["resnet50"]])
def test_what_is_no_text_is_refused_with_a_typed_error(written: object) -> None:
    with pytest.raises(InvalidReferenceError, match="a str or a path"):
        reference.parse(written)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "written",
    [
        "https://alice:s3cret@/m",
        "https://alice:s3cret@example.org/a b",
        "https://alice:s3/cret@example.org/m",
        "https://alice:s3?cret@example.org/m",
        "https://alice:s3#cret@example.org/m",
        "https://example.org/a b?X-Amz-Signature=s3cret",
        f"https://alice:s3cret@example.org/{'x' * 9000}",
    ],
)
def test_the_error_for_a_malformed_url_shows_no_secret(written: str) -> None:
    with pytest.raises(InvalidReferenceError) as raised:
        reference.parse(written)

    shown = f"{raised.value} {raised.value!r} {raised.value.facts}"
    assert "cret" not in shown
    assert "s3" not in shown


def test_a_ref_whose_canonical_form_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidReferenceError, match="canonical"):
        reference.parse(f"https://{'h' * (reference.REF_CHARACTERS_MAX - 8)}")


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("HF://Org/Name/Model.onnx", "hf://Org/Name/Model.onnx"),
        ("hf://models/org/name/m", "hf://org/name/m"),
        ("hf://datasets/org/name/m", "hf://datasets/org/name/m"),
        ("hf://spaces/org/name@v1/m", "hf://spaces/org/name@v1/m"),
        ("hf://org/name", "hf://org/name"),
        ("hf://org/name/", "hf://org/name"),
        ("hf://org/name@v1/", "hf://org/name@v1"),
        ("hf://org/name@main/m", "hf://org/name/m"),
        ("hf://org/name@refs/pr/1/m", "hf://org/name@refs%2Fpr%2F1/m"),
        ("hf://org/name@refs%2fpr%2f1/m", "hf://org/name@refs%2Fpr%2F1/m"),
        ("hf://org/name@refs/convert/parquet/a/m", "hf://org/name@refs%2Fconvert%2Fparquet/a/m"),
        ("hf://org/name@refs/heads/m", "hf://org/name@refs/heads/m"),
        ("hf://org/name/a b.txt", "hf://org/name/a%20b.txt"),
        ("hf://org/name/100%", "hf://org/name/100%25"),
        ("hf://org/name/%3F%23%25", "hf://org/name/%3F%23%25"),
        ("hf://org/name/mod%C3%A8le", "hf://org/name/modèle"),
        ("hf://org/name/file@1.txt", "hf://org/name/file@1.txt"),
        ("hf://gpt2/config.json", "hf://gpt2/config.json"),
    ],
)
def test_two_ways_to_write_one_file_of_a_hub_have_one_key(written: str, canonical: str) -> None:
    assert key(written) == canonical
    assert key(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "place", "name"),
    [
        ("hf://org/name", ("models", "org/name", None, ""), "name"),
        ("hf://org/name@v1", ("models", "org/name", "v1", ""), "name"),
        ("hf://datasets/org/name@refs%2Fpr%2F1/a%20b/c", ("datasets", "org/name", "refs/pr/1", "a b/c"), "c"),
        ("hf://gpt2/config.json", ("models", "gpt2/config.json", None, ""), "config.json"),
        ("hf://org/name/file%3Fx", ("models", "org/name", None, "file?x"), "file?x"),
    ],
)
def test_a_ref_of_a_hub_says_what_is_asked_for(
    written: str, place: tuple[str, str, str | None, str], name: str
) -> None:
    ref = reference.parse(written)

    assert (ref.hub.kind, ref.hub.repository, ref.hub.revision, ref.hub.path) == place
    assert ref.name == name


def test_a_ref_can_be_pinned_to_a_commit() -> None:
    commit = "0123456789" * 4

    pinned = reference.parse("hf://datasets/org/name@refs/pr/1").hub.at(commit, "a b/c%?.bin")

    assert pinned.key == f"hf://datasets/org/name@{commit}/a%20b/c%25%3F.bin"
    assert pinned.hub.path == "a b/c%?.bin"


@pytest.mark.parametrize(
    "written",
    [
        "hf://", "hf:///org/name", "hf://gpt2", "hf://gpt2@v1/config.json", "hf://datasets/squad", "hf://model/org/name",
        "hf://buckets/org/name/m", "hf://org/na me/m", "hf://org/../m", "hf://../name/m", "hf://o--g/name/m",
        "hf://org/.name/m", "hf://org/name-/m", "hf://org/name.git/m", "hf://örg/name/m", "hf://org/n%61me/m",
        f"hf://org/{'n' * 97}/m", "hf://org/name/a//b", "hf://org/name/a/", "hf://org/name/../m", "hf://org/name/./m",
        "hf://org/name/%2e%2e/m", "hf://org/name/a%2Fb", "hf://org/name/a\\b", "hf://org/name/%00", "hf://org/name/%0a",
        "hf://org/name/%ff", "hf://org/name/m?download=true", "hf://org/name/m#part", f"hf://org/name/{'m' * 256}",
        "hf://org/name@/m", "hf://org/name@a..b/m", "hf://org/name@-x/m", "hf://org/name@a%2F/m", "hf://org/name@a%20b/m",
        "hf://org/name@a%2F.b/m", "hf://org/name@a:b/m", "hf://org/name@refs/convert//m",
    ],
)  # fmt: skip
def test_what_can_be_no_file_of_a_hub_is_refused(written: str) -> None:
    with pytest.raises(InvalidReferenceError):
        reference.parse(written)


@pytest.mark.parametrize(
    "written", ["hf://hf_s3cret@org/name/m", "hf://user:hf_s3cret@org/name", "hf://org/name?t=hf_s3cret"]
)
def test_a_token_in_a_ref_of_a_hub_is_refused_and_not_shown(written: str) -> None:
    with pytest.raises(InvalidReferenceError) as caught:
        reference.parse(written)

    assert "s3cret" not in f"{caught.value} {caught.value!r}"
