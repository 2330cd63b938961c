"""Bytes that can be resumed: which of them count, and who may take them over."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import commit, files, layout, process, roots
from modelcache.digest import Digest
from modelcache.errors import StorageError
from modelcache.objects import Objects
from modelcache.partials import Partial, Partials
from modelcache.sealed import seal, unseal

KEY, NAME = "https://example.org/m.onnx", "m.onnx"
FACTS = {"place": KEY, "etag": '"v1"'}
CONTENT = bytes(range(256)) * 40
TOTAL = len(CONTENT)


def test_a_descriptor_whose_close_fails_is_closed_once_and_its_bytes_are_not_believed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = begin(store, TOTAL)
    close, closed = os.close, []

    def failing(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") != partial.path:
            close(descriptor)
            return
        closed.append(descriptor)
        close(descriptor)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        with pytest.raises(StorageError):
            partial.publish(Objects(store))
        partial.discard()

    assert len(closed) == len(set(closed)) == 1
    assert list(Objects(store).all()) == []


def begin(store: str, length: int, *, journal: int | None = None, total: int = TOTAL) -> Partial:
    """Return a partial with the first *length* bytes; those up to *journal* are on record as synced."""
    partial = Partials(store).create(KEY, NAME)
    partial.describe(FACTS, total)
    for start, stop in ((0, journal or 0), (journal or 0, length)):
        partial.append(CONTENT[start:stop])
        partial.hash(CONTENT[start:stop])
        if stop and stop == journal:
            partial.journal(stop, partial.digest)
    return partial


def give_to(partial: Partial, part: int, value: str) -> str:
    """Rename *partial* so that another process owns it: *part* of its token is *value*. Return its directory."""
    partial._close()
    directory = partial._directory
    stem, _, token = directory.rpartition(".")
    parts = token.split("-")
    parts[part] = value
    os.rename(directory, f"{stem}.{'-'.join(parts)}")
    return f"{stem}.{'-'.join(parts)}"


def to_dead(partial: Partial) -> str:
    return give_to(partial, 4, "1")  # A process with this id that started at another time.


def to_unknown(partial: Partial) -> str:
    return give_to(partial, 0, "elsewhere")  # Another machine.


def boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "boot_id", lambda: "nextboot")


def file_of(directory: str) -> Path:
    return Path(directory, "object", NAME)


def holds(partial: Partial | None) -> int:
    """Return how many bytes of CONTENT *partial* holds, 0 for none; any other byte is a failure."""
    if partial is None:
        return 0
    found = file_of(partial._directory).read_bytes()
    assert found == CONTENT[: len(found)]
    assert (partial.length, partial.hashed) == (len(found), len(found))
    assert partial.digest == Digest.of_bytes([found])
    return len(found)


def left(store: str) -> list[str]:
    return files.listing(f"{store}/{layout.PARTIALS}")


# -- filling and publishing --------------------------------------------------------------------------------------------


def test_a_filled_partial_becomes_the_object_and_leaves_nothing(store: str) -> None:
    partial = begin(store, TOTAL)

    stored = partial.publish(Objects(store))

    assert partial.complete
    assert Path(stored.path).read_bytes() == CONTENT
    assert (stored.digest, stored.name) == (Digest.of_bytes([CONTENT]), NAME)
    assert left(store) == os.listdir(f"{store}/staging") == []


def test_a_partial_whose_total_is_unknown_is_never_complete(store: str) -> None:
    partial = begin(store, TOTAL)
    partial.describe(FACTS, None)

    assert not partial.complete


def test_a_restarted_partial_holds_only_what_came_after(store: str) -> None:
    partial = begin(store, 3000, journal=2000)
    partial.restart()
    partial.describe({"place": "elsewhere"}, TOTAL)
    partial.append(CONTENT[:1000])
    partial.hash(CONTENT[:1000])
    to_dead(partial)

    claimed = Partials(store).claim(KEY, NAME)

    assert holds(claimed) == 1000
    assert claimed is not None
    assert claimed.facts == {"place": "elsewhere"}


def test_a_partial_that_cannot_be_emptied_is_a_typed_error(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = begin(store, 3000)

    def fail(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "ftruncate", fail)

    with pytest.raises(StorageError):
        partial.restart()
    partial.discard()


def test_a_partial_that_cannot_be_made_is_a_typed_error_and_leaves_nothing(store: str) -> None:
    with pytest.raises(StorageError):
        Partials(store).create(KEY, "x" * 300)

    assert left(store) == []


def test_a_discarded_partial_is_gone_and_may_be_let_go_of_again(store: str) -> None:
    partial = begin(store, 3000)
    partial.discard()
    partial.release()
    partial.discard()

    assert left(store) == []


# -- letting go and taking over ----------------------------------------------------------------------------------------


def test_a_released_partial_is_resumed_where_it_ended(store: str) -> None:
    begin(store, 3000).release()

    claimed = Partials(store).claim(KEY, NAME)

    assert holds(claimed) == 3000
    assert claimed is not None
    assert (claimed.facts, claimed.total) == (FACTS, TOTAL)
    claimed.append(CONTENT[3000:])
    claimed.hash(CONTENT[3000:])
    assert Path(claimed.publish(Objects(store)).path).read_bytes() == CONTENT
    assert left(store) == []


def test_an_empty_partial_is_deleted_when_it_is_released(store: str) -> None:
    begin(store, 0).release()

    assert left(store) == []


def test_a_partial_is_claimed_for_its_own_key_alone(store: str) -> None:
    begin(store, 3000).release()

    assert Partials(store).claim("https://example.org/another", NAME) is None
    assert len(left(store)) == 1


def test_a_partial_is_claimed_once(store: str) -> None:
    begin(store, 3000).release()
    first = Partials(store).claim(KEY, NAME)

    assert holds(first) == 3000
    assert Partials(store).claim(KEY, NAME) is None


def test_a_claim_that_another_process_wins_takes_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(store, 3000).release()
    rename = commit.rename

    def too_late(source: str, target: str) -> None:
        rename(source, f"{source}.taken")
        rename(source, target)

    monkeypatch.setattr(commit, "rename", too_late)

    assert Partials(store).claim(KEY, NAME) is None
    assert len(left(store)) == 1


def test_a_partial_of_a_dead_owner_is_resumed_with_every_byte_it_wrote(store: str) -> None:
    to_dead(begin(store, 3000, journal=1000))

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


def test_bytes_that_were_written_and_not_yet_hashed_count_too(store: str) -> None:
    partial = begin(store, 2000)
    partial.append(CONTENT[2000:3000])
    to_dead(partial)

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


def test_a_journal_vouches_only_for_the_bytes_it_was_given(store: str) -> None:
    partial = begin(store, 2000)
    partial.append(CONTENT[2000:3000])
    partial.journal(2000, partial.digest)
    to_dead(partial)

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


def test_a_partial_of_a_live_owner_is_left_alone(store: str) -> None:
    partial = begin(store, 3000, journal=3000)

    assert Partials(store).claim(KEY, NAME) is None
    assert Partials(store).remove(KEY) == 0
    assert holds(partial) == 3000


def test_the_partial_of_an_unknown_owner_is_copied_to_another_inode(store: str) -> None:
    theirs = to_unknown(begin(store, 3000, journal=2000))
    inode = file_of(theirs).stat().st_ino

    claimed = Partials(store).claim(KEY, NAME)

    assert holds(claimed) == 2000
    assert claimed is not None
    assert file_of(claimed._directory).stat().st_ino != inode
    assert file_of(theirs).read_bytes() == CONTENT[:3000]
    assert claimed.facts == FACTS


def test_a_copy_is_resumed_whole_when_its_owner_is_killed_at_once(store: str) -> None:
    shutil.rmtree(_copied(store))

    assert holds(Partials(store).claim(KEY, NAME)) == 2000


def test_a_copy_does_not_call_synced_what_only_the_original_has(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(_copied(store))
    boot(monkeypatch)

    assert holds(Partials(store).claim(KEY, NAME)) == 0


def _copied(store: str) -> str:
    """Copy the partial of an unknown owner, and die; return the directory of the original."""
    theirs = to_unknown(begin(store, 3000, journal=2000))
    copy = Partials(store).claim(KEY, NAME)
    assert copy is not None
    copy.describe(FACTS, TOTAL)  # As a fetch does that goes on with the same content.
    to_dead(copy)
    return theirs


def test_an_unknown_owner_who_has_synced_nothing_gives_nothing(store: str) -> None:
    theirs = to_unknown(begin(store, 3000))

    assert Partials(store).claim(KEY, NAME) is None
    assert file_of(theirs).stat().st_size == 3000


def test_a_copy_for_which_there_is_no_room_is_given_up(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = to_unknown(begin(store, 3000, journal=2000))

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)

    assert Partials(store).claim(KEY, NAME) is None
    assert left(store) == [os.path.basename(theirs)]


def test_the_longest_of_several_wins_and_those_of_dead_owners_go(store: str) -> None:
    begin(store, 1000).release()
    to_dead(begin(store, 3000))
    begin(store, 2000).release()
    theirs = to_unknown(begin(store, 500, journal=500))
    mine = begin(store, 100)

    claimed = Partials(store).claim(KEY, NAME)

    assert holds(claimed) == 3000
    assert claimed is not None
    kept = {os.path.basename(path) for path in (theirs, mine._directory, claimed._directory)}
    assert set(left(store)) == kept


def test_removing_spares_only_what_a_live_process_may_own(store: str) -> None:
    begin(store, 1000).release()
    to_dead(begin(store, 1000))
    theirs = to_unknown(begin(store, 1000))

    assert Partials(store).remove(KEY) == 2
    assert left(store) == [os.path.basename(theirs)]


def test_partials_are_counted_with_their_bytes(store: str) -> None:
    begin(store, 1000).release()
    begin(store, 2000)

    assert Partials(store).size() == (2, 3000)


# -- what survives a power cut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [CONTENT[1000:3000], b"\0" * 2000, b"", b"\0" * 9000], ids=len)
def test_after_a_boot_only_synced_bytes_count(store: str, monkeypatch: pytest.MonkeyPatch, tail: bytes) -> None:
    partial = begin(store, 3000, journal=1000)
    partial._close()
    with file_of(partial._directory).open("r+b") as file:
        file.seek(1000)
        file.truncate()
        file.write(tail)
    boot(monkeypatch)

    assert holds(Partials(store).claim(KEY, NAME)) == 1000


def test_after_a_boot_what_was_never_synced_is_nothing(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(store, 3000)._close()
    boot(monkeypatch)

    assert holds(Partials(store).claim(KEY, NAME)) == 0


def test_a_released_partial_survives_a_boot_whole(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(store, 3000).release()
    boot(monkeypatch)

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


def test_bytes_added_after_a_boot_count_when_that_owner_is_killed(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(store, 1000, journal=1000)._close()
    boot(monkeypatch)
    claimed = Partials(store).claim(KEY, NAME)
    assert claimed is not None
    claimed.describe(FACTS, TOTAL)
    claimed.append(CONTENT[1000:3000])
    to_dead(claimed)

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


@pytest.mark.parametrize("length", [500, 999], ids=["much shorter", "one short"])
def test_a_file_shorter_than_its_synced_prefix_is_discarded(
    store: str, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    partial = begin(store, 3000, journal=1000)
    os.truncate(file_of(partial._directory), length)
    boot(monkeypatch)

    assert Partials(store).claim(KEY, NAME) is None
    assert left(store) == []


@pytest.mark.parametrize("offset", [0, 999])
def test_a_prefix_that_is_not_what_was_synced_is_discarded(store: str, offset: int) -> None:
    partial = begin(store, 3000, journal=1000)
    with file_of(partial._directory).open("r+b") as file:
        file.seek(offset)
        file.write(b"\xaa")
    to_dead(partial)

    assert Partials(store).claim(KEY, NAME) is None
    assert left(store) == []


def test_a_prefix_longer_than_one_chunk_is_checked_to_its_end(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 512)
    to_dead(begin(store, 3000, journal=1300))
    assert holds(Partials(store).claim(KEY, NAME)) == 3000

    partial = begin(store, 3000, journal=1300)
    with file_of(partial._directory).open("r+b") as file:
        file.seek(1299)
        file.write(b"\xaa")
    to_dead(partial)
    assert Partials(store).claim(KEY, NAME) is None


def test_after_a_failed_sync_no_byte_is_used_again(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = begin(store, 3000, journal=1000)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(commit, "sync_data", fail)
    partial.release()

    assert left(store) == []


def test_a_disk_too_full_for_the_state_keeps_the_bytes(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = begin(store, 3000, journal=1000)

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(commit, "commit_record", full)
        partial.release()

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


# -- what is broken ----------------------------------------------------------------------------------------------------


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda state: b"",
    "zeroed": lambda state: b"\0" * len(state),
    "cut": lambda state: state[:-1],
    "edited": lambda state: state.replace(b'"synced":1000', b'"synced":3000'),
    "another form": lambda state: seal({"version": 2}),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("owner", [to_dead, to_unknown], ids=["dead", "unknown"])
def test_a_partial_with_a_broken_state_is_not_used(
    store: str, broken: Callable[[bytes], bytes], owner: Callable[[Partial], str]
) -> None:
    state = Path(owner(begin(store, 3000, journal=1000)), "state")
    state.write_bytes(broken(state.read_bytes()))

    assert Partials(store).claim(KEY, NAME) is None
    assert len(left(store)) == (1 if owner is to_unknown else 0)


@pytest.mark.parametrize("owner", [to_dead, to_unknown], ids=["dead", "unknown"])
def test_a_partial_without_its_file_is_not_used(store: str, owner: Callable[[Partial], str]) -> None:
    file_of(owner(begin(store, 3000, journal=1000))).unlink()

    assert Partials(store).claim(KEY, NAME) is None


def test_a_link_in_place_of_the_file_is_not_followed(store: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT[:3000])
    file = file_of(to_dead(begin(store, 3000)))
    file.unlink()
    file.symlink_to(tmp_path / "secret")

    assert Partials(store).claim(KEY, NAME) is None
    assert (tmp_path / "secret").read_bytes() == CONTENT[:3000]


def test_a_partial_that_cannot_be_read_is_deleted(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(store, 3000).release()

    def fail(*_args: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)

    assert Partials(store).claim(KEY, NAME) is None
    assert left(store) == []


@pytest.mark.parametrize("name", ["", "nonsense", "free", "a-b-c-d-e-f", "a-b-c-1-2-3-4", "٣"])
def test_a_directory_with_an_odd_name_is_left_alone(store: str, name: str) -> None:
    os.mkdir(f"{store}/{layout.PARTIALS}/{layout.key_id(KEY)}.{name}")

    assert Partials(store).claim(KEY, NAME) is None


# -- read-only already: killed between the seal and the rename ---------------------------------------------------------


@pytest.fixture
def unprivileged() -> Iterator[str]:
    """The root of a cache of a user for whom a mode of 0444 means something, who runs the test."""
    root = tempfile.mkdtemp(prefix="modelcache-test-")
    was = os.geteuid()
    try:
        if was == 0:
            os.chown(root, 65534, 65534)
            os.seteuid(65534)
        roots.prepare_root(f"{root}/cache")
    except OSError as error:
        pytest.skip(f"no test as another user than root: {error}")
    else:
        yield f"{root}/cache"
    finally:
        os.seteuid(was)
        shutil.rmtree(root)


def test_a_complete_partial_that_is_read_only_already_is_claimed_and_published(unprivileged: str) -> None:
    directory = to_dead(begin(unprivileged, TOTAL))
    os.chmod(file_of(directory), 0o444)
    with pytest.raises(PermissionError):
        file_of(directory).open("r+b")

    claimed = Partials(unprivileged).claim(KEY, NAME)

    assert holds(claimed) == TOTAL
    assert claimed is not None
    stored = claimed.publish(Objects(unprivileged))
    assert os.stat(stored.path).st_mode & 0o777 == 0o444


# -- real processes ----------------------------------------------------------------------------------------------------

_CHILD = """
import sys
from tests.unit.test_partials import begin
partial = begin(sys.argv[1], 3000, journal=1000)
print("filled", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(store: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has written 3000 bytes and waits."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as child:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], 60)
        assert ready, "the child never filled its partial"
        assert child.stdout.readline() == b"filled\n"
        yield child
        child.kill()


def test_what_a_killed_process_wrote_is_resumed(store: str, owner: subprocess.Popen[bytes]) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait(60)

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


def test_what_a_killed_process_wrote_is_resumed_before_anybody_has_waited_for_it(
    store: str, owner: subprocess.Popen[bytes]
) -> None:
    owner.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # It is a zombie now.

    assert holds(Partials(store).claim(KEY, NAME)) == 3000


def test_what_a_live_process_is_writing_is_left_to_it(store: str, owner: subprocess.Popen[bytes]) -> None:
    assert Partials(store).claim(KEY, NAME) is None
    assert len(left(store)) == 1


def test_the_state_says_what_is_synced_and_nothing_else(store: str) -> None:
    partial = begin(store, 3000, journal=1000)
    state: dict[str, Any] | None = unseal(Path(partial._directory, "state").read_bytes())

    assert state is not None
    assert (state["synced"], state["digest"]) == (1000, Digest.of_bytes([CONTENT[:1000]]).hex)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open descriptors cannot be listed here")
def test_nobody_can_write_to_what_is_published(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = begin(store, TOTAL)
    number = os.stat(partial_file(store)).st_ino
    publish, open_then = commit.commit_object, []

    def watched(staged: str, final: str) -> bool:
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                open_then.append(os.stat(f"/proc/self/fd/{descriptor}").st_ino)
            except OSError:
                continue
        return publish(staged, final)

    monkeypatch.setattr(commit, "commit_object", watched)
    partial.publish(Objects(store))

    assert open_then
    assert number not in open_then


def partial_file(store: str) -> str:
    (found,) = Path(store, layout.PARTIALS).glob(f"*/object/{NAME}")
    return str(found)
