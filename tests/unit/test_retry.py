"""When something is tried again, how long is waited, and what ends it. Nothing here sleeps."""

from __future__ import annotations

import threading

import pytest

from modelcache import errors, retry
from modelcache.config import RetryPolicy
from modelcache.retry import Deadline

FAULT = errors.InterruptedTransferError(ref="r", detail="cut")


class Clocked(Deadline):
    """A deadline that notes what would be slept."""

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__(seconds, ref="r")
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.check()


def attempts(*outcomes: object) -> list[object]:
    return list(outcomes)


def run(
    outcomes: list[object], policy: RetryPolicy, deadline: Deadline, *, progress: list[int] | None = None
) -> object:
    def attempt() -> object:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    here = iter(progress or [])
    return retry.call(
        attempt,
        policy=policy,
        deadline=deadline,
        progress=lambda: next(here, 0) if progress else 0,
        on_retry=lambda *_: None,
    )


def test_the_first_success_is_returned_and_nothing_is_slept() -> None:
    deadline = Clocked()

    assert run(attempts("done"), RetryPolicy(), deadline) == "done"
    assert deadline.slept == []


def test_a_transient_error_is_tried_again_within_the_limit_of_the_formula() -> None:
    deadline = Clocked()
    policy = RetryPolicy(attempts=6, base=2, cap=10)

    run(attempts(FAULT, FAULT, FAULT, FAULT, FAULT, "done"), policy, deadline)

    assert len(deadline.slept) == 5
    assert all(0 <= slept <= min(10, 2 * 2**n) for n, slept in enumerate(deadline.slept))


def test_the_last_attempts_own_error_is_raised() -> None:
    last = errors.StalledError(ref="r", detail="slow")

    with pytest.raises(errors.StalledError) as caught:
        run(attempts(FAULT, FAULT, last), RetryPolicy(attempts=3, base=0), Clocked())

    assert caught.value is last


@pytest.mark.parametrize("error", [errors.RemoteNotFoundError(ref="r", detail="404"), ValueError("a bug")])
def test_an_error_that_will_not_pass_is_not_tried_again(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(attempts(error, "never"), RetryPolicy(), Clocked())


def test_a_retry_after_is_never_undercut() -> None:
    deadline = Clocked()
    busy = errors.HttpStatusError(ref="r", status=503, retry_after=40)

    run(attempts(busy, "done"), RetryPolicy(base=0.1), deadline)

    assert deadline.slept == [40]


def test_attempts_that_made_progress_do_not_count() -> None:
    policy = RetryPolicy(attempts=2, base=0)

    assert run(attempts(*[FAULT] * 9, "done"), policy, Clocked(), progress=list(range(30))) == "done"


def test_a_wait_that_does_not_fit_is_told_at_once_as_a_deadline() -> None:
    deadline = Clocked(5)

    with pytest.raises(errors.DeadlineError, match="503"):
        run(attempts(errors.HttpStatusError(ref="r", status=503, retry_after=40)), RetryPolicy(), deadline)

    assert deadline.slept == []


def test_who_gives_up_ends_the_next_wait_and_cuts_what_blocks() -> None:
    deadline = Deadline(None, ref="r")
    cut = threading.Event()

    with deadline.cutting(cut.set):
        deadline.cancel()

    assert cut.is_set()
    with pytest.raises(errors.CancelledError):
        deadline.sleep(3600)


def test_a_block_that_has_ended_is_not_cut_any_more() -> None:
    deadline = Deadline(None, ref="r")
    cut = threading.Event()

    with deadline.cutting(cut.set):
        pass
    deadline.cancel()

    assert not cut.is_set()


def test_what_begins_after_giving_up_is_cut_too() -> None:
    deadline = Deadline(None, ref="r")
    cut = threading.Event()
    deadline.cancel()

    with deadline.cutting(cut.set):
        assert cut.is_set()


def test_a_block_that_outlasts_the_deadline_is_cut() -> None:
    deadline = Deadline(0.01, ref="r")
    cut = threading.Event()

    with deadline.cutting(cut.set):
        assert cut.wait(30)
