"""What goes when room is needed, as a choice among facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.eviction import (
    IN_GRACE,
    LEASED,
    PINNED,
    STAMP_LAG_S,
    Candidate,
    Choice,
    File,
    Footprint,
    Ledger,
    choose,
)

NOW = 1_000_000.0
HOUR = 3600.0
OLD, OLDER, OLDEST = NOW - 10 * HOUR, NOW - 20 * HOUR, NOW - 30 * HOUR


def one(name: str, used: float = OLD, size: int = 10, held: str = "", *, named: bool = True) -> Candidate:
    inode = 1, int.from_bytes(name.encode(), "big")
    return Candidate(name, (f"key-{name}",) if named else (), Footprint.of([File(inode, size, 1)]), used, held)


def chosen(candidates: Sequence[Candidate], ledger: Ledger | None = None, **options: Any) -> list[Choice]:
    ledger = ledger or full(candidates)
    return choose(candidates, ledger, **{"now": NOW, "grace": HOUR, **options})


def full(candidates: Sequence[Candidate]) -> Ledger:
    ledger = Ledger()
    for candidate in candidates:
        ledger.add(candidate.footprint)
    return ledger


A, B, C = one("a", OLDEST), one("b", OLDER), one("c", OLD)


@pytest.mark.parametrize(
    ("candidates", "options", "gone"),
    [
        ([A, B, C], {}, ""),
        ([C, A, B], {"limit": 30}, ""),
        ([C, A, B], {"limit": 29}, "a"),
        ([C, A, B], {"limit": 20}, "a"),
        ([C, A, B], {"limit": 19}, "ab"),
        ([C, A, B], {"limit": 0}, "abc"),
        ([C, A, B], {"limit": -1}, "abc"),
        ([A._replace(held=PINNED), B, C], {"limit": 20}, "b"),
        ([A._replace(held=LEASED), B, C], {"limit": 0}, "bc"),
        ([A, B, C._replace(used=NOW)], {"limit": 0}, "ab"),
        ([A._replace(used=NOW), B, C], {"limit": 0, "grace": 0.0}, "bca"),
        ([A, B, C], {"unused_for": 20 * HOUR}, "ab"),
        ([A, B, C], {"unused_for": 20 * HOUR + 1}, "a"),
        ([A, B, C], {"unused_for": 20 * HOUR, "limit": 0}, "abc"),
        ([A._replace(held=PINNED), B, C], {"unused_for": 0.0}, "bc"),
        ([A, B._replace(records=()), C], {}, "b"),
        ([A, B._replace(records=()), C], {"limit": 20}, "b"),  # What nothing names goes first, and may be enough.
        ([A, B._replace(records=(), held=LEASED), C], {}, ""),
        ([A, B._replace(records=(), used=NOW), C], {}, ""),
        ([A._replace(used=NOW + 30 * HOUR), B, C], {"limit": 20}, "a"),  # A clock that jumped.
        ([A._replace(used=NOW + 60), B, C], {"limit": 0}, "bc"),
        ([A._replace(footprint=Footprint()), B, C], {"limit": 19}, "b"),  # It frees nothing.
        ([A._replace(footprint=Footprint()), B, C], {"unused_for": 0.0}, "abc"),
    ],
)
def test_what_goes_is_what_may_go_and_was_least_recently_used(
    candidates: list[Candidate], options: dict[str, Any], gone: str
) -> None:
    assert "".join(choice.candidate.name for choice in chosen(candidates, **options)) == gone


@pytest.mark.parametrize(
    ("age", "stays"),
    [(HOUR, True), (HOUR + STAMP_LAG_S - 1, True), (HOUR + STAMP_LAG_S, False), (-HOUR, True)],
)
def test_the_grace_period_allows_for_uses_that_are_recorded_once_an_hour(age: float, stays: bool) -> None:
    candidate = one("a", NOW - age)

    assert candidate.stays(NOW, HOUR) == (IN_GRACE if stays else "")
    assert candidate.stays(NOW, 0) == ""


def test_bytes_that_two_objects_share_are_free_when_the_second_one_goes() -> None:
    shared = File((1, 1), 100, 2)
    first, second = (
        Candidate(name, (name,), Footprint.of([shared]), used) for name, used in (("a", OLDEST), ("b", OLD))
    )

    assert [choice.freed for choice in chosen([first, second], limit=0)] == [0, 100]
    assert full([first, second]).total == 100


def test_bytes_that_have_a_name_outside_the_cache_are_never_free() -> None:
    candidate = Candidate("a", ("a",), Footprint.of([File((1, 1), 100, 2)]), OLD)
    ledger = full([candidate])

    (choice,) = chosen([candidate], ledger, limit=0)

    assert choice.freed == 0
    assert ledger.total == 100


def test_two_names_of_one_file_in_one_object_are_free_once() -> None:
    file = File((1, 1), 100, 2)
    candidate = Candidate("a", ("a", "b"), Footprint.of([file, file]), OLD)

    assert candidate.size == 100
    assert [choice.freed for choice in chosen([candidate], limit=0)] == [100]


candidates = st.lists(
    st.builds(
        Candidate,
        st.uuids().map(str),
        st.lists(st.text(max_size=3), max_size=2).map(tuple),
        st.lists(st.builds(File, st.tuples(st.just(1), st.integers(1, 12)), st.just(7), st.integers(1, 4)), max_size=3)
        .map(Footprint.of),
        st.floats(NOW - 40 * HOUR, NOW + 40 * HOUR),
        st.sampled_from(["", "", "", PINNED, LEASED]),
    ),
    max_size=12,
    unique_by=lambda candidate: candidate.name,
)  # fmt: skip


@given(candidates, st.floats(0, 10 * HOUR), st.none() | st.floats(0, 40 * HOUR), st.none() | st.integers(-50, 200))
def test_nothing_goes_that_must_stay_and_a_limit_is_kept_unless_all_the_rest_must_stay(
    found: list[Candidate], grace: float, unused_for: float | None, limit: int | None
) -> None:
    ledger = full(found)
    before = ledger.total

    gone = choose(found, ledger, now=NOW, grace=grace, unused_for=unused_for, limit=limit)

    names = [choice.candidate.name for choice in gone]
    assert len(names) == len(set(names))
    assert all(choice.candidate.stays(NOW, grace) == "" for choice in gone)
    assert before - sum(choice.freed for choice in gone) == ledger.total >= 0
    rest = [one for one in found if one.name not in names]
    if limit is not None and ledger.total > limit:
        assert all(one.stays(NOW, grace) or not any(one.footprint) for one in rest)
    assert all(one.stays(NOW, grace) or one.records for one in rest)
    if unused_for is not None:
        assert all(one.stays(NOW, grace) or one.age(NOW) < unused_for for one in rest)
    lru = [choice.candidate for choice in gone if choice.reason == "least recently used"]
    assert lru == sorted(lru, key=lambda one: -one.age(NOW)) or len({one.used for one in lru}) < len(lru)
    oldest_kept = max((one.age(NOW) for one in rest if not one.stays(NOW, grace) and any(one.footprint)), default=0)
    assert all(one.age(NOW) >= oldest_kept for one in lru)
