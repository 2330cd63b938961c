"""Machines of a fleet as real processes: a root each, one origin, one bucket, clocks that are hours apart."""

from __future__ import annotations

import hashlib
import json
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from modelcache.testing import Victim, spawn

LEASE_S = 2.0
PIECE = 128 * 1024

# Asks for the model when all have come; says how it goes: "started", "shared <pieces>", "claimed", "got <digest>".
_MACHINE = """
    import hashlib, json, os, random, socket, time
    given = json.loads(sys.argv[1])
    real = time.time
    time.time = lambda: real() + given["skew"]
    from modelcache import Cache, RetryPolicy, Tier, Timeout, errors, transfer
    from modelcache.backends.directory import DirectoryBackend
    from modelcache.fleet import claims, growing, parts
    from modelcache.testing import Barrier, acknowledge

    # Nothing here loses its power; and whose beat waits for a disk that all others sync as well stands still.
    os.fsync = os.fdatasync = lambda descriptor: None
    connect = socket.socket.connect

    def connected(self, address):  # What the kernel has of a download is lost too: on the scale of the rest.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        return connect(self, address)

    socket.socket.connect = connected
    growing.PIECE_BYTES = growing.PIECE_BYTES_MAX = given["piece"]
    transfer.CHUNK_BYTES = 64 * 1024
    drawn = random.Random(given["number"])

    acquire, share, beat = claims.Claims.acquire, parts.Sharing._share, claims.Claims.beat

    def acquired(self, mine, after=None):
        made = acquire(self, mine, after)
        if made:
            acknowledge("claimed")
        return made

    def shared(self, content):
        share(self, content)
        acknowledge(f"shared {content.shared // given['piece']}")

    def beaten(self, claim, *rest, **more):
        alive = beat(self, claim, *rest, **more)
        if not alive:
            acknowledge("stood down")
        return alive

    claims.Claims.acquire, parts.Sharing._share, claims.Claims.beat = acquired, shared, beaten

    class Troubled(DirectoryBackend):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            if name not in {"create", "put", "upload", "size", "read", "names", "delete"}:
                return found
            def call(*arguments, **options):
                if os.path.exists(given["dead"]) or drawn.random() < given["failing"]:
                    raise errors.BackendError(backend="bucket", detail="503, it was told to fail")
                if given["slow"]:
                    time.sleep(drawn.random() * given["slow"])  # The slow bucket itself: nothing is waited for.
                result = found(*arguments, **options)
                return iter(list(result)) if name == "names" else result
            return call

    options = {"lease": given["lease"], "single_flight": True, "name": "bucket", **given["options"]}
    if given["place"].startswith("directory://"):
        options["backend"] = Troubled(given["place"].removeprefix("directory://"))
    tier = Tier(given["place"], **options)

    def hear(event):
        if event.kind == "started":
            acknowledge("started")
        if event.kind == "waiting":
            acknowledge("waiting")

    with Cache(given["root"], tiers=[tier], retry=RetryPolicy(attempts=8, base=0.1), on_event=hear,
               timeout=Timeout(total=given["total"])) as cache:
        Barrier(given["barrier"], given["count"]).wait()
        try:
            path = cache.get_tree(given["url"]) if given["tree"] else cache.get(given["url"])
            if given["tree"]:
                acknowledge("got " + cache.lookup(given["url"]).digest)
            else:
                acknowledge("got " + hashlib.sha256(open(path, "rb").read()).hexdigest())
        except errors.ModelCacheError as error:
            acknowledge("failed " + type(error).__name__)
            print(error, file=sys.stderr, flush=True)
"""


@contextmanager
def machines(count: int, directory: Path, place: str, url: str, **given: Any) -> Iterator[list[Victim]]:
    """Start *count* machines that ask for *url* at once, with the tier at *place*; the block ends those that live."""
    (directory / "barrier").mkdir(parents=True)
    known: dict[str, Any] = {
        "place": place, "url": url, "count": count, "barrier": str(directory / "barrier"), "lease": LEASE_S,
        "piece": PIECE, "failing": 0.0, "slow": 0.0, "dead": str(directory / "dead"), "options": {}, "total": 120.0,
        "tree": False,
    }  # fmt: skip
    points = given.pop("points", {})
    with ExitStack() as stack:
        started = []
        for number in range(count):
            skew = (number % 5 - 2) * 7200.0
            mine = {**known, **given, "number": number, "skew": skew, "root": str(directory / f"root-{number}")}
            started.append(
                stack.enter_context(
                    spawn(_MACHINE, json.dumps(mine), failpoints=points.get(number, points.get("all", "")))
                )
            )
        yield started


def next_to(started: list[Victim], text: str) -> Victim:
    """Return the first of *started* to say *text*."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for victim in started:
            if text in victim.acknowledged():
                return victim
        select.select([victim._pipe for victim in started], [], [], 1.0)
    raise AssertionError(f"nobody has said {text!r}: {[victim.acknowledged() for victim in started]}")


def ends(started: list[Victim]) -> list[str]:
    """Wait for all; return what the last word of each was, and "killed" of those that were."""
    outcomes = []
    for victim in started:
        code = victim.wait(150)
        said = victim.acknowledged()
        last = said[-1] if said and said[-1].startswith(("got", "failed")) else ""
        outcomes.append(last or ("killed" if code == -9 else f"ended with {code}: {victim.errors()[-2000:]}"))
    return outcomes


def got(content: bytes) -> str:
    return f"got {hashlib.sha256(content).hexdigest()}"


def traces(bucket: Path) -> list[str]:
    """Return what is left in a directory of claims, beats and parts."""
    files = bucket / "files"
    return sorted(
        str(path.relative_to(files))
        for top in ("claims", "parts", "probes")
        for path in (files / top).rglob("*")
        if path.is_file()
    )
