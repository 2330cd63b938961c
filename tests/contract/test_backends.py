"""What every backend owes the archive and the tiers, asked of each: one suite, a short fixture for each backend."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Entry, errors
from modelcache.archive import (
    Archivist,
    Backend,
    Batch,
    DirectoryBackend,
    MemoryBackend,
    ObjectStoreBackend,
    Registration,
    SqliteBackend,
)
from modelcache.backends import ahead, contents, refs
from modelcache.backends import base as backends_base
from modelcache.digest import Digest
from modelcache.objects import Objects
from modelcache.sealed import seal
from tests.crash.world import forked
from tests.support.buckets import KEYS, needs_obstore, s3_server

CONTENT = random.Random(31).randbytes(300_000)


@dataclass
class Subject:
    """A backend, and another way to the same storage: as another process has it."""

    backend: Backend
    again: Callable[[], Backend]
    survives: bool = True  # What was written is there for another process.


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


def in_s3(url: str, prefix: str, **options: Any) -> ObjectStoreBackend:
    config = {"endpoint": url, **KEYS}
    client = {"allow_http": True}
    return ObjectStoreBackend(f"s3://models/{prefix}", config=config, client_options=client, **options)


@pytest.fixture(params=["memory", "directory", "sqlite", "obstore memory", "obstore local", "s3"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    made: list[Backend] = []

    def kept(backend: Backend) -> Backend:
        made.append(backend)
        return backend

    kind = request.param
    if kind == "memory":
        memory = MemoryBackend()
        yield Subject(memory, lambda: memory, survives=False)
    elif kind == "directory":
        yield Subject(
            kept(DirectoryBackend(tmp_path / "d", rotate_bytes=2000)), lambda: kept(DirectoryBackend(tmp_path / "d"))
        )
    elif kind == "sqlite":
        yield Subject(kept(SqliteBackend(tmp_path / "e.db")), lambda: kept(SqliteBackend(tmp_path / "e.db")))
    elif kind == "s3":
        url = request.getfixturevalue("s3")
        prefix = tmp_path.name
        yield Subject(in_s3(url, prefix, multipart_bytes=100_000), lambda: in_s3(url, prefix))
    else:
        needs_obstore()
        import obstore.store

        if kind == "obstore memory":
            store = obstore.store.MemoryStore()
            yield Subject(ObjectStoreBackend(store), lambda: ObjectStoreBackend(store, prefix=""), survives=False)
        else:
            (tmp_path / "o").mkdir()
            url = (tmp_path / "o").as_uri()
            yield Subject(ObjectStoreBackend(url, multipart_bytes=100_000), lambda: ObjectStoreBackend(url))
    for backend in made:
        backend.close()


@pytest.fixture
def cache(root: Path) -> Iterator[Cache]:
    with Cache(root) as made:
        yield made


def batch(key: str, *events: Any) -> Batch:
    return Batch.of(key, events)


def file_of(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / f"file-{hashlib.sha256(content).hexdigest()[:8]}"
    path.write_bytes(content)
    return str(path)


def put_tree(cache: Cache, tmp_path: Path, files: dict[str, bytes]) -> Entry:
    source = tmp_path / "source"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    return cache.put_tree(source, name="t")


# -- events ------------------------------------------------------------------------------------------------------------


def test_events_come_back_in_order_by_key_and_in_another_process(subject: Subject) -> None:
    subject.backend.append_events("a", [{"n": 1}, "text with \n ü \U0001f600", None])
    subject.backend.append_events("b", [2.5])
    subject.backend.append_events("a", [[1, {"x": True}]])

    again = subject.again()
    assert [one.event for one in again.read_events("a")] == [
        {"n": 1},
        "text with \n ü \U0001f600",
        None,
        [1, {"x": True}],
    ]
    assert [one.key for one in again.read_events()] == ["a", "a", "a", "b", "a"]
    assert len({one.id for one in again.read_events()}) == 5


def test_a_write_that_comes_again_lands_once(subject: Subject) -> None:
    first, second = batch("k", 1, 2), batch("k", 3)

    for one in (first, first, second, first):
        subject.backend.append_events("k", one)

    assert [one.event for one in subject.again().read_events()] == [1, 2, 3]


def test_several_batches_in_one_call_land_in_order_and_once(subject: Subject) -> None:
    land = getattr(subject.backend, "append_batches", None)
    if land is None:
        pytest.skip("this backend takes one batch a call, by its nature")
    batches = [batch("a", 1, 2), batch("b", 3), batch("a", 4)]

    land(batches)
    land(batches)

    assert [(one.key, one.event) for one in subject.again().read_events()] == [("a", 1), ("a", 2), ("b", 3), ("a", 4)]


def test_reading_since_a_moment_leaves_out_what_is_older(subject: Subject) -> None:
    old = Batch("k", ["old"], ids=["o.1"], times=[1000.0], lines=['"old"'])
    new = Batch("k", ["new"], ids=["n.1"], times=[2000.0], lines=['"new"'])
    subject.backend.append_events("k", old)
    subject.backend.append_events("k", new)

    assert [(one.id, one.time, one.event) for one in subject.backend.read_events(since=1500)] == [
        ("n.1", 2000.0, "new")
    ]


def test_a_key_of_any_text_is_kept_as_it_is(subject: Subject) -> None:
    key = "https://host/m?\"quoted\" 'x' %_ \\ \n ü/../.."

    subject.backend.append_events(key, [1])

    assert [one.key for one in subject.again().read_events()] == [key]
    assert [one.event for one in subject.again().read_events(key)] == [1]
    assert list(subject.again().read_events("other")) == []


def test_threads_append_at_once_and_lose_nothing(subject: Subject) -> None:
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for count in range(10):
            subject.backend.append_events(f"k{number}", [count])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = list(subject.backend.read_events())
    assert {key: [one.event for one in found if one.key == key] for key in {one.key for one in found}} == {
        f"k{number}": list(range(10)) for number in range(4)
    }


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_is_made_once_whoever_tries(subject: Subject) -> None:
    others = [subject.again() for _ in range(8)]
    start = threading.Barrier(8)
    made: list[int] = []

    def work(number: int) -> None:
        start.wait()
        if others[number].create("claims/x", b"%d" % number):
            made.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 1
    assert subject.backend.read("claims/x") == b"%d" % made[0]


def test_a_file_is_read_in_ranges(subject: Subject, tmp_path: Path) -> None:
    subject.backend.upload("blobs/x", file_of(tmp_path, CONTENT), len(CONTENT))

    again = subject.again()
    assert again.size("blobs/x") == len(CONTENT)
    assert again.read("blobs/x") == CONTENT
    assert again.read("blobs/x", 100, 50) == CONTENT[100:150]
    assert again.read("blobs/x", 299_990) == CONTENT[299_990:]
    assert again.read("blobs/x", 299_990, 100) == CONTENT[299_990:]
    assert again.read("blobs/x", 300_000, 10) == b""


def test_a_file_is_read_in_one_stream_from_anywhere_in_it(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_base, "PIECE_BYTES", 70_000)
    subject.backend.upload("blobs/x", file_of(tmp_path, CONTENT), len(CONTENT))

    for start in (0, 1, 123_456, len(CONTENT) - 1):
        assert b"".join(subject.backend.stream("blobs/x", start)) == CONTENT[start:]
    with pytest.raises(errors.NotInArchiveError):
        list(subject.backend.stream("blobs/none"))


@pytest.mark.parametrize("fast", [0, 1 << 60])
@pytest.mark.parametrize("start", [0, 5, len(CONTENT) - 1, len(CONTENT)])
def test_bytes_come_in_order_whichever_way_they_come(
    subject: Subject, tmp_path: Path, fast: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_base, "PIECE_BYTES", 30_000)
    monkeypatch.setattr(ahead, "_JUDGE_AFTER_S", 0.0)
    monkeypatch.setattr(ahead, "_WORTH_BYTES", 0)
    monkeypatch.setattr(ahead, "FAST_BYTES_PER_S", fast)
    subject.backend.upload("blobs/x", file_of(tmp_path, CONTENT), len(CONTENT))

    for way in (ahead.Brisk, ahead.Ahead, ahead.Flow):
        reading, found = way(subject.backend, "blobs/x", len(CONTENT), start), b""
        while data := reading.take():
            found += data
        reading.close()
        assert found == CONTENT[start:]


def test_a_large_file_is_uploaded_whole_and_an_empty_one_too(subject: Subject, tmp_path: Path) -> None:
    large = random.Random(5).randbytes(7 << 20)

    subject.backend.upload("blobs/large", file_of(tmp_path, large), len(large))
    subject.backend.upload("blobs/empty", file_of(tmp_path, b""), 0)

    assert hashlib.sha256(subject.again().read("blobs/large")).digest() == hashlib.sha256(large).digest()
    assert subject.backend.read("blobs/large", (5 << 20) - 7, 20) == large[(5 << 20) - 7 : (5 << 20) + 13]
    assert (subject.backend.size("blobs/empty"), subject.backend.read("blobs/empty")) == (0, b"")


def test_an_upload_replaces_what_was_there(subject: Subject, tmp_path: Path) -> None:
    subject.backend.upload("blobs/x", file_of(tmp_path, b"cut"), 3)

    subject.backend.upload("blobs/x", file_of(tmp_path, CONTENT), len(CONTENT))

    assert subject.again().read("blobs/x") == CONTENT


def test_a_small_file_that_is_put_replaces_one_whole(subject: Subject) -> None:
    subject.backend.put("refs/a", b"first")
    subject.backend.put("refs/a", b"2nd")
    subject.backend.put("refs/empty", b"")

    assert subject.backend.read("refs/a") == b"2nd"
    assert subject.backend.size("refs/a") == 3
    assert subject.backend.read("refs/empty") == b""
    assert not subject.backend.create("refs/a", b"third")
    if subject.survives:
        assert subject.again().read("refs/a") == b"2nd"


def test_who_reads_a_file_while_it_is_replaced_finds_one_of_both(subject: Subject) -> None:
    values = [bytes([n]) * (n + 1) for n in range(8)]
    subject.backend.put("refs/a", values[0])
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(subject.backend.read("refs/a"))

    reader = threading.Thread(target=read)
    reader.start()
    for value in values:
        subject.backend.put("refs/a", value)
    done.set()
    reader.join()

    assert seen <= set(values)
    assert subject.backend.read("refs/a") == values[-1]


# -- refs --------------------------------------------------------------------------------------------------------------

RECORD = refs.RefRecord(
    key="https://host/m.onnx", digest=Digest(f"sha256:{'0' * 64}"), name="m.onnx", size=7, source="https://host/m.onnx",
    checked=1_000, etag='"x"', revision=None, mirrors=("https://other/m.onnx",),
)  # fmt: skip


def test_a_ref_is_on_record_and_its_newest_record_counts(subject: Subject) -> None:
    assert refs.read(subject.backend, RECORD.key) is None

    refs.write(subject.backend, RECORD)
    newer = replace(RECORD, checked=2_000, etag=None)
    refs.write(subject.backend, newer)

    assert refs.read(subject.backend, RECORD.key) == newer
    assert refs.read(subject.backend, "https://host/other") is None


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no record",
        seal({"form": 1, **RECORD.facts()})[:-9],
        seal({"form": 1, **RECORD.facts(), "key": "https://host/other"}),
        seal({"form": 1, **RECORD.facts(), "digest": "sha256:short"}),
        seal({"form": 1, **RECORD.facts(), "size": -1}),
        seal({"form": 1, **RECORD.facts(), "mirrors": "x"}),
        seal({"form": 1, **RECORD.facts(), "etag": 7}),
        seal({}),
    ],
)
def test_a_damaged_ref_record_is_told_and_never_believed(damaged: bytes) -> None:
    backend = MemoryBackend()
    backend.put(refs.record_name(RECORD.key), damaged)

    with pytest.raises(errors.DamagedReplicaError):
        refs.read(backend, RECORD.key)


def test_what_is_not_there_is_said_so(subject: Subject) -> None:
    with pytest.raises(errors.NotInArchiveError):
        subject.backend.read("blobs/none")
    with pytest.raises(errors.NotInArchiveError):
        subject.backend.read("blobs/none", 0, 10)

    assert subject.backend.size("blobs/none") is None
    subject.backend.delete("blobs/none")


def test_names_are_listed_by_prefix_and_deleted(subject: Subject) -> None:
    for name in ("a/1", "a/2", "b/1"):
        subject.backend.create(name, b"x")

    subject.backend.delete("a/1")

    assert list(subject.again().names()) == ["a/2", "b/1"]
    assert list(subject.again().names("a/")) == ["a/2"]


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a\0b", "ü"])
def test_a_name_that_could_lead_elsewhere_is_refused(subject: Subject, name: str) -> None:
    with pytest.raises(errors.UsageError):
        subject.backend.create(name, b"x")


# -- objects -----------------------------------------------------------------------------------------------------------


def stored(cache: Cache, entry: Entry) -> Any:
    return Objects(cache.root).find(Digest(entry.digest))


def test_an_object_goes_there_once_and_comes_back_verified(subject: Subject, cache: Cache, tmp_path: Path) -> None:
    one = stored(cache, cache.put(CONTENT, name="m"))

    assert contents.store(subject.backend, one) == len(CONTENT)
    assert contents.store(subject.again(), one) == 0

    found = contents.manifest(subject.again(), one.digest)
    assert found is not None
    assert (found.name, found.size) == ("m", len(CONTENT))
    assert contents.fetch_blob(subject.again(), found.files[0], str(tmp_path / "out")) == len(CONTENT)
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_trees_share_the_blobs_of_their_files(subject: Subject, cache: Cache, tmp_path: Path) -> None:
    file = stored(cache, cache.put(CONTENT, name="m"))
    tree = stored(cache, put_tree(cache, tmp_path, {"a/weights": CONTENT, "b": b"{}"}))

    contents.store(subject.backend, file)

    assert contents.store(subject.backend, tree) == 2
    found = contents.manifest(subject.backend, tree.digest)
    assert found is not None
    assert [leaf.path for leaf in found.files] == ["a/weights", "b"]


def test_a_read_goes_on_where_it_was_cut(
    subject: Subject, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_base, "PIECE_BYTES", 10_000)
    one = stored(cache, cache.put(CONTENT, name="m"))
    contents.store(subject.backend, one)
    found = contents.manifest(subject.backend, one.digest)
    assert found is not None
    (tmp_path / "out").write_bytes(CONTENT[:123_456])

    came = contents.fetch_blob(subject.backend, found.files[0], str(tmp_path / "out"))

    assert came == len(CONTENT) - 123_456
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_damage_is_refused_and_mended_by_the_next_store(subject: Subject, cache: Cache, tmp_path: Path) -> None:
    one = stored(cache, cache.put(CONTENT, name="m"))
    contents.store(subject.backend, one)
    found = contents.manifest(subject.backend, one.digest)
    assert found is not None
    blob = contents.blob_name(one.digest)
    subject.backend.upload(blob, file_of(tmp_path, CONTENT[:-1] + b"?"), len(CONTENT))

    with pytest.raises(errors.DamagedReplicaError):
        contents.fetch_blob(subject.backend, found.files[0], str(tmp_path / "out"))

    assert (tmp_path / "out").read_bytes() == b""
    name = contents.manifest_name(one.digest)
    subject.backend.delete(name)
    subject.backend.create(name, b"{}")
    with pytest.raises(errors.DamagedReplicaError):
        contents.manifest(subject.backend, one.digest)
    subject.backend.delete(blob)
    contents.store(subject.backend, one)
    assert contents.fetch_blob(subject.backend, found.files[0], str(tmp_path / "out")) == len(CONTENT)


def test_a_corrupt_object_goes_nowhere(subject: Subject, cache: Cache) -> None:
    one = stored(cache, cache.put(CONTENT, name="m"))
    Path(one.path).chmod(0o644)
    Path(one.path).write_bytes(CONTENT[:-1] + b"?")

    with pytest.raises(errors.CorruptObjectError):
        contents.store(subject.backend, one)

    assert list(subject.backend.names()) == []


def test_an_archivist_brings_objects_and_events_there_and_another_one_reads_them(
    subject: Subject, cache: Cache, tmp_path: Path
) -> None:
    file = cache.put(CONTENT, name="m")
    tree = put_tree(cache, tmp_path, {"a/weights": CONTENT, "b": b"{}"})
    with Archivist([Registration("tier", subject.backend)], root=cache.root) as archivist:
        for entry in (file, tree):
            archivist.put_object(entry.digest)
        archivist.append_events("m", [{"n": number} for number in range(300)])
        archivist.append_events("t", ["last"])
        assert archivist.flush(60)

    with Archivist([Registration("other-name", subject.again())], root=tmp_path / "elsewhere") as other:
        assert Path(other.read_object(file.digest, tmp_path / "out")).read_bytes() == CONTENT
        assert (Path(other.read_object(tree.digest, tmp_path / "tree")) / "a/weights").read_bytes() == CONTENT
        assert [one.event for one in other.read_events()] == [*({"n": number} for number in range(300)), "last"]
        assert other.find_object("sha256:" + "0" * 64) is None


# -- what only some have -----------------------------------------------------------------------------------------------


def test_a_torn_line_of_a_directory_is_no_event_and_its_write_comes_again(tmp_path: Path) -> None:
    backend = DirectoryBackend(tmp_path)
    first, second = batch("k", 1), batch("k", 2, 3)
    backend.append_events("k", first)
    (file,) = (tmp_path / "events").iterdir()
    with file.open("a") as log:
        log.write(f"{second.records()[0]}\n{second.records()[1][:30]}")  # What a crash in the middle leaves.

    again = DirectoryBackend(tmp_path)
    again.append_events("k", second)

    assert [one.event for one in again.read_events()] == [1, 2, 3]
    again.close()
    backend.close()


def test_files_of_events_are_rotated(tmp_path: Path) -> None:
    backend = DirectoryBackend(tmp_path, rotate_bytes=1000)

    for number in range(20):
        backend.append_events("k", ["x" * 200 + str(number)])

    assert len(list((tmp_path / "events").iterdir())) == 5
    assert len(list(backend.read_events())) == 20
    backend.close()


def test_events_in_sqlite_can_be_queried_and_not_changed(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path / "e.db")
    backend.append_events("a", [{"kind": "hit"}, {"kind": "fetched"}, {"kind": "hit"}])

    counts = backend.query("SELECT json_extract(event, '$.kind') AS kind, count(*) FROM events GROUP BY 1 ORDER BY 1")

    assert counts == [("fetched", 1), ("hit", 2)]
    with pytest.raises(errors.BackendError):
        backend.query("DELETE FROM events")
    assert len(list(backend.read_events())) == 3
    backend.close()


def test_an_object_store_in_a_forked_child_is_a_typed_error_and_no_hang(tmp_path: Path) -> None:
    needs_obstore()
    backend = ObjectStoreBackend(tmp_path.as_uri())

    def work() -> None:
        with pytest.raises(errors.BackendSetupError, match="forked child"):
            backend.append_events("k", [1])

    assert os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]) == 0
    backend.append_events("k", [2])
    assert [one.event for one in backend.read_events()] == [2]


def test_conditional_writes_are_probed(s3: str, tmp_path: Path) -> None:
    backend = in_s3(s3, tmp_path.name)

    backend.check_conditional()

    assert list(backend.names()) == []


def test_a_store_that_overwrites_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_obstore()
    backend = ObjectStoreBackend(tmp_path.as_uri())
    put = backend._library.put

    class Overwriting:
        exceptions, delete = backend._library.exceptions, staticmethod(backend._library.delete)

        @staticmethod
        def put(store: object, path: str, data: object, **_: object) -> object:
            return put(store, path, data)

    monkeypatch.setattr(backend, "_library", Overwriting)

    with pytest.raises(errors.NoConditionalWritesError):
        backend.check_conditional()


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_missing_bucket_is_a_typed_error_at_construction(s3: str) -> None:
    with pytest.raises(errors.BackendSetupError, match="no such bucket"):
        ObjectStoreBackend("s3://nobody/x", config={"endpoint": s3, **KEYS}, client_options={"allow_http": True})


class Denying(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_wrong_credentials_are_a_typed_error_at_construction() -> None:
    needs_obstore()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Denying) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        config = {"endpoint": f"http://127.0.0.1:{server.server_port}", **KEYS}
        try:
            with pytest.raises(errors.BackendAccessError) as caught:
                ObjectStoreBackend("s3://models/x", config=config, client_options={"allow_http": True})
        finally:
            server.shutdown()
            thread.join()

    assert isinstance(caught.value, PermissionError)


def test_a_server_that_is_not_there_is_a_typed_error_at_construction() -> None:
    needs_obstore()

    with pytest.raises(errors.BackendSetupError):
        ObjectStoreBackend(
            "s3://models/x", config={"endpoint": "http://127.0.0.1:1", **KEYS}, client_options={"allow_http": True}
        )


@pytest.mark.parametrize("make", [DirectoryBackend, SqliteBackend])
def test_a_place_that_cannot_be_used_is_a_typed_error_at_construction(make: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, no directory, but long enough to be looked at as one" * 20)

    with pytest.raises(errors.BackendSetupError):
        make(tmp_path / "file" if make is SqliteBackend else tmp_path / "file" / "below")


def test_a_directory_of_a_cache_is_no_backend(root: Path) -> None:
    with Cache(root) as cache:
        cache.put(b"x", name="n")

    with pytest.raises(errors.BackendSetupError, match="tier of itself"):
        DirectoryBackend(root)
    with pytest.raises(errors.BackendSetupError, match="tier of itself"):
        DirectoryBackend(root / "objects-v1" / "below")
