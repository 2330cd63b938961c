"""How long to search: ``HYPOTHESIS_PROFILE=large`` for a night's search, ``ci`` otherwise."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

settings.register_profile("ci", max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("large", parent=settings.get_profile("ci"), max_examples=5_000, stateful_step_count=80)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
