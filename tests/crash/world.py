"""The operations that are cut off, and the judge of what is found afterwards.

An operation first brings about what must be there (durable, not recorded), then acts. The judge opens the root as a
machine does that has just booted: it looks, serves offline, fetches, clears up, and says what is wrong in the words of
CRASH.md: corrupt, lost, stuck, offline-broken, garbage.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from modelcache import (
    Cache,
    Derivation,
    Policy,
    RetryPolicy,
    Tier,
    Workspace,
    commit,
    errors,
    layout,
    mending,
    process,
    transfer,
)
from modelcache.archive import Archivist, DirectoryBackend, Queued, Registration
from modelcache.backends import contents, refs
from modelcache.derivation import Part
from modelcache.digest import Digest
from modelcache.outbox import Outbox
from modelcache.promises import check_cache
from modelcache.sweep import sweep
from modelcache.testing import Fault, FaultServer
from modelcache.usage import store
from modelcache.usage.tally import Usage
from tests.support.state import leftovers

OLD = random.Random(20).randbytes(90_000)
NEW = random.Random(21).randbytes(90_000)
QUICK = RetryPolicy(attempts=3, base=0)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def tree_of(content: bytes) -> dict[str, bytes]:
    """Return the files of a small tree, by path, that holds *content*; ``bin/run`` may be executed."""
    return {"weights.bin": content, "bin/run": b"#!/bin/sh\n", "deep/er/config.json": b"{}"}


def tree_digest(files: dict[str, bytes]) -> str:
    """Return the digest of a tree, from the words of DESIGN.md and nothing of modelcache."""
    lines = (
        f"{hashlib.sha256(content).hexdigest()} {len(content)} {'x' if path == 'bin/run' else '-'} {path}\n"
        for path, content in sorted(files.items())
    )
    text = "modelcache-tree 1\n" + "".join(lines)
    return f"tree:{hashlib.sha256(text.encode()).hexdigest()}"


def found_at(path: Path) -> str:
    """Return the digest of what is at *path*."""
    if not path.is_dir():
        return digest_of(path.read_bytes())
    assert os.access(path / "bin/run", os.X_OK), "it may not be executed any more"
    return tree_digest({str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()})


def make_tree(source: Path, files: dict[str, bytes]) -> None:
    """Make the directory *source* with *files* in it."""
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    (source / "bin/run").chmod(0o755)


def derived_ref(digest: str) -> str:
    """Return what is called that `derive` of the content with *digest* is made of."""
    uname = os.uname()
    platform = {"system": uname.sysname, "machine": uname.machine}
    return Derivation("tree", "1", (Part("0", digest, digest),), platform=platform).ref


def grow(workspace: Workspace) -> None:
    """Build a tree that holds its input, by the calls that the suites record, and let fail."""
    content = Path(workspace.inputs["0"]).read_bytes()
    for path, data in tree_of(content).items():
        commit.make_staged(os.path.dirname(f"{workspace}/grown/{path}"))
        descriptor = commit.create_file(f"{workspace}/grown/{path}", executable=path == "bin/run")
        try:
            commit.write(descriptor, data)
        finally:
            vars(commit)["os"].close(descriptor)  # Of whatever stands in for it.


def has_all(path: str) -> None:
    """Check what `grow` has built."""
    assert {"weights.bin", "bin"} <= set(os.listdir(path)), os.listdir(path)


def derive(cache: Cache, source: str) -> str:
    """Return the path of what is derived from *source*."""
    return cache.derive(grow, recipe="tree", version="1", inputs=[source], check=has_all)


class Log(Protocol):
    """Where an operation says what may be found from now on."""

    def expect(self, key: str, *allowed: str | None) -> None: ...


class World:
    """A server, a root, and what each key may ever stand for."""

    def __init__(self, server: FaultServer, root: Path) -> None:
        self.server, self.root = server, root
        self.url = server.url("/m.onnx")
        self.legit: dict[str, set[str]] = {}
        self.tiers: list[str] = []
        self.bundles: dict[str, Path] = {}  # What brings a key here in place of a fetch.
        self.exports: dict[str, set[str]] = {}  # Names beside the root of bundles, and what must be in each.
        self.replicas: set[str] = set()  # The digests of what may be in the tier beside the root.

    def cache(self, root: Path | None = None) -> Cache:
        return Cache(root or self.root, retry=QUICK, tiers=self.tiers)

    def serve(self, content: bytes, *faults: Fault) -> str:
        self.legit.setdefault(self.url, set()).add(digest_of(content))
        return self.server.add("/m.onnx", content, faults)

    def put(self, content: bytes, name: str) -> None:
        self.legit.setdefault(name, set()).add(digest_of(content))
        self.cache().put(content, name=name)

    def put_tree(self, content: bytes, name: str, root: Path | None = None) -> str:
        """Put the tree that holds *content*; return its digest."""
        files = tree_of(content)
        self.legit.setdefault(name, set()).add(tree_digest(files))
        source = self.root.parent.parent / f"source-{digest_of(content)[-8:]}"
        make_tree(source, files)
        self.cache(root).put_tree(source, name=name)
        return tree_digest(files)

    def bundle(self, form: str, names: dict[str, bytes], trees: dict[str, bytes]) -> Path:
        """Return a bundle, made in another cache, that brings *names* and *trees*."""
        place = self.root.parent.parent / f"bundle-{form}"
        origin = World(self.server, place / "origin")
        path = place / ("b.tar" if form == "file" else "b")
        for name, content in names.items():
            self.legit.setdefault(name, set()).add(digest_of(content))
        for name, content in trees.items():
            self.legit.setdefault(name, set()).add(tree_digest(tree_of(content)))
        self.bundles |= dict.fromkeys([*names, *trees], path)
        if not path.exists():
            for name, content in names.items():
                origin.put(content, name)
            for name, content in trees.items():
                origin.put_tree(content, name)
            origin.cache().export(*names, *trees, to=path)
        return path


Act = Callable[[Log], None]
USED = 5  # Hits on record in days that are over, in two files, before `use` folds them.
Operation = Callable[[World], Act]


def cold_get(world: World) -> Act:
    world.serve(OLD)

    def act(log: Log) -> None:
        world.cache().get(world.url)
        log.expect(world.url, digest_of(OLD))

    return act


def resumed_get(world: World) -> Act:
    world.serve(OLD, Fault(abort_after=70_000))
    with Cache(world.root, retry=RetryPolicy(attempts=1)) as cache, pytest.raises(errors.NetworkError):
        cache.get(world.url)

    def act(log: Log) -> None:
        world.cache().get(world.url)
        log.expect(world.url, digest_of(OLD))

    return act


def interrupted_get(world: World) -> Act:
    """It fails half-way, twice, and the third one finishes: what is left in between counts too."""
    world.serve(OLD, Fault(abort_after=40_000), Fault(abort_after=30_000))

    def act(log: Log) -> None:
        for _ in range(2):
            with Cache(world.root, retry=RetryPolicy(attempts=1)) as cache, pytest.raises(errors.NetworkError):
                cache.get(world.url)
        world.cache().get(world.url)
        log.expect(world.url, digest_of(OLD))

    return act


def refresh(world: World) -> Act:
    world.serve(OLD)
    world.cache().get(world.url)
    world.serve(NEW)

    def act(log: Log) -> None:
        log.expect(world.url, digest_of(OLD), digest_of(NEW))
        world.cache().get(world.url, force_download=True)
        log.expect(world.url, digest_of(NEW))

    return act


def let_in(world: World) -> Act:
    """A policy looks at what is here, and records that; another one refuses what comes, which leaves nothing."""
    world.serve(OLD)
    world.cache().get(world.url)

    def act(log: Log) -> None:
        log.expect(world.url, digest_of(OLD))
        with Cache(world.root, retry=QUICK, policy=Policy()) as cache:
            cache.get(world.url)
        with Cache(world.root, retry=QUICK, policy=Policy(max_size=10)) as cache, pytest.raises(errors.PolicyError):
            cache.put(NEW, name="refused")

    return act


def put(world: World) -> Act:
    world.put(OLD, "kept")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        world.put(NEW, "n")
        log.expect("n", digest_of(NEW))

    return act


def share(world: World) -> Act:
    """A cache of one user becomes one of several: the config first, then what is made obeys it."""
    world.put(OLD, "kept")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        mending.init(str(world.root), access="group-everyone-read")
        world.put(NEW, "n")
        log.expect("n", digest_of(NEW))

    return act


def shared_get(world: World) -> Act:
    mending.init(str(world.root), access="group")
    world.serve(OLD)

    def act(log: Log) -> None:
        world.cache().get(world.url)
        log.expect(world.url, digest_of(OLD))

    return act


def put_again(world: World) -> Act:
    world.put(OLD, "n")

    def act(log: Log) -> None:
        log.expect("n", digest_of(OLD), digest_of(NEW))
        world.put(NEW, "n")
        log.expect("n", digest_of(NEW))

    return act


def put_what_is_here(world: World) -> Act:
    world.put(OLD, "kept")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        world.put(OLD, "n")
        log.expect("n", digest_of(OLD))

    return act


def hit_by_digest(world: World) -> Act:
    world.put(OLD, "kept")
    world.serve(OLD)

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        world.cache().get(world.url, digest=digest_of(OLD))
        log.expect(world.url, digest_of(OLD))

    return act


def put_tree(world: World) -> Act:
    """One of its files is here already, and becomes another name of it."""
    world.put(OLD, "kept")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        log.expect("t", world.put_tree(OLD, "t"))

    return act


def put_archive(world: World) -> Act:
    """One of its files is here already."""
    world.put(OLD, "kept")
    files = tree_of(OLD)
    path = world.root.parent.parent / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755 if name == "bin/run" else 0o644
            archive.addfile(member, io.BytesIO(content))
    world.legit["a"] = {tree_digest(files)}

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        world.cache().put_tree(path, name="a")
        log.expect("a", tree_digest(files))

    return act


def put_tree_again(world: World) -> Act:
    """The new tree shares files with the old one, which goes on under another name."""
    old = world.put_tree(OLD, "t")
    world.put_tree(OLD, "other")

    def act(log: Log) -> None:
        log.expect("other", old)
        log.expect("t", old, tree_digest(tree_of(NEW)))
        world.put_tree(NEW, "t")
        log.expect("t", tree_digest(tree_of(NEW)))

    return act


def second_name_of_a_tree(world: World) -> Act:
    old = world.put_tree(OLD, "t")

    def act(log: Log) -> None:
        log.expect("t", old)
        log.expect("other", world.put_tree(OLD, "other"))

    return act


def promote(world: World) -> Act:
    """A file and a tree from a tier."""
    below = world.root.parent.parent / "below"
    world.put_tree(OLD, "t", below)
    world.legit.setdefault("m", set()).add(digest_of(NEW))
    with world.cache(below) as tier:
        tier.put(NEW, name="m")
    world.tiers = [f"{below},promote"]

    def act(log: Log) -> None:
        with world.cache() as cache:
            cache.get("m")
            log.expect("m", digest_of(NEW))
            cache.get_tree("t")
            log.expect("t", tree_digest(tree_of(OLD)))

    return act


def through_buckets(world: World) -> Act:
    """A file from a bucket, and one from its source: both go to the bucket before it, which has none of them."""
    further = world.root.parent.parent / "further"
    world.legit.setdefault("m", set()).add(digest_of(NEW))
    if not further.exists():
        with Cache(world.root.parent.parent / "other", tiers=[f"directory://{further},write-direct"]) as other:
            other.put(NEW, name="m")
            assert other.flush(60)
    world.serve(OLD)
    world.replicas = {digest_of(OLD), digest_of(NEW)}

    def act(log: Log) -> None:
        nearer = f"directory://{world.root.parent}/replicas,write-direct,required,name=below"
        tiers = [Tier.parse(place, {}) for place in (nearer, f"directory://{further}")]
        patient = [replace(tier, timeout=60.0) for tier in tiers]
        world.tiers = [f"directory://{further}"]
        with Cache(world.root, retry=QUICK, tiers=patient) as cache:
            cache.get("m")
            log.expect("m", digest_of(NEW))
            log.expect(f"replica {digest_of(NEW)}", digest_of(NEW))
            cache.get(world.url)
            log.expect(world.url, digest_of(OLD))
            log.expect(f"replica {digest_of(OLD)}", digest_of(OLD))

    return act


def derived(world: World) -> Act:
    """One of its files is here already, and becomes another name of it."""
    world.put(OLD, "kept")
    key = derived_ref(digest_of(OLD))
    world.legit[key] = {tree_digest(tree_of(OLD))}

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        derive(world.cache(), "kept")
        log.expect(key, tree_digest(tree_of(OLD)))

    return act


def collect_derived(world: World) -> Act:
    """What was derived goes before what it was derived from, and both go."""
    world.put(OLD, "m")
    derive(world.cache(), "m")
    key = derived_ref(digest_of(OLD))
    world.legit[key] = {tree_digest(tree_of(OLD))}

    def act(log: Log) -> None:
        log.expect("m", digest_of(OLD), None)
        log.expect(key, tree_digest(tree_of(OLD)), None)
        report = world.cache().plan_gc(unused_for=0, grace=0).execute()
        for gone in (gone for item in report.removed for gone in item.keys):
            log.expect(gone, None)

    return act


def remove_tree(world: World) -> Act:
    kept = world.put_tree(OLD, "kept")
    gone = world.put_tree(NEW, "t")

    def act(log: Log) -> None:
        log.expect("kept", kept)
        log.expect("t", gone, None)
        world.cache().remove("t")
        log.expect("t", None)

    return act


def remove(world: World) -> Act:
    return _removing(world, OLD, NEW)


def remove_one_of_two_names(world: World) -> Act:
    return _removing(world, OLD, OLD)


def _removing(world: World, kept: bytes, removed: bytes) -> Act:
    world.put(kept, "kept")
    world.put(removed, "n")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(kept))
        log.expect("n", digest_of(removed), None)
        world.cache().remove("n")
        log.expect("n", None)

    return act


def pin_and_unpin(world: World) -> Act:
    world.put(OLD, "kept")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        cache = world.cache()
        cache.pin("kept")
        cache.unpin("kept")

    return act


def leased(world: World) -> Act:
    """A collector finds what is held, and a process that dies holds nothing."""
    world.put(OLD, "kept")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        cache = world.cache()
        with cache.lease("kept"):
            cache.plan_gc(unused_for=0, grace=0).execute()

    return act


def collect(world: World) -> Act:
    """What may go is an entry, one of two names of an object, and content that nothing names any more."""
    world.put(OLD, "kept")
    world.put(NEW, "n")
    world.put(NEW, "m")
    world.put(OLD + NEW, "replaced")
    world.put(OLD, "replaced")
    world.cache().pin("kept")
    world.legit["replaced"] = {digest_of(OLD)}

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        log.expect("n", digest_of(NEW), None)
        log.expect("m", digest_of(NEW), None)
        report = world.cache().plan_gc(unused_for=0, grace=0).execute()
        for key in (key for item in report.removed for key in item.keys):
            log.expect(key, None)  # What it cannot read it need not remove.

    return act


def collect_for_room(world: World) -> Act:
    """A fetch makes room for itself."""
    world.put(NEW, "n")
    world.serve(OLD)

    def act(log: Log) -> None:
        log.expect("n", digest_of(NEW), None)
        with Cache(world.root, retry=QUICK, capacity=len(OLD) + 10_000, grace=0) as cache:
            cache.get(world.url)
        log.expect(world.url, digest_of(OLD))

    return act


def repair(world: World) -> Act:
    world.serve(OLD)
    path = Path(world.cache().get(world.url))
    path.chmod(0o644)
    path.write_bytes(NEW)

    def act(log: Log) -> None:
        world.cache().verify(repair=True)
        log.expect(world.url, digest_of(OLD))

    return act


def import_folder(world: World) -> Act:
    return _importing(world, "folder")


def import_file(world: World) -> Act:
    return _importing(world, "file")


def _importing(world: World, form: str) -> Act:
    """One of the contents is here already; two are shared by what comes; one ref stands for another content here."""
    world.put(NEW, "kept")
    world.put(OLD + OLD, "replaced")
    path = world.bundle(form, {"i": OLD, "j": OLD, "replaced": OLD + NEW}, {"it": OLD, "jt": NEW})
    world.legit["replaced"] = {digest_of(OLD + OLD), digest_of(OLD + NEW)}

    def act(log: Log) -> None:
        log.expect("kept", digest_of(NEW))
        log.expect("replaced", digest_of(OLD + OLD), digest_of(OLD + NEW))
        world.cache().import_(path, conflict="replace")
        log.expect("replaced", digest_of(OLD + NEW))
        for name in ("i", "j"):
            log.expect(name, digest_of(OLD))
        log.expect("it", tree_digest(tree_of(OLD)))
        log.expect("jt", tree_digest(tree_of(NEW)))

    return act


def export_folder(world: World) -> Act:
    """To a folder that holds an earlier export."""
    world.put(NEW, "n")
    tree = world.put_tree(OLD, "t")
    world.cache().export("n", to=world.root.parent / "out")
    world.exports["out"] = {digest_of(NEW), tree}

    def act(log: Log) -> None:
        log.expect("n", digest_of(NEW))
        log.expect("t", tree)
        log.expect("export out", digest_of(NEW))
        world.cache().export("t", to=world.root.parent / "out")
        log.expect("export out", digest_of(NEW), tree)

    return act


def export_file(world: World) -> Act:
    world.put(NEW, "n")
    tree = world.put_tree(OLD, "t")
    world.exports["out.tar"] = {digest_of(NEW), tree}

    def act(log: Log) -> None:
        log.expect("n", digest_of(NEW))
        world.cache().export("n", "t", to=world.root.parent / "out.tar")
        log.expect("export out.tar", digest_of(NEW), tree)

    return act


def archivist(root: Path, *, failure: str = "best-effort") -> Archivist:
    """Return an archivist of the cache at *root*, with one tier beside it."""
    backend = DirectoryBackend(root.parent / "replicas")
    options = {
        "retry": RetryPolicy(attempts=1),
        "cooldown": 0.001,
        "cooldown_max": 0.02,
        "policy": Queued(batch_window=0),
    }
    return Archivist([Registration("below", backend, failure=failure, **options)], root=root)  # type: ignore[arg-type]


def replicate(world: World) -> Act:
    """A file and a tree go to a tier: filed in the outbox, brought there, forgotten; an event goes with them."""
    world.put(OLD, "kept")
    tree = world.put_tree(NEW, "t")
    world.replicas = {digest_of(OLD), tree}

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        log.expect("t", tree)
        with archivist(world.root, failure="required") as archive:
            archive.put_object(digest_of(OLD))
            log.expect(f"replica {digest_of(OLD)}", digest_of(OLD))
            archive.append_events("kept", ["replicated"])
            if archive.flush(60):
                log.expect("event", "replicated")
            archive.put_object(tree)
            log.expect(f"replica {tree}", tree)

    return act


def use(world: World) -> Act:
    """What is used is counted, and what others counted is folded."""
    world.put(OLD, "kept")

    def act(log: Log) -> None:
        log.expect("kept", digest_of(OLD))
        for day, hits in (("2020-01-01", 2), ("2020-01-02", USED - 2)):
            store.write(str(world.root), f"{day}.{process.token()}", "host", {"kept": Usage(hits=hits)})
        with Cache(world.root, usage=True) as cache:
            cache.get("kept")
        store.fold_quietly(str(world.root))

    return act


def broken_usage(root: Path) -> list[str]:
    """Return what is wrong with the usage on record: some may be lost, nothing is there twice, nor made up."""
    store.fold_quietly(str(root))
    parts = store.read(str(root))
    old = sum(usage.hits for part in parts if part.day == store.EARLIER for usage in part.tally.values())
    new = sum(usage.hits for part in parts if part.day != store.EARLIER for usage in part.tally.values())
    return [] if old in {0, 2, USED - 2, USED} and new <= 2 else [f"corrupt: usage of {old} and {new} hits"]


def broken_replicas(world: World, root: Path, expected: dict[str, frozenset[str | None]]) -> list[str]:
    """Return what is wrong with the tier beside *root*; what waits for it is delivered by the next process."""
    if not world.replicas:
        return []
    wrong = []
    waiting = set(Outbox(str(root), "below").all())
    backend = DirectoryBackend(root.parent / "replicas")
    for name in backend.names("refs/"):
        record = refs.read_file(backend, name)
        if record is None or not contents.has(backend, record.digest):
            wrong.append(f"corrupt: {name} in the tier names what is not there")
    with archivist(root) as archive:
        if not archive.flush(60):
            wrong.append(f"stuck: the outbox: {archive.health()}")
        found = [one.event for one in archive.read_events()] if (root.parent / "replicas/events").exists() else []
    if "event" in expected and not found:
        wrong.append("lost: the event")
    if set(found) - {"replicated"}:
        wrong.append(f"corrupt: the events are {found}")
    for digest in map(Digest, world.replicas):
        there = contents.has(backend, digest)
        if there:
            with tempfile.TemporaryDirectory() as scratch, archivist(root) as archive:
                try:
                    got = found_at(Path(archive.read_object(digest, f"{scratch}/out")))
                except Exception as error:  # noqa: BLE001  # Whatever it is, it is a finding.
                    got = repr(error)
                if got != digest:
                    wrong.append(f"corrupt: the replica of {digest}: {got}")
        elif f"replica {digest}" in expected or digest in waiting:
            wrong.append(f"lost: the replica of {digest}")
    backend.close()
    return wrong


def broken_exports(world: World, root: Path, expected: dict[str, frozenset[str | None]]) -> list[str]:
    """Return what is wrong with the bundles beside *root*: each is not there, or whole, and holds what is promised."""
    wrong = []
    for name, legit in world.exports.items():
        path, sure = root.parent / name, expected.get(f"export {name}", frozenset())
        found: set[str] = set()
        if (path / "index").exists() if path.suffix == "" else path.exists():
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    found = {model.digest for model in Cache(scratch).import_(path).models}
                except Exception as error:  # noqa: BLE001  # Whatever it is, it is a finding.
                    wrong.append(f"corrupt: the bundle {name}: {error!r}")
                    continue
        wrong += [f"corrupt: the bundle {name} holds {digest}" for digest in found - legit]
        wrong += [f"lost: the bundle {name} lacks {digest}" for digest in sure - found]
    return wrong


def two_at_once(world: World) -> Act:
    """A download and a put of the same content, and a removal, interleaved as they fall."""
    import threading

    world.put(NEW, "gone")
    world.serve(OLD)

    def act(log: Log) -> None:
        log.expect("gone", digest_of(NEW), None)
        start = threading.Barrier(3)

        def download() -> None:
            start.wait()
            world.cache().get(world.url)
            log.expect(world.url, digest_of(OLD))

        def store() -> None:
            start.wait()
            world.put(OLD, "n")
            log.expect("n", digest_of(OLD))

        def drop() -> None:
            start.wait()
            world.cache().remove("gone")
            log.expect("gone", None)

        threads = [threading.Thread(target=work) for work in (download, store, drop)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return act


def two_processes(world: World) -> Act:
    """The same in two processes, each of which dies by itself when it has done its part."""
    world.put(NEW, "gone")
    world.serve(OLD)
    for name in ("n", "m"):
        world.legit.setdefault(name, set()).add(digest_of(OLD))

    def act(log: Log) -> None:
        log.expect("gone", digest_of(NEW), None)

        def download() -> None:
            world.cache().get(world.url)
            log.expect(world.url, digest_of(OLD))
            world.put(OLD, "m")
            log.expect("m", digest_of(OLD))

        def store() -> None:
            world.put(OLD, "n")
            log.expect("n", digest_of(OLD))
            world.cache().remove("gone")
            log.expect("gone", None)

        children = [forked(work) for work in (download, store)]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]

    return act


def forked(work: Callable[[], None]) -> int:
    """Do *work* in a child process, which ends then; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # The server has threads; the child does not use them.
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001  # Whatever it is, the child must not go on as pytest.
            os._exit(1)
    return child


OPERATIONS: list[Operation] = [
    cold_get, resumed_get, interrupted_get, refresh, put, put_again, put_what_is_here, hit_by_digest, remove,
    remove_one_of_two_names, pin_and_unpin, leased, collect, collect_for_room, repair, two_at_once, two_processes,
    share, shared_get, put_tree, put_tree_again, second_name_of_a_tree, remove_tree, promote, let_in,
    put_archive, import_folder, import_file, export_folder, export_file, derived, collect_derived, replicate, use,
    through_buckets,
]  # fmt: skip


def small_steps(patch: pytest.MonkeyPatch) -> None:
    """Make a download of 90 kB go through all that a large one does: three threads, several journals."""
    patch.setattr(transfer, "CHUNK_BYTES", 4 * 1024)
    patch.setattr(transfer, "JOURNAL_BYTES", 24 * 1024)


def judge(world: World, root: Path, expected: dict[str, frozenset[str | None]], *, damaged: bool = False) -> list[str]:
    """Return what is wrong with *root* after the power came back; *damaged*: content had been altered before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "boot_id", lambda: "b00ted00")
        try:
            checked = check_cache(root)
        except (errors.RootError, errors.FormatError) as error:
            return [f"stuck: {error}"]
        wrong = [str(v) for v in checked if v.kind != "garbage" and not (damaged and v.promise in {"I1", "I2"})]
        wrong += broken_exports(world, root, expected)
        wrong += broken_replicas(world, root, expected)
        wrong += broken_usage(root)
        wrong += _offline(world, root, expected)
        wrong += _online(world, root)
        sweep(str(root))
        # A tree's file that an object turned out to hold is not fetched: what had come of it waits for gc, a week.
        waits = layout.PARTIALS if world.tiers else "\0"
        wrong += [f"garbage: {name}" for name in leftovers(root) if not name.startswith(waits)]
        wrong += [f"after recovery: {violation}" for violation in check_cache(root) if violation.kind != "garbage"]
    return wrong


def _offline(world: World, root: Path, expected: dict[str, frozenset[str | None]]) -> list[str]:
    wrong = []
    for key, legit in world.legit.items():
        try:
            with Cache(root, offline=True) as cache:
                got: str | None = found_at(Path(cache.get(key)))
        except errors.NotFoundError:
            got = None
        except errors.LocalNotFoundError:
            got = None
        except Exception as error:  # noqa: BLE001  # Whatever it is, it is a finding.
            wrong.append(f"offline-broken: {key}: {error!r}")
            continue
        if got is not None and got not in legit:
            wrong.append(f"corrupt: {key} is {got}")
        elif key in expected and got not in expected[key]:
            wrong.append(f"lost: {key} is {got}, acknowledged was one of {sorted(map(str, expected[key]))}")
    return wrong


def _online(world: World, root: Path) -> list[str]:
    """What a node does next: it asks for everything again, and puts what it has to put."""
    wrong = []
    for key, legit in world.legit.items():
        try:
            with world.cache(root) as cache:
                if world.tiers:
                    cache.remove(key, force=True)
                    got = found_at(Path(cache.get(key)))
                elif key == world.url:
                    got = digest_of(Path(cache.get(key)).read_bytes())
                    # A partial of an interrupted refresh waits for the next one.
                    cache.get(key, force_download=True)
                elif key in world.bundles:
                    cache.import_(world.bundles[key], conflict="replace")
                    got = found_at(Path(cache.get(key)))
                elif key.startswith("derived:"):
                    source = next(name for name in world.legit if not name.startswith("derived:"))
                    cache.put(OLD, name=source)
                    got = found_at(Path(derive(cache, source)))
                elif any(digest.startswith("tree:") for digest in legit):
                    got = world.put_tree(OLD if tree_digest(tree_of(OLD)) in legit else NEW, key, root)
                    assert found_at(Path(cache.get(key))) == got
                else:
                    content = OLD if digest_of(OLD) in legit else NEW
                    got = digest_of(Path(cache.put(content, name=key).path).read_bytes())
        except Exception as error:  # noqa: BLE001  # As above.
            wrong.append(f"stuck: {key}: {error!r}")
            continue
        if got not in legit:
            wrong.append(f"corrupt: {key} is {got} after a fetch")
    return wrong
