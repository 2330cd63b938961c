"""The protocol of the fleet under every schedule: who holds a claim, whether all come to an end, what is left."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache import errors
from tests.fleet.simulation import KEY, LEASE_S, Sim, World

_LARGE = os.environ.get("HYPOTHESIS_PROFILE") == "large"
QUICK = settings(
    max_examples=3000 if _LARGE else 80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not _LARGE
)
_FAIR_STEPS = 20_000
# What happens next, who it happens to, and for how many steps: mostly somebody goes on, now and then time passes.
MOVES = st.tuples(st.integers(0, 99), st.integers(0, 11), st.integers(1, 8))
SECONDS = [0.2, 1.0, 2.0, 3.0, 4.0, 6.0, LEASE_S, 2 * LEASE_S]


def follow(world: World, moves: list[tuple[int, int, int]]) -> None:
    for chance, who, many in moves:
        if chance < 60:
            for _ in range(many):
                runnable = world.runnable()
                if runnable:
                    world.let(runnable[who % len(runnable)])
        elif chance < 85:
            wakes = world.next_wake()
            world.advance(0.0 if wakes is None else wakes - world.now)
        elif chance < 93:
            world.advance(SECONDS[many - 1])
        else:
            machine = world.machines[who % len(world.machines)]
            if chance == 99 and machine.number != 0:  # One survives.
                machine.dead = True
            else:
                machine.paused = not machine.paused


def be_fair(world: World) -> None:
    """Let all that live go on, in turns, and time pass when all sleep, until there is nothing left to do."""
    for machine in world.machines:
        machine.paused = False
    for _ in range(_FAIR_STEPS):
        if world.over:
            return
        runnable = world.runnable()
        for actor in runnable:
            if not actor.over:
                world.let(actor)
        if not runnable:
            wakes = world.next_wake()
            assert wakes is not None, "nobody can go on, and nobody sleeps"
            world.advance(wakes - world.now)
    raise AssertionError(f"it does not end: {[machine.outcome for machine in world.machines]}")


def left(world: World) -> list[str]:
    return sorted(name for name in world.backend.names("claims/"))


@QUICK
@given(count=st.integers(2, 4), moves=st.lists(MOVES, min_size=20, max_size=200))
def test_at_most_one_holds_a_claim_and_all_come_to_an_end(count: int, moves: list[tuple[int, int, int]]) -> None:
    world = World()
    try:
        for number in range(count):
            Sim(world, number)
        follow(world, moves)
        be_fair(world)
        assert world.wrong == []
        assert {machine.outcome for machine in world.machines if not machine.dead} <= {"found", "fetched"}
        assert all(machine.outcome for machine in world.machines if not machine.dead)
        # Another machine comes later, and finds it; what the dead have left, nobody waits for.
        fetches = world.fetches
        late = Sim(world, count)
        be_fair(world)
        assert late.outcome == "found"
        assert world.fetches == fetches
        assert left(world) == []
    finally:
        world.end()


@pytest.mark.parametrize("count", [2, 16])
def test_without_trouble_one_fetches_and_nothing_is_left(count: int) -> None:
    world = World()
    try:
        for number in range(count):
            Sim(world, number)
        be_fair(world)
        assert world.wrong == []
        assert world.fetches == 1
        assert left(world) == []
        assert sorted(machine.outcome for machine in world.machines) == ["fetched", *["found"] * (count - 1)]
    finally:
        world.end()


@pytest.mark.parametrize(
    ("error", "fetches"),
    [
        (errors.RemoteNotFoundError(ref=KEY, detail="404"), 1),
        (errors.UnreachableError(ref=KEY, detail="refused"), 2),  # The first one may have been alone with that.
        (errors.NoSpaceError(what="a root", needed=2, free=1), 6),  # Each has a disk of its own.
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_an_error_is_met_by_as_many_as_must_meet_it(error: errors.ModelCacheError, fetches: int) -> None:
    world = World()
    try:
        for number in range(6):
            Sim(world, number, fails=error)
        be_fair(world)
        assert world.wrong == []
        assert {machine.outcome for machine in world.machines} == {type(error).__name__}
        assert world.fetches == fetches
    finally:
        world.end()
