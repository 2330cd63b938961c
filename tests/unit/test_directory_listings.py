"""A directory of this machine, as a source lists it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache import Cache, Timeout, errors, reference
from modelcache.retry import Deadline
from modelcache.sources import RemoteListing, Request
from modelcache.sources.file import FileSource


def listing(path: Path) -> RemoteListing:
    ref = reference.parse(path)
    return FileSource().listing(Request(ref.url, ref.key, Timeout(), Deadline(30, ref=ref.key)))


def test_every_file_below_a_directory_is_listed_with_its_size(tmp_path: Path, root: Path) -> None:
    contents = {"a.bin": b"a", "sub/b c%20#?.bin": b"bb", "sub/deep/empty": b""}
    top = tmp_path / "t%op"
    for name, content in contents.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    (top / "link").symlink_to(top / "a.bin")

    found = listing(top)

    assert [(file.path, file.size) for file in found.files] == [
        ("a.bin", 1), ("link", 1), ("sub/b c%20#?.bin", 2), ("sub/deep/empty", 0),
    ]  # fmt: skip
    with Cache(root) as cache:
        assert Path(cache.get(found.files[2].ref.key)).read_bytes() == b"bb"


def test_what_is_neither_a_file_nor_a_directory_is_not_left_out_silently(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(errors.ListingError, match="fifo"):
        listing(tmp_path)
    (tmp_path / "fifo").unlink()

    (tmp_path / "around").symlink_to(tmp_path)
    with pytest.raises(errors.ListingError, match="around"):
        listing(tmp_path)


@pytest.mark.parametrize("name", ["new\nline", "space ", "back\\slash"])
def test_a_name_that_cannot_be_stored_everywhere_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")

    with pytest.raises(errors.ListingError):
        listing(tmp_path)


def test_a_file_has_no_listing_and_what_is_not_there_has_none_either(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")

    with pytest.raises(errors.NotListableError):
        listing(tmp_path / "m.onnx")
    with pytest.raises(errors.RemoteNotFoundError):
        listing(tmp_path / "missing")
