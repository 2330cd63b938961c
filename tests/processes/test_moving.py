"""Several processes that export to one place, or import from one bundle, at once: each ends well, and all is whole."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.promises import check_cache
from tests.crash.world import forked
from tests.support.state import leftovers

CONTENTS = {f"m{number}": random.Random(number).randbytes(300_000) for number in range(6)}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        Cache(tmp_path / "origin").put(content, name=name)
    return tmp_path / "origin"


def at_once(*works: Callable[[], object]) -> None:
    children = [forked(lambda work=work: work() and None) for work in works]  # type: ignore[misc]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * len(works)


def is_whole(root: Path) -> None:
    with Cache(root) as cache:
        assert {entry.key: Path(entry.path).read_bytes() for entry in cache.entries()} == CONTENTS
    assert check_cache(root) == []
    assert leftovers(root) == []


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_processes_that_export_to_one_place_leave_one_whole_bundle(origin: Path, tmp_path: Path, name: str) -> None:
    def export() -> None:
        Cache(origin).export(*CONTENTS, to=tmp_path / name)

    at_once(*[export] * 4)

    with Cache(tmp_path / "cache") as cache:
        cache.import_(tmp_path / name)
    is_whole(tmp_path / "cache")
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_processes_that_export_different_models_to_one_folder_keep_all_of_them(origin: Path, tmp_path: Path) -> None:
    def exporting(key: str) -> Callable[[], object]:
        return lambda: Cache(origin).export(key, to=tmp_path / "out")

    at_once(*map(exporting, CONTENTS))

    with Cache(tmp_path / "cache") as cache:
        cache.import_(tmp_path / "out")
    is_whole(tmp_path / "cache")


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_processes_that_import_one_bundle_read_each_content_once(origin: Path, tmp_path: Path, name: str) -> None:
    Cache(origin).export(*CONTENTS, to=tmp_path / name)
    root = tmp_path / "cache"

    def import_() -> None:
        report = Cache(root).import_(tmp_path / name)
        (tmp_path / f"{os.getpid()}.read").write_text(str(report.bytes_read))

    at_once(*[import_] * 4)

    read = [int(one.read_text()) for one in tmp_path.glob("*.read")]
    assert sorted(read) == [0, 0, 0, sum(map(len, CONTENTS.values()))]
    is_whole(root)


def test_an_import_beside_a_gc_keeps_what_it_uses_again(origin: Path, tmp_path: Path) -> None:
    Cache(origin).export(*CONTENTS, to=tmp_path / "out")
    root = tmp_path / "cache"
    for name, content in CONTENTS.items():
        Cache(root).put(content, name=f"old-{name}")

    def collect() -> None:
        for _ in range(30):
            Cache(root).plan_gc(unused_for=0, grace=0).execute()

    def import_() -> None:
        for _ in range(10):
            Cache(root).import_(tmp_path / "out")

    at_once(import_, collect)

    assert [one for one in check_cache(root) if one.kind != "garbage"] == []
    with Cache(root) as cache:
        cache.import_(tmp_path / "out")
        assert {name: Path(cache.get(name)).read_bytes() for name in CONTENTS} == CONTENTS
