"""Single flight within a process: who shares what, and whose patience counts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelcache.errors import CancelledError, DeadlineError, LockTimeoutError, StalledError, UsageError
from modelcache.flights import Flights
from modelcache.retry import Deadline


def deadline(seconds: float | None = None) -> Deadline:
    return Deadline(seconds, ref="m")


class Work:
    """Work that its test lets go on, and that counts how often it was begun."""

    def __init__(self, outcome: Callable[[Deadline], str]) -> None:
        self.outcome = outcome
        self.begun = 0
        self.started, self.may_end = threading.Event(), threading.Event()

    def __call__(self, limit: Deadline) -> str:
        self.begun += 1
        self.started.set()
        self.may_end.wait(30)
        return self.outcome(limit)


def failing(error: Exception) -> Work:
    def outcome(_limit: Deadline) -> str:
        raise error

    return Work(outcome)


def in_thread(call: Callable[[], str]) -> tuple[threading.Thread, list[object]]:
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(call())
        except Exception as error:  # noqa: BLE001  # The test looks at it.
            outcomes.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcomes


def joined(flights: Flights[str], count: int) -> Callable[[], bool]:
    return lambda: sum(flight.interested for flight in flights._running.values()) == count


def wait_until(condition: Callable[[], bool]) -> None:
    ticks = threading.Event()
    for _ in range(30_000):
        if condition():
            return
        ticks.wait(0.001)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize(
    "error",
    [
        StalledError(ref="m", detail="it stalled"),
        LockTimeoutError(what="m", holder="another", seconds=1),
        TimeoutError("from the work itself"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_is_a_timeout_is_shared_like_any_other(error: Exception) -> None:
    """On Python 3.11 `concurrent.futures.TimeoutError` is the builtin, and a base of these."""
    flights: Flights[str] = Flights()
    work = failing(error)

    threads = [in_thread(lambda: flights.run("m", work, deadline())) for _ in range(3)]
    wait_until(joined(flights, 3))
    work.may_end.set()
    for thread, _ in threads:
        thread.join(30)

    assert [outcomes for _, outcomes in threads] == [[error]] * 3
    assert work.begun == 1


def test_tasks_share_an_error_that_is_a_timeout() -> None:
    flights: Flights[str] = Flights()
    work = failing(StalledError(ref="m", detail="it stalled"))
    work.may_end.set()

    async def ask() -> list[object]:
        with ThreadPoolExecutor(4) as pool:
            calls = (flights.arun("m", work, deadline(), pool) for _ in range(3))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    outcomes = asyncio.run(ask())

    assert {type(outcome) for outcome in outcomes} == {StalledError}


def test_a_follower_gives_up_at_its_own_deadline() -> None:
    flights: Flights[str] = Flights()
    work = Work(lambda _: "done")
    thread, outcomes = in_thread(lambda: flights.run("m", work, deadline()))
    work.started.wait(30)

    with pytest.raises(DeadlineError):
        flights.run("m", work, deadline(0.05))
    work.may_end.set()
    thread.join(30)

    assert outcomes == ["done"]


def test_a_follower_that_is_cancelled_does_not_wait_for_the_leader() -> None:
    flights: Flights[str] = Flights()
    work = Work(lambda _: "done")
    thread, outcomes = in_thread(lambda: flights.run("m", work, deadline()))
    work.started.wait(30)
    mine = deadline()
    follower, said = in_thread(lambda: flights.run("m", work, mine))
    wait_until(joined(flights, 2))

    mine.cancel()
    follower.join(30)
    assert [type(outcome) for outcome in said] == [CancelledError]
    work.may_end.set()
    thread.join(30)

    assert outcomes == ["done"]


@pytest.mark.parametrize("error", [DeadlineError(ref="m", detail="late"), CancelledError(ref="m")])
def test_the_end_of_the_leaders_patience_makes_a_follower_begin_again(error: Exception) -> None:
    flights: Flights[str] = Flights()
    impatient = failing(error)
    thread, outcomes = in_thread(lambda: flights.run("m", impatient, deadline()))
    impatient.started.wait(30)
    follower, said = in_thread(lambda: flights.run("m", lambda _: "done", deadline()))
    wait_until(joined(flights, 2))

    impatient.may_end.set()
    thread.join(30)
    follower.join(30)

    assert (outcomes, said) == ([error], ["done"])


def test_work_that_asks_for_itself_is_told_so_and_does_not_wait_for_ever() -> None:
    flights: Flights[str] = Flights()

    def recursive(_limit: Deadline) -> str:
        return flights.run("m", recursive, deadline())

    with pytest.raises(UsageError, match="listener"):
        flights.run("m", recursive, deadline())
