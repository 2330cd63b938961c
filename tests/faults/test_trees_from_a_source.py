"""A repository as one tree: listed once, each byte asked for once, complete or not there at all."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Entry, Event, RetryPolicy, Timeout, commit, errors
from modelcache.promises import check_cache
from modelcache.testing import Fault, spawn
from tests.support.hub import Answer, Asked, Hub
from tests.support.state import leftovers

REF = "hf://org/name"
SHARDS = [bytes([number]) * 50_000 for number in range(1, 4)]
FILES = {
    "config.json": b'{"a": 1}',
    "README.md": b"# A model\n",
    "sub/empty.txt": b"",
    "model-00001.safetensors": SHARDS[0],
    "model-00002.safetensors": SHARDS[1],
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    ).encode(),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def cache(root: Path, **options: object) -> Cache:
    return Cache(root, retry=RetryPolicy(attempts=3, base=0), **options)  # type: ignore[arg-type]


def content_of(directory: str | Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
    }


def whole(root: Path) -> None:
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []
    assert leftovers(root) == []


def blobs(hub: Hub) -> list[str]:
    """Return what was asked of the content network, in order."""
    return [request.path for request in hub.cdn.seen()]


def test_all_files_come_and_a_second_get_asks_nobody(hub: Hub, root: Path) -> None:
    commit = hub.add("org/name", FILES)

    path = cache(root).get_tree(REF)
    asked = len(hub.seen())

    assert content_of(path) == FILES
    assert path.endswith("/name")
    assert cache(root).get_tree(REF) == path
    assert cache(root, offline=True).get_tree(REF) == path
    assert len(hub.seen()) == asked
    (entry,) = cache(root).entries()
    assert (entry.key, entry.revision) == (REF, commit)
    whole(root)


def test_an_entry_of_a_tree_is_found_by_the_key_that_is_shown(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    one = cache(root)
    path = one.get_tree(REF, allow_patterns=["*.json", "a,b&c#d"])
    key = one.entries()[0].key

    assert one.get(key) == path
    assert one.lookup(key) == one.entries()[0]
    assert one.get_tree(key) == path
    assert cache(root, offline=True).get(key) == path
    assert one.remove(key)
    assert one.entries() == []


@pytest.mark.parametrize(
    ("allow", "ignore", "names"),
    [
        ("*.json", None, {"config.json", "model.safetensors.index.json"}),
        (["*.json", "sub/"], "model*", {"config.json", "sub/empty.txt"}),
        (None, ["*.safetensors", "*.json"], {"README.md", "sub/empty.txt"}),
        ("model-0000?.safetensors", (), {"model-00001.safetensors", "model-00002.safetensors"}),
    ],
)
def test_patterns_choose_files_and_what_they_choose_is_a_tree_of_its_own(
    hub: Hub, root: Path, allow: object, ignore: object, names: set[str]
) -> None:
    hub.add("org/name", FILES)
    one = cache(root)

    path = one.get_tree(REF, allow_patterns=allow, ignore_patterns=ignore)  # type: ignore[arg-type]

    assert content_of(path) == {name: FILES[name] for name in names}
    assert content_of(one.get_tree(REF)) == FILES
    assert content_of(path) == {name: FILES[name] for name in names}
    assert len(blobs(hub)) == len(set(blobs(hub))), "the second tree asks for nothing that the first one has brought"
    whole(root)


def test_patterns_that_match_nothing_are_an_error_before_anything_is_fetched(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)

    with pytest.raises(errors.NothingMatchesError, match=r"none of the 6 files .* whole path"):
        cache(root).get_tree(REF, allow_patterns="*.onnx")

    assert blobs(hub) == []


@pytest.mark.parametrize("patterns", [[], "", [""], 3, [3]])
def test_patterns_that_make_no_sense_are_refused_before_any_request(hub: Hub, root: Path, patterns: object) -> None:
    with pytest.raises((errors.UsageError, TypeError)):
        cache(root).get_tree(REF, allow_patterns=patterns)  # type: ignore[arg-type]

    assert hub.seen() == []


def test_a_revision_that_differs_in_one_file_costs_that_file(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    one = cache(root)
    old = one.get_tree(REF)
    before = len(blobs(hub)), len(hub.seen("/resolve/")), bytes_on_disk(root)
    hub.add("org/name", {**FILES, "model-00002.safetensors": SHARDS[2]})

    new = one.get_tree(REF, force_download=True)

    assert content_of(new) == {**FILES, "model-00002.safetensors": SHARDS[2]}
    assert content_of(old) == FILES, "what somebody may have open stays"
    assert len(blobs(hub)) - before[0] == 1
    assert len(hub.seen("/resolve/")) - before[1] == 1, "small files are known by their ids in git"
    assert bytes_on_disk(root) - before[2] < 50_000 + 2_000


def bytes_on_disk(root: Path) -> int:
    return sum(
        {one.stat().st_ino: one.stat().st_size for one in root.glob("objects-v1/**/*") if one.is_file()}.values()
    )


def test_a_refresh_of_what_has_not_changed_lists_and_fetches_nothing(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    one = cache(root)
    path = one.get_tree(REF)
    before = len(hub.seen("/resolve/")), len(hub.seen("/tree/"))

    assert one.get_tree(REF, max_age=0) == path

    assert len(hub.seen("/resolve/")) == before[0]
    assert one.stats().unchanged == 1


def test_a_repository_that_changes_between_listing_and_download_is_fetched_as_it_was_listed(
    hub: Hub, root: Path
) -> None:
    hub.add("org/name", FILES)
    changed = threading.Event()

    def change(asked: Asked) -> Answer | None:
        if "/resolve/" in asked.path and not changed.is_set():
            changed.set()
            hub.add("org/name", dict.fromkeys(FILES, b"other"))
        return None

    hub.override = change

    path = cache(root).get_tree(REF)

    assert changed.is_set()
    assert content_of(path) == FILES


def test_the_failure_of_one_file_leaves_no_tree_and_the_rest_is_not_asked_for_again(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELCACHE_CONCURRENCY", "1")  # So that it is known what had come.
    hub.add("org/name", FILES)
    broken = hub.address(SHARDS[1])
    hub.cdn.add(broken, SHARDS[1], [Fault(status=404)] * 3)
    first = cache(root)
    with pytest.raises(errors.ModelCacheError):
        first.get_tree(REF)
    assert first.entries() == []
    assert list((root / "objects-v1").iterdir()) == []
    assert [v for v in check_cache(root) if v.kind != "garbage"] == []
    hub.cdn.add(broken, SHARDS[1])
    before = blobs(hub), [asked.path for asked in hub.seen("/resolve/")]

    path = cache(root).get_tree(REF)

    assert content_of(path) == FILES
    assert blobs(hub)[len(before[0]) :] == [broken]
    again = {asked.path.rpartition("/")[2] for asked in hub.seen("/resolve/")[len(before[1]) :]}
    assert again == {"model-00002.safetensors", "model.safetensors.index.json", "empty.txt"}
    whole(root)


def test_bytes_that_are_not_what_the_listing_says_are_refused(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    lie = hub.address(SHARDS[0])
    hub.cdn.add(lie, b"x" * len(SHARDS[0]))

    with pytest.raises(errors.IntegrityError):
        cache(root).get_tree(REF)

    assert cache(root).entries() == []
    assert list((root / "objects-v1").iterdir()) == []


def test_a_small_file_that_is_not_what_git_calls_it_is_refused(hub: Hub, root: Path) -> None:
    commit = hub.add("org/name", FILES)

    def lie(asked: Asked) -> Answer | None:
        headers = {"ETag": '"x"', "X-Repo-Commit": commit}
        return Answer(200, headers, b'{"a": 2}') if asked.path.endswith("/config.json") else None

    hub.override = lie

    with pytest.raises(errors.DigestMismatchError, match="git"):
        cache(root).get_tree(REF)

    assert list((root / "objects-v1").iterdir()) == []
    hub.override = lambda asked: None
    assert content_of(cache(root).get_tree(REF)) == FILES


def test_a_shard_that_the_index_names_and_the_repository_lacks_is_named(hub: Hub, root: Path) -> None:
    files = {name: content for name, content in FILES.items() if name != "model-00002.safetensors"}
    hub.add("org/name", files)

    with pytest.raises(errors.MissingCompanionError, match=r"index\.json needs .*model-00002\.safetensors"):
        cache(root).get_tree(REF)

    assert content_of(cache(root).get_tree(REF, ignore_patterns="model*")).keys() == {
        "config.json", "README.md", "sub/empty.txt"
    }  # fmt: skip


def test_eight_processes_fetch_a_tree_once(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    code = f"""
        import sys
        from modelcache import Cache
        from modelcache.testing import acknowledge
        acknowledge(Cache({str(root)!r}).get_tree({REF!r}))
    """
    victims = [spawn(code) for _ in range(8)]

    assert [victim.wait() for victim in victims] == [0] * 8
    assert len({tuple(victim.acknowledged()) for victim in victims}) == 1
    for victim in victims:
        victim.__exit__(None, None, None)
    assert sorted(blobs(hub)) == sorted(hub.address(shard) for shard in SHARDS[:2])
    whole(root)


def test_what_came_before_a_kill_is_not_asked_for_again(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    code = f"""
        from modelcache import Cache
        Cache({str(root)!r}).get_tree({REF!r})
    """
    with spawn(code, failpoints="partials.before-give=kill") as victim:
        assert victim.wait() == -9
    before = len(blobs(hub))

    path = cache(root).get_tree(REF)

    assert content_of(path) == FILES
    assert len(blobs(hub)) == before
    whole(root)


def test_progress_is_that_of_the_whole_tree(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    events: list[Event] = []

    cache(root, on_event=events.append).get_tree(REF)

    of_the_tree = [event for event in events if event.ref == REF]
    total = sum(map(len, FILES.values()))
    assert of_the_tree[0].kind == "started"
    assert of_the_tree[0].total == total
    assert of_the_tree[-1].kind == "fetched"
    assert of_the_tree[-1].done == total
    assert all((event.done) <= total for event in of_the_tree if event.kind == "progress")


def test_close_ends_a_tree_that_is_under_way(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES, faults=[Fault(stall_after=1000)])
    one = Cache(root, timeout=Timeout(read=60, stall=60))
    failed: list[BaseException] = []

    def get() -> None:
        try:
            one.get_tree(REF)
        except errors.ModelCacheError as error:
            failed.append(error)

    thread = threading.Thread(target=get)
    thread.start()
    while not hub.cdn.seen():
        os.sched_yield()
    one.close()
    thread.join(60)

    assert not thread.is_alive()
    assert isinstance(failed[0], errors.CancelledError)


def test_a_source_that_lists_nothing_says_so(root: Path) -> None:
    with pytest.raises(errors.NotListableError):
        cache(root).get_tree("https://host.invalid/file")


def test_a_directory_of_this_machine_is_fetched_like_a_repository(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    one = cache(root)

    path = one.get_tree(source)

    (entry,) = one.entries()
    assert content_of(path) == FILES
    assert entry.key == f"file://{source}#tree"
    assert one.get(entry.key) == path
    assert one.remove(entry.key)
    whole(root)


def test_a_path_that_reads_like_the_mark_of_a_tree_is_none(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x#tree").write_bytes(b"x")

    assert Path(cache(root).get(tmp_path / "x#tree")).read_bytes() == b"x"


def test_a_file_is_no_tree(root: Path) -> None:
    one = cache(root)
    one.put(b"x", name="x")

    with pytest.raises(errors.UsageError, match="not a tree"):
        one.get_tree("x")
    with pytest.raises(errors.UsageError, match="patterns"):
        one.get_tree("x", allow_patterns="*")


def test_a_repository_is_got_pinned_verified_repaired_and_removed_by_its_own_ref(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    one = cache(root)
    path = Path(one.get(REF))
    one.pin(REF)
    with pytest.raises(errors.PinnedError):
        one.remove(REF)
    (path / "config.json").chmod(0o644)
    (path / "config.json").write_bytes(b"altered")

    report = one.verify(repair=True)

    assert [finding.repaired for finding in report.findings] == [True]
    assert content_of(one.get(REF)) == FILES
    assert one.unpin(REF)
    assert one.remove(REF)
    assert one.lookup(REF) is None
    assert list((root / "objects-v1").iterdir()) == []


def test_a_manifest_names_repositories_and_parts_of_them(hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.add("org/name", FILES)
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'''
        [[model]]
        ref = "{REF}"
        pin = true

        [[model]]
        ref = "{REF}"
        allow_patterns = ["*.json"]
    ''')
    one = cache(root)

    locked = one.lock(manifest)
    one.prewarm(manifest, locked=True).check()
    other = cache(tmp_path / "other")
    other.prewarm(manifest, locked=True).check()

    assert [model.digest[:5] for model in locked] == ["tree:", "tree:"]
    assert [entry.digest for entry in other.entries()] == [model.digest for model in locked]
    hub.add("org/name", {**FILES, "config.json": b"{}"})
    third = cache(tmp_path / "third")
    third.prewarm(manifest, locked=True).check()  # At the locked revision, wherever the branch is by now.
    assert [entry.digest for entry in third.entries()] == [model.digest for model in locked]


def test_the_command_line_gets_a_repository_or_a_part_of_it(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "modelcache", *arguments]
        return subprocess.run(
            command, env={**os.environ, "MODELCACHE_DIR": str(root)}, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert content_of(run("get", REF)) == FILES
    assert run("path", REF) == run("get", REF)
    assert content_of(run("get", REF, "--include", "*.json", "--exclude", "model*")).keys() == {"config.json"}
    assert "&allow=*.json" in run("ls")
    assert json.loads(run("get", REF, "--json"))["digest"].startswith("tree:")


def test_tasks_that_want_the_same_tree_share_one_fetch(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    one = cache(root)

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one.aget_tree(REF) for _ in range(5)), one.aget(REF))

    paths = asyncio.run(all_of_them())

    assert len(set(paths)) == 1
    assert content_of(paths[0]) == FILES
    assert len(hub.seen("/tree/")) == 1


def test_a_repository_that_cannot_fit_is_refused_before_a_file_of_it_is_fetched(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)

    with pytest.raises(errors.CapacityError):
        cache(root, capacity=60_000).get_tree(REF)

    assert blobs(hub) == []
    assert hub.seen("/resolve/") == []


def test_room_is_made_for_a_repository_and_what_is_shared_is_not_counted_twice(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    hub.add("org/other", {"w.safetensors": SHARDS[2]})
    one = cache(root, capacity=160_000, grace=0)
    one.get_tree("hf://org/other")
    one.get_tree(REF)
    assert len(one.entries()) == 2

    one.put(b"x" * 20_000, name="x")
    hub.add("org/name", {**FILES, "README.md": b"new" * 3_000})
    path = one.get_tree(REF, force_download=True)

    assert content_of(path)["README.md"] == b"new" * 3_000
    assert sorted(entry.key for entry in one.entries()) == [REF, "x"], "the least recently used went"
    whole(root)


def test_a_leased_tree_stays_where_it_is(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    one = cache(root, grace=0)

    with one.lease(REF) as lease:
        plan = one.plan_gc(capacity=1)
        assert plan.execute().removed == ()
        assert content_of(lease.path) == FILES
    assert one.plan_gc(capacity=1).execute().freed_bytes >= sum(map(len, FILES.values()))
    assert one.entries() == []
    whole(root)


def test_content_that_another_process_stores_meanwhile_is_no_entry_of_its_own(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    stored = threading.Event()

    def store(asked: Asked) -> Answer | None:
        if "/resolve/" in asked.path and not stored.is_set():
            stored.set()
            for number, shard in enumerate(SHARDS[:2]):
                cache(root).put(shard, name=f"shard{number}")
        return None

    hub.override = store

    path = cache(root).get_tree(REF)

    assert content_of(path) == FILES
    assert sorted(entry.key for entry in cache(root).entries()) == [REF, "shard0", "shard1"]


def test_a_tree_has_no_mirrors_however_it_is_asked_for(hub: Hub, root: Path) -> None:
    with pytest.raises(errors.UsageError, match="mirrors"):
        cache(root).get(REF, mirrors=["https://mirror.invalid/x"])

    assert hub.seen() == []


def test_a_tree_that_goes_while_it_is_remembered_is_no_error_of_the_one_who_got_it(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", FILES)
    one = cache(root)
    real = one._getter.entry  # The race, held still.

    def gone(*arguments: Any) -> Entry:
        entry = real(*arguments)
        shutil.rmtree(entry.path)
        return entry

    monkeypatch.setattr(one._getter, "entry", gone)
    lost = one.get(REF)
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

    assert content_of(one.get(REF)) == FILES
    assert lost


def test_a_second_get_tree_of_a_cache_costs_one_stat(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", FILES)
    one = cache(root)
    path = one.get_tree(REF, allow_patterns="*.json")
    opened: list[object] = []
    real = os.open

    def counted(path: str, *rest: int, **options: Any) -> int:
        opened.append(path)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "open", counted)

    assert one.get_tree(REF, allow_patterns="*.json") == path
    assert opened == []
    assert one.get_tree(REF) != path


def test_a_partial_that_cannot_be_removed_is_no_second_name_of_what_is_published(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", FILES)
    discard = commit.discard
    with monkeypatch.context() as patch:  # As where an unlink fails: it is told nobody.
        patch.setattr(commit, "discard", lambda path: None if "partial-v1" in path else discard(path))
        with pytest.raises(errors.StorageError, match="another name"):
            cache(root).get_tree(REF)
        assert list((root / "objects-v1").iterdir()) == []

    assert content_of(cache(root).get_tree(REF)) == FILES
    # Ours, and nobody's to resume while this process lives.
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []


def test_without_hard_links_what_is_here_is_copied_and_does_not_come_again(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    hub.add("org/name", FILES)
    cache(root).get_tree(REF)
    hub.add("org/name", {**FILES, "model-00002.safetensors": SHARDS[2]})
    before = len(blobs(hub))

    tree = cache(root).get_tree(REF, force_download=True)

    assert content_of(tree) == {**FILES, "model-00002.safetensors": SHARDS[2]}
    assert len(blobs(hub)) - before == 1
    whole(root)
