"""When a point is active: what configuring, scenarios and the environment change, and what an inactive point costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

import failpoints
from failpoints import FailPointPanic, active, configure, configured, fail_point, remove, scenario
from tests.failpoints.children import run


def calls_of(function: Callable[[], object]) -> list[str]:
    called: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event in {"call", "c_call"}:
            called.append(frame.f_code.co_name if event == "call" else getattr(argument, "__name__", "?"))

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return called


def test_an_inactive_point_is_one_call_and_one_test() -> None:
    def place() -> None:
        fail_point("place")

    assert calls_of(place) == ["place", "fail_point", "setprofile"]
    assert fail_point.__code__.co_names[0] == "_reasons"


def test_importing_the_package_imports_nothing_else() -> None:
    child = run("import sys, os; before = set(sys.modules); import failpoints; print(set(sys.modules) - before)")

    assert child.stdout == "{'failpoints'}\n", child.stderr


def test_a_process_without_points_never_loads_the_engine() -> None:
    child = run("import sys; from failpoints import *; fail_point('a'); print('failpoints._engine' in sys.modules)")

    assert child.stdout == "False\n", child.stderr


def test_an_active_process_imports_no_typing() -> None:  # 10 ms, in each of a crash suite's thousands of victims.
    child = run("import sys; import failpoints; print('typing' in sys.modules)", spec="a=1*pause->raise(ENOSPC)")

    assert child.stdout == "False\n", child.stderr


def test_a_module_that_imported_the_function_sees_at_once_what_is_configured() -> None:
    configure("place", "return(now)")

    assert fail_point("place", str) == "now"


def test_a_point_that_is_not_configured_does_nothing_while_others_are() -> None:
    configure("other", "panic")

    assert fail_point("place", str) is None


def test_a_point_that_is_configured_again_does_only_the_new() -> None:
    configure("place", "panic")
    configure("place", "return(new)")

    assert fail_point("place", str) == "new"


def test_a_point_that_is_removed_does_nothing_and_costs_nothing_again() -> None:
    configure("place", "panic")

    remove("place")
    remove("place")

    assert fail_point("place") is None
    assert configured() == {}
    assert failpoints._reasons == set()


def test_a_scenario_holds_exactly_its_spec_and_restores_what_was() -> None:
    configure("outer", "return(outer)")

    with scenario("inner=return(inner)"):
        within = fail_point("outer", str), fail_point("inner", str)
        configure("more", "panic")

    assert within == (None, "inner")
    assert configured() == {"outer": "return(outer)"}


def test_a_scenario_restores_after_an_exception() -> None:
    with pytest.raises(FailPointPanic), scenario("place=panic"):
        fail_point("place")

    assert configured() == {}


def test_counts_go_on_after_a_scenario_where_they_stood_before() -> None:
    configure("place", "2*return(x)")
    fail_point("place", str)

    with scenario("place=off"):
        fail_point("place", str)

    assert [fail_point("place", str) for _ in range(2)] == ["x", None]


def test_active_adds_one_point_and_leaves_the_others_alone() -> None:
    configure("other", "return(other)")

    with active("place", "return(here)"):
        within = fail_point("place", str), fail_point("other", str)
        configure("more", "off")

    assert within == ("here", "other")
    assert configured() == {"other": "return(other)", "more": "off"}


def test_active_restores_what_the_point_did_before() -> None:
    configure("place", "return(before)")

    with active("place", "return(within)"):
        pass

    assert fail_point("place", str) == "before"


def test_the_environment_is_read_at_import() -> None:
    child = run("import failpoints; print(failpoints.configured())", spec="a=1*off->kill; b=sleep(5)")

    assert child.stdout == "{'a': '1*off->kill', 'b': 'sleep(5)'}\n", child.stderr


def test_a_malformed_environment_fails_the_import_and_says_where() -> None:
    child = run("import failpoints", spec="a=off;b=explode")

    assert child.returncode == 1
    assert "FailPointSpecError: 'b=explode': 'explode' is no task; nothing was configured. The grammar:" in child.stderr


def test_the_seed_in_the_environment_fixes_the_draws_of_a_process() -> None:
    code = "from failpoints import *; print(sum(2**n for n in range(64) if fail_point('a', str) == 'x'))"

    first, second = (run(code, spec="a=50%return(x)", _SEED="5").stdout for _ in range(2))

    assert first == second != "0\n"


def test_a_trace_names_each_point_reached_before_it_acts_and_without_any_being_configured(tmp_path: Path) -> None:
    code = "from failpoints import *; [fail_point('a') for _ in range(2)]; fail_point('b')"
    trace = tmp_path / "trace"

    run(code, _TRACE=str(trace))
    run(code, _TRACE=str(trace), spec="a=kill")

    assert trace.read_text() == "a\na\nb\na\n"


def test_a_trace_is_written_where_it_was_asked_for_when_the_program_changes_its_directory(tmp_path: Path) -> None:
    code = "import os, sys; os.chdir(sys.argv[1]); import failpoints; os.chdir('/'); failpoints.fail_point('a')"

    child = run(code, tmp_path, _TRACE="trace")

    assert (tmp_path / "trace").read_text() == "a\n", child.stderr


def test_a_scenario_that_ends_leaves_the_trace_on(tmp_path: Path) -> None:
    code = "from failpoints import *\nwith scenario('a=off'): pass\nfail_point('b')"

    child = run(code, _TRACE=str(tmp_path / "trace"))

    assert (tmp_path / "trace").read_text() == "b\n", child.stderr


def test_a_trace_that_cannot_be_written_fails_the_import(tmp_path: Path) -> None:
    child = run("import failpoints", _TRACE=str(tmp_path / "missing" / "trace"))

    assert child.returncode == 1
    assert "FileNotFoundError" in child.stderr


def test_a_trace_that_can_no_longer_be_written_is_not_taken_for_a_failure_of_the_program(tmp_path: Path) -> None:
    code = (
        "import os, sys, failpoints\n"
        "os.remove(sys.argv[1] + '/trace'); os.rmdir(sys.argv[1])\n"
        "try: failpoints.fail_point('a')\n"
        "except Exception: print('swallowed')\n"
    )
    (tmp_path / "traces").mkdir()

    child = run(code, tmp_path / "traces", _TRACE=str(tmp_path / "traces" / "trace"))

    assert child.stdout == ""
    assert "FailPointUsageError: the fail point a at <string>:3 cannot write FAILPOINTS_TRACE" in child.stderr
