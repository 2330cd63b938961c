"""A soak: everything at once, for a minute in CI and for as long as ``--soak-seconds`` says by hand, with a report.

Processes get, put, refresh, verify, pin and remove over one directory, from a server that fails in a seeded sequence.
One of them after the other is killed and replaced. Every reader checks what it reads against what it may be.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from modelcache import Cache, layout
from modelcache.sweep import sweep
from modelcache.testing import OK, Fault, FaultServer, check_cache, spawn
from modelcache.testing.victims import Victim
from tests.support.state import leftovers, wrong_objects

WORKERS = 6
MODELS = 8

_WORKER = """
import hashlib, json, random, time
from modelcache import Cache, RetryPolicy, errors
from modelcache.testing import acknowledge

root, seed, models = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
chance = random.Random(seed)
cache = Cache(root, retry=RetryPolicy(attempts=2, base=0))
contents = {f"name-{n}": [random.Random(f"{n % 2} {v}").randbytes(40_000) for v in range(2)] for n in range(4)}
doubled = {name: {hashlib.sha256(content * 2).hexdigest() for content in of} for name, of in contents.items()}
legit = {name: {hashlib.sha256(content).hexdigest() for content in of} for name, of in contents.items()}

def read(path, allowed):
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "gone"  # Another one removed it after it was found.
    assert found in allowed, f"{path} holds {found}"
    return "ok"

def double(workspace):
    os.mkdir(f"{workspace}/made")
    with open(workspace.inputs["0"], "rb") as source, open(f"{workspace}/made/double.bin", "wb") as product:
        product.write(source.read() * 2)

def once():
    url, digest, pinned = chance.choice(models)
    name = chance.choice(list(contents))
    what = chance.choices(
        ["get", "hit", "refresh", "put", "get-name", "remove", "remove-name", "pin", "verify", "derive"],
        [10, 10, 3, 4, 6, 2, 2, 2, 1, 4])[0]
    asked = {"digest": f"sha256:{digest}"} if pinned else {}
    if what in {"get", "hit"}:
        return what, read(cache.get(url, **asked), {digest})
    if what == "refresh":
        return what, read(cache.get(url, force_download=True, **asked), {digest})
    if what == "put":
        return what, read(cache.put(chance.choice(contents[name]), name=name).path, legit[name])
    if what == "derive":
        path = cache.derive(double, recipe="double", version="1", inputs=[name], platform={})
        return what, read(f"{path}/double.bin", doubled[name])
    if what == "get-name":
        return what, read(cache.get(name), legit[name])
    if what == "remove":
        cache.remove(url, force=True)
    elif what == "remove-name":
        cache.remove(name, force=True)
    elif what == "pin":
        cache.pin(url)
        cache.unpin(url)
    else:
        for finding in cache.verify().findings:
            assert finding.state in {"ok", "missing"}, str(finding)
    return what, "ok"

while True:
    started = time.perf_counter()
    try:
        what, how = once()
    except errors.ModelCacheError as error:
        what, how = "failed", type(error).__name__
    acknowledge(f"{what} {how} {(time.perf_counter() - started) * 1e6:.0f}")
"""
# What may come of a server that fails and of others who remove what one asks for.
_EXPECTED = {
    "HttpStatusError", "InterruptedTransferError", "StalledError", "ProtocolError", "DigestMismatchError",
    "EntryNotFoundError", "NoSourceError", "LocalNotFoundError", "UnreachableError",
    "RepeatedFailureError",  # Three builds in a row took their processes along: so it seems from here.
}  # fmt: skip


def faults(chance: random.Random, *, corrupt: bool) -> list[Fault]:
    kinds = [OK, OK, OK, Fault(status=503), Fault(hang_up=True), Fault(abort_after=chance.randrange(60_000)),
             Fault(framing="chunked"), Fault(ignore_range=True)]  # fmt: skip
    if corrupt:
        kinds.append(Fault(corrupt_at=chance.randrange(60_000)))
    return [chance.choice(kinds) for _ in range(20_000)]


def test_everything_at_once_for_a_while(server: FaultServer, root: Path, pytestconfig: pytest.Config) -> None:
    seconds, seed = pytestconfig.getoption("--soak-seconds"), pytestconfig.getoption("--crash-seed")
    chance = random.Random(seed)
    models = []
    for number in range(MODELS):
        content = random.Random(number).randbytes(60_000)
        pinned = number % 2 == 0
        url = server.add(f"/m{number}.onnx", content, faults(chance, corrupt=pinned))
        models.append((url, hashlib.sha256(content).hexdigest(), pinned))
    said: list[str] = []
    kills = 0

    def start(number: int) -> Victim:
        return spawn(_WORKER, root, f"{seed} {number}", json.dumps(models))

    running = [start(number) for number in range(WORKERS)]
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            victim = chance.randrange(WORKERS)
            # As long as it takes that one to do some more; then it dies wherever it is.
            wanted = len(running[victim].acknowledged()) + chance.randrange(1, 60)
            while len(running[victim].acknowledged()) < wanted and running[victim].alive:
                for process in running:
                    process.acknowledged()
            assert all(process.alive for process in running), [process.errors() for process in running]
            running[victim].kill()
            said += running[victim].acknowledged()
            running[victim].__exit__(None, None, None)
            kills += 1
            running[victim] = start(WORKERS + kills)
    finally:
        for process in running:
            process.__exit__(None, None, None)
            said += process.acknowledged()

    report(said, kills, seconds, seed)
    assert {line.split()[1] for line in said if line.startswith("failed")} <= _EXPECTED
    sweep(str(root))
    assert wrong_objects(root) == []
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []
    settle(root, models)


def settle(root: Path, models: list[tuple[str, str, bool]]) -> None:
    """Ask for everything once more, by one that lives: partials of the dead are used up, and nothing is left over."""
    with Cache(root) as cache:
        for url, digest, _ in models:
            for _ in range(200):
                try:
                    path = cache.get(url, digest=f"sha256:{digest}")
                    cache.get(url, force_download=True, digest=f"sha256:{digest}")
                    break
                except Exception as error:  # noqa: BLE001  # The server still fails, now and then.
                    last = error
            else:
                raise last
            with open(path, "rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    sweep(str(root))
    # That a build took its process along is remembered for a day, where nobody has built it since.
    assert [one for one in leftovers(root) if not one.startswith(layout.FAILURES)] == []


def report(said: list[str], kills: int, seconds: float, seed: int) -> None:
    """Print what was done, how often, how it ended and how long it took."""
    times: dict[str, list[int]] = {}
    for line in said:
        what, how, taken = line.split()
        times.setdefault(f"{what} {how}", []).append(int(taken))
    print(f"{seconds:g} s, seed {seed}: {len(said)} operations, {kills} kills")
    for name, all_of_them in sorted(times.items()):
        ranked = sorted(all_of_them)
        print(f"  {name:<34}{len(ranked):>8}   p50 {ranked[len(ranked) // 2]:>8} µs   max {ranked[-1]:>9} µs")
    print(f"  by outcome: {dict(Counter(line.split()[1] for line in said))}")
