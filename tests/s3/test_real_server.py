"""What the archive needs of an S3 server, asked of a real one: races, parts, ranges, credentials. Ceph's limits too."""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache, errors
from modelcache.archive import Archivist, Batch, ObjectStoreBackend, Queued, Registration
from modelcache.backends import contents
from modelcache.digest import Digest
from modelcache.objects import Objects

LONG_S = 120.0
CREATORS, ROUNDS = 16, 20
CONTENT = random.Random(7).randbytes(40 << 20)  # Five parts, and five ranges.
Make = Callable[..., ObjectStoreBackend]


def together(count: int, work: Callable[[int], object]) -> None:
    """Do *work* in so many threads, which begin at once."""
    start, raised = threading.Barrier(count), list[BaseException]()

    def run(number: int) -> None:
        start.wait(LONG_S)
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  # It is looked at.
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []


def test_of_sixteen_racing_creators_just_one_makes_the_object(in_bucket: Make) -> None:
    machines = [in_bucket(check=False) for _ in range(CREATORS)]
    won: list[tuple[int, int]] = []

    def work(number: int) -> None:
        won.extend(
            (turn, number) for turn in range(ROUNDS) if machines[number].create(f"claims/{turn}", b"%d" % number)
        )

    together(CREATORS, work)

    assert Counter(turn for turn, _ in won) == dict.fromkeys(range(ROUNDS), 1)
    for turn, number in won:
        assert machines[0].read(f"claims/{turn}") == b"%d" % number


def test_a_claim_that_was_deleted_is_made_once_more_by_one(in_bucket: Make) -> None:
    machines = [in_bucket(check=False) for _ in range(CREATORS)]
    won: list[int] = []
    assert machines[0].create("claims/x", b"dead")
    machines[1].delete("claims/x")

    together(CREATORS, lambda number: won.append(number) if machines[number].create("claims/x", b"new") else None)

    assert len(won) == 1


def test_the_probe_finds_conditional_writes(in_bucket: Make) -> None:
    backend = in_bucket()

    backend.check_conditional()

    assert list(backend.names()) == []


def test_a_large_file_goes_in_parts_and_comes_back_in_parallel_ranges(in_bucket: Make, tmp_path: Path) -> None:
    backend = in_bucket(multipart_bytes=8 << 20)
    (tmp_path / "file").write_bytes(CONTENT)
    digest = Digest(f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")

    backend.upload(contents.blob_name(digest), str(tmp_path / "file"), len(CONTENT))

    assert backend.size(contents.blob_name(digest)) == len(CONTENT)
    assert b"".join(contents.pieces(in_bucket(), digest, len(CONTENT))) == CONTENT
    assert b"".join(contents.pieces(in_bucket(), digest, len(CONTENT), start=12_345_678)) == CONTENT[12_345_678:]


def test_sixteen_uploads_of_one_blob_leave_it_whole(in_bucket: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT[: 9 << 20])
    machines = [in_bucket(check=False, multipart_bytes=8 << 20) for _ in range(CREATORS)]

    together(CREATORS, lambda number: machines[number].upload("blobs/x", str(tmp_path / "file"), 9 << 20))

    assert machines[0].read("blobs/x") == CONTENT[: 9 << 20]


def test_an_object_goes_there_through_the_outbox_and_a_cut_read_goes_on(
    in_bucket: Make, tmp_path: Path, root: Path
) -> None:
    with Cache(root) as cache:
        digest = cache.put(CONTENT, name="m.onnx").digest
    with Archivist([Registration("s3", in_bucket(multipart_bytes=8 << 20))], root=root) as archivist:
        archivist.put_object(digest)
        assert archivist.flush(LONG_S)
    found = contents.manifest(in_bucket(), Digest(digest))
    assert found is not None
    (tmp_path / "out").write_bytes(CONTENT[: 30 << 20])

    assert contents.fetch_blob(in_bucket(), found.files[0], str(tmp_path / "out")) == 10 << 20

    assert hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest() == digest.partition(":")[2]


def test_machines_that_put_the_same_object_at_once_publish_it_once(in_bucket: Make, root: Path) -> None:
    with Cache(root) as cache:
        digest = Digest(cache.put(CONTENT[:1000], name="m").digest)
    stored = Objects(str(root)).find(digest)
    assert stored is not None
    machines = [in_bucket(check=False) for _ in range(CREATORS)]

    together(CREATORS, lambda number: contents.store(machines[number], stored))

    assert sorted(machines[0].names()) == [contents.blob_name(digest), contents.manifest_name(digest)]


def test_events_of_many_machines_land_once_and_in_order(in_bucket: Make, root: Path) -> None:
    def work(number: int) -> None:
        registration = Registration("s3", in_bucket(check=False), policy=Queued(batch_window=0))
        with Archivist([registration], root=root) as archivist:
            for count in range(20):
                archivist.append_events(f"k{number}", [count])
            assert archivist.flush(LONG_S)

    together(4, work)

    found = list(in_bucket().read_events())
    assert {key: [one.event for one in found if one.key == key] for key in {one.key for one in found}} == {
        f"k{number}": list(range(20)) for number in range(4)
    }


def test_a_write_of_events_that_comes_again_is_the_same_object(in_bucket: Make) -> None:
    backend = in_bucket()
    batch = Batch.of("k", [1, 2])

    for _ in range(3):
        backend.append_events("k", batch)

    assert [one.event for one in in_bucket().read_events()] == [1, 2]
    assert len(list(backend._names("events/"))) == 1


@pytest.mark.parametrize("wrong", [{"secret_access_key": "s3cr3t"}, {"access_key_id": "s3cr3t"}])
def test_wrong_credentials_are_a_typed_error_at_construction(in_bucket: Make, wrong: dict[str, str]) -> None:
    with pytest.raises(errors.BackendAccessError) as caught:
        in_bucket(config=wrong)

    assert "s3cr3t" not in str(caught.value)


def test_a_missing_bucket_is_a_typed_error_at_construction(in_bucket: Make) -> None:
    with pytest.raises(errors.BackendSetupError, match="no such bucket"):
        in_bucket(place="s3://nobody-has-this/x")


def test_a_bucket_that_is_not_ours_is_a_typed_error_when_it_is_written(in_bucket: Make) -> None:
    backend = in_bucket(config={"secret_access_key": "s3cr3t"}, check=False)

    with pytest.raises(errors.BackendAccessError):
        backend.create("x", b"1")
    with pytest.raises(errors.BackendAccessError):
        backend.size("x")
