"""Why a fetch failed, told to the processes that wait for it: an error as a note in the lock file.

A holder that failed for a reason that would meet everybody (404, refused, no space, other bytes than were asked for, a
policy) leaves it, and those who wait
raise it too, in place of failing one after the other. It is JSON and not a pickle, because the file may be another
user's. A note speaks for those only who would ask the same places for the same thing, within the same limits; and a
401, 403 or 404 only among those who ask without credentials.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import errors
from .errors import AccessDeniedError, DeadlineError, ModelCacheError, NotFoundError

_PERSONAL = (NotFoundError, AccessDeniedError, errors.SignatureError)  # A signature that one may not read is none.
_ABOUT_CONTENT = (
    errors.EmptyContentError, errors.DigestMismatchError, errors.SizeMismatchError, errors.MissingCompanionError,
    errors.ArchiveError, errors.PolicyError, errors.DerivationError,
)  # fmt: skip


def is_for_all(error: ModelCacheError) -> bool:
    """Tell whether *error* would meet every process that asks now for the same, in the same way."""
    if isinstance(error, errors.MirrorsExhaustedError):
        return all(is_for_all(one) for one in error.errors)
    kinds = (*_PERSONAL, errors.NetworkError, errors.NoSpaceError, *_ABOUT_CONTENT)
    return isinstance(error, kinds) and not isinstance(error, DeadlineError)


def is_personal(text: bytes) -> bool:
    """Tell whether the error in the note *text* may depend on who asked."""
    error = error_in(text)
    return any(isinstance(one, _PERSONAL) for one in getattr(error, "errors", (error,)))


def note(error: ModelCacheError, asked: Sequence[str]) -> bytes:
    """Return *error* as a note for all who ask nothing but what is in *asked*."""
    return json.dumps({"asked": list(asked), **_facts(error)}).encode()


def covers(text: bytes, asked: Sequence[str]) -> bool:
    """Tell whether the note *text* speaks for one who asks what is in *asked*."""
    try:
        return set(asked) <= set(json.loads(text)["asked"])
    except (ValueError, KeyError, TypeError):
        return False


def error_in(text: bytes) -> ModelCacheError:
    """Return the error in the note *text*."""
    try:
        return _error(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        return errors.NetworkError(ref="the model", detail="the process that fetched it failed")


def _facts(error: ModelCacheError) -> dict[str, Any]:
    facts = {key: [_facts(one) for one in value] if key == "errors" else value for key, value in error.facts.items()}
    return {"error": type(error).__name__, "facts": facts}


def _error(found: dict[str, Any]) -> ModelCacheError:
    kind = getattr(errors, str(found["error"]))
    if not (isinstance(kind, type) and issubclass(kind, ModelCacheError)):
        raise TypeError
    facts = {
        key: tuple(_error(one) for one in value) if key == "errors" else value for key, value in found["facts"].items()
    }
    return kind(**facts)
