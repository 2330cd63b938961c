"""gc beside processes that lease, get, put and fork: what is leased is there, whatever a collector does meanwhile."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import time
from pathlib import Path

import pytest

from modelcache import Cache, errors
from modelcache.sweep import sweep
from modelcache.testing import FaultServer, check_cache, spawn
from modelcache.testing.victims import Victim
from tests.support.state import leftovers, wrong_objects

# Holds a lease for a while, and looks at its path all the time; forks in the middle of it, now and then.
_USER = """
import gc as _gc, hashlib, json, os, random, time, sys
from modelcache import Cache, RetryPolicy, errors
from modelcache.testing import acknowledge

root, seed, models, names = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
chance = random.Random(seed)
cache = Cache(root, retry=RetryPolicy(attempts=3, base=0), grace=0, capacity=json.loads(sys.argv[5]))

def whole(path, digest):
    for _ in range(chance.randrange(1, 30)):
        with open(path, "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest, f"{path} is not whole"

def in_child(lease, digest):
    child = os.fork()
    if child == 0:
        try:
            whole(lease.path, digest)
            lease.release()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"in a child: {error!r}".encode())
            os._exit(1)
    return child

def once():
    url, digest = chance.choice(models)
    what = chance.choices(["lease", "two", "fork", "get", "put"], [10, 3, 2, 4, 3])[0]
    if what == "get":
        try:
            whole(cache.get(url), digest)
        except FileNotFoundError:
            pass  # Nobody promised that it stays: the grace period is 0.
        return what
    if what == "put":
        name, content, of = chance.choice([(name, bytes.fromhex(text), of) for name, text, of in names])
        cache.put(content, name=name)
        try:
            with cache.lease(name) as lease:
                whole(lease.path, of)
        except errors.EntryNotFoundError:
            pass  # Evicted before it was leased.
        return what
    with cache.lease(url) as lease:
        whole(lease.path, digest)
        if what == "two":
            other, of = chance.choice(models)
            with cache.lease(other) as second:
                whole(second.path, of)
        if what == "fork":
            child = in_child(lease, digest)
            if chance.random() < 0.5:
                lease.release()  # The child's is its own.
                assert os.waitpid(child, 0)[1] == 0
                return what
            assert os.waitpid(child, 0)[1] == 0
        whole(lease.path, digest)
    return what

acknowledge("begins")
while True:
    try:
        acknowledge(once())
    except errors.CapacityError:
        acknowledge("full")  # Of what others lease.
"""

_COLLECTOR = """
import signal, sys
from modelcache import Cache, errors
from modelcache.testing import acknowledge
cache = Cache(sys.argv[1], grace=0)
acknowledge("begins")
while True:
    try:
        limit = {"capacity": int(sys.argv[2])} if len(sys.argv) > 2 else {"unused_for": 0}
        report = cache.plan_gc(**limit).execute()
        acknowledge(f"gone {sum(item.kind == 'object' for item in report.removed)} {len(report.stayed)}")
    except errors.LockTimeoutError:
        acknowledge("busy")
"""


CAPACITY = 50_000  # Of seven contents of 20 kB and less.


@pytest.mark.parametrize("capacity", [None, CAPACITY], ids=["all goes", "a capacity"])
def test_no_path_inside_a_lease_is_ever_missing_while_gc_runs_in_a_loop(
    capacity: int | None, server: FaultServer, root: Path, pytestconfig: pytest.Config
) -> None:
    seconds, seed = pytestconfig.getoption("--soak-seconds") / 6, pytestconfig.getoption("--crash-seed")
    count = 6 if seconds < 30 else 22  # With the collectors two dozens, by hand.
    contents = [random.Random(number).randbytes(20_000) for number in range(5)]
    models = [
        (server.add(f"/m{number}.onnx", content), hashlib.sha256(content).hexdigest())
        for number, content in enumerate(contents)
    ]
    # Names of the same content as two of the models, and of one of their own.
    names = [
        (f"name-{number}", content.hex(), hashlib.sha256(content).hexdigest())
        for number, content in enumerate([*contents[:2], b"x" * 5000])
    ]
    Cache(root).put(b"first", name="first")
    chance = random.Random(seed)

    def start(number: int) -> Victim:
        return spawn(_USER, root, f"{seed} {number}", json.dumps(models), json.dumps(names), json.dumps(capacity))

    users = [start(number) for number in range(count)]
    collectors = [spawn(_COLLECTOR, root, *([] if capacity is None else [str(capacity)])) for _ in range(2)]
    said: list[str] = []
    kills = 0
    try:
        for process in (*users, *collectors):
            process.wait_for("begins")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # One that has done some more dies wherever it is: what it held is free, what others hold is not.
            number = chance.randrange(len(users))
            wanted = len(users[number].acknowledged()) + chance.randrange(1, 40)
            while len(users[number].acknowledged()) < wanted and users[number].alive:
                for process in (*users, *collectors):
                    process.acknowledged()
            assert all(process.alive for process in (*users, *collectors)), [
                process.errors() for process in (*users, *collectors) if not process.alive
            ]
            users[number].kill()
            said += users[number].acknowledged()
            users[number].__exit__(None, None, None)
            kills += 1
            users[number] = start(100 + kills)
        found = [line for collector in collectors for line in collector.acknowledged()]
    finally:
        for process in (*users, *collectors):
            process.__exit__(None, None, None)
            said += process.acknowledged()

    gone = sum(int(line.split()[1]) for line in found if line.startswith("gone"))
    stayed = sum(int(line.split()[2]) for line in found if line.startswith("gone"))
    print(
        f"{seconds:g} s, {count} users and 2 collectors, seed {seed}: {len(said)} operations, {said.count('full')} of "
        f"them refused for room, {kills} kills, {gone} evicted, {stayed} kept at last"
    )
    if capacity is not None:
        # Nobody leases, and nothing is in grace: it fits, whatever was fetched at the same time at the end.
        with Cache(root, grace=0) as cache:
            cache.plan_gc(capacity=capacity).execute()
            assert cache.plan_gc(capacity=capacity).used_bytes <= capacity
    assert gone > 0
    assert wrong_objects(root) == []
    assert [violation for violation in check_cache(root) if violation.kind != "garbage"] == []
    settle(root, models)


def settle(root: Path, models: list[tuple[str, str]]) -> None:
    """Let one that lives fetch all of it, and collect: nothing is left that should not be."""
    with Cache(root, grace=0) as cache:
        paths = cache.get_many([url for url, _ in models])
        for url, digest in models:
            assert hashlib.sha256(Path(paths[url]).read_bytes()).hexdigest() == digest
        cache.plan_gc().execute()
    sweep(str(root))
    assert leftovers(root) == []
    assert check_cache(root) == []


_HOLDER = """
import signal, sys
from modelcache import Cache
from modelcache.testing import acknowledge
lease = Cache(sys.argv[1]).lease("m")
acknowledge("held")
signal.pause()
"""


def test_what_a_killed_process_held_is_evicted_by_the_next_gc(root: Path) -> None:
    cache = Cache(root, grace=0)
    cache.put(b"m" * 1000, name="m")
    with spawn(_HOLDER, root) as victim:
        victim.wait_for("held")
        assert cache.plan_gc(unused_for=0).items == ()

        assert victim.kill() == -signal.SIGKILL

    report = cache.plan_gc(unused_for=0).execute()
    assert [item.kind for item in report.removed] == ["lease", "object"]
    assert check_cache(root) == []


_LOCKED = """
import signal, sys
from modelcache import layout, locks
from modelcache.testing import acknowledge
with locks.exclusive(f"{sys.argv[1]}/{layout.LOCKS}/{layout.GC_LOCK}", timeout=0, what="gc"):
    acknowledge("held")
    signal.pause()
"""


def test_a_gc_beside_another_one_says_who_that_is_and_runs_once_it_has_died(root: Path) -> None:
    cache = Cache(root, grace=0)
    cache.put(b"m" * 1000, name="m")
    plan = cache.plan_gc(unused_for=0)
    with spawn(_LOCKED, root) as victim:
        victim.wait_for("held")
        with pytest.raises(errors.LockTimeoutError, match=f"process {victim.pid} "):
            plan.execute()
        victim.kill()

    assert len(plan.execute().removed) == 1
