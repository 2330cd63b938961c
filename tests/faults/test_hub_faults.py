"""What a hub and its content network do to a download: the right bytes or a typed error, and nothing left behind."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache import Cache, HfSource, RetryPolicy, Timeout, errors, roots
from modelcache.digest import Digest
from modelcache.events import Event
from modelcache.partials import Partials
from modelcache.testing import OK, Fault, FaultServer
from tests.support.hub import Answer, Asked, Hub
from tests.support.state import leftovers, wrong_objects

CONTENT = random.Random(7).randbytes(3_000_000)
DIGEST = Digest.of_bytes([CONTENT])
REF = "hf://org/name/model.onnx"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def make(root: Path, hub: Hub, *, attempts: int = 3, events: list[Event] | None = None) -> Cache:
    return Cache(
        root,
        sources=[HfSource(endpoint=hub.endpoint)],
        retry=RetryPolicy(attempts=attempts, base=0),
        timeout=Timeout(connect=5, read=5, stall=5),
        on_event=None if events is None else events.append,
    )


def get(root: Path, hub: Hub, *, attempts: int = 3, digest: str | None = None) -> bytes:
    with make(root, hub, attempts=attempts) as cache:
        return Path(cache.get(REF, digest=digest)).read_bytes()


def ranges(hub: Hub) -> list[str | None]:
    return [seen.headers.get("range") for seen in hub.cdn.seen()]


def test_a_download_is_resumed_over_the_redirect(hub: Hub, root: Path) -> None:
    """By the digest that the hub announces anew each time: whatever the content network calls its content."""
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(abort_after=1_000_000), Fault(etag='"another"')])

    assert get(root, hub) == CONTENT
    assert hub.cdn.sent() == len(CONTENT)
    assert ranges(hub) == [None, "bytes=1000000-"]
    assert all("if-range" not in seen.headers for seen in hub.cdn.seen())
    assert leftovers(root) == []


def test_the_next_process_resumes_at_another_address(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(abort_after=1_000_000)])
    with pytest.raises(errors.InterruptedTransferError):
        get(root, hub, attempts=1)
    with FaultServer() as elsewhere:
        hub.lies = {"Location": elsewhere.add("/moved", CONTENT)}

        assert get(root, hub, attempts=1) == CONTENT
        assert elsewhere.sent() == len(CONTENT) - 1_000_000


def test_a_file_that_changed_between_two_parts_is_fetched_whole(hub: Hub, root: Path) -> None:
    other = random.Random(8).randbytes(3_000_000)
    first = hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(abort_after=1_000_000)])
    with pytest.raises(errors.InterruptedTransferError):
        get(root, hub, attempts=1)
    second = hub.add("org/name", {"model.onnx": other})

    with make(root, hub, attempts=1) as cache:
        path = Path(cache.get(REF))
        entry = cache.lookup(REF)

    assert path.read_bytes() == other
    assert entry is not None
    assert entry.revision == second != first
    assert ranges(hub) == [None, None]


def test_a_content_network_without_ranges_sends_it_whole_again(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(abort_after=1_000_000), Fault(ignore_range=True)])

    assert get(root, hub) == CONTENT


@pytest.mark.parametrize("faults", [[Fault(corrupt_at=2_000_000)], [Fault(body=b"x" * len(CONTENT))]])
def test_other_bytes_than_the_hub_announced_are_asked_for_once_more(faults: list[Fault], hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=faults)

    assert get(root, hub) == CONTENT
    assert len(hub.cdn.seen()) == 2


def test_other_bytes_than_the_hub_announced_are_never_visible(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(corrupt_at=5)] * 9)

    with pytest.raises(errors.DigestMismatchError) as caught:
        get(root, hub)

    assert (caught.value.expected, caught.value.facts["announced"]) == (DIGEST, True)
    assert len(hub.cdn.seen()) == 2
    assert list(root.glob("objects-v1/*")) == []
    assert list(root.glob("entries-v1/*")) == []
    assert leftovers(root) == []


def test_a_tail_that_belongs_to_other_content_is_refused(hub: Hub, root: Path) -> None:
    """A content network that resumes with the bytes of another file of the same size."""
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(abort_after=1_000_000), Fault(body=CONTENT[::-1]), OK])

    assert get(root, hub) == CONTENT
    assert ranges(hub) == [None, "bytes=1000000-", None]


def test_what_a_dead_process_left_is_held_against_what_was_announced_to_it(hub: Hub, root: Path) -> None:
    """All bytes are there, so that nobody needs to be asked; but they are not those that were announced."""
    hub.add("org/name", {"model.onnx": CONTENT})
    roots.prepare_root(str(root))
    partial = Partials(str(root)).create(REF, "model.onnx")
    validators = {"etag": f'"{DIGEST.hex}"', "last_modified": None, "strong_date": False, "revision": "0" * 40}
    partial.describe({"place": REF, "announced": DIGEST, **validators}, len(CONTENT))
    partial.append(CONTENT[::-1])
    partial.hash(CONTENT[::-1])
    partial.release()

    assert get(root, hub) == CONTENT
    assert wrong_objects(root) == []


def test_a_part_of_what_was_announced_otherwise_before_is_not_gone_on_with(hub: Hub, root: Path) -> None:
    """A partial by digest, from a place whose validators say nothing here."""
    other = CONTENT[::-1]
    hub.add("org/name", {"model.onnx": CONTENT})
    roots.prepare_root(str(root))
    partial = Partials(str(root)).create(REF, "model.onnx")
    validators = {"etag": '"e"', "last_modified": None, "strong_date": False, "revision": None}
    facts = {"place": "https://elsewhere/m", "announced": Digest.of_bytes([other]), **validators}
    partial.describe(facts, len(CONTENT))
    partial.append(other[:1000])
    partial.hash(other[:1000])
    partial.release()
    events: list[Event] = []

    with make(root, hub, events=events) as cache:
        assert Path(cache.get(REF, digest=DIGEST)).read_bytes() == CONTENT

    assert "restarted" in [event.kind for event in events]


@pytest.mark.parametrize("size", ["2999999", "3000001"])
def test_another_size_than_the_hub_announced_is_refused(size: str, hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT})
    hub.lies = {"X-Linked-Size": size}

    with pytest.raises(errors.SizeMismatchError) as caught:
        get(root, hub)

    assert (caught.value.facts["expected"], caught.value.facts["actual"]) == (int(size), len(CONTENT))
    assert list(root.glob("objects-v1/*")) == []
    assert leftovers(root) == []


@pytest.mark.parametrize("framing", ["close", "chunked"])
def test_content_without_a_length_has_the_announced_one(framing: str, hub: Hub, root: Path) -> None:
    hub.add(
        "org/name",
        {"model.onnx": CONTENT},
        faults=[Fault(framing=framing, abort_after=1_000_000), Fault(framing=framing)],
    )

    assert get(root, hub) == CONTENT
    assert ranges(hub) == [None, "bytes=1000000-"]


def test_more_than_the_announced_bytes_are_not_taken(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(framing="close", body=CONTENT + b"more")] * 9)

    with pytest.raises(errors.ProtocolError, match="more than the announced"):
        get(root, hub, attempts=1)
    assert list(root.glob("objects-v1/*")) == []


def test_a_digest_that_the_hub_announces_otherwise_costs_no_download(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(hold_after=1000)] * 2)
    wanted = Digest.of_bytes([b"something else"])

    with pytest.raises(errors.DigestMismatchError) as caught:
        get(root, hub, digest=wanted)

    assert (caught.value.expected, caught.value.actual) == (wanted, DIGEST)
    assert list(root.glob("objects-v1/*")) == []
    assert hub.cdn.sent() <= 2000  # Nobody waited for more.


@pytest.mark.parametrize("header", ["", "not a digest", f'"{"0" * 40}"', None])
def test_without_an_announced_digest_the_content_networks_own_validators_hold(
    header: str | None, hub: Hub, root: Path
) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(abort_after=1_000_000)])
    hub.lies = {"X-Linked-Etag": header}

    assert get(root, hub) == CONTENT
    assert hub.cdn.sent() == len(CONTENT)
    assert "if-range" in hub.cdn.seen()[1].headers


@pytest.mark.parametrize("body", [CONTENT, CONTENT[::-1]], ids=["right", "wrong"])
def test_a_mirror_that_serves_large_files_itself_is_held_to_what_it_says_of_them(
    body: bytes, hub: Hub, root: Path
) -> None:
    head = {"X-Repo-Commit": "1" * 40, "ETag": '"e"', "X-Linked-Etag": f'"{DIGEST.hex}"'}
    hub.override = lambda asked: Answer(200, head, body)

    if body == CONTENT:
        assert get(root, hub) == CONTENT
        return
    with pytest.raises(errors.DigestMismatchError):
        get(root, hub)


def test_an_announcement_holds_for_the_rest_though_it_is_not_made_again(hub: Hub, root: Path) -> None:
    """The second answer says nothing of a digest, and its validators do not contradict."""
    faults = [Fault(abort_after=1_000_000), Fault(etag=f'"{DIGEST.hex}"', body=CONTENT[::-1])]
    hub.add("org/name", {"model.onnx": CONTENT}, faults=faults)

    def silent(asked: Asked) -> None:
        hub.lies = {"X-Linked-Etag": None} if len(hub.seen()) == 2 else {}

    hub.override = silent

    assert get(root, hub) == CONTENT
    assert ranges(hub) == [None, "bytes=1000000-", None]


def test_what_is_here_under_another_ref_does_not_come_again(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT})
    second = hub.add("org/name", {"model.onnx": CONTENT, "README.md": b"new"}, revision="v2")

    with make(root, hub) as cache:
        first = Path(cache.get(REF))
        path = Path(cache.get("hf://org/name@v2/model.onnx"))
        entry = cache.lookup("hf://org/name@v2/model.onnx")
        assert cache.stats().bytes_received == len(CONTENT)
        cache.remove(REF)

    assert not first.exists() or first == path
    assert path.read_bytes() == CONTENT
    assert entry is not None
    assert (entry.revision, entry.source) == (second, "hf://org/name@v2/model.onnx")
    assert entry.checked > 0


def test_what_is_here_is_not_taken_for_another_digest(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT})
    hub.add("org/name", {"model.onnx": CONTENT}, revision="v2")
    get(root, hub)

    with make(root, hub) as cache, pytest.raises(errors.DigestMismatchError):
        cache.get("hf://org/name@v2/model.onnx", digest=Digest.of_bytes([b"something else"]))


def test_what_is_here_and_damaged_comes_again(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, revision="main")
    hub.add("org/name", {"model.onnx": CONTENT}, revision="v2")
    with make(root, hub) as cache:
        damaged = Path(cache.get(REF))
        damaged.chmod(0o644)
        damaged.write_bytes(CONTENT[::-1])

        path = Path(cache.get("hf://org/name@v2/model.onnx"))

        assert path.read_bytes() == CONTENT
        assert cache.stats().bytes_received == 2 * len(CONTENT)


def test_a_partial_is_of_no_use_once_the_content_is_here_under_another_ref(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(abort_after=1_000_000)])
    hub.add("org/name", {"model.onnx": CONTENT, "x": b"x"}, revision="v2", faults=[Fault(abort_after=1_000_000)])
    with pytest.raises(errors.InterruptedTransferError):
        get(root, hub, attempts=1)
    with make(root, hub) as cache:
        cache.get("hf://org/name@v2/model.onnx")
        received = cache.stats().bytes_received
        assert Path(cache.get(REF)).read_bytes() == CONTENT
        assert cache.stats().bytes_received == received

    assert leftovers(root) == []


def test_a_weak_or_unquoted_announcement_is_the_same_digest(hub: Hub, root: Path) -> None:
    digits = hashlib.sha256(CONTENT).hexdigest()
    for number, header in enumerate((f'W/"{digits}"', digits, digits.upper())):
        hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(corrupt_at=5)] * 2)
        hub.lies = {"X-Linked-Etag": header}

        with pytest.raises(errors.DigestMismatchError):
            get(root / str(number), hub)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_hub_that_fails_for_a_moment_is_asked_again(status: int, hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT})
    answers = [Answer(status, {"Retry-After": "0"})]
    hub.override = lambda asked: answers.pop() if answers else None

    assert get(root, hub) == CONTENT
    assert len(hub.seen()) == 2


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://host/m", "hf://org/name/other", "http://"])
def test_a_redirect_to_what_is_no_web_address_is_refused(location: str, hub: Hub, root: Path) -> None:
    hub.add("org/name", {"model.onnx": CONTENT})
    hub.lies = {"Location": location}

    with pytest.raises(errors.RedirectError):
        get(root, hub)


def test_a_content_network_without_the_hubs_word_has_none_either(hub: Hub, root: Path) -> None:
    """Its own X-Repo-Commit comes too late to be believed for another commit."""
    pinned = hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(headers={"X-Repo-Commit": "1" * 40})])

    with make(root, hub) as cache:
        cache.get(REF)
        entry = cache.lookup(REF)

    assert entry is not None
    assert entry.revision == pinned


def test_a_repository_that_moved_is_followed_on_the_same_host(hub: Hub, root: Path) -> None:
    hub.add("org/new", {"model.onnx": CONTENT})

    def moved(asked: Asked) -> Answer | None:
        if not asked.path.startswith("/org/name/"):
            return None
        return Answer(307, {"Location": asked.path.replace("/org/name/", "/org/new/")})

    hub.override = moved

    assert get(root, hub) == CONTENT


def test_parallel_ranges_ask_the_hub_once(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcache import ranges as parallel
    from modelcache import transfer

    monkeypatch.setattr(transfer, "_JUDGE_AFTER_S", 0.05)
    monkeypatch.setattr(transfer, "_WORTH_S", 0.0)
    monkeypatch.setattr(parallel, "PIECE_BYTES", 128 * 1024)
    hub.add("org/name", {"model.onnx": CONTENT}, faults=[Fault(rate=2_000_000)] * 50)
    events: list[Event] = []

    with make(root, hub, events=events) as cache:
        assert Path(cache.get(REF)).read_bytes() == CONTENT

    assert "ranges" in [event.kind for event in events]
    assert len(hub.cdn.seen()) > 5
    assert len(hub.seen()) == 1


def test_what_one_endpoint_refuses_is_not_taken_for_the_word_of_another(hub: Hub, root: Path) -> None:
    """Notes for those who wait name the host that was asked."""
    from modelcache.download import Job
    from modelcache.fetch import Fetcher
    from modelcache.reference import parse
    from modelcache.sources import Registry

    asked = []
    for endpoint in (hub.endpoint, "https://mirror.example.org"):
        registry = Registry([HfSource(endpoint=endpoint)])
        fetcher = Fetcher(
            str(root),
            registry,
            retry_policy=RetryPolicy(),
            timeout=Timeout(),
            lock_timeout=1,
            on_event=lambda event: None,
        )
        asked.append(fetcher._asked(Job(parse(REF))))

    assert asked[0] != asked[1]
