"""Archives as trees: what is in one is what is served, and what could do damage is refused, with its member named."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib
import io
import lzma
import os
import resource
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import ArchiveLimits, Cache, errors, layout, packed
from modelcache.promises import check_cache
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers

FILES = {"config.json": b"{}", "deep/er/weights.bin": bytes(range(256)) * 3000, "bin/run": b"#!/bin/sh\n", "empty": b""}
TARS = ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]
Change = Callable[[tarfile.TarInfo], None]


def info(
    name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname, made.mode = size, kind, target, mode
    return made


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def tar_with(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    return tar_of(
        *((info(path, len(data), mode=0o755 if path == "bin/run" else 0o644), data) for path, data in files.items()),
        form=form,
    )


def zip_with(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # Of names that are there twice.
        for path, data in files.items():
            made = zipfile.ZipInfo(path)
            made.compress_type = method
            made.external_attr = (stat.S_IFREG | (0o755 if path == "bin/run" else 0o644)) << 16
            archive.writestr(made, data)
    return out.getvalue()


def compressed(data: bytes, form: str) -> bytes:
    pack: dict[str, Callable[[bytes], bytes]] = {
        "tar.gz": gzip.compress, "tgz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress,
    }  # fmt: skip
    return pack.get(form, bytes)(data)


def content_of(path: str | Path) -> dict[str, bytes]:
    return {str(one.relative_to(path)): one.read_bytes() for one in Path(path).rglob("*") if one.is_file()}


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache(root)


def put(cache: Cache, tmp_path: Path, data: bytes, name: str = "a.tar") -> str:
    (tmp_path / name).write_bytes(data)
    return cache.put_tree(tmp_path / name, name="t").path


@pytest.mark.parametrize("form", [*TARS, "zip"])
def test_an_archive_at_a_url_is_served_as_a_directory(form: str, server: FaultServer, cache: Cache, root: Path) -> None:
    data = zip_with(FILES) if form == "zip" else compressed(tar_with(FILES), form)
    url = server.add(f"/model-1.0.{form}", data)

    path = Path(cache.get_tree(url, digest=f"sha256:{hashlib.sha256(data).hexdigest()}"))

    assert path.name == "model-1.0"
    assert content_of(path) == FILES
    assert os.access(path / "bin/run", os.X_OK)
    assert not os.access(path / "config.json", os.X_OK)
    assert check_cache(root) == []
    assert leftovers(root) == []
    assert cache.get_tree(url) == str(path)
    assert len(server.seen()) == 1


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_tar_are_read(form: int, cache: Cache, tmp_path: Path) -> None:
    files = {f"{'d' * 60}/{'n' * 90}": b"long", "plain": b"p"}
    if form != tarfile.USTAR_FORMAT:
        files["é" * 100] = b"many bytes"

    assert content_of(put(cache, tmp_path, tar_with(files, form))) == files


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_the_methods_of_zip_are_read(method: int, cache: Cache, tmp_path: Path) -> None:
    assert content_of(put(cache, tmp_path, zip_with(FILES, method), "a.zip")) == FILES


def test_a_zip_that_was_streamed_is_read(cache: Cache, tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        data = b""

        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            self.data += bytes(data)  # type: ignore[call-overload]
            return len(bytes(data))  # type: ignore[call-overload]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in FILES.items():
            archive.writestr(path, data)

    assert content_of(put(cache, tmp_path, pipe.data, "a.zip")) == FILES


def test_patterns_choose_the_members(server: FaultServer, cache: Cache) -> None:
    url = server.add("/m.tar.gz", gzip.compress(tar_with(FILES)))

    assert content_of(cache.get_tree(url, allow_patterns="*.json")) == {"config.json": b"{}"}
    assert content_of(cache.get_tree(url, ignore_patterns=["deep/"])) == {
        path: data for path, data in FILES.items() if not path.startswith("deep/")
    }
    with pytest.raises(errors.NothingMatchesError):
        cache.get_tree(url, allow_patterns="*.onnx")


def test_an_unchanged_archive_is_not_fetched_again(server: FaultServer, cache: Cache) -> None:
    url = server.add("/m.zip", zip_with(FILES))
    path = cache.get_tree(url)
    received = cache.stats().bytes_received

    assert cache.get_tree(url, max_age=0) == path
    assert cache.get_tree(url, force_download=True) == path

    assert cache.stats().bytes_received == received
    assert cache.stats().unchanged == 2


def test_a_changed_archive_is_unpacked_anew(server: FaultServer, cache: Cache) -> None:
    url = server.add("/m.zip", zip_with(FILES))
    cache.get_tree(url)
    server.add("/m.zip", zip_with({"new": b"1"}))

    assert content_of(cache.get_tree(url, max_age=0)) == {"new": b"1"}


def test_the_same_archive_that_comes_again_is_not_unpacked_again(
    server: FaultServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = zip_with(FILES)
    url = server.add("/m.zip", data, [])
    path = cache.get_tree(url)
    server.add("/m.zip", data, etag='"another"')
    monkeypatch.setattr("modelcache.archived.Unpacking", None)

    assert cache.get_tree(url, force_download=True) == path

    assert cache.stats().bytes_received == 2 * len(data)
    monkeypatch.undo()
    received = cache.stats().bytes_received
    assert cache.get_tree(url, max_age=0) == path
    assert cache.stats().bytes_received == received, "the new validator is on record"


def test_the_digest_of_an_archive_is_known_later_and_another_one_is_not_served(
    server: FaultServer, cache: Cache
) -> None:
    data = zip_with(FILES)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    url = server.add("/m.zip", data)
    path = cache.get_tree(url)

    assert cache.get_tree(url, digest=digest, local_files_only=True) == path
    with pytest.raises(errors.LocalNotFoundError):
        cache.get_tree(url, digest=f"sha256:{'0' * 64}", local_files_only=True)
    with pytest.raises(errors.DigestMismatchError):
        cache.get_tree(url, digest=f"sha256:{'0' * 64}")
    tree = cache.lookup(f"{url}#tree")
    assert tree is not None
    assert cache.get_tree(url, digest=tree.digest) == path


def test_an_archive_that_is_here_as_a_file_is_not_fetched(server: FaultServer, cache: Cache) -> None:
    data = zip_with(FILES)
    cache.put(data, name="m.zip")

    path = cache.get_tree(server.url("/m.zip"), digest=f"sha256:{hashlib.sha256(data).hexdigest()}")

    assert content_of(path) == FILES
    assert server.seen() == []


def test_a_path_is_an_archive_too_and_a_directory_of_that_name_is_none(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "m.tar").write_bytes(tar_with(FILES))
    (tmp_path / "d.tar").mkdir()
    (tmp_path / "d.tar/a").write_bytes(b"a")

    assert content_of(cache.get_tree(tmp_path / "m.tar")) == FILES
    assert content_of(cache.get_tree(tmp_path / "d.tar")) == {"a": b"a"}


def test_a_file_that_the_cache_holds_already_becomes_another_name_of_it(cache: Cache, tmp_path: Path) -> None:
    cache.put(FILES["deep/er/weights.bin"], name="w")

    path = put(cache, tmp_path, tar_with(FILES))

    assert Path(path, "deep/er/weights.bin").samefile(cache.get("w"))


def test_a_download_that_broke_off_is_resumed(server: FaultServer, root: Path) -> None:
    data = zip_with(FILES, zipfile.ZIP_STORED)
    url = server.add("/m.zip", data, [Fault(abort_after=400_000)])

    with Cache(root) as cache:
        assert content_of(cache.get_tree(url)) == FILES

    assert server.seen()[-1].headers["range"] == "bytes=400000-"


def test_what_needs_companions_and_lacks_them_is_refused(cache: Cache, tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "model-1.safetensors"}}'

    with pytest.raises(errors.MissingCompanionError):
        put(cache, tmp_path, tar_with({"model.safetensors.index.json": index}))


def test_a_digest_of_a_put_is_the_trees_or_the_archives(cache: Cache, tmp_path: Path) -> None:
    data = tar_with(FILES)
    (tmp_path / "a.tar").write_bytes(data)
    entry = cache.put_tree(tmp_path / "a.tar", name="t", digest=f"sha256:{hashlib.sha256(data).hexdigest()}")

    assert cache.put_tree(tmp_path / "a.tar", name="u", digest=entry.digest).digest == entry.digest
    for wrong in (f"sha256:{'0' * 64}", f"tree:{'0' * 64}"):
        with pytest.raises(errors.DigestMismatchError):
            cache.put_tree(tmp_path / "a.tar", name="t", digest=wrong)


def test_a_tree_out_of_an_archive_is_verified_repaired_and_moved_like_any_other(
    server: FaultServer, cache: Cache, root: Path, tmp_path: Path
) -> None:
    url = server.add("/m.tar.gz", gzip.compress(tar_with(FILES)))
    path = Path(cache.get_tree(url), "config.json")
    path.chmod(0o644)
    path.write_bytes(b"altered")

    report = cache.verify(repair=True)

    assert [finding.repaired for finding in report.findings] == [True]
    assert content_of(cache.get(f"{url}#tree")) == FILES
    cache.export(f"{url}#tree", to=tmp_path / "b.tar")
    with Cache(tmp_path / "other", offline=True) as other:
        other.import_(tmp_path / "b.tar")
        assert content_of(other.get_tree(url)) == FILES


@pytest.mark.parametrize("mark", ["", "#tree"])
def test_a_manifest_chooses_from_an_archive(server: FaultServer, cache: Cache, tmp_path: Path, mark: str) -> None:
    data = gzip.compress(tar_with(FILES))
    url = server.add("/m.tar.gz", data)
    manifest = tmp_path / "models.toml"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest.write_text(f'[[model]]\nref = "{url}{mark}"\ndigest = "{digest}"\nallow_patterns = ["*.json"]\n')

    (locked,) = cache.lock(manifest)
    report = cache.prewarm(manifest, locked=True)

    report.check()
    assert locked.digest.is_tree
    assert locked.revision == digest
    assert content_of(cache.get_tree(f"{url}{mark}", allow_patterns="*.json")) == {"config.json": b"{}"}
    assert len(server.seen()) == 1


# -- links -------------------------------------------------------------------------------------------------------------


def test_links_within_an_archive_are_the_file_once_more(cache: Cache, tmp_path: Path) -> None:
    data = tar_of(
        (info("blobs/1", 3), b"one"),
        (info("snap/model.bin", kind=tarfile.SYMTYPE, target="../blobs/1"), b""),
        (info("again", kind=tarfile.SYMTYPE, target="snap/model.bin"), b""),
        (info("hard", kind=tarfile.LNKTYPE, target="blobs/1"), b""),
        (info("early", kind=tarfile.SYMTYPE, target="late"), b""),
        (info("late", 4, mode=0o755), b"late"),
    )

    path = put(cache, tmp_path, data)

    files = {"blobs/1": b"one", "snap/model.bin": b"one", "again": b"one", "hard": b"one", "early": b"late"}
    assert content_of(path) == {**files, "late": b"late"}
    assert not any(one.is_symlink() for one in Path(path).rglob("*"))
    assert Path(path, "hard").samefile(Path(path, "blobs/1"))


def test_a_link_in_a_zip_is_the_file_once_more(cache: Cache, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/file", b"content")
        link = zipfile.ZipInfo("a/link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "file")

    assert content_of(put(cache, tmp_path, out.getvalue(), "a.zip")) == {"a/file": b"content", "a/link": b"content"}


# -- refused -----------------------------------------------------------------------------------------------------------


def refused(cache: Cache, tmp_path: Path, data: bytes, name: str = "a.tar") -> errors.ArchiveError:
    """Check that *data* is refused, and leaves nothing; return the error."""
    before = sorted(str(one) for one in tmp_path.rglob("*") if "cache" not in one.parts)
    with pytest.raises(errors.ArchiveError) as caught:
        put(cache, tmp_path, data, name)
    after = sorted(str(one) for one in tmp_path.rglob("*") if "cache" not in one.parts)
    assert set(after) - set(before) <= {str(tmp_path / name)}
    assert cache.entries() == []
    assert leftovers(Path(cache.root)) == []
    assert os.listdir(f"{cache.root}/{layout.OBJECTS}") == []
    return caught.value


FINE = (info("fine", 1), b"x")
NAMES = [
    "../evil", "a/../../evil", "a/../b", "/etc/evil", "C:/evil", "C:\\evil", "\\evil", "a\\..\\..\\evil", "..", "a/..",
    "a//b", "a/./b", "a\tb", "n" * 256, "/".join("d" * 40), "a\x7fb",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leaves_or_can_be_no_file_is_refused(cache: Cache, tmp_path: Path, name: str) -> None:
    error = refused(cache, tmp_path, tar_of(FINE, (info(name, 1), b"x")))

    assert error.facts["member"] == name
    assert refused(cache, tmp_path, zip_with({"fine": b"", name: b"x"}), "a.zip").facts["member"] == name


def test_a_name_with_a_nul_is_refused(cache: Cache, tmp_path: Path) -> None:
    data = zip_with({"fine": b"1", "evilXname": b"x"}).replace(b"evilXname", b"evil\0name")

    error = refused(cache, tmp_path, data, "a.zip")

    assert error.facts["member"] == "evil\0name"
    assert "NUL" in error.summary


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "a"), ("a/Model", "a/model"), ("é", "e\u0301"), ("a", "a/b"), ("a/b", "a"), ("A", "a/b")],
)
def test_names_that_are_one_on_some_file_system_are_refused(
    cache: Cache, tmp_path: Path, first: str, second: str
) -> None:
    refused(cache, tmp_path, tar_of((info(first, 1), b"x"), (info(second, 1), b"y")))
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(first, b"x")
        archive.writestr(second, b"y")
    refused(cache, tmp_path, out.getvalue(), "a.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize(
    "target", ["../../etc/passwd", "/etc/passwd", "..", ".", "", "nothing", "link", "dir", "a/../../x"]
)
def test_a_link_that_leads_to_no_file_of_the_archive_is_refused(
    cache: Cache, tmp_path: Path, kind: bytes, target: str
) -> None:
    data = tar_of(FINE, (info("dir", kind=tarfile.DIRTYPE), b""), (info("link", kind=kind, target=target), b""))

    error = refused(cache, tmp_path, data)

    assert error.facts["member"] == "link"
    assert "leads out" in error.summary or target in {"nothing", "link", "dir"}


def test_a_file_behind_a_link_to_a_directory_is_refused(cache: Cache, tmp_path: Path) -> None:
    data = tar_of((info("out", kind=tarfile.SYMTYPE, target="/tmp"), b""), (info("out/evil", 1), b"x"))

    refused(cache, tmp_path, data)
    refused(cache, tmp_path, tar_of((info("x", kind=tarfile.SYMTYPE, target="."), b""), (info("x/evil", 1), b"x")))


def test_a_link_to_what_the_patterns_leave_out_is_told(server: FaultServer, cache: Cache) -> None:
    data = tar_of((info("a", 1), b"x"), (info("b", kind=tarfile.SYMTYPE, target="a"), b""))
    url = server.add("/m.tar", data)

    with pytest.raises(errors.ArchiveError, match="patterns leave out"):
        cache.get_tree(url, allow_patterns="b")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z", tarfile.GNUTYPE_SPARSE])
def test_what_is_neither_file_nor_link_is_refused(cache: Cache, tmp_path: Path, kind: bytes) -> None:
    assert refused(cache, tmp_path, tar_of(FINE, (info("evil", kind=kind), b""))).facts["member"] == "evil"


def test_a_device_in_a_zip_is_refused(cache: Cache, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        made = zipfile.ZipInfo("evil")
        made.create_system, made.external_attr = 3, (stat.S_IFCHR | 0o666) << 16
        archive.writestr(made, b"")

    refused(cache, tmp_path, out.getvalue(), "a.zip")


@pytest.mark.parametrize("key", ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.realsize"])
def test_a_sparse_member_of_pax_is_refused(cache: Cache, tmp_path: Path, key: str) -> None:
    member = info("evil", 1)
    member.pax_headers = {key: "1"}

    refused(cache, tmp_path, tar_of(FINE, (member, b"x")))


@pytest.mark.parametrize("form", TARS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_tar_that_was_cut_is_refused(cache: Cache, tmp_path: Path, form: str, share: float) -> None:
    data = compressed(tar_with({"a": os.urandom(50_000), "b": os.urandom(50_000)}), form)

    refused(cache, tmp_path, data[: int(len(data) * share)], f"a.{form}")


@pytest.mark.parametrize("form", [*TARS, "zip"])
def test_an_archive_with_one_other_byte_is_refused_or_has_the_same_files(
    cache: Cache, tmp_path: Path, form: str
) -> None:
    whole = zip_with(FILES) if form == "zip" else compressed(tar_with(FILES), form)
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        data = bytearray(whole)
        data[at] ^= 0x10
        (tmp_path / f"a.{form}").write_bytes(data)
        try:
            found = content_of(cache.put_tree(tmp_path / f"a.{form}", name=f"{at}").path)
        except (errors.ArchiveError, errors.NothingMatchesError):
            continue
        # A plain tar has no checksum of its contents, and no archive one of names.
        assert form == "tar" or sorted(found.values()) == sorted(FILES.values()), at


def test_what_goes_on_behind_its_end_is_refused(cache: Cache, tmp_path: Path) -> None:
    refused(cache, tmp_path, tar_with(FILES) + tar_with({"more": b"x"}))
    refused(cache, tmp_path, gzip.compress(tar_with(FILES)) + gzip.compress(b"more"), "a.tar.gz")


def test_a_header_of_many_megabytes_is_not_read(cache: Cache, tmp_path: Path) -> None:
    member = info("a", 1)
    member.pax_headers = {"comment": "x" * (2 << 20)}

    assert "a header has" in refused(cache, tmp_path, gzip.compress(tar_of((member, b"x"))), "a.tar.gz").summary


def test_an_encrypted_member_is_refused(cache: Cache, tmp_path: Path) -> None:
    data = bytearray(zip_with({"secret": b"x"}))
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1

    assert "encrypted" in refused(cache, tmp_path, bytes(data), "a.zip").summary


def test_an_unknown_compression_is_refused(cache: Cache, tmp_path: Path) -> None:
    data = zip_with({"a": b"x"}, zipfile.ZIP_LZMA)

    assert "not supported" in refused(cache, tmp_path, data, "a.zip").summary


@pytest.mark.parametrize("lie", ["smaller", "larger", "crc"])
def test_a_size_that_lies_is_refused(cache: Cache, tmp_path: Path, lie: str) -> None:
    content = b"x" * 10_000
    data = bytearray(zip_with({"a": content}))
    at = data.index(b"PK\1\2")
    if lie == "crc":
        data[at + 16 : at + 20] = struct.pack("<L", zlib.crc32(content) ^ 1)
    else:
        data[at + 24 : at + 28] = struct.pack("<L", len(content) + (-5_000 if lie == "smaller" else 1))
        if lie == "smaller":
            data[at + 16 : at + 20] = struct.pack("<L", zlib.crc32(content[:5_000]))

    error = refused(cache, tmp_path, bytes(data), "a.zip")

    assert error.facts["member"] == "a"
    assert {"smaller": "more than the 5000", "larger": "1 bytes are missing", "crc": "checksum"}[lie] in error.summary


def test_entries_that_overlap_are_refused(cache: Cache, tmp_path: Path) -> None:
    inner = zip_with({"b": b"y" * 1000}, zipfile.ZIP_STORED)
    quoted = inner[: inner.index(b"PK\1\2")]
    data = zip_with({"a": quoted, "b": b"y" * 1000}, zipfile.ZIP_STORED)
    second = data.index(b"PK\1\2", data.index(b"PK\1\2", 31 + len(quoted)) + 4)
    # The second one is said to begin within the content of the first.
    overlapping = data[: second + 42] + struct.pack("<L", 31) + data[second + 46 :]

    assert "overlaps" in refused(cache, tmp_path, overlapping, "a.zip").summary


def test_a_member_with_two_names_is_refused(cache: Cache, tmp_path: Path) -> None:
    data = zip_with({"honest": b"x"})
    at = data.index(b"honest")

    refused(cache, tmp_path, data[:at] + b"hidden" + data[at + 6 :], "a.zip")


def test_contents_that_begin_where_no_header_is_are_refused(cache: Cache, tmp_path: Path) -> None:
    data = bytearray(zip_with({"a": b"x"}))
    at = data.index(b"PK\1\2")
    data[at + 42] = 5

    refused(cache, tmp_path, bytes(data), "a.zip")


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (ArchiveLimits(bytes_max=700_000), "bytes_max"), (ArchiveLimits(files_max=3), "files_max"),
        (ArchiveLimits(depth_max=2), "depth_max"), (ArchiveLimits(name_bytes_max=8), "name_bytes_max"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["tar.gz", "zip"])
def test_what_exceeds_a_limit_is_refused(
    server: FaultServer, root: Path, limits: ArchiveLimits, limit: str, form: str
) -> None:
    url = server.add(f"/m.{form}", zip_with(FILES) if form == "zip" else gzip.compress(tar_with(FILES)))

    with Cache(root, archive_limits=limits) as cache, pytest.raises(errors.ArchiveLimitError) as caught:
        cache.get_tree(url)

    assert caught.value.facts["limit"] == limit
    with Cache(root) as cache:
        cache.get_tree(url)
    assert len([one for one in server.seen() if one.method == "GET"]) == 1, "it was whole, and waited for other limits"


@pytest.mark.parametrize("form", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_a_bomb_is_refused_with_bounded_memory_and_disk(
    root: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 600 << 20
    path = tmp_path / f"bomb.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb", "w") as stream:
            for _ in range(size >> 20):
                stream.write(bytes(1 << 20))
    else:
        mode = {"tar.gz": gzip.open, "tar.bz2": bz2.open, "tar.xz": lzma.open}[form]
        with mode(path, "wb") as packing:  # type: ignore[operator]
            packing.write(info("bomb", size).tobuf())
            for _ in range(size >> 20):
                packing.write(bytes(1 << 20))
            packing.write(bytes(1024))
    written = 0
    from modelcache import commit

    actual = commit.write

    def counting(descriptor: int, data: bytes) -> None:
        nonlocal written
        written += len(data)
        actual(descriptor, data)

    monkeypatch.setattr(commit, "write", counting)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with Cache(root) as cache, pytest.raises(errors.ArchiveLimitError):
        cache.put_tree(path, name="t")

    assert written < (64 << 20) + 200 * path.stat().st_size + (1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # In kB.
    assert leftovers(root) == []


def test_a_size_that_is_only_stated_is_refused_before_a_byte_is_written(root: Path, tmp_path: Path) -> None:
    data = info("huge", 1 << 41).tobuf(tarfile.GNU_FORMAT) + bytes(10_000)

    with Cache(root) as cache, pytest.raises(errors.ArchiveLimitError):
        put(cache, tmp_path, data)


def test_the_capacity_holds_for_what_is_unpacked(server: FaultServer, root: Path) -> None:
    url = server.add("/m.tar.gz", gzip.compress(tar_with({"zeros": bytes(3_000_000)})))

    with Cache(root, capacity=1_000_000) as cache, pytest.raises(errors.CapacityError):
        cache.get_tree(url)


@pytest.mark.parametrize("name", ["m.gz", "m.bin.xz", "model.onnx.bz2"])
def test_a_single_compressed_file_is_no_tree(server: FaultServer, cache: Cache, name: str) -> None:
    with pytest.raises(errors.UnsupportedArchiveError, match="one compressed file"):
        cache.get_tree(server.add(f"/{name}", b"x"))

    assert server.seen() == []


def zstd() -> Callable[[bytes], bytes]:
    """Return what packs with zstd; skip where nothing can."""
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            found: Callable[[bytes], bytes] = importlib.import_module(name).compress
        except ImportError:
            continue
        return found
    pytest.skip("no zstd here: Python 3.14, backports.zstd or zstandard has it")


def test_an_archive_packed_with_zstd_is_read_and_one_that_was_cut_is_refused(cache: Cache, tmp_path: Path) -> None:
    data = zstd()(tar_with(FILES))

    refused(cache, tmp_path, data[: len(data) // 2], "a.tar.zst")
    refused(cache, tmp_path, data[:-10] + bytes(10), "a.tar.zst")
    refused(cache, tmp_path, data + zstd()(b"more"), "a.tar.zst")
    assert content_of(put(cache, tmp_path, data + zstd()(bytes(512)), "a.tar.zst")) == FILES


def test_zstd_without_a_library_says_what_to_install(
    server: FaultServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(packed, "import_module", nothing)

    with pytest.raises(errors.UnsupportedArchiveError, match=r"backports\.zstd"):
        cache.get_tree(server.url("/m.tar.zst"))

    assert server.seen() == []


def test_limits_that_make_no_sense_are_refused() -> None:
    for field in ("bytes_max", "files_max", "ratio_max", "depth_max", "name_bytes_max"):
        for value in (0, -1, True, "many", None):
            with pytest.raises(errors.ConfigurationError):
                ArchiveLimits(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_dot_before_a_path_is_no_part_of_it(cache: Cache, tmp_path: Path, form: str) -> None:
    """As ``tar -C directory -cf archive.tar .`` writes it."""
    files = {"./net/model.onnx": b"m", ".//readme": b"r", "././x": b"x", "./.hidden": b"h"}
    data = zip_with(files) if form == "zip" else tar_with(files)

    assert content_of(put(cache, tmp_path, data, f"a.{form}")) == {
        "net/model.onnx": b"m", "readme": b"r", "x": b"x", ".hidden": b"h",
    }  # fmt: skip


def test_the_directory_itself_may_be_a_member(cache: Cache, tmp_path: Path) -> None:
    data = tar_of((info("./", kind=tarfile.DIRTYPE), b""), (info("./a", 1), b"a"))

    assert content_of(put(cache, tmp_path, data)) == {"a": b"a"}


@pytest.mark.parametrize(
    "limits",
    [
        ArchiveLimits(bytes_max=sum(map(len, FILES.values()))), ArchiveLimits(files_max=len(FILES)),
        ArchiveLimits(depth_max=3), ArchiveLimits(name_bytes_max=len("config.json")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["tar.gz", "zip"])
def test_what_reaches_a_limit_is_unpacked(root: Path, tmp_path: Path, limits: ArchiveLimits, form: str) -> None:
    data = zip_with(FILES) if form == "zip" else gzip.compress(tar_with(FILES))

    with Cache(root, archive_limits=limits) as cache:
        assert content_of(put(cache, tmp_path, data, f"a.{form}")) == FILES


def test_the_digest_of_the_tree_is_held_against_what_an_archive_at_its_source_unpacks_to(
    server: FaultServer, cache: Cache, root: Path
) -> None:
    url = server.add("/m.tar.gz", gzip.compress(tar_with(FILES)))

    with pytest.raises(errors.DigestMismatchError):
        cache.get_tree(url, digest=f"tree:{'0' * 64}")

    assert cache.entries() == []
    assert [name.split("/")[0] for name in leftovers(root)] == ["partial-v1"], "the archive waits for the right digest"


def test_an_archive_at_its_source_that_lacks_companions_is_refused_unless_files_are_chosen(
    server: FaultServer, cache: Cache
) -> None:
    files = {"model.safetensors.index.json": b'{"weight_map": {"a": "model-1.safetensors"}}', "x": b"x"}
    url = server.add("/m.tar.gz", gzip.compress(tar_with(files)))

    with pytest.raises(errors.MissingCompanionError):
        cache.get_tree(url)
    assert content_of(cache.get_tree(url, allow_patterns="*.json")) != {}


@pytest.mark.parametrize("name", ["c:/x", "C:x", "\\x", "/x"])
def test_an_absolute_name_is_told_as_that(cache: Cache, tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.ArchiveError, match="is absolute"):
        put(cache, tmp_path, tar_with({name: b"x"}))


def test_content_that_is_longer_than_it_states_is_told_as_that(cache: Cache, tmp_path: Path) -> None:
    data = bytearray(zip_with({"a": b"x" * 1000}))
    for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        start = data.index(mark) + at
        data[start : start + 4] = (999).to_bytes(4, "little")

    with pytest.raises(errors.ArchiveError) as caught:
        put(cache, tmp_path, bytes(data), "a.zip")
    assert caught.value.facts["problem"] == "it has more than the 999 bytes that are stated"
