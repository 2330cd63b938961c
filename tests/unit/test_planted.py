"""What another user has planted in a root that he may write to: links, FIFOs, sockets, in place of the cache's own.

Whatever it is, it leads to a miss, to an error or to quarantine: never to bytes from outside the root that nobody has
hashed, never to a change outside the root, and never to a wait.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, commit, doctor, hit, layout, locks, mending, process, sharing
from modelcache.errors import CacheConfigError, FormatError, LinkError, ModelCacheError, RootError
from modelcache.leases import Leases
from modelcache.objects import Objects
from modelcache.promises import check_cache
from modelcache.records import Entries
from modelcache.sealed import seal, unseal
from modelcache.sweep import sweep
from modelcache.testing import Fault, FaultServer

CONTENT = bytes(range(256)) * 400
FORGED = bytes(reversed(range(256))) * 400
DEAD = "00000000-00000000-1-1-1-00000000"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory of a user that nothing here may change; it is compared at the end."""
    place = tmp_path / "outside"
    (place / "deep").mkdir(parents=True)
    (place / "m.onnx").write_bytes(FORGED)
    (place / "state").write_text("secret")
    (place / "deep" / "kept").write_text("secret")
    before = picture(place)
    yield place
    assert picture(place) == before


def picture(place: Path) -> dict[str, object]:
    return {
        str(path): (os.lstat(path).st_mode, os.lstat(path).st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [place, *place.rglob("*")]
    }


@pytest.fixture
def url(server: FaultServer) -> str:
    return server.add("/m.onnx", CONTENT)


@pytest.fixture
def filled(root: Path, url: str) -> Path:
    with Cache(root) as cache:
        cache.get(url)
    return root


def the(pattern: str, root: Path) -> Path:
    (found,) = root.glob(pattern)
    return found


def forge(path: Path, like: os.stat_result) -> None:
    """Give *path* what a hit looks at."""
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def work(root: Path, url: str) -> None:
    """Do all that a user does; what cannot be done is told as an error of the cache."""
    calls: list[Callable[[Cache], object]] = [
        lambda cache: cache.get(url),
        lambda cache: cache.get(url, force_download=True),
        lambda cache: cache.put(CONTENT + b"2", name="n"),
        lambda cache: cache.pin("n"),
        lambda cache: cache.lease("n").release(),
        lambda cache: cache.verify(repair=True),
        lambda cache: cache.unpin("n"),
        lambda cache: cache.plan_gc(unused_for=0, grace=0).execute(),
        lambda cache: cache.remove(url),
        lambda cache: sweep(str(root)),
        lambda cache: doctor.health(str(root), offline=True),
        lambda cache: list(doctor.examine(str(root), locking=False, durability=False)),
    ]
    with Cache(root, retry=RetryPolicy(attempts=1)) as cache:
        for call in calls:
            try:
                call(cache)
            except ModelCacheError:
                continue


# -- a bucket that is a link -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bucket", sharing.BUCKETS)
@pytest.mark.parametrize("fresh", [True, False], ids=["of a new process", "after a look"])
def test_a_bucket_that_is_a_link_is_written_to_by_nobody(
    bucket: str, fresh: bool, filled: Path, outside: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (filled / bucket).exists():
        shutil.move(filled / bucket, filled.parent / f"old-{bucket}")
    (filled / bucket).symlink_to(outside)
    if fresh:
        monkeypatch.setattr(sharing, "_checked", set())

    with Cache(filled) as cache, pytest.raises(LinkError, match="is a symbolic link") as caught:
        cache.put(CONTENT + b"3", name="x")
    work(filled, url)

    assert caught.value.facts["path"] == f"{filled}/{bucket}"
    assert (filled / bucket).is_symlink()


@pytest.mark.parametrize("bucket", sharing.BUCKETS)
def test_a_bucket_that_is_a_link_is_reported(bucket: str, filled: Path, outside: Path) -> None:
    if (filled / bucket).exists():
        shutil.move(filled / bucket, filled.parent / f"old-{bucket}")
    (filled / bucket).symlink_to(outside)

    found = check_cache(filled)

    assert f"{filled}/{bucket}" in {violation.where for violation in found if violation.kind == "corrupt"}


# -- something planted in a bucket -------------------------------------------------------------------------------------


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "m.onnx")


def link_to_a_directory(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "not there")


def fifo(path: Path, _outside: Path) -> None:
    os.mkfifo(path)


def of_a_socket(path: Path, _outside: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


PLANTS = [link, link_to_a_directory, dangling, fifo, of_a_socket]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("bucket", sharing.BUCKETS)
@pytest.mark.parametrize("name", [DEAD, f"{DEAD}.sha256-{'0' * 64}", "f" * 64, f"sha256-{'0' * 64}", "x.lock"])
def test_what_is_planted_under_any_name_harms_nothing_outside(
    name: str, bucket: str, plant: Callable[[Path, Path], None], filled: Path, outside: Path, url: str,
) -> None:  # fmt: skip
    (filled / bucket).mkdir(exist_ok=True)
    plant(filled / bucket / name, outside)

    work(filled, url)

    with Cache(filled) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT


@pytest.mark.parametrize("plant", PLANTS)
def test_a_record_that_is_planted_is_a_miss(
    plant: Callable[[Path, Path], None], filled: Path, outside: Path, url: str, server: FaultServer
) -> None:
    record = the(f"{layout.ENTRIES}/*", filled)
    before = record.read_bytes()
    record.unlink()
    plant(record, outside)
    (filled / "copy").write_bytes(before)

    assert hit.look(str(filled), url) is None
    assert Entries(str(filled)).read(url) is None
    with Cache(filled) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT
    assert not record.is_symlink()


def test_a_record_behind_a_link_is_not_read_however_whole_it_is(filled: Path, url: str, tmp_path: Path) -> None:
    record = the(f"{layout.ENTRIES}/*", filled)
    record.rename(tmp_path / "whole")
    record.symlink_to(tmp_path / "whole")

    assert hit.look(str(filled), url) is None
    assert Entries(str(filled)).read(url) is None
    assert list(Entries(str(filled)).heads()) == []
    with Cache(filled, offline=True) as cache, pytest.raises(ModelCacheError):
        cache.get(url)


@pytest.mark.parametrize("where", ["the file", "the object"])
@pytest.mark.parametrize("door", ["api", "a cache", "a cache that knew it", "verify"])
def test_content_behind_a_link_is_never_a_hit(
    where: str, door: str, root: Path, outside: Path, url: str, server: FaultServer
) -> None:
    """The forger gives it the size and the time that are on record: all that a hit looks at."""
    mending.init(str(root), access="group")
    with Cache(root) as cache:
        path = Path(cache.get(url))
        facts = path.stat()
        place = root.parent / "forged"
        place.mkdir()
        (place / "m.onnx").write_bytes(FORGED)
        forge(place / "m.onnx", facts)
        if where == "the file":
            path.unlink()
            path.symlink_to(place / "m.onnx")
        else:
            shutil.move(path.parent, root.parent / "moved")
            path.parent.symlink_to(place)

        if door == "api":
            assert hit.look(str(root), url, recently=True) is None
        if door == "verify":
            assert [finding.state for finding in cache.verify().findings] != ["ok"]
        if door == "a cache that knew it" and where == "the file":
            assert Path(cache.get(url)).read_bytes() == CONTENT
    with Cache(root) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT
        assert not os.path.islink(cache.get(url))

    assert (place / "m.onnx").read_bytes() == FORGED
    assert len(server.seen()) == 2
    assert [one for one in check_cache(root) if one.kind == "corrupt" and layout.OBJECTS in one.where] == []


def test_an_object_that_is_a_link_is_reported_and_repaired(filled: Path, outside: Path, url: str) -> None:
    path = the(f"{layout.OBJECTS}/*/m.onnx", filled)
    shutil.move(path.parent, filled.parent / "moved")
    path.parent.symlink_to(filled.parent / "moved")  # Even to the right bytes: they are not ours to keep.

    assert [one.promise for one in check_cache(filled) if one.kind == "corrupt"] == ["I1"]
    with Cache(filled) as cache:
        assert cache.verify(repair=True).findings[0].repaired
        assert Path(cache.get(url)).read_bytes() == CONTENT

    assert check_cache(filled) == []


def test_nothing_is_linked_to_what_is_a_link(filled: Path, outside: Path, tmp_path: Path) -> None:
    path = the(f"{layout.OBJECTS}/*/m.onnx", filled)
    path.unlink()
    path.symlink_to(outside / "m.onnx")

    assert commit.share(str(path), str(tmp_path / "shared")) is False
    assert not os.path.lexists(tmp_path / "shared")
    with pytest.raises(LinkError):
        commit.add_name(str(path.parent), "m.onnx", "other.onnx")
    assert Objects(str(filled)).find(next(iter(Objects(str(filled)).all()))) is None


# -- leases, locks, partials, marks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", PLANTS)
def test_a_lease_file_that_is_planted_neither_blocks_nor_holds(
    plant: Callable[[Path, Path], None], filled: Path, outside: Path
) -> None:
    (filled / layout.LEASES).mkdir(exist_ok=True)
    plant(filled / layout.LEASES / process.token(), outside)
    plant(filled / layout.LEASES / "no token", outside)

    assert Leases(str(filled)).in_use().names == frozenset()


@pytest.mark.parametrize("plant", PLANTS)
def test_a_lock_file_that_is_planted_is_removed_and_the_lock_is_had(
    plant: Callable[[Path, Path], None], filled: Path, outside: Path
) -> None:
    path = filled / layout.LOCKS / "x.lock"
    plant(path, outside)

    with locks.exclusive(str(path), timeout=5, what="it") as turn:
        assert turn.held
        assert stat.S_ISREG(os.lstat(path).st_mode)
    assert not os.path.lexists(path)


def test_a_second_name_of_a_file_in_place_of_a_lock_is_not_written_to(filled: Path, outside: Path) -> None:
    path = filled / layout.LOCKS / "x.lock"
    os.link(outside / "m.onnx", path)

    with locks.exclusive(str(path), timeout=5, what="it") as turn:
        assert turn.held
        turn.leave_note(b"note")
    assert not os.path.lexists(path)


@pytest.mark.parametrize("forged", [True, False])
def test_a_second_name_of_a_file_in_a_partial_is_not_written_to(
    forged: bool, root: Path, outside: Path, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=60_000)])
    with Cache(root, retry=RetryPolicy(attempts=1)) as cache, pytest.raises(ModelCacheError):
        cache.get(url)
    target = the(f"{layout.PARTIALS}/*/object/m.onnx", root)
    target.unlink()
    os.link(outside / "m.onnx", target)
    if forged:  # What says that no byte of it counts: it would be cut to nothing.
        state = target.parent.parent / "state"
        facts = unseal(state.read_bytes())
        assert facts is not None
        facts |= {"boot": "another", "synced": 0, "digest": hashlib.sha256().hexdigest()}
        state.write_bytes(seal(facts))

    with Cache(root) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT


@pytest.mark.parametrize("pid", ["²", "٣", "9" * 14, "9" * 100])
@pytest.mark.parametrize("bucket", sharing.BUCKETS)
def test_a_token_that_no_process_has_stops_nothing(pid: str, bucket: str, filled: Path, url: str) -> None:
    parts = process.token().split("-")
    (filled / bucket).mkdir(exist_ok=True)
    (filled / bucket / "-".join([*parts[:3], pid, *parts[4:]])).write_bytes(b"")

    work(filled, url)

    with Cache(filled) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT


@pytest.mark.parametrize("bucket", [layout.ENTRIES, layout.PINS, layout.LEASES])
def test_a_file_of_terabytes_is_not_read(bucket: str, filled: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (filled / bucket).mkdir(exist_ok=True)
    name = process.token() if bucket == layout.LEASES else "f" * 64
    with open(filled / bucket / name, "wb") as file:
        file.truncate(1 << 40)
    planted, real, asked = os.stat(filled / bucket / name), os.read, []

    def read(descriptor: int, length: int) -> bytes:
        data = real(descriptor, length)
        if os.path.samestat(os.fstat(descriptor), planted):
            asked.append(length)
            assert sum(asked) < 1 << 24, "it is read to its end"
        return data

    monkeypatch.setattr(os, "read", read)
    work(filled, url)

    assert asked
    with Cache(filled) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT


def test_a_directory_whose_name_is_no_digest_is_no_object(filled: Path) -> None:
    (filled / layout.OBJECTS / f"sha256-{'☃' * 64}").mkdir()

    assert len(list(Objects(str(filled)).all())) == 1


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("what", ["state", "object", "object/m.onnx"])
def test_a_partial_with_something_planted_in_it_is_not_filled(
    what: str, plant: Callable[[Path, Path], None], root: Path, outside: Path, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=60_000)])
    with Cache(root, retry=RetryPolicy(attempts=1)) as cache, pytest.raises(ModelCacheError):
        cache.get(url)
    target = the(f"{layout.PARTIALS}/*", root) / what
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    plant(target, outside)

    with Cache(root) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT

    assert not os.path.islink(the(f"{layout.OBJECTS}/*/m.onnx", root))


@pytest.mark.parametrize("what", ["", "object"])
def test_a_partial_of_another_cache_is_not_moved_here_through_a_link(
    what: str, root: Path, tmp_path: Path, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=60_000), Fault(abort_after=50_000)])
    other = tmp_path / "other"
    for place in (other, root):
        with Cache(place, retry=RetryPolicy(attempts=1)) as cache, pytest.raises(ModelCacheError):
            cache.get(url)
    kept = the(f"{layout.PARTIALS}/*", other)
    target = the(f"{layout.PARTIALS}/*", root) / what
    shutil.rmtree(target)
    target.symlink_to(kept / what)
    before = picture(other)

    with Cache(root) as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT

    assert picture(other) == before


def test_a_left_over_that_is_a_link_is_removed_and_what_is_behind_it_stays(filled: Path, outside: Path) -> None:
    for bucket in (layout.STAGING, layout.TRASH):
        (filled / bucket / DEAD).symlink_to(outside)
        within = filled / bucket / f"{DEAD}.more"
        within.mkdir()
        (within / "down").symlink_to(outside)

    for bucket in (layout.STAGING, layout.TRASH):
        commit.discard(f"{filled}/{bucket}/{DEAD}")
        commit.discard(f"{filled}/{bucket}/{DEAD}.more")

    assert os.listdir(filled / layout.STAGING) == os.listdir(filled / layout.TRASH) == []


def test_the_use_of_a_planted_record_touches_nothing_outside(filled: Path, outside: Path, url: str) -> None:
    record = the(f"{layout.ENTRIES}/*", filled)
    record.unlink()
    record.symlink_to(outside / "m.onnx")

    Entries(str(filled)).stamp_use(url)


# -- right in the root -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", PLANTS)
def test_a_format_that_is_planted_is_refused(
    plant: Callable[[Path, Path], None], filled: Path, outside: Path, url: str
) -> None:
    (filled / "format").unlink()
    plant(filled / "format", outside)

    calls: list[Callable[[Cache], object]] = [lambda cache: cache.put(CONTENT, name="x"), lambda cache: cache.get(url)]
    for call in calls:
        with pytest.raises((FormatError, RootError, LinkError)), Cache(filled) as cache:
            call(cache)
    assert hit.format_is_known(str(filled)) is False


@pytest.mark.parametrize("plant", PLANTS)
def test_a_config_that_is_planted_is_refused(
    plant: Callable[[Path, Path], None], filled: Path, outside: Path, url: str
) -> None:
    plant(filled / "config.toml", outside)

    with Cache(filled) as cache, pytest.raises(CacheConfigError):
        cache.put(CONTENT + b"3", name="x")
    work(filled, url)


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", ["config.toml", "CACHEDIR.TAG"])
def test_what_is_written_in_the_root_replaces_a_link_and_does_not_follow_it(
    name: str, plant: Callable[[Path, Path], None], root: Path, outside: Path
) -> None:
    root.mkdir(parents=True)
    plant(root / name, outside)

    mending.init(str(root), access="everyone-read")

    assert name != "config.toml" or not os.path.islink(root / name)
