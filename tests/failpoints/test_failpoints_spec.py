"""The language of specs: what is understood, and that the rest is refused with a reason."""

from __future__ import annotations

import pickle

import pytest

from failpoints import FailPointSpecError, configure, configured, fail_point, scenario
from failpoints._spec import parse_point

REFUSED = {
    "explode": "'explode' is no task",
    "": "'' is no task",
    "off->": "'' is no task",
    "120%kill": "a percentage is at most 100, not 120",
    "-5%kill": "a percentage is at least 0, not -5",
    "many%kill": "a percentage is needed, not 'many'",
    "-1*kill": "a count is at least 0, not -1",
    "1.5*kill": "a count is needed, not '1.5'",
    "*kill": "a count is needed, not ''",
    "3*20%kill": "'20%kill' is no task",
    "sleep": "milliseconds is needed, not ''",
    "sleep(soon)": "milliseconds is needed, not 'soon'",
    "delay(-1)": "milliseconds is at least 0, not -1",
    "exit": "an exit code is needed, not ''",
    "exit(256)": "an exit code is at most 255, not 256",
    "torn": "a number of bytes is needed, not ''",
    "torn(-1)": "a number of bytes is at least 0, not -1",
    "kill(9)": "kill takes no argument",
    "return(1": "its brackets do not match",
    "return(1))": "its brackets do not match",
    "return(()": "its brackets do not match",
    "return(a)(b)": "its brackets do not match",
    "raise": "'' is no builtin exception and no errno name",
    "raise(NoSuchError)": "'NoSuchError' is no builtin exception and no errno name",
    "raise(print)": "'print' is no builtin exception and no errno name",
    "raise(ENOSUCH)": "'ENOSUCH' is no errno name of this system",
    "raise(OSError:full)": "'full' is no errno name of this system",
    "raise(UnicodeDecodeError)": "UnicodeDecodeError cannot be made from a text alone",
}


@pytest.mark.parametrize(("actions", "problem"), REFUSED.items(), ids=REFUSED)
def test_actions_that_cannot_be_understood_are_refused_with_the_item_the_reason_and_the_grammar(
    actions: str, problem: str
) -> None:
    with pytest.raises(FailPointSpecError) as caught:
        configure("place", actions)

    assert caught.value.problem == problem
    assert caught.value.item == f"place={actions.rpartition('->')[2]}"
    assert str(caught.value).startswith(f"{caught.value.item!r}: {problem}")
    assert 'term = [percent "%"] [count "*"] task' in str(caught.value)


BEYOND = "9" * 400  # No float, and beyond every limit.
BEYOND_INT = "9" * 5000  # int() refuses such a text.
TOO_MUCH = {
    f"{2**63}*kill": f"a count is at most 9223372036854775807, not {2**63}",
    f"{BEYOND}*kill": f"a count is at most 9223372036854775807, not {BEYOND}",
    f"{BEYOND_INT}*kill": f"a count is at most 9223372036854775807, not {BEYOND_INT}",
    f"-{BEYOND_INT}*kill": f"a count is at least 0, not -{BEYOND_INT}",
    f"{BEYOND}%kill": f"a percentage is at most 100, not {BEYOND}",
    "sleep(86400000.1)": "milliseconds is at most 86400000, not 86400000.1",
    "sleep(99999999999999)": "milliseconds is at most 86400000, not 99999999999999",
    f"delay({BEYOND})": f"milliseconds is at most 86400000, not {BEYOND}",
    f"exit({BEYOND})": f"an exit code is at most 255, not {BEYOND}",
    f"torn({BEYOND})": f"a number of bytes is at most 9223372036854775807, not {BEYOND}",
}


@pytest.mark.parametrize(
    ("actions", "problem"), TOO_MUCH.items(), ids=[f"{actions[:24]} of {len(actions)}" for actions in TOO_MUCH]
)
def test_a_number_that_is_too_large_for_its_point_is_refused_with_the_item_and_the_limit(
    actions: str, problem: str
) -> None:
    with pytest.raises(FailPointSpecError) as caught:
        configure("place", actions)

    assert caught.value.problem == problem
    assert caught.value.item == f"place={actions}"


def test_the_largest_numbers_are_understood_to_the_last_digit() -> None:
    actions = parse_point("place", f"0*sleep(86400000)->100%00{2**63 - 1}*torn({2**63 - 1})")

    term = actions.next()

    assert term is not None
    assert (term.task, term.number, term.count) == ("torn", 2**63 - 1, 2**63 - 2)


@pytest.mark.parametrize("name", ["", "two words", "a/b", "a=b"])
def test_a_name_that_no_file_and_no_spec_could_hold_is_refused(name: str) -> None:
    with pytest.raises(FailPointSpecError, match="is no name"):
        configure(name, "off")


@pytest.mark.parametrize(
    ("spec", "problem"),
    [("place", "joined by '='"), ("=kill", "'' is no name"), ("a=off;a=kill", "a stands in this spec twice")],
)
def test_a_spec_that_names_no_point_or_one_twice_is_refused(spec: str, problem: str) -> None:
    with pytest.raises(FailPointSpecError, match=problem), scenario(spec):
        pass


def test_of_a_spec_with_one_bad_item_nothing_is_configured() -> None:
    configure("before", "off")

    with pytest.raises(FailPointSpecError), scenario("good=panic;bad=explode"):
        pass

    assert configured() == {"before": "off"}


def test_actions_that_are_refused_leave_the_point_as_it_was() -> None:
    configure("place", "2*off")

    with pytest.raises(FailPointSpecError):
        configure("place", "explode")

    assert configured() == {"place": "2*off"}


def test_a_spec_error_is_a_value_error_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(FailPointSpecError("a=b", "'b' is no task")))

    assert issubclass(FailPointSpecError, ValueError)
    assert isinstance(error, FailPointSpecError)
    assert (error.item, error.problem) == ("a=b", "'b' is no task")


def test_points_are_parted_by_semicolons_and_spaces_and_empty_items_mean_nothing() -> None:
    with scenario(" first = 1*off -> panic ; second=50.5% 2* sleep( 0.5 ) ;; "):
        assert configured() == {"first": "1*off -> panic", "second": "50.5% 2* sleep( 0.5 )"}


def test_separators_inside_brackets_belong_to_the_argument() -> None:
    with scenario("first=1*return(a;b=c->d*e%)->return(2);second=return(x)"):
        assert fail_point("first", str) == "a;b=c->d*e%"
        assert fail_point("first", str) == "2"
        assert fail_point("second", str) == "x"


def test_brackets_inside_an_argument_belong_to_it_if_they_match() -> None:
    with scenario("first=1*return(f(a;b)->g())->return(a->f(1;2));second=return(())"):
        assert [fail_point("first", str) for _ in range(2)] == ["f(a;b)->g()", "a->f(1;2)"]
        assert fail_point("second", str) == "()"


def test_terms_are_used_up_in_order_and_then_nothing_is_done() -> None:
    configure("place", "2*return(a)->1*off->1*return(b)")

    assert [fail_point("place", str) for _ in range(6)] == ["a", "a", None, "b", None, None]


def test_a_term_whose_percentage_is_not_drawn_leaves_the_call_to_the_next_term() -> None:
    configure("place", "0%return(never)->100%1*return(always)->return(rest)")

    assert [fail_point("place", str) for _ in range(3)] == ["always", "rest", "rest"]


def test_a_percentage_decides_how_often_a_term_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILPOINTS_SEED", "1")
    configure("place", "25%return(x)")

    done = sum(fail_point("place", str) == "x" for _ in range(4000))

    assert 900 < done < 1100  # The same number in every run: the seed fixes it.


def test_a_count_is_not_spent_on_calls_whose_percentage_was_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILPOINTS_SEED", "1")
    configure("place", "50%3*return(x)")

    assert sum(fail_point("place", str) == "x" for _ in range(100)) == 3


def draws(name: str, calls: int = 64) -> list[bool]:
    return [fail_point(name, str) is not None for _ in range(calls)]


def test_with_a_seed_the_draws_of_a_point_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILPOINTS_SEED", "7")
    configure("place", "50%return")
    once = draws("place")
    configure("place", "50%return")
    again = draws("place")
    monkeypatch.setenv("FAILPOINTS_SEED", "8")
    configure("place", "50%return")

    assert again == once
    assert draws("place") != once


def test_the_draws_of_a_point_do_not_depend_on_other_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILPOINTS_SEED", "7")
    with scenario("first=50%return;second=50%return"):
        alone = draws("second")

    with scenario("first=50%return;second=50%return"):
        beside = [(fail_point("first", str), fail_point("second", str)) for _ in alone]

    assert [second is not None for _, second in beside] == alone
    assert [first is not None for first, _ in beside] != alone, "two points draw the same numbers"
