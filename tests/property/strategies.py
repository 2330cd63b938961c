"""Refs as people and programs write them, and as nobody should."""

from __future__ import annotations

from hypothesis import strategies as st

# What means something to one of the parsers, and text that means nothing to any.
_MARKS = r"""
/ // . .. ./ ../ ~ : :// @ ? # & = % %2e %2E%2e %2f %5c %00 %0a %25 %ff \ [ ] [::1] :80 :443
:65536 http https file s3 HTTPS localhost example.org Example.ORG user:pw@ X-Amz-Signature=a
sig= token= expires=1 policy=1 model.onnx a b
"""
_PIECES = st.one_of(
    st.sampled_from(_MARKS.split()),
    st.sampled_from([" ", "\0", "\n", "\x1b", "\u202e", "\ud800", "é", "İ", "Σ", "ß", "٣", "x" * 300]),
    st.text(max_size=4),
)
hostile_text = st.one_of(
    st.lists(_PIECES, max_size=12).map("".join),
    st.tuples(
        st.sampled_from(
            [
                "http://",
                "https://",
                "HTTPS://",
                "file://",
                "file:///",
                "s3://",
                "hf://",
                "hf://org/name",
                "/",
                "./",
                "~/",
            ]
        ),
        st.lists(_PIECES, max_size=10).map("".join),
    ).map("".join),
    st.text(),
)

_WORD = st.text("abcXYZ019-_.~", min_size=1, max_size=8)
_ENCODED = st.one_of(_WORD, st.sampled_from(["%20", "%C3%A9", "%23", "ü", "+", "!", "@", ":"]))
_SEGMENTS = st.lists(st.lists(_ENCODED, min_size=1, max_size=3).map("".join), max_size=4).map("/".join)
_QUERY = st.lists(st.tuples(_WORD, _WORD).map("=".join), max_size=3).map("&".join)
hosts = st.one_of(
    st.sampled_from(["example.org", "EXAMPLE.org", "127.0.0.1", "[::1]", "[2001:DB8::7]", "bücher.example"]),
    st.tuples(st.sampled_from(["example.org", "[::1]"]), st.integers(0, 65535)).map(
        lambda pair: f"{pair[0]}:{pair[1]}"
    ),
)


@st.composite
def urls(draw: st.DrawFn, *, userinfo: str = "") -> str:
    """Return a well-formed URL, with *userinfo* (that ends in ``@``) before its host."""
    query, fragment = draw(_QUERY), draw(st.sampled_from(["", "#part"]))
    scheme = draw(st.sampled_from(["http", "https", "HTTPS", "s3", "git+https"]))
    return f"{scheme}://{userinfo}{draw(hosts)}/{draw(_SEGMENTS)}{'?' + query if query else ''}{fragment}"


_FILE_CHARACTERS = st.characters(exclude_categories=["C", "Z"], exclude_characters="/") | st.sampled_from(" %#?\\\"'")
paths = (
    st.lists(st.text(_FILE_CHARACTERS, min_size=1, max_size=12), min_size=1, max_size=4)
    .map(lambda parts: "/" + "/".join(parts))
    .filter(lambda path: path == path.strip())
)
