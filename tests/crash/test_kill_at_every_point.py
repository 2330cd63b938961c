"""SIGKILL at every fail point of every operation: what was acknowledged is there, nothing wrong is, and work goes on.

The points are collected from the source, so that a new mark is tested at once; one that no operation reaches is a
failure of its own. After each kill the checker looks at the disk; then a new process looks, another one does what the
dead one was asked, a third one clears up, and the checker looks again. The server counts what the second one asked
for: nothing that is here already, and no byte twice.

All that these processes do, this module does too (`serve`): it is started once as a program, and forks a process for
each of them, which takes milliseconds and knows of no cache. With ``--crash-budget=large`` each point also kills at
its second and third passage, and later ones.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import failpoints
from failpoints.source import find_points
from modelcache import Cache, Entry, Policy, RetryPolicy, commit, errors, layout, mending
from modelcache.digest import Digest
from modelcache.objects import Objects
from modelcache.records import Entries
from modelcache.sweep import sweep
from modelcache.testing import Fault, FaultServer, check_cache
from tests.crash.world import derive, derived_ref, digest_of, found_at, make_tree, tree_digest, tree_of
from tests.support.state import leftovers

OLD, NEW = bytes(range(250)) * 6_000, bytes(range(1, 251)) * 6_000
CONTENTS = {digest_of(OLD): OLD, digest_of(NEW): NEW}
OLDS, NEWS = CONTENTS
TREES = {tree_digest(tree_of(content)): tree_of(content) for content in (OLD, NEW)}
OLD_TREE, NEW_TREE = TREES
POINTS = sorted({point.name for point in find_points("modelcache")})
ELSEWHERE = "https://unreachable.invalid/other.onnx"


# -- the processes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One call of a process. ``digest`` is of what is put or asked for."""

    what: str
    key: str = ""
    digest: str = OLDS
    attempts: int = 4
    lock_timeout: float | None = None
    bundle: str = ""
    fails: bool = False  # With an error of the network, as it is expected to.


def perform(root: str, task: Task) -> str | None:
    """Do *task*; return the digest of what *task* finds for its key, None for nothing."""
    options: dict[str, Any] = {} if task.lock_timeout is None else {"lock_timeout": task.lock_timeout}
    tiers = [f"{root}.tier,promote"] if task.what.startswith("promote") else []
    cache = Cache(root, retry=RetryPolicy(attempts=task.attempts, base=0), tiers=tiers, **options)
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: cache.get(task.key),
        "refresh": lambda: cache.get(task.key, force_download=True),
        "link": lambda: cache.get(task.key, digest=task.digest),
        "put": lambda: cache.put(CONTENTS[task.digest], name=task.key),
        "promote": lambda: cache.get(task.key),
        "promote tree": lambda: cache.get_tree(task.key),
        "put tree": lambda: cache.put_tree(source_of(root, task.digest), name=task.key),
        "export": lambda: cache.export("m", "t", to=f"{root}.{task.key or 'out.tar'}"),
        "import": lambda: cache.import_(task.bundle),
        "remove": lambda: cache.remove(task.key, force=True),
        "pin": lambda: cache.pin(task.key),
        "unpin": lambda: cache.unpin(task.key),
        "verify": lambda: cache.verify(repair=True),
        "lease": lambda: cache.lease(task.key).release(),
        "gc": lambda: cache.plan_gc(unused_for=0, grace=0).execute(),
        "get under a policy": lambda: held_to_a_policy(root, task).get(task.key),
        "put under a policy": lambda: held_to_a_policy(root, task).put(CONTENTS[task.digest], name=task.key),
        "put tree under a policy": lambda: held_to_a_policy(root, task).put_tree(
            source_of(root, task.digest), name=task.key
        ),
        "derive": lambda: derive(cache, "m"),
        "look": lambda: None,
        "share": lambda: mending.init(root, access="group-everyone-read"),
        "sweep": lambda: sweep(root),
        # What a removal does that began before another name of the same content was recorded.
        "take away": lambda: Objects(root).remove(Digest.parse(task.digest), is_named=lambda _: False),
    }
    try:
        result = calls[task.what]()
    except errors.NetworkError:
        if not task.fails:
            raise
    else:
        if isinstance(result, str):
            return found_at(Path(result))
    entry = cache.lookup(task.key) if task.key else None
    return None if entry is None else found_at(Path(entry.path))


def held_to_a_policy(root: str, task: Task) -> Cache:
    return Cache(root, retry=RetryPolicy(attempts=task.attempts, base=0), policy=Policy())


def source_of(root: str, digest: str) -> Path:
    """Return a directory that holds the tree *digest*."""
    source = Path(f"{root}.source-{digest[-8:]}")
    if not source.exists():
        make_tree(source, TREES[digest])
    return source


def live(root: str, tasks: list[Task], spec: str) -> dict[str, Any]:
    """Do *tasks* with the fail points of *spec*; return what they came to."""
    said = sys.stderr = io.StringIO()  # Of points that print.
    with failpoints.scenario(spec):
        answers = [perform(root, task) for task in tasks]
    return {"answers": answers, "reached": [word for word in said.getvalue().split() if word in POINTS]}


def serve() -> None:
    """Fork a process for each line of the input; say its number at once, and what came of it when that is asked."""
    for name in (
        "deriving",
        "exporting",
        "fetch",
        "flights",
        "gc",
        "importing",
        "intake",
        "leasing",
        "sources.http",
        "sweep",
        "verification",
    ):
        importlib.import_module(f"modelcache.{name}")  # Once; else each of some thousand processes takes 0.1 s for it.
    answers: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "pid" in order:
            with os.fdopen(answers.pop(order["pid"]), "rb") as reader:
                said = reader.read()
            code = os.waitstatus_to_exitcode(os.waitpid(order["pid"], 0)[1])
            print(json.dumps({"code": code, **json.loads(said or b"{}")}), flush=True)
            continue
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                found = live(order["root"], [Task(**task) for task in order["tasks"]], order["spec"])
            except BaseException as error:  # noqa: BLE001  # Whatever it is, the child must not go on to serve.
                found = {"error": repr(error)}
            os.write(writing, json.dumps(found).encode())
            os._exit("error" in found)
        os.close(writing)
        answers[pid] = reading
        print(json.dumps(pid), flush=True)


@dataclass(frozen=True)
class Outcome:
    """What became of a process; ``reached`` are the points that printed."""

    code: int
    answers: list[str | None] = field(default_factory=list)
    reached: list[str] = field(default_factory=list)
    error: str = ""


class Crew:
    """Starts processes that have never seen a cache."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, root: Path, *tasks: Task, spec: str = "") -> int:
        orders = [vars(task) for task in tasks]
        return int(self._ask({"root": str(root), "tasks": orders, "spec": spec}))

    def wait(self, pid: int) -> Outcome:
        return Outcome(**self._ask({"pid": pid}))

    def do(self, root: Path, *tasks: Task, spec: str = "") -> Outcome:
        return self.wait(self.start(root, *tasks, spec=spec))

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    found = Crew()
    try:
        yield found
    finally:
        found.close()


# -- the operations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """What the victim does, and what that means.

    Attributes:
        work: What it does.
        before: What each key certainly stands for when it begins; None: nothing.
        after: What it stands for once the work is acknowledged.
        then: What the next process does; the same, if nothing is said. Then ``after`` must hold.
        promises: Whether the work that came to its end means that ``after`` holds.
        damaged: Whether the cache is broken to begin with, so that only the end can be judged.
        resumes: Whether what the victim received must not be asked for again.
        others: What other processes bring about meanwhile.
    """

    work: list[Task]
    before: dict[str, str | None]
    after: dict[str, str | None]
    then: list[Task] = field(default_factory=list)
    promises: bool = True
    damaged: bool = False
    resumes: bool = False
    others: dict[str, str | None] = field(default_factory=dict)


class World:
    """A server, a root, and those who work there."""

    def __init__(self, server: FaultServer, root: Path, crew: Crew) -> None:
        self.server, self.root, self.crew = server, root, crew
        self.url = server.url("/m.onnx")
        self._faults = self._asked = 0

    def serve(self, content: bytes, *faults: Fault) -> None:
        """Serve *content* from now on; each of *faults* costs one request."""
        self.server.add("/m.onnx", content, faults)
        self._faults, self._asked = len(faults), self.requests

    def do(self, *tasks: Task, spec: str = "") -> Outcome:
        """Do *tasks* in a process that must come to its end, unless *spec* kills it."""
        outcome = self.crew.do(self.root, *tasks, spec=spec)
        assert outcome.code == (-signal.SIGKILL if spec else 0), outcome
        return outcome

    @property
    def requests(self) -> int:
        return len(self.server.seen())

    @property
    def faults_left(self) -> int:
        return max(0, self._faults - (self.requests - self._asked))


Operation = Callable[[World], Iterator[Story]]


def cold_get(world: World) -> Iterator[Story]:
    world.serve(OLD)
    yield Story([Task("get", world.url)], {}, {world.url: OLDS}, resumes=True)


def resumed_get(world: World) -> Iterator[Story]:
    world.serve(OLD, Fault(abort_after=700_000))
    world.do(Task("get", world.url, attempts=1, fails=True))
    yield Story([Task("get", world.url)], {}, {world.url: OLDS}, resumes=True)


def restarted_get(world: World) -> Iterator[Story]:
    world.serve(NEW, Fault(abort_after=700_000))
    world.do(Task("get", world.url, attempts=1, fails=True))
    world.serve(OLD)
    yield Story([Task("get", world.url)], {}, {world.url: OLDS})


def refresh(world: World) -> Iterator[Story]:
    world.serve(OLD)
    world.do(Task("get", world.url))
    world.serve(NEW)
    again = [Task("get", world.url), Task("refresh", world.url)]
    yield Story([Task("refresh", world.url)], {world.url: OLDS}, {world.url: NEWS}, again)


def get_under_a_policy(world: World) -> Iterator[Story]:
    world.serve(OLD)
    yield Story([Task("get under a policy", world.url)], {}, {world.url: OLDS}, resumes=True)


def let_in(world: World) -> Iterator[Story]:
    """What is here is looked at by a policy that came later, and its record says so then."""
    world.serve(OLD)
    world.do(Task("get", world.url))
    here: dict[str, str | None] = {world.url: OLDS}
    yield Story([Task("get under a policy", world.url)], here, here)


def put_under_a_policy(world: World) -> Iterator[Story]:
    tree = next(iter(TREES))
    work = [Task("put under a policy", "m", OLDS), Task("put tree under a policy", "t", tree)]
    yield Story(work, {}, {"m": OLDS, "t": tree})


def share(world: World) -> Iterator[Story]:
    """Its modes are mended, and all that is missing is made, for several users."""
    world.do(Task("put", "m", OLDS))
    yield Story([Task("share"), Task("put", "n", NEWS)], {"m": OLDS}, {"m": OLDS, "n": NEWS})


def share_what_is_not_there(world: World) -> Iterator[Story]:
    yield Story([Task("share"), Task("put", "m", OLDS)], {}, {"m": OLDS})


def shared_get(world: World) -> Iterator[Story]:
    world.do(Task("share"))
    world.serve(OLD)
    yield Story([Task("get", world.url), Task("lease", world.url)], {}, {world.url: OLDS}, resumes=True)


def throttled_get(world: World) -> Iterator[Story]:
    world.serve(OLD, Fault(status=429, headers={"Retry-After": "0"}), Fault(status=429))
    yield Story([Task("get", world.url)], {}, {world.url: OLDS}, resumes=True)


def interrupted_get(world: World) -> Iterator[Story]:
    world.serve(OLD, Fault(abort_after=700_000))
    work = [Task("get", world.url, attempts=1, fails=True)]
    yield Story(work, {}, {world.url: OLDS}, [Task("get", world.url)], promises=False, resumes=True)


def contended_get(world: World) -> Iterator[Story]:
    """The victim waits for a lock that another process holds, and then goes on without it."""
    world.serve(OLD, Fault(hold_after=200_000))
    holder = world.crew.start(world.root, Task("get", world.url))
    world.server.wait_for_sent(200_000)
    yield Story([Task("get", world.url, lock_timeout=0.05)], {}, {world.url: OLDS})
    world.server.release()
    assert world.crew.wait(holder).answers == [OLDS]


def put(world: World) -> Iterator[Story]:
    world.do(Task("put", "m", OLDS))
    yield Story([Task("put", "m", NEWS)], {"m": OLDS}, {"m": NEWS})


def second_name(world: World) -> Iterator[Story]:
    world.do(Task("put", "m", OLDS))
    yield Story([Task("link", ELSEWHERE, OLDS)], {"m": OLDS}, {"m": OLDS, ELSEWHERE: OLDS})


def remove(world: World) -> Iterator[Story]:
    """What is removed is pinned: the pin must not outlive it (I4)."""
    world.do(Task("put", "keep", OLDS), Task("put", "m", NEWS), Task("pin", "m"))
    yield Story([Task("remove", "m")], {"keep": OLDS, "m": NEWS}, {"keep": OLDS, "m": None})


def remove_one_of_two_names(world: World) -> Iterator[Story]:
    world.do(Task("put", "keep", NEWS), Task("put", "m", NEWS))
    yield Story([Task("remove", "m")], {"keep": NEWS, "m": NEWS}, {"keep": NEWS, "m": None})


def remove_what_is_wanted(world: World) -> Iterator[Story]:
    """Another process is about to record the very content that is being removed."""
    world.do(Task("put", "m", NEWS))
    objects, digest = Objects(str(world.root)), Digest.parse(NEWS)
    with objects.announced(digest):
        yield Story([Task("remove", "m")], {"m": NEWS}, {"m": None}, others={"n": NEWS})
        # What that process does next, and that process has not died.
        staged = commit.stage_directory(str(world.root))
        Path(staged, "n").write_bytes(NEW)
        stored = objects.publish(staged, digest, "n")
        now = int(time.time())
        Entries(str(world.root)).write(
            Entry("n", digest, stored.path, stored.size, stored.name, "put", now, now, stored.mtime_ns)
        )


def died_in_remove(world: World) -> Iterator[Story]:
    """A process died with an object in trash that another one had named meanwhile; the victim brings it back."""
    world.do(Task("put", "n", NEWS), Task("put", "m", NEWS))
    world.do(Task("take away", digest=NEWS), spec="commit.before-discard=kill")
    here: dict[str, str | None] = {"n": NEWS, "m": NEWS}
    yield Story([Task("get", "n")], here, here, damaged=True)


def put_tree(world: World) -> Iterator[Story]:
    """One of its files is here already, and becomes another name of it."""
    world.do(Task("put", "kept", NEWS))
    here: dict[str, str | None] = {"kept": NEWS}
    yield Story([Task("put tree", "t", NEW_TREE)], here, {**here, "t": NEW_TREE}, [Task("put tree", "t", NEW_TREE)])


def put_tree_again(world: World) -> Iterator[Story]:
    """The new one shares files with the old one, which goes on under another name."""
    world.do(Task("put tree", "t", OLD_TREE), Task("put tree", "other", OLD_TREE))
    before: dict[str, str | None] = {"t": OLD_TREE, "other": OLD_TREE}
    yield Story([Task("put tree", "t", NEW_TREE)], before, {**before, "t": NEW_TREE})


def second_name_of_a_tree(world: World) -> Iterator[Story]:
    world.do(Task("put tree", "t", OLD_TREE))
    before: dict[str, str | None] = {"t": OLD_TREE}
    yield Story([Task("put tree", "other", OLD_TREE)], before, {**before, "other": OLD_TREE})


def remove_tree(world: World) -> Iterator[Story]:
    world.do(Task("put tree", "kept", OLD_TREE), Task("put tree", "t", NEW_TREE))
    yield Story([Task("remove", "t")], {"kept": OLD_TREE, "t": NEW_TREE}, {"kept": OLD_TREE, "t": None})


def promote(world: World) -> Iterator[Story]:
    with Cache(f"{world.root}.tier") as tier:
        tier.put(OLD, name="m")
    yield Story([Task("promote", "m")], {}, {"m": OLDS})


def promote_tree(world: World) -> Iterator[Story]:
    """One of its files is here already."""
    with Cache(f"{world.root}.tier") as tier:
        tier.put_tree(source_of(str(world.root), NEW_TREE), name="t")
    world.do(Task("put", "kept", NEWS))
    here: dict[str, str | None] = {"kept": NEWS}
    yield Story([Task("promote tree", "t")], here, {**here, "t": NEW_TREE})


def export_file(world: World) -> Iterator[Story]:
    yield from _exporting(world, "out.tar")


def export_folder(world: World) -> Iterator[Story]:
    """A folder to which one of the contents was exported before."""
    world.do(Task("put", "m", NEWS), Task("put tree", "t", OLD_TREE), Task("export", "out"))
    yield from _exporting(world, "out")


def _exporting(world: World, to: str) -> Iterator[Story]:
    world.do(Task("put", "m", OLDS), Task("put tree", "t", NEW_TREE))
    here: dict[str, str | None] = {"m": OLDS, "t": NEW_TREE}
    again = [Task("export", to), Task("look", "t")]
    yield Story([Task("export", to)], here, here, again)
    path = Path(f"{world.root}.{to}")
    left = world.crew.do(world.root, Task("export", to))  # What the judge of this does next.
    assert left.code == 0
    with Cache(f"{world.root}.scratch") as scratch:
        assert {model.digest for model in scratch.import_(path).models} == {OLDS, NEW_TREE}
        assert scratch.verify().ok
    assert list(path.parent.glob(f".{path.name}.*")) == []
    if path.is_dir():
        assert {one.name[:7] for one in (path / "contents").iterdir()} == {"sha256-"}


def import_folder(world: World) -> Iterator[Story]:
    yield from _importing(world, "out")


def import_file(world: World) -> Iterator[Story]:
    yield from _importing(world, "out.tar")


def _importing(world: World, form: str) -> Iterator[Story]:
    """One of the contents is here already."""
    origin = Path(f"{world.root}.origin")
    made = world.crew.do(origin, Task("put", "m", OLDS), Task("put tree", "t", NEW_TREE), Task("export", form))
    assert made.code == 0
    world.do(Task("put", "kept", NEWS))
    here: dict[str, str | None] = {"kept": NEWS}
    work = [Task("import", "t", bundle=f"{origin}.{form}")]
    yield Story(work, here, {**here, "m": OLDS, "t": NEW_TREE})


def pin_and_unpin(world: World) -> Iterator[Story]:
    world.do(Task("put", "m", OLDS))
    yield Story([Task("pin", "m"), Task("unpin", "m")], {"m": OLDS}, {"m": OLDS})


def lease(world: World) -> Iterator[Story]:
    world.do(Task("put", "m", OLDS))
    here: dict[str, str | None] = {"m": OLDS}
    yield Story([Task("lease", "m"), Task("gc")], here, {"m": None}, [Task("gc"), Task("look", "m")])


def collect(world: World) -> Iterator[Story]:
    """What is pinned stays; an entry of two names, and what nothing names, goes."""
    world.do(Task("put", "keep", NEWS), Task("put", "keep", OLDS), Task("pin", "keep"))
    world.do(Task("put", "m", NEWS), Task("put", "n", NEWS))
    gone: dict[str, str | None] = {"keep": OLDS, "m": None, "n": None}
    yield Story([Task("gc")], {"keep": OLDS, "m": NEWS, "n": NEWS}, gone, [Task("gc"), Task("look", "n")])


def collect_partials(world: World) -> Iterator[Story]:
    world.serve(OLD, Fault(abort_after=700_000))
    world.do(Task("get", world.url, attempts=1, fails=True))
    for path in world.root.glob(f"{layout.PARTIALS}/*/**/*"):
        os.utime(path, (1, 1))
    yield Story([Task("gc")], {world.url: None}, {world.url: None})
    assert received(world.root) in {0, 700_000}


def derived(world: World) -> Iterator[Story]:
    world.do(Task("put", "m", OLDS))
    key = derived_ref(OLDS)
    yield Story([Task("derive", key)], {"m": OLDS}, {"m": OLDS, key: OLD_TREE})


def collect_derived(world: World) -> Iterator[Story]:
    """It goes before what it was derived from."""
    key = derived_ref(OLDS)
    world.do(Task("put", "m", OLDS), Task("derive", key))
    before: dict[str, str | None] = {"m": OLDS, key: OLD_TREE}
    yield Story([Task("gc")], before, {"m": None, key: None}, [Task("gc"), Task("look", "m")])


def remove_with_what_was_derived(world: World) -> Iterator[Story]:
    key = derived_ref(OLDS)
    world.do(Task("put", "m", OLDS), Task("derive", key))
    before: dict[str, str | None] = {"m": OLDS, key: OLD_TREE}
    yield Story([Task("remove", "m")], before, {key: None, "m": None})


def repair(world: World) -> Iterator[Story]:
    world.serve(OLD)
    world.do(Task("get", world.url))
    entry = Entries(str(world.root)).read(world.url)
    assert entry is not None
    Path(entry.path).chmod(0o644)
    Path(entry.path).write_bytes(NEW)
    here: dict[str, str | None] = {world.url: OLDS}
    yield Story([Task("verify")], here, here, [Task("verify"), Task("get", world.url)], damaged=True)


OPERATIONS: list[Operation] = [
    cold_get, resumed_get, restarted_get, interrupted_get, refresh, throttled_get, contended_get,
    put, second_name, remove, remove_one_of_two_names, remove_what_is_wanted, died_in_remove, pin_and_unpin, lease,
    collect, collect_partials, repair,
    put_tree, put_tree_again, second_name_of_a_tree, remove_tree, promote, promote_tree,
    share, share_what_is_not_there, shared_get,
    get_under_a_policy, let_in, put_under_a_policy, export_file, export_folder, import_file, import_folder,
    derived, collect_derived, remove_with_what_was_derived,
]  # fmt: skip


# -- the judge ---------------------------------------------------------------------------------------------------------


def on_record(root: Path, key: str) -> str | None:
    entry = Entries(str(root)).read(key)
    return None if entry is None else entry.digest


def judge(root: Path, allowed: dict[str, set[str | None]]) -> list[str]:
    """Return which promises the disk breaks; each key must stand, whole, for one of what is *allowed*."""
    found = {key: on_record(root, key) for key in allowed}
    wrong = [f"{key} stands for {digest}" for key, digest in found.items() if digest not in allowed[key]]
    return wrong + [str(violation) for violation in check_cache(root, found) if violation.kind != "garbage"]


def allowed_after(story: Story, *, acknowledged: bool) -> dict[str, set[str | None]]:
    """Return what each key may stand for: the new meaning, and the old one too while nothing was *acknowledged*."""
    before = {key: story.before.get(key) for key in story.after}
    return {key: {new} if acknowledged else {before[key], new} for key, new in story.after.items()}


def requests_due(world: World, tasks: list[Task]) -> int:
    """Return how many requests *tasks* may make, and must: what is here whole is not asked for.

    A refresh asks in any case; if all bytes have come already it asks whether they still hold.
    """
    entry = Entries(str(world.root)).read(world.url)
    here = entry is not None and Path(entry.path).exists() and digest_of(Path(entry.path).read_bytes()) == entry.digest
    complete = received(world.root) == len(OLD)
    due = 0
    for task in tasks:
        if task.what == "refresh":
            due += 1
        elif not here and (task.key == world.url or (task.what == "verify" and entry is not None)):
            due += 0 if complete else 1
            here = True
    return due + (world.faults_left if due else 0)


def received(root: Path) -> int:
    """Return the bytes that a partial of the dead holds."""
    return sum(path.stat().st_size for path in root.glob(f"{layout.PARTIALS}/*/object/*"))


def cut_off(operation: Operation, root: Path, crew: Crew, spec: str) -> tuple[Outcome, list[str]]:
    """Tell the story of *operation* with a victim that meets *spec*; return its end, and what is wrong after it."""
    with FaultServer() as server:
        world = World(server, root, crew)
        telling = operation(world)
        story = next(telling)
        victim = crew.do(root, *story.work, spec=spec)
        assert victim.code in {0, -signal.SIGKILL}, f"the victim failed by itself: {victim}"
        wrong = []
        if not story.damaged:
            allowed = allowed_after(story, acknowledged=victim.code == 0 and story.promises)
            wrong += judge(root, allowed)
            seen = world.do(*(Task("look", key) for key in allowed)).answers
            wrong += [
                f"a new process is served {got}"
                for got, of in zip(seen, allowed, strict=True)
                if got not in allowed[of]
            ]
        assert next(telling, None) is None  # What others do meanwhile.
        wrong += go_on(world, story)
    return victim, wrong


def go_on(world: World, story: Story) -> list[str]:
    """Let new processes do what was asked, and clear up; return what is wrong with how it went, or with its end."""
    tasks = story.then or story.work
    due, asked, have = requests_due(world, tasks), world.requests, received(world.root)
    last = world.do(*tasks).answers[-1]
    wrong = []
    if tasks[-1].key and last != story.after[tasks[-1].key]:
        wrong.append(f"the next process is served {last}")
    made = world.server.seen()[asked:]
    if len(made) != due:
        wrong.append(f"the next process made {len(made)} requests, {due} were due")
    if story.resumes and made and have and made[0].headers.get("range") != f"bytes={have}-":
        wrong.append(f"of {have} bytes that were here, some were asked for again: {made[0].headers.get('range')}")
    world.do(Task("sweep"))
    wrong += judge(world.root, {key: {new} for key, new in {**story.after, **story.others}.items()})
    if any(task.what == "gc" for task in tasks):
        wrong += [str(violation) for violation in check_cache(world.root) if violation.promise == "I7"]
    # A partial waits for the next fetch of its key, which there may not have been any need for.
    return wrong + [f"garbage: {name}" for name in leftovers(world.root) if not name.startswith(layout.PARTIALS)]


reached: set[str] = set()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_kill_at_any_point_leaves_a_cache_that_serves_only_whole_content(
    operation: Operation, crew: Crew, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    # First without a kill: which points it comes by, and how often.
    whole, wrong = cut_off(operation, tmp_path / "whole", crew, ";".join(f"{point}=print({point})" for point in POINTS))
    assert wrong == []
    kills = 0
    for point in sorted(set(whole.reached)):
        passages = min(8, whole.reached.count(point)) if pytestconfig.getoption("--crash-budget") == "large" else 1
        for passed in range(passages):
            spec = f"{point}={f'{passed}*off->' if passed else ''}kill"
            victim, found = cut_off(operation, tmp_path / f"{point}-{passed}", crew, spec)
            assert victim.code == -signal.SIGKILL or passed > 0, f"{point} was reached, and is not"
            kills += victim.code == -signal.SIGKILL
            wrong += [f"{spec}: {what}" for what in found]
        reached.add(point)
    print(f"{operation.__name__}: {kills} kills")
    assert not wrong, "\n".join(wrong)
    assert kills > 0


@pytest.mark.parametrize("size", [0, 1, 60, 4000])
@pytest.mark.parametrize(
    ("operation", "point"),
    [
        (cold_get, "partials.before-append"), (resumed_get, "partials.before-append"), (put, "staged.before-write"),
        (put, "commit.before-write-record"), (refresh, "commit.before-write-record"),
        (pin_and_unpin, "commit.before-write-record"),
    ],
)  # fmt: skip
def test_a_kill_in_the_middle_of_a_write_is_no_other_than_one_before_it(
    operation: Operation, point: str, size: int, crew: Crew, tmp_path: Path
) -> None:
    for passed in range(4):
        spec = f"{point}={f'{passed}*off->' if passed else ''}torn({size})"

        victim, wrong = cut_off(operation, tmp_path / f"{passed}", crew, spec)

        assert wrong == []
        assert passed > 0 or victim.code == -signal.SIGKILL, "it was never reached"


def test_every_fail_point_was_reached_by_some_operation() -> None:
    if len(reached) == 0:
        pytest.skip("the operations above did not run in this session")
    replicating = ("outbox.", "archive.", "backends.", "commit.before-link-replica", "commit.before-sync-replica")
    others = ("repository.", "archived.", "unpacking.", "usage.", "fleet.", *replicating)
    elsewhere = {point for point in POINTS if point.startswith(others)}
    # The tests test_kill_in_a_tree.py, …_an_archive.py, …_replication.py, …_usage.py and …_a_fleet.py do.
    assert sorted(set(POINTS) - reached - elsewhere) == []


if __name__ == "__main__":
    serve()
