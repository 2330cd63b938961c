"""The pytest fixture, in a pytest of its own, and the package without pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.failpoints.children import TIMEOUT, run

SUITE = """
from failpoints import fail_point

def test_one(failpoints):
    failpoints.configure("place", "return(x)")
    assert fail_point("place", str) == "x"

def test_two(failpoints):
    assert failpoints.configured() == {}

def test_three():
    import failpoints
    assert failpoints.configured() == {"outer": "off"}
"""


def test_the_fixture_gives_each_test_a_scenario_of_its_own_and_restores_what_was(tmp_path: Path) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    # By -p and without what is installed, so that it works the same whether or not the plugin is registered.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "FAILPOINTS": "outer=off"}

    suite = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "failpoints.pytest_plugin", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )

    assert "3 passed" in suite.stdout, suite.stdout


def test_the_package_works_where_pytest_is_not_installed() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import failpoints, failpoints.source; print(failpoints.configured())"
    )

    assert run(code, spec="a=off").stdout == "{'a': 'off'}\n"
