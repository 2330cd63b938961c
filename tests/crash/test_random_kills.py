"""Several real processes at work, and SIGKILL at whatever instant: one of them, then all of the group at once.

What falls between two fail points is met here, by many tries. The verdict is on state: what was acknowledged is there,
nothing wrong can be seen, and who comes next goes on. The instants are drawn and not waited for exactly: nothing
depends on them but which states are met.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, layout
from modelcache.records import Entries
from modelcache.sweep import sweep
from modelcache.testing import Fault, FaultServer, Victim, check_cache, spawn
from tests.crash.world import digest_of
from tests.support.state import leftovers

CONTENTS = [random.Random(number).randbytes(150_000) for number in range(30, 34)]
WORKERS = 4

# Does everything there is, over and over, and says what it has done. Each worker has names of its own, and they share
# contents and URLs.
WORK = """
import hashlib, random
from modelcache import Cache, RetryPolicy, errors
from modelcache.testing import Barrier, acknowledge
root, base, number, barrier, parties = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
contents = [random.Random(n).randbytes(150_000) for n in range(30, 34)]
digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in contents]
chance = random.Random(f"{number} {sys.argv[6]}")
cache = Cache(root, retry=RetryPolicy(attempts=3, base=0))
def double(workspace):
    os.mkdir(f"{workspace}/made")
    with open(workspace.inputs["0"], "rb") as source, open(f"{workspace}/made/double.bin", "wb") as product:
        product.write(source.read() * 2)
    return "made/double.bin"
Barrier(barrier, parties).wait()
acknowledge("ready")
while True:
    which = chance.randrange(4)
    name = f"n{number}-{chance.randrange(2)}"
    kind = chance.choice(
        ["get", "get", "put", "put", "remove", "refresh", "link", "pin", "verify", "lease", "gc", "derive"])
    try:
        if kind == "put":
            acknowledge(f"begin {name} {digests[which]}")
            acknowledge(f"done {name} {cache.put(contents[which], name=name).digest}")
        elif kind == "remove":
            acknowledge(f"begin {name} -")
            cache.remove(name, force=True)
            acknowledge(f"done {name} -")
        elif kind == "pin":
            cache.pin(name)
        elif kind == "verify":
            cache.verify(repair=True)
        elif kind == "lease":
            with cache.lease(f"{base}/{which}.onnx") as lease:
                assert hashlib.sha256(open(lease.path, "rb").read()).hexdigest() == digests[which][7:]
        elif kind == "derive":
            path = cache.derive(double, recipe="double", version="1", inputs=[f"{base}/{which}.onnx"], platform={})
            assert open(path, "rb").read() == contents[which] * 2
            acknowledge(f"made {which} {cache.explain(path).ref}")
        elif kind == "gc":
            cache.plan_gc(grace=0).execute()  # What nothing names.
        elif kind == "link":
            url = f"{base}/{which}.onnx?{number}"
            cache.get(url, digest=digests[which])
            acknowledge(f"got {which} {url}")
        else:
            url = f"{base}/{which}.onnx"
            path = cache.get(url, force_download=kind == "refresh")
            acknowledge(f"got {which} {url}")
    except errors.RepeatedFailureError:
        pass  # Three builds in a row took their processes along: so it seems from here.
    except errors.NotFoundError:
        pass  # What was to be pinned has been removed.
    except (errors.LockTimeoutError, errors.NoLocksError):
        pass  # Another one collects; or nobody may, where locks do nothing.
"""


class Promises:
    """What each key may stand for, by all that was ever said of it: each round's promises hold in the next ones too."""

    def __init__(self) -> None:
        self.allowed: dict[str, set[str | None]] = {}

    def hear(self, victims: list[Victim]) -> None:
        """Take note of what *victims* have said: a call under way may have been done, or not."""
        for victim in victims:
            for line in victim.acknowledged():
                what, _, rest = line.partition(" ")
                if what == "got":
                    which, url = rest.split(" ")
                    self.allowed[url] = {digest_of(CONTENTS[int(which)])}
                elif what == "made":
                    which, ref = rest.split(" ")
                    self.allowed[ref] = {digest_of(CONTENTS[int(which)] * 2)}
                elif what in {"begin", "done"}:
                    name, value = rest.split(" ")
                    meant = None if value == "-" else value
                    self.allowed[name] = {meant, *(self.allowed.get(name, {None}) if what == "begin" else ())}

    @property
    def certain(self) -> dict[str, str | None]:
        """What each key stands for, of which only one thing can be."""
        return {key: one for key, allowed in self.allowed.items() if len(allowed) == 1 for one in allowed}

    def broken(self, root: Path) -> list[str]:
        """Return what is not kept. What is found is certain from then on: those who could change it are dead."""
        wrong = []
        found: dict[str, str | None] = {}
        for key, allowed in self.allowed.items():
            entry = Entries(str(root)).read(key)
            found[key] = None if entry is None else entry.digest
            if found[key] not in allowed:
                wrong.append(f"{key} stands for {found[key]}, and may stand for {sorted(map(str, allowed))}")
        self.allowed = {key: {digest} for key, digest in found.items()}
        return wrong + [str(v) for v in check_cache(root, found) if v.kind != "garbage"]


def start(root: Path, base: str, barrier: Path, seed: str, group: int | None) -> list[Victim]:
    barrier.mkdir()
    victims: list[Victim] = []
    for number in range(WORKERS):
        leader = victims[0].pid if group is not None and victims else group
        arguments = [str(root), base, str(number), str(barrier), str(WORKERS), seed]
        victims.append(spawn(WORK, *arguments, group=leader))
    for victim in victims:
        victim.wait_for("ready")
    return victims


@pytest.mark.parametrize("together", [False, True], ids=["one", "the group"])
def test_a_kill_at_a_random_instant_takes_nothing_back(
    together: bool, server: FaultServer, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rounds = 150 if pytestconfig.getoption("--crash-budget") == "large" else 6
    chance = random.Random(pytestconfig.getoption("--crash-seed"))
    pause = threading.Event()
    for content in range(len(CONTENTS)):
        for query in ("", *(f"?{worker}" for worker in range(WORKERS))):
            server.add(f"/{content}.onnx{query}", CONTENTS[content], [Fault(abort_after=60_000)])
    base = server.url("")
    root = tmp_path / "cache"
    promises = Promises()
    kills = looked_at = 0
    for number in range(rounds):
        victims = start(root, base, tmp_path / f"barrier-{number}", f"{number}", 0 if together else None)
        pause.wait(chance.uniform(0.0, 0.15))
        if together:
            victims[0].kill_group()
            kills += len(victims)
        else:
            victims[chance.randrange(WORKERS)].kill()
            kills += 1
            pause.wait(chance.uniform(0.0, 0.05))  # The others go on beside the dead one for a while.
        for victim in victims:
            victim.kill()
        promises.hear(victims)
        looked_at += len(promises.allowed)
        for victim in victims:
            with victim:
                assert "Traceback" not in victim.errors()

        assert promises.broken(root) == [], f"round {number}"

    with Cache(root, retry=RetryPolicy(attempts=3, base=0)) as cache:
        for content in range(len(CONTENTS)):
            path = cache.get(f"{base}/{content}.onnx", force_download=True)
            assert Path(path).read_bytes() == CONTENTS[content]
            for worker in range(WORKERS):
                cache.get(f"{base}/{content}.onnx?{worker}", force_download=True)
    sweep(str(root))
    # That a build took its process along is remembered for a day, where nobody has built it since.
    assert [one for one in leftovers(root) if not one.startswith(layout.FAILURES)] == []
    print(f"{kills} kills in {rounds} rounds; {looked_at} promises looked at")
    assert looked_at > rounds


def test_a_barrier_lets_all_through_together_and_says_who_is_missing(tmp_path: Path) -> None:
    code = """
    from modelcache.testing import Barrier, acknowledge
    Barrier(sys.argv[1], 2).wait(timeout=0.1 if sys.argv[2] == "alone" else 60)
    acknowledge("through")
    """
    with spawn(code, tmp_path, "alone") as alone:
        assert alone.wait() == 1
        assert "1 of 2 processes came" in alone.errors()
    # Who has given up does not count: it takes two more.
    with spawn(code, tmp_path, "second") as second, spawn(code, tmp_path, "third") as third:
        for victim in (second, third):
            victim.wait_for("through")
            assert victim.wait() == 0


def test_a_victim_dies_at_its_fail_point_and_its_acknowledgements_are_heard(tmp_path: Path) -> None:
    code = """
    from modelcache import Cache
    from modelcache.testing import acknowledge
    cache = Cache(sys.argv[1])
    acknowledge(cache.put(b"first", name="a").digest)
    acknowledge(cache.put(b"second", name="b").digest)
    """
    root = tmp_path / "cache"
    with spawn(code, root, failpoints="intake.before-record=1*off->kill") as victim:
        assert victim.wait() == -9
        assert victim.acknowledged() == [digest_of(b"first")]
        with pytest.raises(AssertionError, match="was not acknowledged"):
            victim.wait_for("more")

    assert [v for v in check_cache(root, {"a": digest_of(b"first")}) if v.kind != "garbage"] == []
    assert {v.promise for v in check_cache(root, {"a": None})} >= {"I3", "I7"}
