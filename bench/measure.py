"""Samples, ratios, tables and verdicts. Subjects alternate within one run, and every ratio is taken within one turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MET, MISSED, NOISY = "met", "missed", "too noisy to say"


class MissingError(Exception):
    """A peer or a tool is not here, or cannot do this. It becomes a row that says so."""


@dataclass(frozen=True, slots=True)
class Row:
    """One subject of a table.

    Attributes:
        name: Of the subject.
        samples: One value for each turn, in the unit of the table.
        ratios: Each divided by the floor's value in the same turn; empty without a floor.
        note: What was counted, or why there is nothing.
    """

    name: str
    samples: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    note: str = ""


@dataclass(slots=True)
class Table:
    """Subjects side by side; ``unit`` is that of the samples."""

    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)

    def render(self) -> str:
        """Return the table as text: median, range, median of the ratios and their range, note."""
        lines = [self.title, f"  {'':<38}{'median':>12}{'min-max':>22}{'x floor':>10}{'min-max':>16}"]
        for row in self.rows:
            if not row.samples:
                lines.append(f"  {row.name:<38}{'-':>12}  {row.note}")
                continue
            line = f"  {row.name:<38}{_number(median(row.samples)) + ' ' + self.unit:>12}{_span(row.samples):>22}"
            if row.ratios:
                line += f"{_number(median(row.ratios)):>10}{_span(row.ratios):>16}"
            elif row.note:
                line += " " * 26
            lines.append(f"{line}   {row.note}".rstrip())
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Check:
    """One goal: the median of *values* is at most (or, with ``at_least``, at least) *limit*."""

    goal: str
    what: str
    values: tuple[float, ...]
    limit: float
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or ``too noisy to say`` where the middle half of the values lies on both sides."""
        if not self.values:
            return NOISY
        low, high = quartiles(self.values)
        if self.at_least:
            low, high, limit = -high, -low, -self.limit
        else:
            limit = self.limit
        return MET if high <= limit else MISSED if low > limit else NOISY

    def render(self) -> str:
        """Return the check in one line."""
        sign = "≥" if self.at_least else "≤"
        found = _number(median(self.values)) if self.values else "nothing"
        return f"  {self.goal:<4} {self.what}: {found} (goal {sign} {_number(self.limit)}): {self.verdict}"


@dataclass(frozen=True, slots=True)
class Curve:
    """What a plot shows: points (x, y) by subject."""

    name: str
    title: str
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(slots=True)
class Result:
    """What one scenario found."""

    tables: list[Table] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Context:
    """What a scenario works with.

    Attributes:
        directory: Empty, its own, deleted afterwards.
        peers: Whether the peers take part.
        quick: A tenth of the work: to see that it runs, not to judge.
    """

    directory: Path
    peers: bool = False
    quick: bool = False

    def turns(self, count: int) -> int:
        """Return how many turns are taken where *count* would be right."""
        return max(3, count // 10) if self.quick else count


class Tracker:
    """Times single operations, to say what the slowest of them cost."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, operation: str, seconds: Sequence[float]) -> None:
        """Note that *operation* took each of *seconds*."""
        self.seconds.setdefault(operation, []).extend(seconds)

    def render(self, title: str) -> str:
        """Return a table of p50, p95, p99 and the maximum, in microseconds."""
        lines = [title, f"  {'':<38}{'p50':>10}{'p95':>10}{'p99':>10}{'max':>12}   operations"]
        for name, seconds in self.seconds.items():
            ranked = sorted(seconds)
            values = [ranked[min(len(ranked) - 1, int(len(ranked) * part))] * 1e6 for part in (0.5, 0.95, 0.99)]
            cells = "".join(f"{value:>10,.1f}" for value in values)
            lines.append(f"  {name:<38}{cells}{ranked[-1] * 1e6:>12,.1f}   {len(ranked)} (µs)")
        return "\n".join(lines)


def alternate(
    subjects: Mapping[str, Callable[[], float]], turns: int, *, warm_up: int = 1
) -> dict[str, list[float] | str]:
    """Call *subjects* in turn, A B A B; return their values, or the reason why one has none.

    The first *warm_up* turns are not counted.
    """
    found: dict[str, list[float] | str] = {name: [] for name in subjects}
    for turn in range(warm_up + turns):
        for name, subject in subjects.items():
            values = found[name]
            if isinstance(values, str):
                continue
            try:
                value = subject()
            except MissingError as error:
                found[name] = str(error)
                continue
            if turn >= warm_up:
                values.append(value)
    return found


def tabulate(
    title: str,
    unit: str,
    found: Mapping[str, list[float] | str],
    *,
    floor: str | None = None,
    scale: float = 1.0,
    notes: Mapping[str, str] | None = None,
) -> Table:
    """Return a table of *found*, as `alternate` gives it, multiplied by *scale*, with ratios to the subject *floor*."""
    table = Table(title, unit)
    base = found[floor] if floor is not None else None
    for name, values in found.items():
        if isinstance(values, str):
            table.rows.append(Row(name, note=values))
            continue
        ratios = () if not isinstance(base, list) else tuple(v / b for v, b in zip(values, base, strict=True))
        table.rows.append(Row(name, tuple(v * scale for v in values), ratios, (notes or {}).get(name, "")))
    return table


def ratios(table: Table, name: str, other: str | None = None) -> tuple[float, ...]:
    """Return the in-turn ratios of the row *name* to the floor, or to the row *other*; none if one is missing."""
    rows = {row.name: row for row in table.rows}
    if other is None:
        return rows[name].ratios
    if not rows[name].samples or not rows[other].samples:
        return ()
    return tuple(a / b for a, b in zip(rows[name].samples, rows[other].samples, strict=True))


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the middle half."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def as_json(result: Result) -> dict[str, Any]:
    """Return *result* with every sample, ready for JSON."""
    return {
        "tables": [
            {"title": table.title, "unit": table.unit, "rows": [
                {"name": row.name, "samples": row.samples, "ratios": row.ratios, "note": row.note}
                for row in table.rows
            ]} for table in result.tables
        ],
        "checks": [
            {"goal": check.goal, "what": check.what, "values": check.values, "limit": check.limit,
             "at_least": check.at_least, "verdict": check.verdict} for check in result.checks
        ],
        "notes": result.notes,
    }  # fmt: skip


def _span(values: Sequence[float]) -> str:
    return f"{_number(min(values))}-{_number(max(values))}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
