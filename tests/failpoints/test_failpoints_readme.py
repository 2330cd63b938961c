"""The example of failpoints/README.md does what the page says: its own code, commands and tests are run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.failpoints.children import TIMEOUT

README = Path(__file__).parents[2] / "failpoints" / "README.md"


def blocks(section: int, language: str) -> list[str]:
    """The code blocks of *language* in *section*."""
    text = re.split(r"^## \d+\. .*\n", README.read_text(encoding="utf-8"), flags=re.MULTILINE)[section]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def execute(directory: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def execute_line(directory: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a console: settings, ``python`` and its arguments, perhaps a comment."""
    assert line.startswith("$ ")
    words = shlex.split(line.removeprefix("$ "), comments=True)
    at = words.index("python")
    return execute(directory, *words[at + 1 :], **dict(word.split("=", 1) for word in words[:at]))


def suite(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* as tests. By -p and without what is installed: the same whether or not the plugin is registered."""
    (directory / "test_store.py").write_text(code)
    return execute(
        directory,
        *("-m", "pytest", "-q", "-p", "failpoints.pytest_plugin", "-p", "no:cacheprovider", "test_store.py"),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A directory with the store.py of section 1."""
    (code,) = blocks(1, "python")
    (tmp_path / "store.py").write_text(code)
    return tmp_path


def test_section_1_saves(example: Path) -> None:
    child = execute(example, "-c", "import store; store.save('a', b'new')")

    assert child.returncode == 0, child.stderr
    assert (example / "a").read_bytes() == b"new"


def test_section_2_kills_before_the_rename(example: Path) -> None:
    (console,) = blocks(2, "console")
    line, printed = console.splitlines()

    child = execute_line(example, line)

    assert printed == "Killed"  # By the shell, of a process that ended so.
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert [path.name for path in example.glob("a*")] == ["a.new"]


def test_section_3_passes(example: Path) -> None:
    (code,) = blocks(3, "python")

    tests = suite(example, code)

    assert "1 passed" in tests.stdout, tests.stdout


CLIENT = """
from failpoints import fail_point
class Response(str):
    from_text = classmethod(lambda cls, text: cls(f"a response of {{text}}"))
def ask():
{snippet}
    return "asked"
print(ask())
"""


@pytest.mark.parametrize(
    ("spec", "printed"), [("", "asked\n"), ("client.before-ask=return(503)", "a response of 503\n")]
)
def test_section_4_returns_what_is_configured(spec: str, printed: str, tmp_path: Path) -> None:
    (snippet,) = blocks(4, "python")
    (tmp_path / "client.py").write_text(CLIENT.format(snippet=textwrap.indent(snippet, "    ")))

    child = execute(tmp_path, "client.py", FAILPOINTS=spec)

    assert child.stdout == printed, child.stderr


def test_section_4_shows_the_error_of_a_point_without_a_hook(tmp_path: Path) -> None:
    code = "\n" * 11 + "from failpoints import fail_point; fail_point('client.before-ask')\n"
    (tmp_path / "client.py").write_text(code)

    child = execute(tmp_path, "client.py", FAILPOINTS="client.before-ask=return(503)")

    shown = child.stderr.splitlines()[-1].removeprefix("failpoints.").replace(f"{tmp_path}/", "")
    assert f"\n    {shown}\n" in README.read_text(encoding="utf-8")


def test_section_5_tears_the_write(example: Path) -> None:
    (snippet,) = blocks(5, "python")
    code = (example / "store.py").read_text()
    marked = '        fail_point("store.before-write")\n        os.write(descriptor, data)\n'
    assert marked in code
    (example / "store.py").write_text(code.replace(marked, textwrap.indent(snippet, " " * 8)))

    child = execute(
        example, "-c", "import store; store.save('a', b'new content')", FAILPOINTS="store.before-write=torn(3)"
    )

    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (example / "a.new").read_bytes() == b"new"
    assert not (example / "a").exists()


def test_section_6_stops_the_other_process_before_the_rename(example: Path) -> None:
    (snippet,) = blocks(6, "python")
    between = "...  # The other process looks, writes, or kills this one.\n"
    assert between in snippet
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: victim.kill())\n"
        "gates, command = sys.argv[1], [sys.executable, '-c', 'import store; store.save(\"a\", b\"new\")']\n"
        + snippet.replace(between, "print(os.path.exists('a'), os.path.exists('a.new'))\n")
        + f"print(victim.wait({TIMEOUT}), os.path.exists('a'))\n"
    )

    child = execute(example, "-c", code, str(example / "gates"))

    assert child.stdout == "False True\n0 True\n", child.stderr


def test_section_7_passes_at_each_point(example: Path) -> None:
    (code,) = blocks(7, "python")

    tests = suite(example, code)

    assert "3 passed" in tests.stdout, tests.stdout


def test_section_7_shows_what_the_listing_prints(example: Path) -> None:
    (console,) = blocks(7, "console")
    line, listing = console.split("\n", 1)

    child = execute_line(example, line)

    assert child.stdout == listing, child.stderr
