"""Which fail points a program has, read from its source without running it.

A crash suite is parametrized with `find_points`, so that a new mark is tested at once. That works only if each name is
a literal and stands in one place, so whatever breaks that is an error here, and so is what could hide a call.
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
            left out, and so is what is no regular file. An import of `fail_point` under another name is understood in
            the file that has it.

    Raises:
        FailPointSourceError: A name is not a literal, stands twice, or is no name; `fail_point` is bound to a name or
            passed on; or a file or directory cannot be read, or is no Python.
        FileNotFoundError: There is no such package or path.
    """
    points: list[Point] = []
    problems: list[str] = []
    for file in _files(path_or_package, problems):
        try:
            tree = _parse(file)
        except ValueError as problem:
            problems.append(f"{file}: {problem}")
            continue
        for use, call in _uses(tree):
            try:
                points.append(_point(file, use.lineno, call))
            except ValueError as problem:
                problems.append(f"{file}:{use.lineno}: {problem}")
    points.sort()
    first: dict[str, Point] = {}
    for point in points:
        earlier = first.setdefault(point.name, point)
        if earlier is not point:
            problems.append(f"{point.place}: the fail point {point.name} stands at {earlier.place} as well")
    if problems:
        raise FailPointSourceError(list(dict.fromkeys(problems)))  # A line may break a rule twice.
    return points


def _parse(file: str) -> ast.Module:
    """Return the tree of *file*; raise ValueError, which says why there is none."""
    try:
        with open(file, "rb") as stream:
            return ast.parse(stream.read(), file)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"cannot be read as Python: {error}") from None
    except (MemoryError, RecursionError):
        raise ValueError("cannot be read as Python: it is nested too deeply") from None


def _uses(tree: ast.Module) -> list[tuple[ast.expr, ast.Call | None]]:
    """Return where `fail_point` stands in *tree*, each with the call if it is called there, in order."""
    names = {"fail_point"}
    calls: dict[ast.expr, ast.Call] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            # From any module: a program may have one of its own that imports it, or does without where it is missing.
            names.update(alias.asname for alias in node.names if alias.name == "fail_point" and alias.asname)
        elif isinstance(node, ast.Call):
            calls[node.func] = node
    uses = [
        node
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.Attribute) and node.attr == "fail_point")
    ]
    uses.sort(key=lambda node: (node.lineno, node.col_offset))
    return [(node, calls.get(node)) for node in uses]


def _point(file: str, line: int, call: ast.Call | None) -> Point:
    """Return the point that *call* is; raise ValueError if it breaks a rule."""
    if call is None:
        raise ValueError("fail_point may only be called or imported; what becomes of it here cannot be followed")
    name, hooks = _arguments(call)
    if name is None:
        raise ValueError("the name of a fail point must be a literal string")
    check_name(name)
    return Point(file, line, name, hooks)


def _arguments(call: ast.Call) -> tuple[str | None, tuple[str, ...]]:
    """Return the name in *call*, None if it is no literal, and its hooks."""
    given: dict[str | None, ast.expr] = dict(zip(("name", *_HOOKS), call.args, strict=False))
    given.update((keyword.arg, keyword.value) for keyword in call.keywords)
    literal = given.get("name")
    name = literal.value if isinstance(literal, ast.Constant) and isinstance(literal.value, str) else None
    return name, tuple(hook for hook in _HOOKS if hook in given and not _is_none(given[hook]))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _files(path_or_package: str | os.PathLike[str], problems: list[str]) -> Iterator[str]:
    """Yield the files to read; add to *problems* the directories that cannot be."""
    asked = os.fspath(path_or_package)
    roots = _package(asked) if isinstance(path_or_package, str) else []
    if not roots:
        if not (os.path.isfile(asked) or os.path.isdir(asked)):
            raise FileNotFoundError(f"there is no package, directory or file {asked!r}")
        roots = [asked]
    for root in roots:
        if os.path.isfile(root):
            yield root
            continue
        for directory, directories, files in os.walk(root, onerror=lambda error: problems.append(_unread(error))):
            directories[:] = sorted(
                name
                for name in directories
                if not name.startswith(".") and not os.path.exists(f"{directory}/{name}/pyvenv.cfg")
            )
            paths = (os.path.join(directory, name) for name in sorted(files) if name.endswith(".py"))
            # What is no regular file is no source: an editor's lock is a dangling link, and a FIFO would wait for ever.
            yield from filter(os.path.isfile, paths)


def _unread(error: OSError) -> str:
    return f"{error.filename}: cannot be read: {error.strerror}"


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
