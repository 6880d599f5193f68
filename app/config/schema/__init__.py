"""Frozen dataclasses: what a valid configuration is."""
