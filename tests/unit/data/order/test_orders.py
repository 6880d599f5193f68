from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.order.orders import EpochOrder, MixedOrder, SatOrder, lane_count, quotas
from app.data.order.share import Share
from app.distributed.mix import mix
from app.errors import ConfigError, DataError

COUNTS = [5, 3, 0, 4]  # the worked example of docs/data_order.md


def shard_and_number(counts: list[int], index: int) -> tuple[int, int]:
    for shard, count in enumerate(counts):
        if index < count:
            return shard, index
        index -= count
    raise AssertionError("index beyond the data")


def test_worked_example() -> None:
    order = EpochOrder(COUNTS, seed=7, batch=4, lanes=2, window=4)

    table = [
        [shard_and_number(COUNTS, order.index(4 * step + j)) for j in range(4)] for step in range(4)
    ]

    assert order.lanes == 2
    assert table == [
        [(1, 2), (1, 0), (3, 1), (0, 4)],
        [(1, 1), (0, 0), (3, 0), (0, 3)],
        [(0, 1), (0, 2), (3, 3), (3, 2)],
        [(1, 2), (1, 1), (0, 1), (3, 3)],
    ]


def test_lanes_are_the_largest_divisor_within_both_limits() -> None:
    assert lane_count(batch=24, lanes=16, samples=1000) == 12
    assert lane_count(batch=24, lanes=16, samples=7) == 6
    assert lane_count(batch=7, lanes=5, samples=1000) == 1


def test_shards_of_one_epoch_are_read_by_one_lane_each() -> None:
    order = EpochOrder([100] * 64, seed=1, batch=64, lanes=16, window=256)

    readers: dict[int, set[int]] = {}
    for step in range(100):
        for j in range(64):
            readers.setdefault(order.index(step * 64 + j) // 100, set()).add(j // 4)

    assert set(readers) == set(range(64))
    assert all(len(lanes) == 1 for lanes in readers.values())


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_each_sample_comes_once_per_epoch_over_kills_and_world_sizes(data: st.DataObject) -> None:
    check_exactly_once(data)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_each_sample_comes_once_per_epoch_over_many_kills(data: st.DataObject) -> None:
    check_exactly_once(data)


def check_exactly_once(data: st.DataObject) -> None:
    """A run killed again and again, each time continued by another number of ranks."""
    counts = data.draw(st.lists(st.integers(0, 37), min_size=1, max_size=12))
    if sum(counts) == 0:
        counts.append(1)
    batch = data.draw(st.integers(1, 24))
    lanes, window = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 50))
    seed, epochs = data.draw(st.integers(0, 2**40)), data.draw(st.integers(1, 3))
    undisturbed = EpochOrder(counts, seed=seed, batch=batch, lanes=lanes, window=window)
    steps = undisturbed.steps_for_epochs(epochs)

    stream: dict[int, int] = {}  # position -> index, of the last attempt that got there
    step = 0
    while step < steps:
        order = EpochOrder(counts, seed=seed, batch=batch, lanes=lanes, window=window)
        share_sizes = [w for w in range(1, batch + 1) if batch % w == 0]
        world = data.draw(st.sampled_from(share_sizes))
        micros = [m for m in range(1, batch // world + 1) if batch // world % m == 0]
        micro = data.draw(st.sampled_from(micros))
        stop = min(steps, step + data.draw(st.integers(1, 6)))
        for rank in range(world):
            share = Share(rank, world, micro, batch // world // micro)
            for t in range(step, stop):
                for m in range(share.accumulation):
                    for position in share.positions(t, m):
                        stream[position] = order.index(position)
        step = max(0, stop - data.draw(st.integers(0, 3))) if stop < steps else stop

    assert sorted(stream) == list(range(steps * batch))
    assert stream == {p: undisturbed.index(p) for p in stream}
    # Lanes meet the end of an epoch at different steps; count each lane's epochs by itself.
    per_lane = batch // undisturbed.lanes
    used: list[Counter[int]] = [Counter() for _ in range(epochs)]
    drawn = Counter[int]()
    for position in sorted(stream):
        lane = position % batch // per_lane
        n, count = sum(counts), undisturbed.lanes
        length = (lane + 1) * n // count - lane * n // count
        epoch = drawn[lane] // length
        drawn[lane] += 1
        if epoch < epochs:
            used[epoch][stream[position]] += 1
    for epoch in used:
        assert epoch == Counter(range(sum(counts)))


def test_another_seed_is_another_order() -> None:
    first, second = (EpochOrder([50], seed=seed, batch=5) for seed in (1, 2))

    assert [first.index(p) for p in range(50)] != [second.index(p) for p in range(50)]


def test_no_sample_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample"):
        EpochOrder([0, 0], seed=1, batch=1)


def test_window_of_zero_is_an_error() -> None:
    with pytest.raises(ConfigError, match="window is 0"):
        EpochOrder([3], seed=1, batch=1, window=0)


def test_mixture_meets_its_shares_in_every_block_of_a_lane() -> None:
    order = MixedOrder([[300], [50]], [3.0, 1.0], seed=5, batch=8, lanes=4)

    for lane in range(4):
        draws = [(8 * (q // 2) + 2 * lane + q % 2) for q in range(1000)]
        second = sum(order.index(position) >= 300 for position in draws)
        assert second == 250


def test_mixture_uses_each_dataset_once_per_its_own_epoch() -> None:
    order = MixedOrder([[7, 5], [9]], [2.0, 1.0], seed=3, batch=1, lanes=1)

    indices = [order.index(position) for position in range(120)]
    first = [index for index in indices if index < 12]
    second = [index for index in indices if index >= 12]

    assert sorted(first[:12]) == list(range(12))
    assert sorted(first[12:24]) == list(range(12))
    assert sorted(second[:9]) == list(range(12, 21))


def test_quotas_go_to_the_largest_remainders() -> None:
    assert quotas([1, 1, 1], 1000) == [334, 333, 333]
    assert quotas([0.5, 99.5], 1000) == [5, 995]


def test_a_share_too_small_for_one_draw_is_an_error() -> None:
    with pytest.raises(ConfigError, match="less than one draw"):
        quotas([1, 10_000], 1000)
    with pytest.raises(ConfigError, match="above 0"):
        quotas([1, 0], 1000)


@pytest.mark.parametrize(
    ("length", "recorded"),
    [(7, [6, 5, 6, 5, 5, 1, 1, 5, 3, 5]), (5, [0, 0, 3, 2, 1, 1, 1, 2, 3, 4])],
)
def test_upstream_order_is_the_recorded_one(length: int, recorded: list[int]) -> None:
    order = SatOrder([length])

    assert [order.index(position) for position in range(10)] == recorded


def test_upstream_weights_repeat_a_dataset() -> None:
    plain, weighted = SatOrder([4, 3]), SatOrder([4, 3], [1, 2])

    drawn = Counter(weighted.index(position) for position in range(3000))

    assert set(drawn) == set(range(7))
    assert sum(drawn[i] for i in (4, 5, 6)) / 3000 == pytest.approx(6 / 10, abs=0.04)
    assert [plain.index(p) for p in range(20)] == [SatOrder([7]).index(p) for p in range(20)]


def test_upstream_order_has_no_epochs() -> None:
    with pytest.raises(ConfigError, match="no epochs"):
        SatOrder([5]).steps_for_epochs(2)


def test_a_replacement_follows_the_written_rule() -> None:
    counts, seed = [5, 3, 0, 4], 7
    order = EpochOrder(counts, seed=seed, batch=4, lanes=2, window=4)
    shards_of_epoch = {0: [1, 0, 3], 1: [1, 3, 0]}  # of the worked example

    def base_positions(epoch: int) -> list[int]:
        starts = [0, 5, 8, 8]
        return [starts[s] + i for s in shards_of_epoch[epoch] for i in range(counts[s])]

    for position, epoch in ((0, 0), (5, 0), (10, 0), (13, 1), (15, 1)):
        bases = base_positions(epoch)
        base = bases.index(order.index(position))
        expected = [bases[mix(seed, 3, epoch, base, k) % 12] for k in range(6)]
        assert [order.replacement(position, k) for k in range(6)] == expected


def test_a_replacement_comes_from_the_same_dataset() -> None:
    mixed = MixedOrder([[30], [70]], [1, 3], seed=1, batch=4)
    both = set()
    for position in range(200):
        first = mixed.index(position) < 30
        both.add(first)
        assert all((mixed.replacement(position, k) < 30) == first for k in range(4))
    assert both == {True, False}


def test_upstreams_order_has_replacements_among_its_samples() -> None:
    order = SatOrder([3, 4], [2, 1])

    found = {order.replacement(9, k) for k in range(200)}

    assert found == set(range(7))
