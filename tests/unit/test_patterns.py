"""Patterns: huggingface_hub's meaning, and one text for equal ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache import reference
from modelcache.patterns import Patterns

PATTERNS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8), max_size=3
)


@pytest.mark.parametrize(
    ("allow", "ignore", "wanted"),
    [
        (None, None, ["a.json", "d/b.json", "d/e/c.bin"]),
        ("*.json", None, ["a.json", "d/b.json"]),
        ("d/", None, ["d/b.json", "d/e/c.bin"]),
        (["a.*", "*.bin"], None, ["a.json", "d/e/c.bin"]),
        (None, "*.json", ["d/e/c.bin"]),
        ("*.json", "d/*", ["a.json"]),
        ("A.JSON", None, []),
        ("[ab].json", None, ["a.json"]),
    ],
)
def test_a_file_is_wanted_if_it_matches_one_and_is_not_ignored(
    allow: str | list[str] | None, ignore: str | None, wanted: list[str]
) -> None:
    patterns = Patterns.of(allow, ignore)

    assert [path for path in ["a.json", "d/b.json", "d/e/c.bin"] if patterns.match(path)] == wanted


@given(PATTERNS, PATTERNS)
def test_the_text_of_patterns_is_read_back_and_stands_in_a_key(allow: list[str], ignore: list[str]) -> None:
    patterns = Patterns.of(allow or None, ignore)

    key = reference.parse("hf://org/name").tree(patterns.text).key
    again = reference.parse(key)

    assert again.key == key
    assert again.is_tree
    assert again.name == "name"
    assert Patterns.parse(again.selection) == patterns


def test_the_order_of_patterns_makes_no_other_tree() -> None:
    assert Patterns.of(["b", "a", "a"], None).text == Patterns.of(["a", "b"], ()).text == "&allow=a,b"


@pytest.mark.parametrize(
    ("allow", "found"),
    [
        (None, None),
        (["a/b.bin"], ("a/b.bin",)),
        (["a[[]1].bin", "b[*].bin"], ("a[1].bin", "b*.bin")),
        (["a.bin", "*.json"], None),
        (["a/"], None),
        (["[ab].bin"], None),
        (["a?"], None),
    ],
)
def test_patterns_that_mean_one_path_each_are_known_as_such(
    allow: list[str] | None, found: tuple[str, ...] | None
) -> None:
    patterns = Patterns.of(allow, None)

    assert patterns.literal == found
    assert all(patterns.match(path) for path in found or ())
