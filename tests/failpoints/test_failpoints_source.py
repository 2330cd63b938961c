"""Finding points in source: `find_points` and ``python -m failpoints list``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from failpoints.source import FailPointSourceError, Point, find_points
from tests.failpoints.children import TIMEOUT, run


def write(path: Path, source: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return str(path)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "failpoints", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_points_are_found_in_order_with_file_and_line(tmp_path: Path) -> None:
    second = write(tmp_path / "pkg" / "b.py", "fail_point('b.one')\n")
    first = write(tmp_path / "pkg" / "a.py", "import x\n\ndef f():\n    fail_point('a.two')\nfail_point('a.one')\n")

    points = find_points(tmp_path)

    assert points == [Point(first, 4, "a.two"), Point(first, 5, "a.one"), Point(second, 1, "b.one")]
    assert points[0].place == f"{first}:4"


@pytest.mark.parametrize(
    "call",
    [
        "fail_point('p')",
        "failpoints.fail_point('p')",
        "from failpoints import fail_point as fp; fp('p')",
        "from .compat import fail_point as mark; mark('p')",
        "from . import fail_point as mark; mark('p')",
        "def f(): from program.compat import fail_point as mark; mark('p')",
        "import failpoints as fp; fp.fail_point('p'); __all__ = ['fail_point']",
        "fail_point(name='p')",
        "if (x := fail_point('p')) is not None: pass",
    ],
)
def test_a_call_is_found_however_it_is_spelt(call: str, tmp_path: Path) -> None:
    file = write(tmp_path / "m.py", call)

    assert [point.name for point in find_points(file)] == ["p"]


def test_what_is_not_a_call_is_no_point(tmp_path: Path) -> None:
    file = write(tmp_path / "m.py", "# fail_point('a')\n'''fail_point('b')'''\ndef fail_point(name): pass\nfp('c')\n")

    assert find_points(file) == []


@pytest.mark.parametrize(
    "use",
    [
        "f = failpoints.fail_point; f('p')",
        "f = fail_point",
        "partial(failpoints.fail_point, 'p')",
        "call(hook=fail_point)",
        "from failpoints import fail_point as mark; call(mark)",
        "class C: mark = staticmethod(fail_point)",
        "self.fail_point = fail_point",
        "failpoints.fail_point = fake",
        "def f(mark=fail_point): mark('p')",
        "fail_point.__wrapped__('p')",
        "@fail_point\ndef f(): pass",
    ],
)
def test_another_use_than_a_call_or_an_import_is_an_error_with_its_place(use: str, tmp_path: Path) -> None:
    file = write(tmp_path / "m.py", f"\n{use}\n")

    with pytest.raises(FailPointSourceError) as caught:
        find_points(file)

    assert caught.value.problems == [
        f"{file}:2: fail_point may only be called or imported; what becomes of it here cannot be followed"
    ]


def test_the_package_itself_has_no_points_and_breaks_no_rule() -> None:
    assert find_points("failpoints") == []


def test_a_point_says_which_hooks_its_call_has(tmp_path: Path) -> None:
    source = "fail_point('a', f)\nfail_point('b', on_torn=f)\nfail_point('c', None, f)\nfail_point('d', f, on_torn=f)\n"
    file = write(tmp_path / "m.py", source)

    hooks = {point.name: point.hooks for point in find_points(file)}

    assert hooks == {"a": ("on_return",), "b": ("on_torn",), "c": ("on_torn",), "d": ("on_return", "on_torn")}


@pytest.mark.parametrize("argument", ["name", "f'p.{x}'", "'p' + x", "", "*names", "b'p'", "5"])
def test_a_name_that_is_no_literal_is_an_error_with_its_place(argument: str, tmp_path: Path) -> None:
    file = write(tmp_path / "m.py", f"\nfail_point({argument})\n")

    with pytest.raises(FailPointSourceError) as caught:
        find_points(file)

    assert caught.value.problems == [f"{file}:2: the name of a fail point must be a literal string"]


def test_a_literal_that_could_never_be_configured_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "m.py", "fail_point('two words')\n")

    with pytest.raises(FailPointSourceError, match="'two words' is no name"):
        find_points(file)


def test_a_name_that_stands_twice_is_an_error_that_names_both_places(tmp_path: Path) -> None:
    first = write(tmp_path / "a.py", "fail_point('p')\n")
    second = write(tmp_path / "b.py", "\nfail_point('p')\n")

    with pytest.raises(FailPointSourceError) as caught:
        find_points(tmp_path)

    assert caught.value.problems == [f"{second}:2: the fail point p stands at {first}:1 as well"]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.py", "fail_point(x)\nfail_point('p')\nfail_point('p')\n")
    write(tmp_path / "b.py", "def broken(:\n")

    with pytest.raises(FailPointSourceError) as caught:
        find_points(tmp_path)

    assert len(caught.value.problems) == 3
    assert "b.py: cannot be read as Python" in str(caught.value)


def test_hidden_directories_and_virtual_environments_are_left_out(tmp_path: Path) -> None:
    for directory in (".hidden", "env/lib", "pkg"):
        write(tmp_path / directory / "m.py", f"fail_point({directory.replace('/', '.').strip('.')!r})\n")
    write(tmp_path / "env" / "pyvenv.cfg", "")

    assert [point.name for point in find_points(tmp_path)] == ["pkg"]


def test_what_is_no_regular_file_is_passed_over(tmp_path: Path) -> None:
    file = write(tmp_path / "m.py", "fail_point('p')\n")
    (tmp_path / ".#m.py").symlink_to("somebody@somewhere.1234:5678")  # As Emacs locks a file.
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "directory.py").mkdir()

    listed = command("list", ".", cwd=tmp_path)

    assert listed.stdout == "./m.py:1: p\n", listed.stderr
    assert find_points(tmp_path) == [Point(file, 1, "p")]


def test_a_fifo_that_is_asked_for_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.py")

    listed = command("list", "fifo.py", cwd=tmp_path)

    assert (listed.returncode, listed.stderr) == (2, "there is no package, directory or file 'fifo.py'\n")


FIND_AS_NOBODY = """
import os, sys
from failpoints.source import FailPointSourceError, find_points
os.chdir(sys.argv[1])
if os.geteuid() == 0:  # Who may read everything.
    os.seteuid(65534)
try:
    find_points(".")
except FailPointSourceError as error:
    print(error)
"""


def test_what_may_not_be_read_is_an_error_with_its_place(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write(tmp_path / "m.py", "fail_point('p')\n")
    (tmp_path / "file.py").touch(0)
    (tmp_path / "inner").mkdir(0)

    child = run(FIND_AS_NOBODY, tmp_path)

    assert sorted(child.stdout.splitlines()) == [
        "./file.py: cannot be read: Permission denied",
        "./inner: cannot be read: Permission denied",
    ], child.stderr


@pytest.mark.parametrize(
    "source", ["-" * 100_000 + "1", "a" + ".b" * 100_000, "(" * 1000 + ")" * 1000], ids=["signs", "parts", "brackets"]
)
def test_source_that_is_nested_too_deeply_is_an_error_with_its_place(source: str, tmp_path: Path) -> None:
    file = write(tmp_path / "m.py", source)

    with pytest.raises(FailPointSourceError) as caught:
        find_points(tmp_path)

    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{file}: cannot be read as Python: ")


def test_a_package_is_found_by_its_name_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "prog_with_points" / "__init__.py", "fail_point('p')\nraise SystemExit('it was run')\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert find_points("prog_with_points") == [Point(file, 1, "p")]


def test_a_module_is_found_by_its_dotted_name_and_its_package_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "prog_with_parts" / "__init__.py", "raise SystemExit('it was run')\n")
    write(tmp_path / "prog_with_parts" / "other.py", "fail_point('o')\n")
    file = write(tmp_path / "prog_with_parts" / "inner" / "part.py", "fail_point('p')\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert find_points("prog_with_parts.inner.part") == [Point(file, 1, "p")]


def test_a_path_that_looks_like_a_package_is_taken_as_a_path_if_it_is_a_path_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "json" / "m.py", "fail_point('p')\n")
    monkeypatch.chdir(tmp_path)

    assert [point.name for point in find_points(Path("json"))] == ["p"]


def test_what_is_neither_a_package_nor_a_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no package, directory or file 'no\.such_thing'"):
        find_points("no.such_thing")


def test_list_prints_place_and_name_of_each_point(tmp_path: Path) -> None:
    write(tmp_path / "src" / "m.py", "fail_point('a')\nfail_point('b')\n")

    listed = command("list", "./src", cwd=tmp_path)

    assert listed.stdout == "./src/m.py:1: a\n./src/m.py:2: b\n"
    assert listed.returncode == 0


def test_list_prints_json_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "m.py", "fail_point('a', on_torn=f)\n")

    listed = command("list", "--json", "m.py", cwd=tmp_path)

    assert json.loads(listed.stdout) == [{"file": "m.py", "line": 1, "name": "a", "hooks": ["on_torn"]}]


def test_list_fails_with_1_when_a_name_stands_twice_and_prints_no_list(tmp_path: Path) -> None:
    write(tmp_path / "m.py", "fail_point('a')\nfail_point('a')\n")

    listed = command("list", "m.py", cwd=tmp_path)

    assert listed.returncode == 1
    assert listed.stdout == ""
    assert listed.stderr == "m.py:2: the fail point a stands at m.py:1 as well\n"


@pytest.mark.parametrize("arguments", [["list", "./missing"], ["list"], []])
def test_wrong_usage_fails_with_2(arguments: list[str], tmp_path: Path) -> None:
    assert command(*arguments, cwd=tmp_path).returncode == 2
