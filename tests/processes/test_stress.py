"""Real processes over one directory while the network, the content and the others do their worst.

Barriers start them together, faults come in a fixed or seeded sequence, and the verdict is on what is there afterwards
and on what the server has counted: one object a model, nothing left over, whole content for every reader, and each
failure in the process that it belongs to.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.testing import OK, Fault, FaultServer, check_cache, spawn
from tests.support.state import leftovers, wrong_objects

CONTENT = random.Random(8).randbytes(600_000)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"

# Waits for the others, asks for each "url=digest" in turn, and says what it got, or the class of the error.
_ASKER = """
import hashlib
from modelcache import Cache, RetryPolicy, errors
from modelcache.testing import Barrier, acknowledge
cache = Cache(sys.argv[1], retry=RetryPolicy(attempts=3, base=0))
Barrier(sys.argv[2], int(sys.argv[3])).wait()
for asked in sys.argv[4:]:
    url, _, digest = asked.partition("=")
    try:
        with open(cache.get(url, digest=digest or None), "rb") as file:
            acknowledge(f"{url} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
    except errors.ModelCacheError as error:
        acknowledge(f"{url} {type(error).__name__}")
"""


def asked(root: Path, tmp_path: Path, questions: list[list[str]]) -> list[list[list[str]]]:
    """Start one process for each of *questions* (what it asks for, in order); return what each of them got."""
    gate = tmp_path / f"gate-{len(list(tmp_path.iterdir()))}"
    gate.mkdir()
    with ExitStack() as stack:
        processes = [
            stack.enter_context(spawn(_ASKER, root, gate, str(len(questions)), *question)) for question in questions
        ]
        assert [(process.wait(300), process.errors()) for process in processes] == [(0, "")] * len(questions)
        return [[line.split() for line in process.acknowledged()] for process in processes]


def nothing_is_left_over(root: Path, models: int) -> None:
    assert leftovers(root) == []
    assert wrong_objects(root) == []
    assert check_cache(root) == []
    assert len(list((root / "objects-v1").iterdir())) == models


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(status=503), OK, Fault(corrupt_at=5), OK],
        [Fault(abort_after=512), Fault(status=503), OK, OK],
        [OK, Fault(hang_up=True), OK, Fault(abort_after=1024)],
        [OK, Fault(corrupt_at=7), OK, Fault(corrupt_at=7)],
        [Fault(corrupt_at=7), OK, Fault(corrupt_at=7), OK],
    ],
    ids=[
        "503 ok corrupt ok",
        "abort 503 ok ok",
        "ok refused ok abort",
        "ok corrupt ok corrupt",
        "corrupt ok corrupt ok",
    ],
)
def test_the_network_fails_and_recovers_while_ten_ask_with_a_digest(
    faults: list[Fault], server: FaultServer, root: Path, tmp_path: Path
) -> None:
    url = server.add("/m.onnx", CONTENT, faults)

    got = asked(root, tmp_path, [[f"{url}={DIGEST}"]] * 10)

    assert got == [[[url, DIGEST]]] * 10
    assert server.sent() <= 2 * len(CONTENT)  # Corrupted at worst once, and then fetched: ten times never.
    nothing_is_left_over(root, 1)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_faults_under_contention(seed: int, server: FaultServer, root: Path, tmp_path: Path) -> None:
    chance = random.Random(seed)
    kinds = [
        OK, Fault(status=503), Fault(status=429, headers={"Retry-After": "0"}), Fault(hang_up=True),
        Fault(abort_after=chance.randrange(len(CONTENT))), Fault(corrupt_at=chance.randrange(len(CONTENT))),
        Fault(framing="chunked"), Fault(ignore_range=True), Fault(abort_after=1, reset=True),
    ]  # fmt: skip
    faults = [chance.choice(kinds) for _ in range(12)]
    url = server.add("/m.onnx", CONTENT, faults)
    outcomes = set()

    for _ in range(30):  # Each of them may fail; that they all end, and that it works at last, is the point.
        got = asked(root, tmp_path, [[f"{url}={DIGEST}"]] * 6)
        outcomes |= {answer for ((_, answer),) in got}
        if DIGEST in outcomes:
            break

    print(f"seed {seed}: {sorted(outcomes)}")
    assert {answer for ((_, answer),) in asked(root, tmp_path, [[f"{url}={DIGEST}"]] * 6)} == {DIGEST}
    nothing_is_left_over(root, 1)


def test_what_is_corrupt_at_its_source_is_never_served_and_harms_no_other(
    server: FaultServer, root: Path, tmp_path: Path
) -> None:
    good = [server.add(f"/good{n}.onnx", random.Random(n).randbytes(200_000)) for n in range(3)]
    legit = [f"sha256:{hashlib.sha256(random.Random(n).randbytes(200_000)).hexdigest()}" for n in range(3)]
    bad = server.add("/bad.onnx", CONTENT[::-1])

    got = asked(root, tmp_path, [[f"{good[n % 3]}={legit[n % 3]}", f"{bad}={DIGEST}", good[n % 3]] for n in range(9)])

    for number, answers in enumerate(got):
        assert answers == [
            [good[number % 3], legit[number % 3]],
            [bad, "DigestMismatchError"],
            [good[number % 3], legit[number % 3]],
        ]
    nothing_is_left_over(root, 3)


def test_each_failure_has_its_own_class_in_the_process_that_asked(
    server: FaultServer, root: Path, tmp_path: Path
) -> None:
    url = server.add("/fine.onnx", CONTENT)
    fails = {
        server.url("/missing.onnx"): "RemoteNotFoundError",
        server.add("/denied.onnx", CONTENT, [Fault(status=403)] * 99): "AccessDeniedError",
        server.add("/busy.onnx", CONTENT, [Fault(status=503)] * 99): "HttpStatusError",
        server.add("/cut.onnx", CONTENT, [Fault(abort_after=0)] * 99): "InterruptedTransferError",
        server.add("/empty.onnx", b""): "EmptyContentError",
        f"{server.add('/wrong.onnx', CONTENT)}=sha256:{'0' * 64}": "DigestMismatchError",
    }
    questions = [[question] for question in fails] * 3 + [[url]] * 3

    got = asked(root, tmp_path, questions)

    wanted = [[[question[0].partition("=")[0], fails.get(question[0], DIGEST)]] for question in questions]
    assert got == wanted
    nothing_is_left_over(root, 1)


def test_caches_side_by_side_know_nothing_of_each_other(server: FaultServer, tmp_path: Path) -> None:
    urls = [server.add(f"/{n}.onnx", random.Random(n).randbytes(100_000)) for n in range(4)]
    roots = [tmp_path / f"cache{n}" for n in range(4)]
    gate = tmp_path / "gate"
    gate.mkdir()

    with ExitStack() as stack:
        processes = [stack.enter_context(spawn(_ASKER, root, gate, "8", *urls)) for root in roots for _ in range(2)]
        assert [process.wait(300) for process in processes] == [0] * 8

    assert Counter(seen.path for seen in server.seen()) == {f"/{n}.onnx": len(roots) for n in range(4)}
    for root in roots:
        nothing_is_left_over(root, 4)


# Makes, asks, pins, forgets and verifies a few names in an order of its own, as fast as it can.
_STIRRER = """
import random
from modelcache import Cache, errors
from modelcache.testing import Barrier, acknowledge
from modelcache.sweep import sweep
chance, cache = random.Random(sys.argv[4]), Cache(sys.argv[1])
contents = [bytes([n]) * 50_000 for n in range(3)]
Barrier(sys.argv[2], int(sys.argv[3])).wait()
for _ in range(60):
    name, content = chance.choice("abcd"), chance.choice(contents)
    match chance.randrange(6):
        case 0 | 1:
            cache.put(content, name=name)
        case 2:
            cache.remove(name, force=True)
        case 3:
            try:
                with open(cache.get(name), "rb") as file:
                    assert file.read() in contents, "torn"
            except (errors.NotFoundError, errors.LocalNotFoundError, FileNotFoundError):
                pass  # Another one has removed it.
        case 4:
            try:
                cache.pin(name)
                cache.unpin(name)
            except errors.NotFoundError:
                pass
        case 5:
            sweep(sys.argv[1])
acknowledge("done")
"""


@pytest.mark.parametrize("seed", range(2))
def test_names_are_made_read_pinned_and_removed_by_eight_at_once(seed: int, root: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()

    with ExitStack() as stack:
        processes = [stack.enter_context(spawn(_STIRRER, root, gate, "8", f"{seed} {number}")) for number in range(8)]
        assert [(process.wait(300), process.errors()) for process in processes] == [(0, "")] * 8

    assert leftovers(root) == []
    assert wrong_objects(root) == []
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []
    with Cache(root) as cache:
        for entry in cache.entries():
            cache.remove(entry.key)
