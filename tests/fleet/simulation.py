"""Machines of a fleet in one process, one step at a time, by a clock that moves when it is told to.

Every call of a machine to the bucket, and every wait, is a step: the machine stands still before it until the schedule
lets it go on. The code that runs is the fleet's own (`modelcache.fleet.flight`), its beating thread included; only the
clock, the waits and the bucket's patience are the simulation's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from modelcache import errors
from modelcache.backends.memory import MemoryBackend
from modelcache.fleet import Bucket, Fleet, Question, Sharing
from modelcache.fleet.flight import Machine
from modelcache.retry import Deadline

LEASE_S = 15.0
KEY = "https://example.org/m.onnx"
_STUCK_S = 60.0


class Killed(BaseException):
    """The machine is gone."""


@dataclass(eq=False)
class Actor:
    """A thread of a machine: it waits for its turn, until the time *wakes*."""

    machine: Sim
    go: threading.Event = field(default_factory=threading.Event)
    wakes: float = 0.0
    ready: Callable[[], bool] | None = None
    over: bool = False


class World:
    """The time, the bucket, and what machines there are."""

    def __init__(self) -> None:
        self.now = 0.0
        self.backend = Stepped(self)
        self.machines: list[Sim] = []
        self.published = False
        self.fetches = 0
        self.wrong: list[str] = []
        self._current = threading.local()
        self._idle = threading.Event()

    def step(self, wakes: float = 0.0, ready: Callable[[], bool] | None = None) -> None:
        """Stand still until the schedule lets this thread go on."""
        actor = getattr(self._current, "actor", None)
        if actor is None:
            return  # The test itself looks.
        actor.wakes, actor.ready = wakes, ready
        self._idle.set()
        assert actor.go.wait(_STUCK_S), "the schedule has forgotten a machine"
        actor.go.clear()
        if actor.machine.dead:
            raise Killed

    def spawn(self, machine: Sim, work: Callable[[], object]) -> tuple[Actor, threading.Thread]:
        """Start a thread of *machine*, which stands still at once."""
        actor = Actor(machine)

        def run() -> None:
            self._current.actor = actor
            assert actor.go.wait(_STUCK_S)
            actor.go.clear()
            try:
                if not machine.dead:
                    work()
            except Killed:
                pass
            except Exception as error:  # noqa: BLE001  # Whatever it is, the test is told.
                self.wrong.append(f"machine {machine.number}: {error!r}")
            finally:
                actor.over = True
                self._idle.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        machine.actors.append(actor)
        return actor, thread

    def runnable(self) -> list[Actor]:
        """Return the threads that could go on now."""
        return [
            actor for machine in self.machines if not machine.paused for actor in machine.actors if self._can(actor)
        ]

    def _can(self, actor: Actor) -> bool:
        if actor.over:
            return False
        return actor.machine.dead or actor.wakes <= self.now or (actor.ready is not None and actor.ready())

    def let(self, actor: Actor) -> None:
        """Let *actor* go on to its next step."""
        self._idle.clear()
        actor.go.set()
        assert self._idle.wait(_STUCK_S), "a machine waits for something that is no step"
        for machine in self.machines:
            machine.note()

    def next_wake(self) -> float | None:
        """Return when the next thread wakes that sleeps now."""
        wakes = [
            actor.wakes
            for machine in self.machines
            if not machine.paused
            for actor in machine.actors
            if not actor.over and actor.wakes > self.now
        ]
        return min(wakes, default=None)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        for machine in self.machines:
            machine.note()

    @property
    def over(self) -> bool:
        """Whether no thread has anything left to do."""
        return all(actor.over for machine in self.machines for actor in machine.actors)

    def beaten(self, name: str) -> None:
        """Take note of the claim or beat *name*, which the machine that runs now has written."""
        actor = getattr(self._current, "actor", None)
        if actor is not None and name.startswith("claims/"):
            actor.machine.beat_at = self.now

    def end(self) -> None:
        """Kill what is left, so that no thread outlives the test."""
        for machine in self.machines:
            machine.dead, machine.paused = True, False
        while not self.over:
            for actor in self.runnable():
                self.let(actor)


class Stepped(MemoryBackend):
    """A bucket whose every call is a step before it happens, and another one before its answer comes."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def _enter(self) -> tuple[int, BaseException] | None:
        self._world.step()
        return super()._enter()

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        self._world.beaten(name)
        self._world.step()

    def create(self, name: str, data: bytes) -> bool:
        made = super().create(name, data)
        if made:
            self._world.beaten(name)  # A claim without a beat is as old as itself.
        self._world.step()
        return made


class Direct(Bucket):
    """A bucket that is asked in the thread of who asks."""

    def __init__(self, world: World) -> None:
        super().__init__("memory", lambda: world.backend)
        self._world = world

    def enter(self, deadline: Deadline) -> MemoryBackend:
        return self._world.backend

    def ask(self, work, deadline, *, patience=None):  # type: ignore[no-untyped-def]
        deadline.check()
        return work()


class Sim(Machine):
    """One machine: it wants the model, and fetches it in *steps* of three seconds if it must."""

    def __init__(
        self, world: World, number: int, *, steps: int = 8, fails: errors.ModelCacheError | None = None
    ) -> None:
        self.world, self.number, self._steps, self._fails = world, number, steps, fails
        self.dead = self.paused = False
        self.actors: list[Actor] = []
        self.outcome = ""
        self.holds = False
        self.beat_at = self.held_since = 0.0
        self.lag = 0.0  # The longest time without a beat while it holds.
        world.machines.append(self)
        self.fleet = Fleet(Direct(world), lease=LEASE_S, machine=self)
        world.spawn(self, self._live)

    def note(self) -> None:
        """Take note of how late its beat is."""
        if self.holds:
            self.lag = max(self.lag, self.world.now - self.beat_at)

    @property
    def may_be_replaced(self) -> bool:
        """Whether others may take it for dead: it was stopped for its lease, or has made no step forward for long."""
        return self.dead or self.lag >= LEASE_S or self.world.now - self.held_since >= 10 * LEASE_S

    def clock(self) -> float:
        return self.world.now + 1000.0 * self.number

    def pause(self, seconds: float, deadline: Deadline) -> None:
        deadline.check()
        self.world.step(self.world.now + seconds)
        deadline.check()

    def rest(self, over: threading.Event, seconds: float) -> bool:
        self.world.step(self.world.now + seconds, over.is_set)
        return over.is_set()

    def start(self, work: Callable[[], object], name: str) -> threading.Thread:
        actor, thread = self.world.spawn(self, work)
        thread.actor = actor  # type: ignore[attr-defined]
        return thread

    def join(self, thread: threading.Thread) -> None:
        actor: Actor = thread.actor  # type: ignore[attr-defined]
        self.world.step(float("inf"), lambda: actor.over)

    def _live(self) -> None:
        question = Question(
            key=KEY, look=self._look, fetch=self._fetch, publish=self._publish, heed=lambda note: True,
            asked=lambda: ["it"], tell=lambda _: None,
        )  # fmt: skip
        try:
            self.outcome = self.fleet.run(question, Deadline(None, ref=KEY))
        except errors.ModelCacheError as error:
            self.outcome = type(error).__name__

    def _look(self) -> str | None:
        self.world.step()
        return "found" if self.world.published else None

    def _fetch(self, deadline: Deadline, sharing: Sharing | None) -> str:
        if sharing is None:
            self.world.wrong.append(f"machine {self.number} goes on without the fleet")
        others = [one for one in self.world.machines if one.holds and one is not self and not one.may_be_replaced]
        # One that stood still for its lease between its claim and here is none of those of whom that is promised.
        if others and self.world.now - self.beat_at < LEASE_S:
            self.world.wrong.append(f"machines {[self.number, *(one.number for one in others)]} hold it at once")
        self.world.fetches += 1
        self.holds, self.held_since = True, self.world.now
        self.lag = self.world.now - self.beat_at
        try:
            for _ in range(self._steps):
                self.world.step(self.world.now + 3.0)
                deadline.check()
            if self._fails is not None:
                raise self._fails
        finally:
            self.holds = False
        return "fetched"

    def _publish(self, result: str) -> None:
        self.world.step()
        self.world.published = True
