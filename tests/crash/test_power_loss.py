"""The power is cut at every moment of every operation, and the disk keeps no more than it must.

Each operation runs once, for real, with `recorder` in place of ``os``. `disk` then draws what may be left, and `judge`
opens it as a machine does that has just booted. Seeds are printed: ``--crash-seed`` repeats a run.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import process
from modelcache.testing import FaultServer
from tests.crash.disk import MODELS, Disk, digest_of, materialise, moments
from tests.crash.recorder import recording
from tests.crash.world import OPERATIONS, Operation, World, judge, repair, small_steps

STATES = {"small": 60, "large": 4000}


Judge = Callable[[World, Path, dict[str, frozenset[str | None]]], list[str]]


def cut(
    operation: Operation,
    model: str,
    count: int,
    server: FaultServer,
    tmp_path: Path,
    seed: int,
    judged: Judge | None = None,
) -> tuple[list[str], int, int]:
    """Return what is wrong in up to *count* states of *operation*, how many were tried, and how many there may be."""
    base = tmp_path / "base"
    base.mkdir()
    world = World(server, base / "cache")
    act = operation(world)
    start = tmp_path / "start"
    shutil.copytree(base, start, symlinks=True)
    with recording(base) as recorder:
        act(recorder)

    chance = random.Random(f"{operation.__name__} {model} {seed}")
    disks = [Disk(start, recorder.log, moment, model) for moment in moments(recorder.log)]
    possible = sum(disk.possible for disk in disks)
    wrong: list[str] = []
    seen: set[tuple[bytes, int]] = set()
    for number in range(count * 4):  # Small operations have fewer states than that.
        if len(seen) >= count:
            break
        # All moments in turn, the last one first: it is after the promise. What survives is drawn, but for the first
        # round: then it is the least.
        moment = -(number + 1) % len(disks)
        state = disks[moment].draw(chance, least=number < len(disks))
        mark = digest_of(state), hash(frozenset(disks[moment].expected.items()))
        if mark in seen:
            continue
        seen.add(mark)
        place = tmp_path / "state"
        place.mkdir()
        materialise(state, place)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "boot_id", lambda: "b00ted00")
            if judged is None:
                found = judge(world, place / "cache", disks[moment].expected, damaged=operation is repair)
            else:
                found = judged(world, place / "cache", disks[moment].expected)
        wrong += [f"state {number}, cut {moment} of {len(disks)}: {what}" for what in found]
        shutil.rmtree(place)
    return wrong, len(seen), possible


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_no_cut_takes_back_what_was_acknowledged_or_serves_what_never_was(
    operation: Operation,
    model: str,
    server: FaultServer,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_steps(monkeypatch)
    budget = STATES[pytestconfig.getoption("--crash-budget")]
    seed = pytestconfig.getoption("--crash-seed")

    wrong, tried, possible = cut(operation, model, budget, server, tmp_path, seed)

    # A cut within a file's bytes can be anywhere, and counts as one possibility.
    print(f"{operation.__name__}, {model}: {tried} states tried, {possible:.2g} possible, seed {seed}")
    assert wrong == []
