"""Tests. A package, so that helpers are importable as tests.<folder>.<module>."""
