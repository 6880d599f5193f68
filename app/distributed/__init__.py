"""Ranks, process groups, collectives, and the numbers that must not depend on them."""
