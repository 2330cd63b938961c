"""Reading files where absent is an ordinary answer."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from modelcache import files
from modelcache.digest import Digest
from modelcache.errors import StorageError


def test_a_directory_that_is_not_there_lists_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert files.listing(str(tmp_path / "absent")) == []
    assert files.listing(str(tmp_path / "file")) == []


def test_a_directory_that_cannot_be_read_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", refuse)

    with pytest.raises(StorageError, match="Permission denied"):
        files.listing(str(tmp_path))


def test_what_cannot_be_read_has_no_content(tmp_path: Path) -> None:
    assert files.content(str(tmp_path)) is None
    assert files.content(str(tmp_path / "absent")) is None


@pytest.mark.parametrize("length", [None, 0, 1, files.CHUNK_BYTES, files.CHUNK_BYTES + 1, 10 * files.CHUNK_BYTES])
def test_chunks_are_the_first_bytes_of_the_file(tmp_path: Path, length: int | None) -> None:
    content = os.urandom(2 * files.CHUNK_BYTES + 7)
    (tmp_path / "file").write_bytes(content)

    with (tmp_path / "file").open("rb") as file:
        assert b"".join(files.chunks(file.fileno(), length=length)) == content[:length]


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"model")

    assert files.digest_of(str(tmp_path / "file"))[0] == Digest.of_bytes([b"model"])


def test_the_facts_are_those_of_the_very_file_that_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    number = path.stat().st_ino
    hashed = hashlib.file_digest

    def replaced(*arguments: object) -> object:
        other = tmp_path / "other"
        other.write_bytes(b"new")
        other.replace(path)
        return hashed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", replaced)
    digest, facts = files.digest_of(str(path))

    assert digest == Digest.of_bytes([b"old"])
    assert facts.st_ino == number
