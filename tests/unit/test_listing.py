"""The canonical listing of a tree: one form for one content, and no path that could leave it."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.digest import Digest
from modelcache.errors import InvalidReferenceError
from modelcache.listing import Leaf, Listing, digest_of_text

EMPTY = Digest(f"sha256:{hashlib.sha256().hexdigest()}")
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1, max_size=9
)
PATHS = st.lists(NAMES.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=4).map("/".join)
LEAVES = st.builds(Leaf, PATHS, st.integers(0, 2**50), st.just(EMPTY), st.booleans())


def listing(*paths: str) -> Listing:
    return Listing([Leaf(path, 0, EMPTY) for path in paths], ref="r")


@given(st.lists(LEAVES, max_size=6, unique_by=lambda leaf: leaf.path), st.randoms())
def test_a_listing_is_read_back_as_it_was_and_does_not_depend_on_the_order(
    leaves: list[Leaf], chance: random.Random
) -> None:
    try:
        first = Listing(leaves, ref="r")
    except InvalidReferenceError:
        return  # A file that is a directory of another one.
    chance.shuffle(leaves)

    assert Listing(leaves, ref="r").encode() == first.encode()
    again = Listing.decode(first.encode())
    assert again is not None
    assert again.files == first.files
    assert again.digest == digest_of_text(first.encode()) == first.digest


def test_the_text_is_as_the_design_says() -> None:
    text = Listing([Leaf("b", 2, EMPTY, True), Leaf("a/c", 1, EMPTY)], ref="r").encode().decode()

    assert text == f"modelcache-tree 1\n{EMPTY.hex} 1 - a/c\n{EMPTY.hex} 2 x b\n"


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../up", "a/../b", "./a", "a//b", "a/", "a\\b", "a\nb", "a\0b", "a/.",
     "x" * 256, "d/" * 65 + "f"],
)  # fmt: skip
def test_a_path_that_could_leave_the_tree_or_be_misread_is_refused(path: str) -> None:
    with pytest.raises(InvalidReferenceError):
        listing("fine", path)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b")])
def test_what_cannot_be_in_one_directory_is_refused(paths: tuple[str, ...]) -> None:
    with pytest.raises(InvalidReferenceError, match=r"twice|as a directory"):
        listing(*paths)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_what_is_not_exactly_a_listing_is_none(noise: bytes, at: int) -> None:
    good = listing("a", "b/c").encode()
    bad = good[:at] + noise + good[at + len(noise) :]

    found = Listing.decode(bad)

    assert found is None or found.encode() == bad


@pytest.mark.parametrize(
    "change", [(" 0 - a", " 00 - a"), (" 0 - a", " 0 y a"), ("modelcache-tree 1\n", ""), (" a\n", " a")]
)
def test_there_is_one_form_only(change: tuple[str, str]) -> None:
    text = listing("a").encode().decode()
    assert change[0] in text

    assert Listing.decode(text.replace(*change).encode()) is None
