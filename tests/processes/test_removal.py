"""Removing content while others store and name it: no record is left that names what is gone (I2, I3).

The interleavings are forced, one by one, at the boundaries between the system calls; a storm of real processes then
looks for those that nobody thought of.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import failpoints
from modelcache import Cache, commit, errors, layout, objects
from modelcache.digest import Digest
from modelcache.objects import Objects
from modelcache.records import Entries
from modelcache.sweep import sweep
from modelcache.testing import FaultServer
from tests.crash.world import forked
from tests.support.state import leftovers, wrong_objects

CONTENT = random.Random(6).randbytes(100_000)


def once_before(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> None:
    """Do *action* right before the next call of ``commit.<name>``."""
    call = getattr(commit, name)

    def hooked(*args: object, **options: object) -> object:
        monkeypatch.setattr(commit, name, call)
        action()
        return call(*args, **options)

    monkeypatch.setattr(commit, name, hooked)


def named_objects_stand(root: Path) -> None:
    for entry in Entries(str(root)).all():
        assert Path(entry.path).read_bytes() == CONTENT, f"{entry.key} names what is gone"
    assert wrong_objects(root) == []
    assert leftovers(root) == []


@pytest.mark.parametrize("step", ["commit_object", "make_mark", "commit_record", "remove_quietly"])
def test_a_removal_in_the_middle_of_a_put_of_the_same_content(
    step: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cache(root).put(CONTENT, name="old")
    once_before(monkeypatch, step, lambda: Cache(root).remove("old"))

    path = Cache(root).put(CONTENT, name="new").path

    assert Path(path).read_bytes() == CONTENT
    assert Cache(root).get("new") == path
    named_objects_stand(root)


@pytest.mark.parametrize("step", ["move_durably", "discard", "remove_record"])
def test_a_put_in_the_middle_of_a_removal_of_the_same_content(
    step: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the remover had been stopped for longer than the other one waits for it."""
    monkeypatch.setattr(objects, "_REMOVAL_S", 0.0)
    Cache(root).put(CONTENT, name="old")
    once_before(monkeypatch, step, lambda: Cache(root).put(CONTENT, name="new"))

    Cache(root).remove("old")

    assert Path(Cache(root).get("new")).read_bytes() == CONTENT
    named_objects_stand(root)


@pytest.mark.parametrize("step", ["make_mark", "commit_record", "remove_quietly"])
def test_a_removal_in_the_middle_of_a_hit_by_digest(step: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Cache(root).put(CONTENT, name="old").digest
    once_before(monkeypatch, step, lambda: Cache(root).remove("old"))

    try:
        path = Cache(root, offline=True).get("https://host.invalid/m.onnx", digest=digest)
    except errors.LocalNotFoundError:
        assert step == "make_mark"  # It was gone before anybody said that it is wanted.
    else:
        assert Path(path).read_bytes() == CONTENT
    named_objects_stand(root)


@pytest.mark.parametrize("step", ["make_mark", "commit_record"])
def test_a_removal_in_the_middle_of_a_refresh(
    step: str, server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", CONTENT)
    Cache(root).get(url)
    once_before(monkeypatch, step, lambda: Cache(root).remove(url))

    path = Cache(root).get(url, force_download=True)

    assert Path(path).read_bytes() == CONTENT
    named_objects_stand(root)


def test_a_removal_in_the_middle_of_a_first_get_of_the_same_content(
    server: FaultServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cache(root).put(CONTENT, name="old")
    once_before(monkeypatch, "commit_record", lambda: Cache(root).remove("old"))

    path = Cache(root).get(server.add("/m.onnx", CONTENT))

    assert Path(path).read_bytes() == CONTENT
    named_objects_stand(root)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_what_a_record_names_that_cannot_be_read_stays(
    number: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(root)
    for name in ("kept", "n"):
        cache.put(CONTENT, name=name)
    unreadable, real = Entries(str(root)).path("kept"), os.open

    def failing(path: str, *arguments: int, **options: int) -> int:
        if path == unreadable:
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        cache.remove("n")

    assert Path(Cache(root).get("kept")).read_bytes() == CONTENT


@pytest.mark.parametrize("call", ["listdir", "rename"])
def test_a_sweep_that_cannot_put_back_leaves_it_to_the_next_one(
    call: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Cache(root).put(CONTENT, name="n").digest
    child = forked(lambda: _die_in_remove(root, digest))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    real: Callable[..., object] = getattr(os, call)
    staging = f"{root}/{layout.STAGING}"
    looks: list[str] = []

    def failing(path: str, *arguments: str) -> object:
        looks.append(path)
        # The first listing of staging is the sweep's own.
        if (path == staging and looks.count(staging) > 1) or f"/{layout.TRASH}/" in path:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        sweep(str(root))
    assert len(list((root / layout.TRASH).iterdir())) == 1

    sweep(str(root))
    assert Path(Cache(root).get("n")).read_bytes() == CONTENT
    assert leftovers(root) == []


def _die_in_remove(root: Path, digest: Digest) -> None:
    with failpoints.scenario("commit.before-discard=kill"):
        Objects(str(root)).remove(digest, is_named=lambda _: False)


def test_a_whole_object_that_takes_the_place_of_an_altered_one_at_the_last_moment_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Objects(str(root))
    entry = Cache(root).put(CONTENT, name="m")
    seen = os.stat(entry.path)

    def repaired() -> None:
        store.quarantine(entry.digest, "found altered", seen)
        Cache(root).put(CONTENT, name="m")

    once_before(monkeypatch, "move_durably", repaired)

    assert store.quarantine(entry.digest, "found altered", seen) == ""
    assert Path(Cache(root).get("m")).read_bytes() == CONTENT


def test_a_whole_object_that_replaced_an_altered_one_is_not_set_aside(root: Path) -> None:
    """Thirty-two processes find one altered object; the slowest must not set aside what the fastest has repaired."""
    store = Objects(str(root))
    entry = Cache(root).put(CONTENT, name="m")
    seen = os.stat(entry.path)
    store.quarantine(entry.digest, "found altered", seen)
    Cache(root).put(CONTENT, name="m")

    assert store.quarantine(entry.digest, "found altered, later", seen) == ""

    assert Path(Cache(root).get("m")).read_bytes() == CONTENT


_STORM = """
import sys
from modelcache import Cache, errors
number, root, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
cache = Cache(root)
content = open(path, "rb").read()
digest = sys.argv[4]
sys.stdin.readline()
for turn in range(int(sys.argv[5])):
    kind = (number + turn) % 3
    if kind == 0:
        entry = cache.put(content, name=f"mine-{number}")
        assert open(entry.path, "rb").read() == content, "a put that returned is gone"
        assert cache.lookup(f"mine-{number}") is not None
    elif kind == 1:
        cache.remove(f"mine-{number}")
    else:
        try:
            cache.get(f"https://host.invalid/{number}.onnx", digest=digest, local_files_only=True)
        except errors.LocalNotFoundError:
            pass
        cache.remove(f"https://host.invalid/{number}.onnx")
print("done")
"""


def test_a_storm_of_puts_and_removals_of_one_content_loses_no_acknowledged_put(
    root: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    turns = 300 if pytestconfig.getoption("--crash-budget") == "large" else 40
    file = tmp_path / "content"
    file.write_bytes(CONTENT)
    digest = Cache(root).put(CONTENT, name="first").digest
    Cache(root).remove("first")
    command = [sys.executable, "-c", _STORM]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(root), str(file), digest, str(turns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=300)[0].strip() for process in processes]

    assert outcomes == ["done"] * 6
    named_objects_stand(root)
