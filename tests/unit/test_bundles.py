"""Export and import: a bundle holds exactly what its index says, and nothing of a bad one becomes visible."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache, bundle, commit, errors, layout
from modelcache.promises import check_cache
from modelcache.testing import FaultServer
from tests.support.state import leftovers

BIG, OTHER = random.Random(1).randbytes(3_000_000), random.Random(2).randbytes(70_000)


def tree_at(path: Path, big: bytes = BIG) -> Path:
    """Make a directory to be put: an executable file has the content of one that may not be executed."""
    (path / "deep").mkdir(parents=True)
    (path / "weights.bin").write_bytes(big)
    (path / "deep/weights.bin").write_bytes(OTHER)
    (path / "run").write_bytes(OTHER)
    (path / "run").chmod(0o755)
    (path / "empty").write_bytes(b"")
    return path


@pytest.fixture
def origin(tmp_path: Path) -> Cache:
    """A cache with two files, one name of which shares its content, and two trees that share theirs."""
    cache = Cache(tmp_path / "origin")
    cache.put(BIG, name="big.bin")
    cache.put(OTHER, name="some/other.onnx")
    cache.put(OTHER, name="again.onnx")
    cache.put_tree(tree_at(tmp_path / "one"), name="trees/One")
    cache.put_tree(tree_at(tmp_path / "two", OTHER), name="trees/Two")
    return cache


NAMES = ("again.onnx", "big.bin", "some/other.onnx", "trees/One", "trees/Two")


def target(tmp_path: Path, form: str, name: str = "bundle") -> Path:
    return tmp_path / (f"{name}.tar" if form == "file" else name)


def content_of(path: str) -> object:
    """Return what is at *path*, with what may be executed."""
    if os.path.isfile(path):
        return Path(path).read_bytes()
    return {
        str(one.relative_to(path)): (one.read_bytes(), os.access(one, os.X_OK))
        for one in Path(path).rglob("*")
        if one.is_file()
    }


def state_of(cache: Cache) -> object:
    """Return all that is visible of a cache."""
    return {entry.key: (entry.digest, content_of(entry.path)) for entry in cache.entries()}, sorted(
        os.listdir(f"{cache.root}/{layout.OBJECTS}") if os.path.isdir(cache.root) else []
    )


def same(cache: Cache, origin: Cache, *names: str) -> None:
    """Check that *cache* serves the same as *origin*, offline, with nothing left over."""
    for name in names:
        entry, wanted = cache.lookup(name), origin.lookup(name)
        assert entry is not None, name
        assert wanted is not None
        assert (entry.digest, entry.name, entry.size) == (wanted.digest, wanted.name, wanted.size)
        assert content_of(cache.get(name)) == content_of(origin.get(name))
    assert [one for one in check_cache(cache.root) if one.kind != "garbage"] == []
    assert leftovers(Path(cache.root)) == []


@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_was_exported_is_what_is_imported(origin: Cache, tmp_path: Path, form: str) -> None:
    made = origin.export(*NAMES, to=target(tmp_path, form))
    cache = Cache(tmp_path / "cache")

    report = cache.import_(target(tmp_path, form), digest=made.digest)

    assert {model.ref: model.state for model in report.models} == dict.fromkeys(NAMES, "new")
    same(cache, origin, *NAMES)
    assert report.contents == 3
    assert all(mode & 0o222 == 0 for mode in modes_below(Path(cache.root, layout.OBJECTS)))


def modes_below(path: Path) -> list[int]:
    return [one.stat().st_mode for one in path.rglob("*") if one.is_file()]


@pytest.mark.parametrize("form", ["folder", "file"])
def test_each_content_is_in_a_bundle_once_and_no_inode_is_shared_with_the_cache(
    origin: Cache, tmp_path: Path, form: str
) -> None:
    to = target(tmp_path, form)
    report = origin.export(*NAMES, to=to)

    assert report.bytes_written == len(BIG) + len(OTHER)
    inside = [one.stat() for one in ([to] if form == "file" else list(to.rglob("*"))) if one.is_file()]
    assert all(found.st_nlink == 1 for found in inside)
    assert sum(found.st_size for found in inside) < len(BIG) + len(OTHER) + 20_000
    cache = Cache(tmp_path / "cache")
    cache.import_(to)
    ours = {one.stat().st_ino for one in Path(cache.root, layout.OBJECTS).rglob("*") if one.is_file()}
    assert not ours & {found.st_ino for found in inside}


def test_equal_entries_make_equal_files(origin: Cache, tmp_path: Path) -> None:
    first = origin.export(*NAMES, to=tmp_path / "a.tar")
    second = origin.export(*reversed(NAMES), to=tmp_path / "b.tar")

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert first.digest == second.digest


def test_a_file_is_an_ordinary_tar_whose_index_comes_first(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "a.tar")

    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
        for member in members[1:]:
            file = archive.extractfile(member)
            assert file is not None
            assert member.name == f"contents/sha256-{hashlib.sha256(file.read()).hexdigest()}"

    assert members[0].name == "index"
    assert all(member.isreg() and member.mode == 0o644 for member in members)


def test_a_tar_that_was_unpacked_is_a_folder_that_can_be_imported(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")

    Cache(tmp_path / "cache").import_(tmp_path / "unpacked")

    same(Cache(tmp_path / "cache"), origin, *NAMES)


def test_a_size_beyond_eight_gigabytes_has_a_header_of_one_block() -> None:
    member = bundle.Member("contents/x", None, 9 << 30, 0)

    found = tarfile.TarInfo.frombuf(member.header, "ascii", "strict")

    assert (len(member.header), found.size) == (512, 9 << 30)


def test_records_travel_with_what_a_get_needs_and_without_credentials(server: FaultServer, tmp_path: Path) -> None:
    url = server.add("/m.onnx", OTHER)
    origin = Cache(tmp_path / "origin")
    origin.get(url.replace("http://", "http://user:secret@"), mirrors=["https://mirror.example/m.onnx"])
    before = origin.lookup(url)
    assert before is not None

    origin.export(url, to=tmp_path / "b")
    with Cache(tmp_path / "cache", offline=True) as cache:
        cache.import_(tmp_path / "b")
        after = cache.lookup(url)

    assert after is not None
    for name in ("key", "digest", "name", "size", "source", "checked", "etag", "last_modified", "revision", "mirrors"):
        assert getattr(after, name) == getattr(before, name)
    assert b"secret" not in (tmp_path / "b/index").read_bytes()
    assert after.etag


def test_a_refresh_after_an_import_asks_with_the_validators_that_travelled(server: FaultServer, tmp_path: Path) -> None:
    url = server.add("/m.onnx", OTHER)
    origin = Cache(tmp_path / "origin")
    origin.get(url)
    origin.export(url, to=tmp_path / "b")
    cache = Cache(tmp_path / "cache")
    cache.import_(tmp_path / "b")

    cache.get(url, force_download=True)

    assert cache.stats().unchanged == 1
    assert cache.stats().bytes_received == 0


# -- incremental -------------------------------------------------------------------------------------------------------


def test_a_second_export_to_a_folder_writes_only_what_is_missing_there(origin: Cache, tmp_path: Path) -> None:
    origin.export("big.bin", to=tmp_path / "b")
    inode = next((tmp_path / "b/contents").iterdir()).stat().st_ino

    report = origin.export("trees/One", to=tmp_path / "b")

    assert (report.bytes_written, report.bytes_there) == (len(OTHER), len(BIG))
    assert inode in {one.stat().st_ino for one in (tmp_path / "b/contents").iterdir()}
    cache = Cache(tmp_path / "cache")
    assert [model.ref for model in cache.import_(tmp_path / "b").models] == ["big.bin", "trees/One"]
    same(cache, origin, "big.bin", "trees/One")


def test_an_export_of_the_same_writes_nothing(origin: Cache, tmp_path: Path) -> None:
    for form in ("folder", "file"):
        to = target(tmp_path, form)
        first = origin.export(*NAMES, to=to)
        before = to.stat().st_mtime_ns, to.stat().st_ino

        second = origin.export(*NAMES, to=to)

        assert second.bytes_written == 0
        assert second.bytes_there == first.bytes_written
        assert (to.stat().st_mtime_ns, to.stat().st_ino)[form == "folder"] == before[form == "folder"]


@pytest.mark.parametrize("damage", ["shorter", "link", "directory missing"])
def test_a_content_in_a_folder_that_is_not_whole_is_written_anew(origin: Cache, tmp_path: Path, damage: str) -> None:
    origin.export("big.bin", to=tmp_path / "b")
    content = next((tmp_path / "b/contents").iterdir())
    if damage == "shorter":
        content.write_bytes(BIG[:-1])
    elif damage == "link":
        content.rename(tmp_path / "elsewhere")
        content.symlink_to(tmp_path / "elsewhere")
    else:
        shutil.rmtree(tmp_path / "b/contents")

    report = origin.export("big.bin", to=tmp_path / "b")

    assert report.bytes_written == len(BIG)
    assert content.read_bytes() == BIG
    assert not content.is_symlink()


def test_full_verification_finds_an_altered_content_of_the_right_size(origin: Cache, tmp_path: Path) -> None:
    for form in ("folder", "file"):
        to = target(tmp_path, form)
        origin.export("big.bin", to=to)
        content = to if form == "file" else next((to / "contents").iterdir())
        data = bytearray(content.read_bytes())
        data[2_000_000] ^= 1
        content.write_bytes(data)
        assert origin.export("big.bin", to=to).bytes_written == 0

        assert origin.export("big.bin", to=to, verify="full").bytes_written > 0

        Cache(tmp_path / form).import_(to)


@pytest.mark.parametrize("base", ["bundle", "its index"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_bundle_on_a_base_leaves_out_what_the_base_has(origin: Cache, tmp_path: Path, base: str, form: str) -> None:
    origin.export("big.bin", to=tmp_path / "base")
    path = tmp_path / "base" / ("" if base == "bundle" else "index")

    report = origin.export(*NAMES, to=target(tmp_path, form), base=path)

    assert (report.bytes_written, report.bytes_left_out) == (len(OTHER), len(BIG))
    cache = Cache(tmp_path / "cache")
    with pytest.raises(errors.MissingContentsError) as caught:
        cache.import_(target(tmp_path, form))
    assert caught.value.facts["missing"] == (f"sha256:{hashlib.sha256(BIG).hexdigest()}",)
    assert cache.entries() == []
    cache.import_(tmp_path / "base")
    cache.import_(target(tmp_path, form))
    same(cache, origin, *NAMES)


def test_what_is_chosen_from_a_bundle_on_a_base_needs_only_its_own(origin: Cache, tmp_path: Path) -> None:
    origin.export("big.bin", to=tmp_path / "base")
    origin.export(*NAMES, to=tmp_path / "b", base=tmp_path / "base")
    cache = Cache(tmp_path / "cache")

    cache.import_(tmp_path / "b", "trees/Two", "again.onnx")

    same(cache, origin, "trees/Two", "again.onnx")
    assert cache.lookup("big.bin") is None


def test_what_the_cache_holds_in_any_object_is_not_read_from_the_bundle(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "b")
    cache = Cache(tmp_path / "cache")
    cache.put_tree(tree_at(tmp_path / "mine"), name="mine")
    for content in (tmp_path / "b/contents").iterdir():
        content.write_bytes(bytes(content.stat().st_size))

    report = cache.import_(tmp_path / "b")

    assert (report.contents, report.bytes_read) == (0, 0)
    same(cache, origin, *NAMES)


# -- resumed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 511, 700_000])
@pytest.mark.parametrize("passed", [0, 1, 2, 3, 4, 5, 6, 7])
def test_an_export_to_a_file_goes_on_where_one_broke_off(
    origin: Cache, tmp_path: Path, passed: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.export(*NAMES, to=tmp_path / "whole.tar")
    wanted = (tmp_path / "whole.tar").read_bytes()
    actual, calls = commit.write, iter(range(10_000))

    def failing(descriptor: int, data: bytes) -> None:
        if next(calls) == passed:
            actual(descriptor, data[:size])
            raise OSError(28, "No space left on device")
        actual(descriptor, data)

    monkeypatch.setattr(commit, "write", failing)
    with pytest.raises(errors.NoSpaceError):
        origin.export(*NAMES, to=tmp_path / "b.tar")
    monkeypatch.undo()
    assert not (tmp_path / "b.tar").exists()
    left = sum(one.stat().st_size for one in tmp_path.glob(".b.tar.*"))

    report = origin.export(*NAMES, to=tmp_path / "b.tar")

    assert (tmp_path / "b.tar").read_bytes() == wanted
    assert report.bytes_written + report.bytes_there == len(BIG) + len(OTHER)
    assert report.bytes_there >= left - 20_000
    assert list(tmp_path.glob(".b.tar.*")) == []


@pytest.mark.parametrize("where", [0, 600, 5000, 100_000, 2_500_000])
def test_what_an_export_finds_altered_in_its_own_remains_is_written_anew(
    origin: Cache, tmp_path: Path, where: int
) -> None:
    origin.export(*NAMES, to=tmp_path / "whole.tar")
    wanted = (tmp_path / "whole.tar").read_bytes()
    left = bytearray(wanted[:2_900_000])
    left[where] ^= 1
    (tmp_path / ".b.tar.partial-free-0").write_bytes(left)

    origin.export(*NAMES, to=tmp_path / "b.tar")

    assert (tmp_path / "b.tar").read_bytes() == wanted


def test_an_import_goes_on_where_one_broke_off(origin: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin.export(*NAMES, to=tmp_path / "b")
    cache = Cache(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("modelcache.importing.Importer._publish", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.import_(tmp_path / "b")
    for content in (tmp_path / "b/contents").iterdir():
        content.write_bytes(bytes(content.stat().st_size))  # What has come is not read again.

    cache.import_(tmp_path / "b")

    same(cache, origin, *NAMES)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


# -- what is here already ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conflict", "age", "state"),
    [
        ("newer", 100, "replaced"), ("newer", 0, "kept"), ("newer", -100, "kept"),
        ("replace", -100, "replaced"), ("keep", 100, "kept"),
    ],
)  # fmt: skip
def test_of_two_contents_for_a_ref_the_one_confirmed_later_stands_unless_it_is_said(
    origin: Cache, tmp_path: Path, conflict: str, age: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = origin.lookup("big.bin")
    assert entry is not None
    cache = Cache(tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr("modelcache.intake.time.time", lambda: entry.checked - age)
        cache.put(b"mine", name="big.bin")
    cache.get("big.bin")
    origin.export("big.bin", to=tmp_path / "b")

    report = cache.import_(tmp_path / "b", conflict=conflict)

    assert [model.state for model in report.models] == [state]
    assert Path(cache.get("big.bin")).read_bytes() == (BIG if state == "replaced" else b"mine")
    assert [one for one in check_cache(cache.root) if one.kind != "garbage"] == []


def test_a_pinned_ref_keeps_its_content_whatever_is_said(origin: Cache, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.put(b"mine", name="big.bin")
    cache.pin("big.bin")
    origin.export("big.bin", to=tmp_path / "b")

    report = cache.import_(tmp_path / "b", conflict="replace")

    assert [model.state for model in report.models] == ["pinned"]
    assert Path(cache.get("big.bin")).read_bytes() == b"mine"


def test_a_second_import_does_nothing(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "b")
    cache = Cache(tmp_path / "cache")
    cache.import_(tmp_path / "b")

    report = cache.import_(tmp_path / "b")

    assert {model.state for model in report.models} == {"here"}
    assert report.contents == 0


def test_an_object_that_was_altered_here_is_replaced_by_the_bundles(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "b")
    cache = Cache(tmp_path / "cache")
    cache.import_(tmp_path / "b")
    path = Path(cache.get("again.onnx"))
    path.chmod(0o644)
    path.write_bytes(b"altered")

    cache.import_(tmp_path / "b")

    assert Path(cache.get("again.onnx")).read_bytes() == OTHER
    assert Path(cache.get("some/other.onnx", verify="full")).read_bytes() == OTHER


def test_a_dry_run_says_what_would_come_and_makes_nothing(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "b")
    cache = Cache(tmp_path / "cache")

    report = cache.import_(tmp_path / "b", dry_run=True)

    assert {model.state for model in report.models} == {"new"}
    assert report.bytes_read == len(BIG) + len(OTHER)
    assert not Path(cache.root).exists()


def test_an_import_that_does_not_fit_is_refused_before_it_begins(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "b")

    with Cache(tmp_path / "cache", capacity=1_000_000) as cache, pytest.raises(errors.CapacityError):
        cache.import_(tmp_path / "b")

    assert cache.entries() == []
    assert leftovers(tmp_path / "cache") == []


def test_a_full_disk_is_told_before_an_export_or_an_import_begins(
    origin: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.export(*NAMES, to=tmp_path / "b")
    facts = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result([*facts[:4], 1, *facts[5:]]))

    for form in ("folder", "file"):
        with pytest.raises(errors.NoSpaceError):
            origin.export(*NAMES, to=target(tmp_path, form, "full"))
    with pytest.raises(errors.NoSpaceError):
        Cache(tmp_path / "cache").import_(tmp_path / "b")


# -- refused -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused_before_anything_is_written(origin: Cache, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/diary").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (errors.UsageError, lambda: origin.export(to=tmp_path / "b")),
        (errors.EntryNotFoundError, lambda: origin.export("nothing", to=tmp_path / "b")),
        (errors.UsageError, lambda: origin.export("big.bin", to=tmp_path / "full")),
        (errors.UsageError, lambda: origin.export("big.bin", to=tmp_path / "file")),
        (errors.UsageError, lambda: origin.export("big.bin", to=Path(origin.root, "b.tar"))),
        (errors.UsageError, lambda: origin.export("big.bin", to=tmp_path / "b", verify="some")),
        (errors.BundleError, lambda: origin.export("big.bin", to=tmp_path / "b", base=tmp_path / "file")),
        (errors.NotFoundError, lambda: origin.export("big.bin", to=tmp_path / "b", base=tmp_path / "none")),
    ]
    for kind, call in calls:
        with pytest.raises(kind):
            call()

    assert not (tmp_path / "b").exists()


def test_an_object_that_was_altered_is_not_exported_and_is_set_aside(origin: Cache, tmp_path: Path) -> None:
    path = Path(origin.get("big.bin"))
    path.chmod(0o644)
    path.write_bytes(BIG[::-1])

    for form in ("folder", "file"):
        with pytest.raises((errors.CorruptObjectError, errors.EntryNotFoundError)):
            origin.export("big.bin", to=target(tmp_path, form))
        assert not (target(tmp_path, form) / "index").exists()
        assert not target(tmp_path, "file").exists()

    assert len(os.listdir(f"{origin.root}/{layout.QUARANTINE}")) == 1


def test_only_the_bundle_with_the_digest_that_was_told_is_accepted(origin: Cache, tmp_path: Path) -> None:
    origin.export(*NAMES, to=tmp_path / "b")

    with pytest.raises(errors.DigestMismatchError):
        Cache(tmp_path / "cache").import_(tmp_path / "b", digest=f"sha256:{'0' * 64}")


def test_a_ref_that_is_not_in_the_bundle_is_told(origin: Cache, tmp_path: Path) -> None:
    origin.export("big.bin", to=tmp_path / "b")

    with pytest.raises(errors.NotInBundleError):
        Cache(tmp_path / "cache").import_(tmp_path / "b", "big.bin", "again.onnx")


def sealed(body: dict[str, object]) -> bytes:
    """Return an index file whose checksum is right, whatever it says."""
    data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return f"modelcache-bundle 1 {hashlib.sha256(data).hexdigest()} {len(data)}\n".encode() + data


def listing_digest(files: list[list[object]]) -> str:
    lines = "".join(f"{str(d)[7:]} {size} {'x' if x else '-'} {path}\n" for path, size, d, x in files)
    text = f"modelcache-tree 1\n{lines}"
    return f"tree:{hashlib.sha256(text.encode()).hexdigest()}"


CONTENT = f"sha256:{hashlib.sha256(b'x').hexdigest()}"


def tree_index(*paths: str) -> dict[str, object]:
    files: list[list[object]] = [[path, 1, CONTENT, False] for path in paths]
    files.sort(key=lambda one: str(one[0]).encode())
    digest = listing_digest(files)
    return {
        "contents": [[CONTENT, 1]],
        "entries": [entry(digest=digest, key="t", name="t", size=len(paths))],
        "trees": {digest: files},
        "without": [],
    }


def entry(**changes: object) -> dict[str, object]:
    return {
        "key": "m", "digest": CONTENT, "name": "m", "size": 1, "source": "put", "checked": 5, "etag": None,
        "last_modified": None, "revision": None, "mirrors": [], **changes,
    }  # fmt: skip


def file_index(*entries: dict[str, object]) -> dict[str, object]:
    return {"contents": [[CONTENT, 1]], "entries": list(entries), "trees": {}, "without": []}


def test_the_indexes_made_by_hand_here_are_taken_when_they_are_right(tmp_path: Path) -> None:
    for number, body in enumerate([file_index(entry()), tree_index("a", "b/c")]):
        made_by_hand(tmp_path / f"{number}", sealed(body))
        Cache(tmp_path / "cache").import_(tmp_path / f"{number}")

    assert len(Cache(tmp_path / "cache").entries()) == 2


def made_by_hand(path: Path, index: bytes) -> None:
    (path / "contents").mkdir(parents=True)
    (path / "index").write_bytes(index)
    (path / f"contents/{CONTENT.replace(':', '-')}").write_bytes(b"x")


HOSTILE = {
    "no checksum": b"modelcache-bundle 1 \n{}\n",
    "empty": b"",
    "other format": sealed(file_index(entry())).replace(b"modelcache-bundle 1", b"modelcache-bundle 2"),
    "not a dict": sealed([]),  # type: ignore[arg-type]
    "nested": sealed({"trees": {}, "entries": [], "contents": json.loads("[" * 900 + "]" * 900), "without": []}),
    "name leaves": sealed(file_index(entry(name="../m"))),
    "name is a directory": sealed(file_index(entry(name=".."))),
    "name with a NUL": sealed(file_index(entry(name="m\0"))),
    "name too long": sealed(file_index(entry(name="m" * 300))),
    "name is no text": sealed(file_index(entry(name=5))),
    "key not canonical": sealed(file_index(entry(key="HTTP://host/m"))),
    "key with credentials": sealed(file_index(entry(key="https://user:pw@host/m"))),
    "source with credentials": sealed(file_index(entry(source="https://user:pw@host/m"))),
    "mirror with credentials": sealed(file_index(entry(mirrors=["https://user:pw@host/m"]))),
    "mirror is a name": sealed(file_index(entry(mirrors=["m"]))),
    "size": sealed(file_index(entry(size=2))),
    "size below zero": sealed(file_index(entry(size=-1))),
    "size is true": sealed(file_index(entry(size=True))),
    "checked is huge": sealed(file_index(entry(checked=1 << 80))),
    "twice": sealed(file_index(entry(), entry())),
    "unknown field": sealed(file_index(entry(more=1))),
    "digest": sealed(file_index(entry(digest="sha256:../../x"))),
    "upper case": sealed(file_index(entry(digest=CONTENT.upper()))),
    "control character": sealed(file_index(entry(etag="a\r\nb"))),
    "content nobody names": sealed({**file_index(), "contents": [[CONTENT, 1]]}),
    "content not listed": sealed({**file_index(entry()), "contents": []}),
    "without what is not needed": sealed({**file_index(entry()), "without": [f"sha256:{'0' * 64}"]}),
    "tree not listed": sealed(file_index(entry(digest=f"tree:{'0' * 64}"))),
    "tree of another kind of ref": sealed(
        {**tree_index("a"), "entries": [{**tree_index("a")["entries"][0], "key": "https://host/m"}]}  # type: ignore[index]
    ),
    "path leaves": sealed(tree_index("../a")),
    "path absolute": sealed(tree_index("/a")),
    "path twice": sealed(tree_index("a", "a")),
    "paths clash": sealed(tree_index("a/model.bin", "a/Model.bin")),
    "paths clash by form": sealed(tree_index("e\u0301", "\u00e9")),
    "file and directory": sealed(tree_index("a", "a/b")),
    "too deep": sealed(tree_index("a/" * 70 + "b")),
    "backslash": sealed(tree_index("a\\..\\b")),
    "no files": sealed(tree_index()),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_an_index_that_could_do_damage_is_refused_although_its_checksum_is_right(tmp_path: Path, why: str) -> None:
    made_by_hand(tmp_path / "b", HOSTILE[why])
    cache = Cache(tmp_path / "cache")
    cache.put(b"mine", name="m")
    before = state_of(cache)

    with pytest.raises(errors.BundleError) as caught:
        cache.import_(tmp_path / "b")

    assert state_of(cache) == before
    assert pickle.loads(pickle.dumps(caught.value)).summary == caught.value.summary
    assert caught.value.hint


def test_a_tree_with_another_digest_than_its_files_is_refused(tmp_path: Path) -> None:
    body = tree_index("a")
    body["trees"] = {next(iter(body["trees"])): [["b", 1, CONTENT, False]]}  # type: ignore[call-overload]
    made_by_hand(tmp_path / "b", sealed(body))

    with pytest.raises(errors.BundleError):
        Cache(tmp_path / "cache").import_(tmp_path / "b")


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "altered", "link", "fifo", "directory"])
def test_a_content_of_a_folder_that_is_not_as_it_must_be_leaves_the_cache_as_it_was(
    origin: Cache, tmp_path: Path, damage: str
) -> None:
    origin.export(*NAMES, to=tmp_path / "b")
    content = max((tmp_path / "b/contents").iterdir(), key=lambda one: one.stat().st_size)
    if damage in {"missing", "fifo", "directory", "link"}:
        content.rename(tmp_path / "aside")
    damages: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "shorter": lambda: content.write_bytes(BIG[:-1]),
        "longer": lambda: content.write_bytes(BIG + b"x"),
        "altered": lambda: content.write_bytes(BIG[:-1] + b"x"),
        "link": lambda: content.symlink_to(tmp_path / "aside"),
        "fifo": lambda: os.mkfifo(content),
        "directory": content.mkdir,
    }
    damages[damage]()
    cache = Cache(tmp_path / "cache")
    cache.put(b"mine", name="big.bin")
    before = state_of(cache)

    with pytest.raises(errors.BundleError):
        cache.import_(tmp_path / "b", conflict="replace")

    assert state_of(cache) == before
    assert [one for one in check_cache(cache.root) if one.kind != "garbage"] == []


def altered(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def with_header(data: bytes, at: int, change: Callable[[tarfile.TarInfo], None]) -> bytes:
    info = tarfile.TarInfo.frombuf(data[at : at + 512], "ascii", "strict")
    change(info)
    return altered(data, at, info.tobuf(tarfile.GNU_FORMAT))  # type: ignore[no-untyped-call,unused-ignore]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", tarfile.SYMTYPE), ("type", tarfile.LNKTYPE), ("type", tarfile.CHRTYPE), ("type", tarfile.FIFOTYPE),
        ("type", tarfile.DIRTYPE), ("type", tarfile.GNUTYPE_SPARSE), ("type", tarfile.XHDTYPE),
        ("type", tarfile.GNUTYPE_LONGNAME), ("name", "../evil"), ("name", "/etc/passwd"), ("name", "index"),
        ("linkname", "/etc/passwd"), ("size", 3), ("size", 1 << 60),
    ],
)  # fmt: skip
@pytest.mark.parametrize("which", [0, 1])
def test_a_member_of_a_file_that_is_not_as_it_must_be_is_refused(
    origin: Cache, tmp_path: Path, field: str, value: object, which: int
) -> None:
    if (which, value) == (0, "index"):
        return
    origin.export(*NAMES, to=tmp_path / "b.tar")
    data = (tmp_path / "b.tar").read_bytes()
    at = bundle.members(bundle.read_index(str(tmp_path / "b.tar")))[which].at
    (tmp_path / "b.tar").write_bytes(with_header(data, at, lambda info: setattr(info, field, value)))

    with pytest.raises(errors.BundleError):
        Cache(tmp_path / "cache").import_(tmp_path / "b.tar")

    assert Cache(tmp_path / "cache").entries() == []


@pytest.mark.parametrize("change", ["cut", "longer", "a second archive", "no tar", "empty"])
def test_a_file_that_is_longer_or_shorter_is_refused(origin: Cache, tmp_path: Path, change: str) -> None:
    origin.export(*NAMES, to=tmp_path / "b.tar")
    data = (tmp_path / "b.tar").read_bytes()
    changed = {
        "cut": data[:-1], "longer": data + b"\0", "a second archive": data + data, "no tar": b"x" * 20_000, "empty": b""
    }[change]  # fmt: skip
    (tmp_path / "b.tar").write_bytes(changed)

    with pytest.raises(errors.BundleError):
        Cache(tmp_path / "cache").import_(tmp_path / "b.tar")


def test_an_index_of_many_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "b/contents").mkdir(parents=True)
    with (tmp_path / "b/index").open("wb") as file:
        file.write(b"modelcache-bundle 1 ")
        file.truncate(1 << 40)

    with pytest.raises(errors.BundleError, match="are the most"):
        Cache(tmp_path / "cache").import_(tmp_path / "b")


@pytest.mark.parametrize(
    ("to", "told"), [("", "to='' makes no sense"), ("{}/none/m.tar", "/none/m.tar would be, is no directory")]
)
def test_a_target_that_makes_no_sense_is_told_in_the_words_of_who_gave_it(
    origin: Cache, tmp_path: Path, to: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(errors.UsageError, match=told):
        origin.export("big.bin", to=to.format(tmp_path))
    for path in ("", None, "a\0b", b"bundle"):
        with pytest.raises(errors.UsageError, match="path="):
            origin.import_(path)  # type: ignore[arg-type]
        with pytest.raises(errors.UsageError, match="to="):
            origin.export("big.bin", to=path)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="base='' makes no sense"):
        origin.export("big.bin", to="bundle", base="")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("form", ["folder", "file.tar"])
def test_an_export_that_fails_leaves_only_what_the_next_one_uses(
    origin: Cache, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space")

    target = tmp_path / "out" / form
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("modelcache.commit.write", full)
        with pytest.raises(errors.NoSpaceError):
            origin.export("big.bin", to=target)
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != ".lock"]
    assert left == []

    origin.export("big.bin", to=target)
    assert not [path for path in (tmp_path / "out").rglob("*") if ".partial-" in path.name or path.name == ".lock"]


@pytest.mark.parametrize("harm", ["touched", "gone"])
@pytest.mark.parametrize("conflict", ["keep", "newer", "replace"])
def test_what_is_pinned_stays_also_if_its_file_was_touched_or_is_gone(tmp_path: Path, harm: str, conflict: str) -> None:
    with Cache(tmp_path / "a") as one:
        one.put(b"theirs", name="m")
        one.export("m", to=tmp_path / "b")
    with Cache(tmp_path / "c") as two:
        path = two.put(b"ours", name="m").path
        two.pin("m")
        os.utime(path) if harm == "touched" else shutil.rmtree(Path(path).parent)

        assert [model.state for model in two.import_(tmp_path / "b", conflict=conflict).models] == ["pinned"]
        entry = two.entries()[0]
    assert entry.size == 4


@pytest.mark.parametrize(("conflict", "state"), [("keep", "kept"), ("newer", "kept"), ("replace", "replaced")])
def test_what_is_kept_is_kept_also_if_its_file_was_touched(tmp_path: Path, conflict: str, state: str) -> None:
    with Cache(tmp_path / "a") as one:
        one.put(b"theirs", name="m")
        one.export("m", to=tmp_path / "b")
    with Cache(tmp_path / "c") as two:
        os.utime(two.put(b"ours", name="m").path)

        assert [model.state for model in two.import_(tmp_path / "b", conflict=conflict).models] == [state]
        assert Path(two.get("m")).read_bytes() == (b"theirs" if state == "replaced" else b"ours")


@pytest.mark.parametrize("conflict", ["keep", "newer", "replace"])
def test_what_is_on_record_and_gone_comes_from_a_bundle(tmp_path: Path, conflict: str) -> None:
    with Cache(tmp_path / "a") as one:
        one.put(b"theirs", name="m")
        one.export("m", to=tmp_path / "b")
    with Cache(tmp_path / "c") as two:
        shutil.rmtree(Path(two.put(b"ours", name="m").path).parent)

        assert [model.state for model in two.import_(tmp_path / "b", conflict=conflict).models] == ["replaced"]
        assert Path(two.get("m")).read_bytes() == b"theirs"
