"""A record is whole or it is nothing: heads, sealed lines, lock files, digests."""

from __future__ import annotations

import string

from hypothesis import assume, given
from hypothesis import strategies as st

from modelcache import reference
from modelcache.config import parse_bytes
from modelcache.digest import Digest
from modelcache.errors import ConfigurationError, InvalidDigestError, ManifestError, ModelCacheError
from modelcache.layout import decode_head, encode_head, key_id, object_name
from modelcache.manifest import LockedModel, parse_lock, parse_manifest, render_lock
from modelcache.sealed import seal, unseal
from tests.property.strategies import hostile_text, paths, urls

digests = st.binary(min_size=32, max_size=32).map(lambda raw: Digest(f"sha256:{raw.hex()}"))
names = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"], exclude_characters="/"), min_size=1, max_size=60)
counts = st.integers(0, 2**63)
heads = st.tuples(digests.map(object_name), counts, counts, counts, names, counts)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.text(), heads, st.binary())
def test_a_head_comes_back_as_it_was_encoded(key: str, head: tuple[str, int, int, int, str, int], rest: bytes) -> None:
    identity = key_id(key)

    assert decode_head(identity, encode_head(identity, *head) + rest) == head


@given(heads, st.data(), st.integers(1, 255))
def test_a_head_with_one_other_byte_is_nothing(
    head: tuple[str, int, int, int, str, int], data: st.DataObject, flip: int
) -> None:
    whole = bytearray(encode_head(key_id("key"), *head))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= flip

    assert decode_head(key_id("key"), bytes(whole)) is None
    assert decode_head(key_id("key"), bytes(whole) + seal({"key": "key"})) is None


@given(heads, st.data())
def test_a_head_that_was_cut_is_nothing(head: tuple[str, int, int, int, str, int], data: st.DataObject) -> None:
    whole = encode_head(key_id("key"), *head)
    length = data.draw(st.integers(0, len(whole) - 1))

    assert decode_head(key_id("key"), whole[:length]) is None
    assert decode_head(key_id("key"), whole[:length] + bytes(len(whole) - length)) is None


@given(st.text(), st.text(), heads)
def test_a_head_answers_for_its_own_key_alone(key: str, other: str, head: tuple[str, int, int, int, str, int]) -> None:
    assume(key != other)

    assert decode_head(key_id(other), encode_head(key_id(key), *head)) is None


@given(st.binary())
def test_any_bytes_are_a_head_or_nothing(data: bytes) -> None:
    assert decode_head(key_id("key"), data) is None
    assert unseal(data) is None


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_facts_come_back_as_they_were_sealed(facts: dict[str, object]) -> None:
    assert unseal(seal(facts)) == facts


@given(st.dictionaries(st.text(), json_values, max_size=5), st.data(), st.integers(1, 255))
def test_a_sealed_line_with_one_other_byte_is_nothing(facts: dict[str, object], data: st.DataObject, flip: int) -> None:
    line = bytearray(seal(facts))
    line[data.draw(st.integers(0, len(line) - 1))] ^= flip

    assert unseal(bytes(line)) is None


@given(st.dictionaries(st.text(), json_values, max_size=5), st.data())
def test_a_sealed_line_that_was_cut_or_zeroed_is_nothing(facts: dict[str, object], data: st.DataObject) -> None:
    line = seal(facts)
    length = data.draw(st.integers(0, len(line) - 1))

    assert unseal(line[:length]) is None
    assert unseal(line[:length] + bytes(len(line) - length)) is None


@given(st.text(), st.text())
def test_two_keys_have_two_records(one: str, two: str) -> None:
    assert (key_id(one) == key_id(two)) == (one == two)


@given(st.one_of(st.text(), st.text(string.hexdigits, min_size=63, max_size=65)))
def test_a_text_is_a_digest_in_its_one_form_or_refused(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidDigestError:
        return

    assert Digest.parse(digest) == digest == f"sha256:{text.strip().lower()}"


@given(st.one_of(st.text(), st.from_regex(r"[0-9.e+-]{1,6} ?[KMGTkmgt]?i?[bB]?", fullmatch=True)))
def test_a_text_is_a_number_of_bytes_or_refused(text: str) -> None:
    try:
        count = parse_bytes(text, setting="limit")
    except ConfigurationError:
        return

    assert count >= 1


_BASES = st.sampled_from(["/project", "/", "/project/a#b", "/project/a%20b", '/project/"quoted"'])
_REFS = st.one_of(
    urls(),
    paths,
    st.tuples(_BASES, paths).map("".join),
    hostile_text,
)


@given(_BASES, st.lists(st.tuples(_REFS, digests, st.integers(0, 2**63), st.none() | st.text()), max_size=4))
def test_a_lock_file_comes_back_as_it_was_rendered(base: str, drawn: list[tuple[str, Digest, int, str | None]]) -> None:
    models: dict[str, LockedModel] = {}
    for text, digest, size, revision in drawn:
        try:
            ref = reference.parse(text)
        except ModelCacheError:
            continue
        if ref.scheme:
            shown = None if revision is None else revision.encode("utf-8", "replace").decode()
            models[ref.key] = LockedModel(ref.key if ref.scheme == "file" else text, digest, size, shown)

    rendered = render_lock(models.values(), file=f"{base}/models.lock")

    assert parse_lock(rendered, file=f"{base}/models.lock") == tuple(models.values())


_TOML_MARKS = '[[model]] [model] ref = "https://h/m" digest pin true mirrors [ ] # version 1 """'
_TOML = st.lists(
    st.sampled_from(
        [*_TOML_MARKS.split(), "\n", "'", "{", "}", ",", ".", "\\", "\0", "é", "9" * 30, "1979-99-99"],
    ),
    max_size=20,
).map(" ".join)


@given(st.one_of(_TOML, st.text()))
def test_any_text_is_a_manifest_or_a_mistake_in_a_line_of_it(text: str) -> None:
    for parse in (parse_manifest, parse_lock):
        try:
            parse(text, file="/project/models.toml")
        except ManifestError as error:
            line = error.facts["line"]
            assert line is None or 1 <= line <= text.count("\n") + 1
