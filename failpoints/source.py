"""Which fail points a program has, read from its source without running it.

A crash suite is parametrized with `find_points`, so that a new mark is tested at once. That works only if each name is
a literal and stands in one place, so whatever breaks that is an error here.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ._spec import check_name

_HOOKS = ("on_return", "on_torn")


@dataclass(frozen=True, order=True)
class Point:
    """One call of `fail_point`.

    Attributes:
        file: The path of the file, absolute if a package was asked for by its name.
        line: The line in it, from 1.
        name: The point's name.
        hooks: Which of ``on_return`` and ``on_torn`` the call has, so which of ``return`` and ``torn`` it can do.
    """

    file: str
    line: int
    name: str
    hooks: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"


class FailPointSourceError(ValueError):
    """The points in a source cannot be told apart, or not be read; `problems` has a line for each, with its place."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


def find_points(path_or_package: str | os.PathLike[str]) -> list[Point]:
    """Return the points in a package, directory or file, ordered by file and line. Nothing of it is run.

    Args:
        path_or_package: A string that is the dotted name of an importable package or module means that one; anything
            else is a path (``./name`` where both are there). In a directory, hidden ones and virtual environments are
            left out.

    Raises:
        FailPointSourceError: A name is not a literal, stands twice, or is no name; or a file is no Python.
        FileNotFoundError: There is no such package or path.
    """
    points: list[Point] = []
    problems: list[str] = []
    for file in _files(path_or_package):
        try:
            with open(file, "rb") as stream:
                tree = ast.parse(stream.read(), file)
        except (SyntaxError, ValueError) as error:
            problems.append(f"{file}: cannot be read as Python: {error}")
            continue
        for call in _calls(tree):
            name, hooks = _arguments(call)
            place = f"{file}:{call.lineno}"
            if name is None:
                problems.append(f"{place}: the name of a fail point must be a literal string")
                continue
            try:
                check_name(name)
            except ValueError as problem:
                problems.append(f"{place}: {problem}")
            else:
                points.append(Point(file, call.lineno, name, hooks))
    points.sort()
    first: dict[str, Point] = {}
    for point in points:
        earlier = first.setdefault(point.name, point)
        if earlier is not point:
            problems.append(f"{point.place}: the fail point {point.name} stands at {earlier.place} as well")
    if problems:
        raise FailPointSourceError(problems)
    return points


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    names = {"fail_point"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "failpoints":
            names.update(alias.asname for alias in node.names if alias.name == "fail_point" and alias.asname)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            by_name = isinstance(called, ast.Name) and called.id in names
            if by_name or (isinstance(called, ast.Attribute) and called.attr == "fail_point"):
                yield node


def _arguments(call: ast.Call) -> tuple[str | None, tuple[str, ...]]:
    """Return the name in *call*, None if it is no literal, and its hooks."""
    given: dict[str | None, ast.expr] = dict(zip(("name", *_HOOKS), call.args, strict=False))
    given.update((keyword.arg, keyword.value) for keyword in call.keywords)
    literal = given.get("name")
    name = literal.value if isinstance(literal, ast.Constant) and isinstance(literal.value, str) else None
    return name, tuple(hook for hook in _HOOKS if hook in given and not _is_none(given[hook]))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _files(path_or_package: str | os.PathLike[str]) -> Iterator[str]:
    asked = os.fspath(path_or_package)
    roots = _package(asked) if isinstance(path_or_package, str) else []
    if not roots:
        if not os.path.exists(asked):
            raise FileNotFoundError(f"there is no package, directory or file {asked!r}")
        roots = [asked]
    for root in roots:
        if os.path.isfile(root):
            yield root
        for directory, directories, files in os.walk(root):
            directories[:] = sorted(
                name
                for name in directories
                if not name.startswith(".") and not os.path.exists(f"{directory}/{name}/pyvenv.cfg")
            )
            yield from (os.path.join(directory, name) for name in sorted(files) if name.endswith(".py"))


def _package(name: str) -> list[str]:
    """Return where the package or module *name* has its source, nothing if there is none."""
    top, *rest = name.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        return []
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # A module without a spec, such as __main__.
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [spec.origin] if not rest and spec.origin and spec.origin.endswith(".py") else []
    # The rest by its path: to find a part as Python does would import, and so run, what it is part of.
    parts = [os.path.join(location, *rest) for location in spec.submodule_search_locations]
    return [path for part in parts for path in (part, f"{part}.py") if os.path.exists(path)]
