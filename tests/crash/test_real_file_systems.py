"""Real file systems, cut at random instants: what a journal really brings back.

ext4 and XFS in an image on a loop device (root is needed): processes work on it, are stopped, and the image is copied
as it is, without what the kernel still holds back. That copy is what a disk holds after a power cut. It is taken for
exact only if a second copy is the same: then nothing was written meanwhile. Mounting it replays its journal; then
`check_cache` and a new cache look at it.

The FUSE layer is stricter than a real disk: it forgets everything that was not synced, at once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, process
from modelcache.sweep import sweep
from modelcache.testing import FaultServer, check_cache
from tests.crash.test_broken_twins import no_directory_sync, no_file_sync
from tests.crash.test_random_kills import CONTENTS, Promises, start
from tests.support.state import leftovers

# The smallest image that each makes without complaint.
FORMATS = {"ext4": (["mkfs.ext4", "-q", "-F"], 64), "xfs": (["mkfs.xfs", "-q", "-f"], 320)}


def reason_not_to(kind: str) -> str:
    """Return why the file system *kind* cannot be had here; "" if it can."""
    if sys.platform != "linux":
        return "loop devices are Linux's"
    if os.geteuid() != 0:
        return "mounting needs root"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices here"
    tool = FORMATS[kind][0][0]
    return "" if shutil.which(tool) else f"{tool} is not installed"


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"{' '.join(command)}: {done.stderr.strip()}"


@contextmanager
def mounted(image: Path, place: Path, kind: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    options = "loop,nouuid" if kind == "xfs" else "loop"  # Two images of one file system are mounted at once.
    refused = call("mount", "-t", kind, "-o", options, str(image), str(place))
    if refused:
        pytest.skip(f"it cannot be mounted here: {refused}")
    try:
        yield
    finally:
        assert call("umount", str(place)) == ""


def copied(image: Path, copy: Path) -> bool:
    """Copy *image* as it is at one instant; False if it was written meanwhile."""
    assert call("cp", "--sparse=always", str(image), str(copy)) == ""
    return call("cmp", str(image), str(copy)) == ""


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_of_a_real_file_system_takes_nothing_back(
    kind: str, server: FaultServer, tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = reason_not_to(kind)
    if reason:
        pytest.skip(reason)
    cuts = 100 if pytestconfig.getoption("--crash-budget") == "large" else 5
    chance = random.Random(pytestconfig.getoption("--crash-seed"))
    pause = threading.Event()
    for number, content in enumerate(CONTENTS):
        for query in ("", "?0", "?1", "?2", "?3"):
            server.add(f"/{number}.onnx{query}", content)
    image, copy = tmp_path / "image", tmp_path / "copy"
    command, size = FORMATS[kind]
    image.touch()
    os.truncate(image, size << 20)
    assert call(*command, str(image)) == ""

    done = looked_at = 0
    with mounted(image, tmp_path / "disk", kind):
        root = tmp_path / "disk" / "cache"
        victims = start(root, server.url(""), tmp_path / "barrier", "real", 0)
        try:
            while done < cuts:
                pause.wait(chance.uniform(0.0, 0.1))
                os.killpg(victims[0].pid, signal.SIGSTOP)
                promises = Promises()
                promises.hear(victims)
                sure = promises.certain
                exact = copied(image, copy)
                os.killpg(victims[0].pid, signal.SIGCONT)
                if not exact:
                    continue
                done += 1
                looked_at += len(sure)
                with mounted(copy, tmp_path / "after", kind), monkeypatch.context() as patch:
                    patch.setattr(process, "boot_id", lambda: "b00ted00")
                    after_the_cut(tmp_path / "after" / "cache", server, sure, f"cut {done}")
        finally:
            victims[0].kill_group()
            for victim in victims:
                with victim:
                    victim.kill()
    print(f"{kind}: {done} cuts; {looked_at} promises looked at")
    assert looked_at > done


def after_the_cut(root: Path, server: FaultServer, sure: dict[str, str | None], when: str) -> None:
    broken = [str(v) for v in check_cache(root, sure) if v.kind != "garbage"]
    assert broken == [], when
    with Cache(root, retry=RetryPolicy(attempts=2, base=0)) as cache:
        for number, content in enumerate(CONTENTS):
            path = cache.get(server.url(f"/{number}.onnx"), force_download=True)
            assert Path(path).read_bytes() == content, when
    sweep(str(root))
    assert [name for name in leftovers(root) if not name.startswith("partial-v1")] == [], when


@pytest.mark.parametrize("twin", [None, no_file_sync, no_directory_sync])
def test_a_disk_that_forgets_all_that_was_not_synced_still_holds_what_was_acknowledged(
    twin: Callable[[pytest.MonkeyPatch], None] | None,
    server: FaultServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it is caught there if a sync is left out: the two broken twins are the proof that the layer forgets."""
    try:
        import mfusepy  # noqa: F401  # It looks for the library when it is imported.
    except (ImportError, OSError) as error:
        pytest.skip(f"mfusepy cannot be used here: {error}")
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse here")
    store, place = tmp_path / "store", tmp_path / "mount"
    store.mkdir()
    place.mkdir()
    layer = subprocess.Popen(
        [sys.executable, "-m", "tests.crash.forgetful", str(store), str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert layer.stdout is not None
    assert layer.stderr is not None
    if twin is not None:
        twin(monkeypatch)
    try:
        if layer.stdout.readline().strip() != "mounted":
            pytest.skip(f"it cannot be mounted here: {layer.stderr.read().strip()}")
        sure: dict[str, str | None] = {}
        with Cache(place / "cache", retry=RetryPolicy(attempts=2, base=0)) as cache:
            for number, content in enumerate(CONTENTS):
                url = server.add(f"/{number}.onnx", content)
                cache.get(url)
                entry = cache.lookup(url)
                assert entry is not None
                sure[url] = entry.digest
                sure[f"n{number}"] = cache.put(content[::-1], name=f"n{number}").digest
            cache.remove("n0")
            sure["n0"] = None
    finally:
        call("fusermount3", "-u", str(place))
        layer.kill()
        layer.communicate()

    # What lies in the store is what was synced; the rest was in the layer's memory, and is gone with it.
    monkeypatch.setattr(process, "boot_id", lambda: "b00ted00")
    assert len(sure) == 2 * len(CONTENTS)
    if twin is None:
        after_the_cut(store / "cache", server, sure, "after the layer has gone")
    else:
        if (store / "cache" / "format").exists():
            (store / "cache" / "format").write_text("1\n")  # An empty one refuses any further look.
        assert {violation.promise for violation in check_cache(store / "cache", sure)} >= {"I3"}
