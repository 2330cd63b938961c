"""Trees: a directory as one object, whole or not there, its files stored once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, errors, staged
from modelcache.digest import Digest
from modelcache.promises import check_cache
from tests.crash.world import tree_digest, tree_of
from tests.support.state import leftovers


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "source", tree_of(b"weights" * 1000))


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache(root)


def fill(directory: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
        (directory / path).chmod(0o755 if path == "bin/run" else 0o600)
    return directory


def content_of(directory: str | Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
    }


def bytes_on_disk(root: Path) -> int:
    return sum(
        {one.stat().st_ino: one.stat().st_size for one in root.glob("objects-v1/**/*") if one.is_file()}.values()
    )


def test_a_tree_that_was_put_is_served_whole_under_its_own_name(cache: Cache, source: Path) -> None:
    entry = cache.put_tree(source, name="nets/Net.mlpackage")

    path = cache.get("nets/Net.mlpackage")

    assert entry.digest == tree_digest(tree_of(b"weights" * 1000))
    assert entry.size == sum(map(len, content_of(source).values()))
    assert path == entry.path
    assert path.endswith("/Net.mlpackage")
    assert content_of(path) == content_of(source)
    assert check_cache(cache.root) == []


def test_files_are_read_only_and_keep_the_right_to_be_executed(cache: Cache, source: Path) -> None:
    path = Path(cache.put_tree(source, name="t").path)

    assert {
        str(one.relative_to(path)): oct(one.stat().st_mode & 0o777) for one in path.rglob("*") if one.is_file()
    } == {
        "weights.bin": "0o444",
        "bin/run": "0o555",
        "deep/er/config.json": "0o444",
    }


def test_a_hit_costs_one_stat(cache: Cache, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put_tree(source, name="t")
    path = cache.get("t")
    asked: list[object] = []
    real = os.stat

    def counted(path: str, **options: Any) -> os.stat_result:
        asked.append(path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", counted)

    assert cache.get("t") == path
    assert asked == [path]


def test_what_two_revisions_share_is_stored_once(cache: Cache, source: Path, root: Path) -> None:
    cache.put_tree(source, name="v1/net")
    before = bytes_on_disk(root)
    (source / "deep/er/config.json").write_bytes(b"{'new': 1}")

    cache.put_tree(source, name="v2/net")

    listing = len((root / "objects-v1").glob("tree-*/.listing").__next__().read_bytes())
    assert bytes_on_disk(root) - before < listing + 100
    assert cache.get("v1/net") != cache.get("v2/net")
    assert check_cache(root) == []


def test_a_file_that_is_here_as_an_object_is_shared_with_a_tree(cache: Cache, source: Path) -> None:
    single = Path(cache.put(b"weights" * 1000, name="weights.bin").path)

    tree = Path(cache.put_tree(source, name="t").path)

    assert tree.joinpath("weights.bin").samefile(single)


def test_a_removal_of_one_tree_leaves_what_others_share(cache: Cache, source: Path, root: Path) -> None:
    cache.put_tree(source, name="v1")
    (source / "more").write_bytes(b"more")
    cache.put_tree(source, name="v2")

    assert cache.remove("v1")

    assert content_of(cache.get("v2")) == content_of(source)
    assert len(list((root / "objects-v1").iterdir())) == 1
    assert check_cache(root) == []
    assert leftovers(root) == []


def test_the_same_tree_under_another_name_costs_links_only(cache: Cache, source: Path, root: Path) -> None:
    cache.put_tree(source, name="a")
    before = bytes_on_disk(root)

    entry = cache.put_tree(source, name="b")

    assert entry.path.endswith("/b")
    assert bytes_on_disk(root) == before
    assert content_of(entry.path) == content_of(cache.get("a")) == content_of(source)
    assert check_cache(root) == []


def test_without_hard_links_everything_is_copied_and_whole(
    cache: Cache, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_paths: object, **_how: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    cache.put_tree(source, name="a")
    (source / "more").write_bytes(b"more")

    cache.put_tree(source, name="b")
    again = cache.put_tree(source, name="c")

    assert content_of(cache.get("b")) == content_of(source)
    assert again.path.endswith("/b"), "it keeps the only name that it can have"
    assert content_of(cache.get("c")) == content_of(source)
    assert check_cache(cache.root) == []


def test_content_that_another_tool_altered_is_not_shared_but_stored_anew(cache: Cache, source: Path) -> None:
    old = Path(cache.put_tree(source, name="a").path, "weights.bin")
    old.chmod(0o644)
    old.write_bytes(b"altered" * 1000)
    (source / "more").write_bytes(b"more")

    new = cache.put_tree(source, name="b")

    assert content_of(new.path) == content_of(source)
    assert cache.lookup("b") is not None


def test_verify_finds_an_altered_file_and_sets_the_tree_aside(cache: Cache, source: Path) -> None:
    inside = Path(cache.put_tree(source, name="t").path, "deep/er/config.json")
    inside.chmod(0o644)
    inside.write_bytes(b"{1}")

    report = cache.verify()

    assert [finding.state for finding in report.findings] == ["corrupt"]
    assert cache.lookup("t") is None
    assert Path(report.findings[0].moved_to, "REASON.json").exists()
    cache.put_tree(source, name="t")
    assert content_of(cache.get("t")) == content_of(source)


@pytest.mark.parametrize("what", ["a file more", "a file less", "a link", "no right to execute", "no listing"])
def test_full_verification_sees_whatever_is_not_as_it_was_put(cache: Cache, source: Path, what: str) -> None:
    tree = Path(cache.put_tree(source, name="t").path)
    if what == "a file more":
        (tree / "more").write_bytes(b"")
    elif what == "a file less":
        (tree / "bin/run").unlink()
    elif what == "a link":
        (tree / "link").symlink_to("/etc/passwd")
    elif what == "no right to execute":
        (tree / "bin/run").chmod(0o444)
    else:
        (tree.parent / ".listing").unlink()

    assert not cache.verify().ok


def test_links_to_files_are_followed_as_in_a_snapshot_of_the_hub(cache: Cache, source: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"blob")
    (source / "model.bin").symlink_to(tmp_path / "blob")

    path = Path(cache.put_tree(source, name="t").path)

    assert not (path / "model.bin").is_symlink()
    assert (path / "model.bin").read_bytes() == b"blob"


@pytest.mark.parametrize("what", ["link to a directory", "broken link", "fifo"])
def test_what_is_neither_file_nor_directory_is_refused_by_name(cache: Cache, source: Path, what: str) -> None:
    odd = source / "deep/odd"
    if what == "link to a directory":
        odd.symlink_to(source / "bin")
    elif what == "broken link":
        odd.symlink_to(source / "nowhere")
    else:
        os.mkfifo(odd)

    with pytest.raises((errors.UsageError, errors.NotFoundError), match="odd"):
        cache.put_tree(source, name="t")

    assert cache.lookup("t") is None
    assert leftovers(Path(cache.root)) == []


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, errors.NotFoundError),
        (lambda path: path.write_bytes(b"file"), errors.NotFoundError),
        (lambda path: path.mkdir(), errors.EmptyContentError),
        (lambda path: (path / "only/empty").mkdir(parents=True), errors.EmptyContentError),
    ],
)
def test_what_is_no_directory_with_files_is_refused(
    cache: Cache, tmp_path: Path, make: object, error: type[Exception]
) -> None:
    make(tmp_path / "x")  # type: ignore[operator]

    with pytest.raises(error):
        cache.put_tree(tmp_path / "x", name="t")

    assert leftovers(Path(cache.root)) == []


def test_a_digest_that_does_not_match_leaves_the_name_as_it_was(cache: Cache, source: Path) -> None:
    old = cache.put_tree(source, name="t")
    (source / "more").write_bytes(b"more")

    with pytest.raises(errors.DigestMismatchError):
        cache.put_tree(source, name="t", digest=old.digest)

    assert cache.get("t") == old.path
    assert leftovers(Path(cache.root)) == []
    assert cache.put_tree(source, name="t").digest != old.digest


def test_a_directory_that_changes_meanwhile_is_refused(
    cache: Cache, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(descriptor: int, chunks: Iterator[bytes]) -> Digest:
        (source / "late").write_bytes(b"late")
        return written(descriptor, chunks)

    written = staged.written
    monkeypatch.setattr(staged, "written", write)

    with pytest.raises(errors.StorageError, match="meanwhile"):
        cache.put_tree(source, name="t")

    assert leftovers(Path(cache.root)) == []


def test_a_name_stands_for_a_file_or_for_a_tree_whichever_was_put_last(cache: Cache, source: Path) -> None:
    cache.put(b"file", name="x")
    cache.put_tree(source, name="x")
    assert Path(cache.get("x")).is_dir()

    cache.put(b"file", name="x")

    assert Path(cache.get("x")).read_bytes() == b"file"
    assert check_cache(cache.root, {"x": cache.put(b"file", name="x").digest})[1:] == []


def test_the_digest_of_a_tree_and_of_a_file_are_not_taken_for_each_other(cache: Cache, source: Path) -> None:
    digest = cache.put_tree(source, name="t").digest

    with pytest.raises(errors.UsageError, match="tree"):
        cache.get("https://host.invalid/model.onnx", digest=digest)
    assert cache.get("t", digest=digest)
    with pytest.raises(errors.DigestMismatchError):
        cache.get("t", digest=digest.replace("tree:", "sha256:"))


def test_the_listing_is_no_name_of_a_tree(cache: Cache, source: Path) -> None:
    with pytest.raises(errors.InvalidReferenceError):
        cache.put_tree(source, name=".listing")


def test_many_threads_put_overlapping_trees(cache: Cache, source: Path, tmp_path: Path) -> None:
    trees = [fill(tmp_path / f"s{number}", {**tree_of(b"same" * 999), f"own{number}": b"x"}) for number in range(6)]
    failed: list[Exception] = []
    start = threading.Barrier(len(trees))

    def put(number: int) -> None:
        start.wait()
        try:
            for _ in range(3):
                cache.put_tree(trees[number], name=f"t{number}")
                cache.put_tree(trees[number], name="shared")
        except Exception as error:  # noqa: BLE001  # Whatever it is, it is a finding.
            failed.append(error)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(len(trees))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert all(content_of(cache.get(f"t{number}")) == content_of(trees[number]) for number in range(len(trees)))
    assert [violation for violation in check_cache(cache.root) if violation.kind != "garbage"] == []
