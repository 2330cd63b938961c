"""Manifests and lock files."""

from __future__ import annotations

import textwrap

import pytest

from modelcache.digest import Digest
from modelcache.errors import LockDriftError, ManifestError
from modelcache.manifest import LockedModel, Model, check_drift, parse_lock, parse_manifest, render_lock

ONE, TWO = Digest.of_bytes([b"one"]), Digest.of_bytes([b"two"])
FILE = "/project/models.toml"


def mistake(text: str, *, lock: bool = False) -> tuple[int | None, str | None]:
    """Return the line and key of the mistake in *text*, which must be reported for the right file."""
    with pytest.raises(ManifestError) as raised:
        (parse_lock if lock else parse_manifest)(textwrap.dedent(text), file=FILE)
    assert raised.value.facts["file"] == FILE
    assert str(raised.value).startswith(FILE)
    return raised.value.facts["line"], raised.value.facts["key"]


def test_a_manifest_says_everything_of_a_model() -> None:
    text = f"""
        [[model]]
        ref = "https://example.org/m.onnx"
        digest = "{ONE.hex}"
        mirrors = ["https://mirror.example.org/m.onnx", "./m.onnx"]
        pin = true

        [[model]]
        ref = "/models/n.onnx"
    """

    assert parse_manifest(text, file=FILE) == (
        Model(
            "https://example.org/m.onnx",
            ONE,
            ("https://mirror.example.org/m.onnx", "file:///project/m.onnx"),
            pin=True,
        ),
        Model("file:///models/n.onnx"),
    )


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "model = []\n"])
def test_a_manifest_may_name_no_model(text: str) -> None:
    assert parse_manifest(text, file=FILE) == ()


def test_a_relative_path_starts_at_the_directory_of_the_manifest() -> None:
    text = '[[model]]\nref = "../a#1.onnx"\n[[model]]\nref = "./b%20.onnx"\n'

    assert [model.ref for model in parse_manifest(text, file=FILE)] == [
        "file:///a%231.onnx",
        "file:///project/b%2520.onnx",
    ]


def test_the_credentials_of_a_url_are_kept_for_the_source() -> None:
    text = '[[model]]\nref = "https://me:s3cret@example.org/m"\n'

    assert parse_manifest(text, file=FILE)[0].ref == "https://me:s3cret@example.org/m"


@pytest.mark.parametrize(
    ("line", "key", "text"),
    [
        (2, None, "[[model]]\nref = \n"),
        (3, None, "[[model]]\nref = 'https://h/m'\nmirrors = [\n"),
        (3, None, '[[model]]\nref = "https://h/m"\nref = "https://h/n"\n'),
        (None, None, f"x = {'9' * 5000}"),
        (1, "models", '[[models]]\nref = "https://h/m"\n'),
        (2, "title", 'model = []\ntitle = "x"\n'),
        (4, "extra", '\n[[model]]\nref = "https://h/m"\n[extra]\na = 1\n'),
        (1, "model", '[model]\nref = "https://h/m"\n'),
        (1, "model", "model = 7\n"),
        (1, "model", "model = [1]\n"),
        (3, "digets", '[[model]]\nref = "https://h/m"\ndigets = "x"\n'),
        (1, "ref", "[[model]]\npin = true\n"),
        (3, "ref", '[[model]]\nref = "https://h/m"\n[[model]]\npin = true\n'),
        (2, "ref", "[[model]]\nref = 7\n"),
        (3, "pin", '[[model]]\nref = "https://h/m"\npin = 1\n'),
        (3, "mirrors", '[[model]]\nref = "https://h/m"\nmirrors = "https://h/n"\n'),
        (3, "mirrors", '[[model]]\nref = "https://h/m"\nmirrors = [7]\n'),
        (3, "mirrors", '[[model]]\nref = "https://h/m"\nmirrors = ["n"]\n'),
        (3, "digest", '[[model]]\nref = "https://h/m"\ndigest = "sha256:1"\n'),
        (2, "ref", '[[model]]\nref = "resnet50"\n'),
        (2, "ref", '[[model]]\nref = ""\n'),
        (2, "ref", '[[model]]\nref = "https://h:x/m"\n'),
        (2, "ref", '[[model]]\nref = "a\\u0000b"\n'),
        (5, "ref", '[[model]]\nref = "https://h/m"\n\n[[model]]\nref = "HTTPS://me@H:443/m#x"\n'),
        (4, "pin", '[[ model ]]  # the first\n"ref" = "https://h/m"\n# pin = 7\n\'pin\' = 7\n'),
        (4, "digest", '# \u2028 \x85\n[[model]]\nref = "https://h/m"\ndigest = "x"\n'),
        (3, "pin", '[[model]]\r\nref = "https://h/m"\r\npin = 7\r\n'),
        (1, "ref", 'model = [{ref = "https://h/m"}, {ref = "n"}]\n'),
        (1, "sub", '[[model]]\nref = "https://h/m"\n[model.sub]\na = 1\n'),
        (5, "pin", '[[model]]\nref = "https://h/m"\n\n[[model]]\npin = 7\nref = "https://h/n"\n'),
    ],
)
def test_a_mistake_in_a_manifest_is_reported_with_its_line_and_key(
    line: int | None, key: str | None, text: str
) -> None:
    assert mistake(text) == (line, key)


def test_a_manifest_nested_without_end_is_a_mistake_like_any_other() -> None:
    assert mistake("x = " + "[" * 100_000)[1] is None


@pytest.mark.parametrize(
    ("line", "key", "text"),
    [
        (None, "version", ""),
        (1, "version", "version = 2\n"),
        (1, "version", 'version = "1"\n'),
        (1, "version", "version = true\n"),
        (2, "size", f'[[model]]\nsize = -1\nref = "https://h/m"\ndigest = "{ONE}"\n'),
        (2, "size", f'[[model]]\nsize = 1.5\nref = "https://h/m"\ndigest = "{ONE}"\n'),
        (2, "size", f'[[model]]\nsize = true\nref = "https://h/m"\ndigest = "{ONE}"\n'),
        (1, "size", f'[[model]]\nref = "https://h/m"\ndigest = "{ONE}"\n'),
        (1, "digest", '[[model]]\nref = "https://h/m"\nsize = 1\n'),
        (4, "pin", f'[[model]]\nref = "https://h/m"\nsize = 1\npin = true\ndigest = "{ONE}"\n'),
        (2, "revision", f'[[model]]\nrevision = 7\nref = "https://h/m"\nsize = 1\ndigest = "{ONE}"\n'),
    ],
)
def test_a_mistake_in_a_lock_file_is_reported_with_its_line_and_key(line: int | None, key: str, text: str) -> None:
    if key == "version":
        assert mistake(text, lock=True) == (line, key)
    else:
        assert line is not None
        assert mistake(f"version = 1\n{text}", lock=True) == (line + 1, key)


def test_a_model_below_the_lock_file_is_written_relative_to_it() -> None:
    text = render_lock([LockedModel("file:///project/sub/a%23.onnx", ONE, 3)], file="/project/models.lock")

    assert 'ref = "./sub/a#.onnx"' in text
    assert parse_lock(text, file="/moved/models.lock")[0].ref == "file:///moved/sub/a%23.onnx"


@pytest.mark.parametrize("file", ["/models.lock", "/project/a%20#b/models.lock"])
def test_a_lock_file_comes_back_from_any_directory(file: str) -> None:
    model = LockedModel("file:///project/a%2520%23b/m.onnx", ONE, 3)

    assert parse_lock(render_lock([model], file=file), file=file) == (model,)


def test_a_lock_file_that_describes_its_manifest_has_not_drifted() -> None:
    manifest = [Model("https://h/a", ONE), Model("https://h/b")]
    lock = [LockedModel("https://me:pw@H:443/a", ONE, 1), LockedModel("https://h/b", TWO, 2, "v1")]

    check_drift(manifest, lock, file="models.lock")


def test_drift_names_every_difference_in_both_directions() -> None:
    manifest = [Model("https://h/a", ONE), Model("https://me:s3cret@h/new")]
    lock = [LockedModel("https://h/a", TWO, 1), LockedModel("https://h/old", TWO, 2)]

    with pytest.raises(LockDriftError) as raised:
        check_drift(manifest, lock, file="models.lock")

    assert raised.value.facts["differences"] == (
        "https://h/new is in the manifest and not locked",
        "https://h/old is locked and not in the manifest",
        f"https://h/a is {ONE} in the manifest and {TWO} in the lock file",
    )
