"""Keys and permutations that are the same on every platform, rank and library version.

Sample order and random draws are pure functions of (seed, position), so the arithmetic here
is part of the file format: a change would silently reorder the data of runs in progress.
All arithmetic is modulo 2^64. Source: SplitMix64 (Steele, Lea, Flood 2014) and its finalizer.
"""

from __future__ import annotations

import numpy as np

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the step of SplitMix64
_FIRST = 0xBF58476D1CE4E5B9  # multipliers of SplitMix64's finalizer
_SECOND = 0x94D049BB133111EB


def mix(*values: int) -> int:
    """Hash integers into one 64-bit number; the order of the values matters.

    Args:
        values: any integers; negative ones count modulo 2^64.

    Returns:
        An integer in [0, 2^64).
    """
    h = _GAMMA
    for value in values:
        h = ((h ^ (value & _MASK)) * _FIRST) & _MASK
        h ^= h >> 27
        h = (h * _SECOND) & _MASK
        h ^= h >> 31
        h = (h + _GAMMA) & _MASK
    return h


def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of 0..n-1 chosen by `key`.

    Returns:
        (n,) int64: the stable argsort of n SplitMix64 outputs.
    """
    # numpy arrays of uint64 wrap silently; numpy scalars would warn, hence no scalar arithmetic.
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    z += np.uint64(mix(*key))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    z ^= z >> np.uint64(31)
    return np.argsort(z, kind="stable").astype(np.int64)
