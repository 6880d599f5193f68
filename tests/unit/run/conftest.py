"""A process group of one, as a started run has it."""

from __future__ import annotations

from tests.unit.training.conftest import groups

__all__ = ["groups"]
