from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.distributed.mix import mix, permutation

# Steps 0..3 of the worked example of the order function: counts 5, 3, 0, 4; seed 7.
COUNTS = (5, 3, 0, 4)
SEED = 7


def test_mix_of_nothing_is_the_golden_ratio_constant() -> None:
    assert mix() == 0x9E3779B97F4A7C15


def test_mix_follows_the_written_arithmetic_with_numpy_wrap_around() -> None:
    h = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)
    for value in (7, 1, 2**63 + 5):
        h = (h ^ np.uint64(value)) * np.uint64(0xBF58476D1CE4E5B9)
        h ^= h >> np.uint64(27)
        h = h * np.uint64(0x94D049BB133111EB)
        h ^= h >> np.uint64(31)
        h = h + np.uint64(0x9E3779B97F4A7C15)

    assert mix(7, 1, 2**63 + 5) == int(h[0])


def test_mix_tells_the_order_of_its_values_apart() -> None:
    assert mix(1, 2) != mix(2, 1)
    assert mix(1) != mix(1, 0)


def test_a_negative_value_counts_modulo_two_to_the_sixty_four() -> None:
    assert mix(-1) == mix(2**64 - 1)


def test_shard_order_of_the_worked_example() -> None:
    shards = [index for index, count in enumerate(COUNTS) if count > 0]

    orders = [[shards[i] for i in permutation(len(shards), SEED, 1, epoch)] for epoch in (0, 1)]

    assert orders == [[1, 0, 3], [1, 3, 0]]


def test_first_windows_of_the_worked_example() -> None:
    # Epoch 0 puts the shards as 1, 0, 3, so the base positions are 1#0-2, 0#0-4, 3#0-3.
    base = [(1, i) for i in range(3)] + [(0, i) for i in range(5)] + [(3, i) for i in range(4)]
    lanes = [base[:6], base[6:]]

    streams = []
    for lane, owned in enumerate(lanes):
        stream: list[tuple[int, int]] = []
        for window, start in enumerate(range(0, len(owned), 4)):
            piece = owned[start : start + 4]
            stream += [piece[i] for i in permutation(len(piece), SEED, 2, 0, lane, window)]
        streams.append(stream)

    assert streams[0] == [(1, 2), (1, 0), (1, 1), (0, 0), (0, 1), (0, 2)]
    assert streams[1] == [(3, 1), (0, 4), (3, 0), (0, 3), (3, 3), (3, 2)]


@settings(deadline=None)
@given(st.integers(0, 300), st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_permutation_holds_every_index_once(n: int, key: list[int]) -> None:
    order = permutation(n, *key)

    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_permutation_sorts_the_splitmix_stream_of_its_key() -> None:
    mask = 2**64 - 1
    state = mix(3, 1)
    outputs = []
    for i in range(1, 12):
        z = (i * 0x9E3779B97F4A7C15 + state) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        outputs.append(z ^ (z >> 31))

    expected = sorted(range(11), key=outputs.__getitem__)
    assert permutation(11, 3, 1).tolist() == expected
