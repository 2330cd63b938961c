"""Several users of one machine and one cache: who is in its group does all to what the others made, who is not reads.

Each is a real user (setuid), with a umask that would lock the others out, or let everybody in. After each of these
stories nothing in the root differs from what its config says.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import failpoints
from modelcache import Cache, RetryPolicy, doctor, errors, layout, locks, mending, sharing
from modelcache.cli import run
from modelcache.errors import GroupError, LeasedError, NetworkError, RootError
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers
from tests.support.users import Call, User, common_directory, needs_users

pytestmark = needs_users

TEAM = 31_000
ANN = User(31_001, (TEAM,), umask=0o077)
BOB = User(31_002, (TEAM,), umask=0o000)
CAT = User(31_003, (TEAM,), umask=0o777)
EVE = User(31_004, (), umask=0o022)
CONTENT = random.Random(5).randbytes(300_000)
OTHER = random.Random(6).randbytes(200_000)
SHARED = ("group", "group-everyone-read")


@pytest.fixture
def place() -> Iterator[Path]:
    with common_directory() as found:
        os.chmod(found, 0o777)
        yield found


@pytest.fixture
def root(place: Path) -> str:
    return made(place, "group-everyone-read")


def made(place: Path, access: str) -> str:
    """Return a cache that Ann has made for the team."""
    root = str(place / "cache")
    left = ANN.does(_init, root, access)
    assert all(one.mended for one in left), left
    return root


def _init(root: str, access: str) -> list[mending.Difference]:
    return mending.init(root, access=access, group=str(TEAM) if "group" in access else "")


def get(root: str, ref: str, **options: Any) -> bytes:
    with Cache(root, retry=RetryPolicy(attempts=1, base=0)) as cache:
        return Path(cache.get(ref, **options)).read_bytes()


def put(root: str, content: bytes, name: str) -> None:
    with Cache(root) as cache:
        cache.put(content, name=name)


def put_tree(root: str, source: str, name: str) -> None:
    with Cache(root) as cache:
        cache.put_tree(source, name=name)


def remove(root: str, ref: str) -> bool:
    with Cache(root) as cache:
        return cache.remove(ref)


def pin(root: str, ref: str) -> None:
    with Cache(root) as cache:
        cache.pin(ref)


def unpin(root: str, ref: str) -> bool:
    with Cache(root) as cache:
        return cache.unpin(ref)


def collect(root: str) -> int:
    # The second process that gc tries its lock against cannot be started where only root reads the interpreter.
    locks._excluding.add(os.stat(root).st_dev)
    with Cache(root) as cache:
        return len(cache.plan_gc(unused_for=0, grace=0).execute().removed)


def repair(root: str) -> list[tuple[str, bool]]:
    with Cache(root, retry=RetryPolicy(attempts=1, base=0)) as cache:
        return [(finding.state, finding.repaired) for finding in cache.verify(repair=True).findings]


def hold(root: str, ref: str, told: str, until: str) -> bool:
    with Cache(root) as cache, cache.lease(ref) as lease:
        with open(told, "wb"):
            pass
        with open(until, "rb"):
            return lease.protected


def command(root: str, *arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*arguments, "--root", root])
    return code, out.getvalue(), err.getvalue()


def in_line(root: str) -> list[str]:
    """Return what is wrong after a story: modes, groups, promises, left-overs."""
    rule = sharing.read(root)
    assert rule is not None
    found = [f"{one.path}: {one.what}" for one in mending.differences(root, rule)]
    return found + [str(one) for one in check_cache(root) if one.kind != "garbage"] + leftovers(Path(root))


@pytest.mark.parametrize("access", SHARED)
@pytest.mark.parametrize(("first", "second"), [(ANN, BOB), (BOB, CAT), (CAT, ANN)])
def test_a_member_does_everything_to_what_another_one_made(
    first: User, second: User, access: str, place: Path, server: FaultServer
) -> None:
    root = made(place, access)
    url = server.add("/m.onnx", CONTENT)

    assert first.does(get, root, url) == CONTENT
    assert second.does(get, root, url) == CONTENT
    assert len(server.seen()) == 1
    server.add("/m.onnx", OTHER)
    assert second.does(lambda: get(root, url, force_download=True)) == OTHER
    assert first.does(get, root, url) == OTHER
    first.does(put, root, CONTENT, "n")
    second.does(put, root, OTHER, "n")
    assert first.does(get, root, "n") == OTHER
    first.does(pin, root, "n")
    assert second.does(unpin, root, "n") is True
    assert second.does(remove, root, url) is True
    assert first.does(remove, root, "n") is True
    first.does(put, root, CONTENT, "old")
    assert second.does(collect, root) >= 1
    assert in_line(root) == []


@pytest.mark.parametrize("rounds", [True, False], ids=["the one who fetched", "another one"])
def test_a_member_resumes_what_another_one_began(rounds: bool, root: str, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=200_000)])
    with pytest.raises(NetworkError):
        ANN.does(get, root, url)

    assert (ANN if rounds else BOB).does(get, root, url) == CONTENT

    asked = server.seen()[-1]
    assert asked.headers["range"] == "bytes=200000-"
    assert in_line(root) == []
    published = next(Path(root, layout.OBJECTS).glob("*/m.onnx")).stat()
    assert published.st_uid == (ANN if rounds else BOB).uid
    assert stat.S_IMODE(published.st_mode) == 0o444


def test_a_member_resumes_after_a_kill_of_another_one(root: str, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(hold_after=200_000)])
    began: Call = ANN.begin(get, root, url)
    server.wait_for_sent(200_000)
    began.kill()
    server.release()

    assert BOB.does(get, root, url) == CONTENT
    assert in_line(root) == []


def test_members_give_each_others_content_second_names(root: str, place: Path) -> None:
    source = place / "tree"
    source.mkdir()
    (source / "weights.bin").write_bytes(CONTENT)
    (source / "run").write_bytes(b"#!")
    (source / "run").chmod(0o755)
    ANN.does(put, root, CONTENT, "dir/first.onnx")
    ANN.does(put_tree, root, str(source), "t")

    BOB.does(put, root, CONTENT, "dir/second.onnx")
    BOB.does(put_tree, root, str(source), "dir/t2")

    with Cache(root) as cache:
        assert os.path.basename(cache.get("dir/second.onnx")) == "second.onnx"
        assert os.path.basename(cache.get("dir/t2")) == "t2"
        assert os.access(f"{cache.get('dir/t2')}/run", os.X_OK)
    assert in_line(root) == []


def test_a_member_repairs_what_another_one_stored(root: str, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    ANN.does(get, root, url)
    path = next(Path(root, layout.OBJECTS).glob("*/m.onnx"))
    ANN.does(_alter, str(path))

    assert BOB.does(repair, root) == [("corrupt", True)]

    assert BOB.does(get, root, url) == CONTENT
    assert in_line(root) == []


def _alter(path: str) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(b"altered")
    os.chmod(path, 0o444)


def test_what_a_member_leases_no_other_one_removes(root: str, place: Path) -> None:
    ANN.does(put, root, CONTENT, "n")
    told, until = str(place / "told"), str(place / "until")
    for path in (told, until):
        os.mkfifo(path)
        os.chmod(path, 0o666)
    holder = ANN.begin(hold, root, "n", told, until)
    with open(told, "rb"):
        pass

    with pytest.raises(LeasedError):
        BOB.does(remove, root, "n")
    assert BOB.does(collect, root) == 0
    assert CAT.does(get, root, "n") == CONTENT

    with open(until, "wb"):
        pass
    assert holder.result() is True
    assert BOB.does(remove, root, "n") is True
    assert in_line(root) == []


POINTS = [
    "commit.before-mode", "commit.before-link-lock", "commit.before-set-access", "locks.after-acquire",
    "commit.before-create-file", "partials.before-append", "partials.before-publish", "commit.before-sync-file",
    "commit.before-rename-object", "commit.before-sync-objects", "commit.before-rename-record",
    "commit.before-sync-records", "commit.before-discard", "locks.before-unlink",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_wherever_a_member_is_killed_another_one_goes_on(point: str, root: str, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)

    def cut_off() -> None:
        with failpoints.scenario(f"{point}=kill"):
            get(root, url)

    assert ANN.begin(cut_off).died(), f"{point} was not reached"
    assert BOB.does(get, root, url) == CONTENT
    BOB.does(sweep, root)

    assert CAT.does(get, root, url) == CONTENT
    assert in_line(root) == []


def export(root: str, ref: str, to: str) -> None:
    with Cache(root) as cache:
        cache.export(ref, to=to)


def take_in(root: str, path: str) -> None:
    with Cache(root) as cache:
        cache.import_(path)


def test_a_member_imports_what_another_one_exported(root: str, place: Path) -> None:
    ANN.does(put, root, CONTENT, "n")
    bundle = str(place / "bundle.tar")
    BOB.does(export, root, "n", bundle)
    ANN.does(remove, root, "n")

    CAT.does(take_in, root, bundle)

    assert ANN.does(get, root, "n") == CONTENT
    assert in_line(root) == []


def test_a_directory_that_is_missing_is_its_owners_to_make(root: str) -> None:
    os.rmdir(f"{root}/{layout.LEASES}")

    with pytest.raises(RootError, match="its owner mends"):
        BOB.does(put, root, CONTENT, "n")
    assert ANN.does(command, root, "doctor", "--fix")[0] == 0
    BOB.does(put, root, CONTENT, "n")

    assert in_line(root) == []


def test_what_a_killed_member_left_another_one_sweeps(root: str, server: FaultServer) -> None:
    url = server.add("/big.onnx", CONTENT, [Fault(hold_after=100_000)])
    began = ANN.begin(get, root, url)
    server.wait_for_sent(100_000)
    began.kill()
    server.release()
    assert Path(root, layout.LOCKS).iterdir()

    other = server.add("/other.onnx", OTHER)
    assert BOB.does(get, root, other) == OTHER
    BOB.does(remove, root, url)

    assert in_line(root) == []


def _commands(ref: str, target: str) -> dict[str, list[str]]:
    return {
        "get": ["get", ref], "path": ["path", ref], "ls": ["ls"], "info": ["info", ref], "verify": ["verify"],
        "du": ["du"], "stats": ["stats"], "tiers": ["tiers"], "export": ["export", ref, "--to", target],
        "gc": ["gc", "--dry-run"], "config": ["config"],
    }  # fmt: skip


@pytest.mark.parametrize("what", sorted(_commands("", "")))
def test_who_may_only_read_needs_no_more(what: str, root: str, place: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    ANN.does(get, root, url)
    before = _state(root)
    target = place / "mine"
    target.mkdir()
    os.chown(target, EVE.uid, EVE.uid)

    code, _, said = EVE.does(command, root, *_commands(url, str(target / "b.tar"))[what])

    assert code == 0, said
    assert _state(root) == before


def test_a_miss_of_who_may_only_read_says_whose_the_cache_is_and_who_can_help(root: str, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)

    code, _, said = EVE.does(command, root, "get", url)

    assert code == 1
    assert f"belongs to user {ANN.uid}" in said
    assert f"those in {TEAM} may write" in said
    assert server.seen() == []


def test_who_may_only_read_is_told_that_a_lease_holds_nothing(root: str) -> None:
    ANN.does(put, root, CONTENT, "n")

    def lease() -> tuple[bool, bytes]:
        with Cache(root) as cache, cache.lease("n") as found:
            return found.protected, Path(found.path).read_bytes()

    assert EVE.does(lease) == (False, CONTENT)


def test_who_may_only_read_leaves_what_is_corrupt_in_its_place(root: str) -> None:
    ANN.does(put, root, CONTENT, "n")
    path = next(Path(root, layout.OBJECTS).glob("*/n"))
    ANN.does(_alter, str(path))
    before = _state(root)

    code, said, _ = EVE.does(command, root, "verify", "--json")

    assert code == 7
    assert "left in place" in said
    assert _state(root) == before


def test_who_is_not_in_the_group_of_a_closed_cache_gets_nothing_of_it(place: Path, server: FaultServer) -> None:
    root = made(place, "group")
    url = server.add("/m.onnx", CONTENT)
    ANN.does(get, root, url)

    with pytest.raises(errors.ModelCacheError) as caught:
        EVE.does(get, root, url)

    assert f"user {ANN.uid}" in str(caught.value)
    with pytest.raises(PermissionError):
        EVE.does(os.listdir, root)


@pytest.mark.parametrize("access", ["group-read", "everyone-read"])
def test_where_only_the_owner_writes_a_member_reads_and_is_told_whom_to_ask(
    access: str, place: Path, server: FaultServer
) -> None:
    root = str(place / "cache")
    ANN.does(_init, root, access)
    url = server.add("/m.onnx", CONTENT)
    ANN.does(get, root, url)

    assert BOB.does(get, root, url) == CONTENT
    with pytest.raises(RootError, match=f"belongs to user {ANN.uid}"):
        BOB.does(get, root, server.add("/other.onnx", OTHER))
    assert in_line(root) == []


def test_only_the_owner_changes_what_decides(root: str) -> None:
    with pytest.raises(errors.StorageError):
        BOB.does(_init, root, "everyone-read")
    with pytest.raises(PermissionError):
        BOB.does(os.rename, f"{root}/{layout.ENTRIES}", f"{root}/mine")


def test_a_group_that_one_is_not_in_is_refused_before_anything_is_made(place: Path) -> None:
    with pytest.raises(GroupError) as caught:
        EVE.does(_init, str(place / "cache"), "group")

    assert caught.value.facts["group"] == str(TEAM)
    assert os.listdir(place) == []


def test_modes_are_mended_by_their_owners_alone(root: str) -> None:
    ANN.does(put, root, CONTENT, "a")
    BOB.does(put, root, OTHER, "b")
    for directory, _, names in os.walk(root):
        for name in names if directory != root else ():
            os.chmod(f"{directory}/{name}", 0o600)

    code, said, _ = BOB.does(command, root, "doctor", "--fix")

    assert code == 1, said
    assert f"it belongs to user {ANN.uid}" in said
    assert ANN.does(command, root, "doctor", "--fix")[0] == 0
    assert BOB.does(command, root, "doctor", "--fix")[0] == 0
    assert in_line(root) == []


def test_three_members_at_once_download_once_and_leave_nothing_wrong(root: str, server: FaultServer) -> None:
    urls = [server.add(f"/{number}.onnx", CONTENT + bytes([number])) for number in range(4)]

    def work() -> list[int]:
        return [len(get(root, url)) for url in urls]

    calls = [user.begin(work) for user in (ANN, BOB, CAT)]

    assert [call.result() for call in calls] == [[len(CONTENT) + 1] * 4] * 3
    assert len(server.seen()) == 4
    assert in_line(root) == []


def _state(root: str) -> dict[str, tuple[int, int, int]]:
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            facts = os.lstat(f"{directory}/{name}")
            found[f"{directory}/{name}"] = facts.st_ino, facts.st_mode, facts.st_mtime_ns
    return found


def test_a_program_of_another_member_that_is_setuid_is_copied_without_that(root: str) -> None:
    """Linux refuses the second name of a setuid file; a copy with its bits would run as who copied it."""
    ANN.does(put, root, CONTENT, "n")
    (planted,) = Path(root, layout.OBJECTS).glob("*/n")
    planted.chmod(0o6755)

    BOB.does(put, root, CONTENT, "m")

    made = planted.with_name("m").stat()
    assert made.st_uid == BOB.uid
    assert stat.S_IMODE(made.st_mode) & ~0o555 == 0


def test_who_denies_himself_everything_by_umask_can_make_a_cache(place: Path) -> None:
    root = str(place / "cache")

    assert all(one.mended for one in CAT.does(_init, root, "group"))
    CAT.does(put, root, CONTENT, "n")
    assert BOB.does(get, root, "n") == CONTENT
    assert in_line(root) == []


@pytest.mark.parametrize("bucket", sharing.BUCKETS)
def test_the_owner_mends_a_directory_that_nobody_could_enter_and_all_in_it_at_once(bucket: str, root: str) -> None:
    ANN.does(put, root, CONTENT, "n")
    within = Path(root, bucket, "within")
    ANN.does(_make, str(within))
    within.chmod(0)
    Path(root, bucket).chmod(0)

    found = ANN.does(doctor.fix, root)

    skipped = bucket in {layout.STAGING, layout.PARTIALS}  # Nobody can tell whose that is.
    paths = [f"{root}/{bucket}"] if skipped else [f"{root}/{bucket}", str(within), f"{within}/file"]
    assert [one.path for one in found if one.mended] == paths
    assert ANN.does(doctor.fix, root) == []


def _make(directory: str) -> None:
    os.mkdir(directory)
    with open(f"{directory}/file", "wb"):
        pass


def test_a_directory_of_a_group_that_its_owner_is_not_in_is_shared_with_nobody(place: Path) -> None:
    root = place / "cache"
    root.mkdir()
    os.chown(root, ANN.uid, 0)

    with pytest.raises(GroupError, match="group 0"):
        ANN.does(_init, str(root), "everyone-read")

    assert os.listdir(root) == []
    assert ANN.does(_init, str(root), "private") is not None


def test_a_directory_that_cannot_be_listed_is_a_typed_error(place: Path) -> None:
    root = place / "cache"
    root.mkdir()
    os.chown(root, ANN.uid, ANN.uid)
    root.chmod(0o300)

    with pytest.raises(errors.StorageError, match="could not list"):
        ANN.does(_init, str(root), "group")


def test_who_may_only_read_holds_nothing_where_the_config_is_broken(root: str) -> None:
    ANN.does(put, root, CONTENT, "n")
    Path(root, "config.toml").write_text("[")
    Path(root, "config.toml").chmod(0o644)

    assert EVE.does(_protected, root, "n") is False


def _protected(root: str, ref: str) -> bool:
    with Cache(root) as cache, cache.lease(ref) as lease:
        return lease.protected


def test_a_member_does_not_decide_who_may_use_the_cache(root: str) -> None:
    before = Path(root, "config.toml").read_bytes()

    with pytest.raises(RootError, match="only its owner changes, and") as caught:
        BOB.does(_init, root, "group")

    assert f"{root} belongs to user {ANN.uid}" in str(caught.value)
    assert Path(root, "config.toml").read_bytes() == before
    assert in_line(root) == []
