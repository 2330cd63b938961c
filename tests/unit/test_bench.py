"""The benchmark's own rules: what it says of a goal, of noise, of a peer that is not here, and of a wrong name."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import SCENARIOS, main
from bench.measure import MET, MISSED, NOISY, Check, Curve, MissingError, alternate, ratios, tabulate
from bench.peers import SUBJECTS
from bench.plots import plot


@pytest.mark.parametrize(
    ("values", "limit", "at_least", "verdict"),
    [
        ((1.0, 1.1, 1.2), 2.0, False, MET),
        ((3.0, 3.1, 2.9), 2.0, False, MISSED),
        ((1.0, 3.0, 1.5, 2.5), 2.0, False, NOISY),
        ((3.0, 3.1, 2.9), 2.5, True, MET),
        ((1.0, 1.1, 1.2), 2.5, True, MISSED),
        ((2.0, 3.0, 2.4, 2.6), 2.5, True, NOISY),
        ((0.0,), 0, False, MET),
        ((), 1, False, NOISY),
        ((1.0, 1.0, 1.0, 1.0, 1.0, 50.0), 2.0, False, MET),  # One bad turn of several is noise, and no verdict.
    ],
)
def test_a_verdict(values: tuple[float, ...], limit: float, at_least: bool, verdict: str) -> None:
    check = Check("P0", "something", values, limit, at_least=at_least)

    assert check.verdict == verdict
    assert verdict in check.render()


def test_ratios_are_taken_within_one_turn_and_turns_alternate() -> None:
    order: list[str] = []
    clock = iter([1.0, 2.0, 1.0, 2.0, 10.0, 20.0])

    def subject(name: str) -> float:
        order.append(name)
        return next(clock)

    found = alternate({"floor": lambda: subject("floor"), "ours": lambda: subject("ours")}, 2)
    table = tabulate("title", "s", found, floor="floor")

    assert order == ["floor", "ours"] * 3
    assert ratios(table, "ours") == (2.0, 2.0)  # Although the second turn was ten times slower.


def test_a_peer_that_is_missing_is_a_row_that_says_so() -> None:
    def missing() -> float:
        raise MissingError("not installed")

    table = tabulate("title", "s", alternate({"floor": lambda: 1.0, "peer": missing}, 3), floor="floor")

    assert "not installed" in table.render()
    assert ratios(table, "peer", "floor") == ()


def test_an_unknown_scenario_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hits"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in SCENARIOS)


@pytest.mark.parametrize("name", sorted(set(SUBJECTS) - {"os.stat", "modelcache"}))
def test_a_worker_tells_that_its_peer_is_not_installed(name: str, tmp_path: Path) -> None:
    blocked = f"import sys; sys.modules[{SUBJECTS[name].package!r}] = None\nfrom bench.worker import main\n"
    command = [sys.executable, "-c", f"{blocked}main({name!r}, {str(tmp_path)!r}, '', '{{}}')"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "not installed" in json.loads(said)["missing"]


def test_plots_are_drawn_or_it_is_said_why_not(tmp_path: Path) -> None:
    curve = Curve("name", "title", "x", "y", {"one": [(1, 2.0), (2, 4.0)]})
    if importlib.util.find_spec("matplotlib") is None:
        with pytest.raises(MissingError, match=r"modelcache\[bench\]"):
            plot([curve], tmp_path)
    else:
        assert plot([curve], tmp_path)[0].read_bytes().startswith(b"\x89PNG")


def test_a_scenario_runs_and_writes_every_sample(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "commit", "--quick", "--json", str(tmp_path / "out.json")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "x floor" in done.stdout
    (table,) = json.loads((tmp_path / "out.json").read_text())["scenarios"]["commit"]["tables"]
    assert len(table["rows"][0]["samples"]) >= 3
