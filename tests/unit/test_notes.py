"""Errors for those who wait: whom a note speaks for, and that what comes out is what went in."""

from __future__ import annotations

import pytest

from modelcache import errors, notes
from modelcache.errors import ModelCacheError

ASKED = ["https://host/m", "digest=None"]
MISSING = errors.RemoteNotFoundError(ref="https://host/m", detail="404 Not Found")


@pytest.mark.parametrize(
    ("asked", "covered"),
    [
        (ASKED, True),
        (ASKED[:1], True),
        ([*ASKED, "https://mirror/m"], False),  # A place that was not asked might have served.
        (["https://host/other"], False),
    ],
)
def test_a_note_speaks_for_those_who_ask_nothing_else(asked: list[str], covered: bool) -> None:
    assert notes.covers(notes.note(MISSING, ASKED), asked) is covered


@pytest.mark.parametrize(
    "error",
    [
        MISSING,
        errors.UnreachableError(ref="r", detail="refused"),
        errors.HttpStatusError(ref="r", status=503, reason="Busy", retry_after=2.0),
        errors.NoSpaceError(what="r", needed=10, free=5),
        errors.CapacityError(what="r", needed=10, capacity=9, used=5, kept={"pinned": 5}),
        errors.DigestMismatchError(ref="r", expected="sha256:1", actual="sha256:2"),
        errors.SizeMismatchError(ref="r", expected=1, actual=2, announced=True),
        errors.MissingCompanionError(ref="r", path="a", needed="b"),
        errors.ArchiveError(ref="r", member="a", problem="it is sparse"),
        errors.ArchiveLimitError(ref="r", member="a", limit="ratio_max", allowed=2.5),
        errors.PolicyError(ref="r", rule="hosts", origin="here:1", problem="it leads to x"),
        errors.SignatureError(ref="r", origin="here:1", problem="another signer"),
        errors.MirrorsExhaustedError(ref="r", errors=(MISSING, errors.UnreachableError(ref="r", detail="refused"))),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_out_as_it_went_in(error: ModelCacheError) -> None:
    again = notes.error_in(notes.note(error, ASKED))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert notes.is_for_all(error)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[1]", b'{"error": "os", "facts": {}}', b'{"error": "Event", "facts": 3}']
)
def test_a_note_that_means_nothing_is_an_error_all_the_same(text: bytes) -> None:
    assert isinstance(notes.error_in(text), errors.NetworkError)
    assert not notes.covers(text, ASKED)


def test_the_end_of_ones_own_patience_is_nobody_elses() -> None:
    assert not notes.is_for_all(errors.DeadlineError(ref="r", detail="waited"))


def test_who_was_refused_does_not_speak_for_who_has_credentials() -> None:
    assert notes.is_personal(notes.note(MISSING, ASKED))
    assert not notes.is_personal(notes.note(errors.UnreachableError(ref="r", detail="refused"), ASKED))
