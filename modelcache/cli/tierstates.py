"""What ``tiers`` and ``doctor`` have in common: how a tier is, in words."""

from __future__ import annotations

from ..levels.base import TierState


def described(state: TierState) -> str:
    """Return how a tier is, and why, for a person."""
    if state.problem:
        return f"{state.state}: {state.problem}" if state.state == "down" else state.problem
    return "ok" if state.state == "healthy" else f"{state.state}: {state.last_error}"
