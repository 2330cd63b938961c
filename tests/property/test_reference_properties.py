"""What holds for every ref."""

from __future__ import annotations

import os

from hypothesis import assume, given
from hypothesis import strategies as st

from modelcache import reference
from modelcache.errors import InvalidReferenceError
from modelcache.reference import Ref
from tests.property.strategies import hostile_text, hosts, paths, urls


def parsed(text: str) -> Ref:
    """Return the ref; a text that is refused proves nothing."""
    try:
        return reference.parse(text)
    except InvalidReferenceError:
        assume(False)
        raise


@given(st.one_of(hostile_text, urls(), paths))
def test_a_key_is_its_own_key(text: str) -> None:
    ref = parsed(text)
    again = reference.parse(ref.key)

    assert (again.key, again.scheme) == (ref.key, ref.scheme)
    assert again.key.isprintable()


@given(st.one_of(hostile_text, urls(), paths))
def test_a_file_name_is_one_safe_part_of_a_path(text: str) -> None:
    ref = parsed(text)
    try:
        name = ref.name
    except InvalidReferenceError:
        return

    assert name not in {"", ".", ".."}
    assert os.path.basename(name) == name
    assert name.isprintable()
    assert "\\" not in name
    assert len(name.encode()) <= 255
    assert reference.parse(ref.key).name == name


@given(urls())
def test_a_well_formed_url_is_accepted_and_asked_for_as_it_was_written(url: str) -> None:
    ref = reference.parse(url)

    assert ref.url == f"{ref.scheme}://{url.partition('#')[0].partition('://')[2]}"


_PARTS = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/\\") | st.just(" "), min_size=1)
_COMMITS = st.one_of(st.none(), st.just("0123456789" * 4), st.sampled_from(["v1.0", "refs/pr/1", "a/b%2Fc", "é@x"]))


@given(st.sampled_from(["", "datasets/", "spaces/"]), _COMMITS, st.lists(_PARTS, min_size=1, max_size=4))
def test_every_path_of_a_hub_has_a_ref_that_leads_back_to_it(kind: str, revision: str | None, parts: list[str]) -> None:
    place = reference.parse(f"hf://{kind}org/name").hub
    path = "/".join(parts)
    try:
        found = place.at(revision, path)
    except InvalidReferenceError:
        assert not all(0 < len(part.encode()) <= 255 and part not in {".", ".."} for part in parts)
        return

    assert (found.hub.prefix, found.hub.repository) == (kind, "org/name")
    assert (found.hub.revision, found.hub.path) == (revision, path)
    assert reference.parse(found.key).key == found.key


@given(paths)
def test_the_key_of_a_path_leads_back_to_that_path(path: str) -> None:
    ref = parsed(path)

    assert ref.path == "/" + os.path.abspath(path).lstrip("/")
    assert reference.parse(ref.key).path == ref.path


@given(paths, paths)
def test_two_paths_have_one_key_only_if_they_are_one_path(one: str, two: str) -> None:
    first, second = parsed(one), parsed(two)

    assert (first.key == second.key) == (first.path == second.path)


_SECRET = st.text("abcXYZ-._~!$&'()*+,;=:@ü", max_size=12).map(lambda text: f"s3cret{text}")


@given(st.data(), _SECRET)
def test_no_password_gets_into_a_key_or_an_error(data: st.DataObject, secret: str) -> None:
    url = data.draw(urls(userinfo=f"user:{secret}@"))

    assert "s3cret" not in reference.parse(url).key
    for malformed in (url.replace("://", ":// "), f"{url} x", f"{url}\\ ", url.replace("@", "@:http", 1)):
        try:
            shown = reference.parse(malformed).key
        except InvalidReferenceError as error:
            shown = f"{error} {error!r}"
        assert "s3cret" not in shown


_SIGNATURES = st.lists(
    st.sampled_from(
        ["X-Amz-Signature=1", "x-amz-date=2", "X-Goog-Expires=3", "sig=4", "Signature=5", "access_token=6"]
    ),
    min_size=1,
    max_size=4,
)


@given(hosts, st.lists(st.sampled_from(["versionId=1", "download=true", "id=7"])), _SIGNATURES)
def test_a_signature_never_changes_the_key(host: str, kept: list[str], signature: list[str]) -> None:
    plain = f"https://{host}/m{'?' + '&'.join(kept) if kept else ''}"
    signed = f"https://{host}/m?{'&'.join([*signature, *kept])}"

    assert reference.parse(signed).key == reference.parse(plain).key
