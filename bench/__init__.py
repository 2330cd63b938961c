"""Measurements. ``python -m bench`` runs them; nothing of the tests depends on a time."""
