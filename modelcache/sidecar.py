"""The signature that lies beside a file at its source: fetched into memory, for the gate, and stored nowhere."""

from __future__ import annotations

from . import retry, signatures
from .config import RetryPolicy, Timeout
from .errors import RemoteNotFoundError
from .gate import Gate, missing
from .reference import Ref, parse
from .retry import Deadline
from .sources import Registry, Request

_READ_BYTES = 1 << 16


def beside(place: Ref) -> Ref:
    """Return where the signature of the file *place* is: at the same address, with ``.sig`` at its end."""
    if place.scheme == "hf":
        hub = parse(place.url).hub  # At the revision that is asked for.
        return hub.at(hub.revision, f"{hub.path}{signatures.BESIDE}")
    address, mark, query = place.url.partition("?")
    return parse(f"{address}{signatures.BESIDE}{mark}{query}")


def bring(
    gate: Gate, ref: Ref, place: Ref, registry: Registry, timeout: Timeout, policy: RetryPolicy, deadline: Deadline
) -> bytes:
    """Return the signature that lies beside *place*, from which *ref* came.

    Raises:
        SignatureError: There is none, or none of a size that makes sense.
        PolicyError: Its place is refused.
        ModelCacheError: Its source could not be asked.
    """
    where = beside(place)
    source = registry.source(where)
    request = Request(where.url, where.key, timeout, deadline, policies=gate.policies)

    def attempt() -> bytes:
        deadline.check()
        stream = source.open(request)
        found = bytearray()
        try:
            with deadline.cutting(stream.interrupt, within=timeout.read + timeout.stall):
                while chunk := stream.read(_READ_BYTES):
                    found += chunk
                    if len(found) > signatures.BYTES_MAX:
                        raise missing(gate, ref.key, f"{where.key} is too large for a signature")
        finally:
            stream.close()
        deadline.check()
        return bytes(found)

    try:
        return retry.call(
            attempt, policy=policy, deadline=deadline, progress=lambda: 0, on_retry=lambda _error, _seconds: None
        )
    except RemoteNotFoundError as error:
        raise missing(gate, ref.key, f"there is no signature at {where.key}") from error
