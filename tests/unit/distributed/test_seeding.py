from __future__ import annotations

import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.distributed.mix import mix
from app.distributed.seeding import GlobalDraws, KeyedDraws, seed_everything

X = torch.zeros(4, 3, 2, 5)


def every_draw(draws: KeyedDraws, count: int) -> dict[str, torch.Tensor]:
    low = torch.arange(count) * 0
    return {
        "noise": draws.normal_like("noise", X[:count]),
        "level": draws.normal("image_noise_level", count),
        "caption": draws.keep("caption_dropout", count, 0.5),
        "timestep": draws.integers("timestep", low, low + 1000),
    }


def test_a_keyed_row_is_the_stream_of_its_own_generator() -> None:
    generator = torch.Generator().manual_seed(mix(11, zlib.crc32(b"noise"), 42))

    noise = KeyedDraws(11, [7, 42]).normal_like("noise", X[:2])

    torch.testing.assert_close(noise[1], torch.randn(3, 2, 5, generator=generator), rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**63), st.permutations([3, 8, 12, 2**40]), st.integers(1, 3))
def test_keyed_draws_do_not_depend_on_the_cut_or_order_of_the_micro_batch(
    seed: int, positions: list[int], cut: int
) -> None:
    whole = every_draw(KeyedDraws(seed, sorted(positions)), 4)

    first = every_draw(KeyedDraws(seed, positions[:cut]), cut)
    second = every_draw(KeyedDraws(seed, positions[cut:]), 4 - cut)

    rows = [sorted(positions).index(position) for position in positions]
    for name, drawn in whole.items():
        assert torch.equal(torch.cat([first[name], second[name]]), drawn[rows]), name


def test_keyed_draws_do_not_depend_on_what_was_asked_before() -> None:
    fresh = KeyedDraws(1, [0, 1]).normal("offset_noise", 2)
    used = KeyedDraws(1, [0, 1])
    used.normal_like("noise", X[:2])
    torch.rand(5)

    assert torch.equal(used.normal("offset_noise", 2), fresh)


@pytest.mark.parametrize(
    ("seed", "purpose", "position"), [(2, "noise", 0), (1, "posterior", 0), (1, "noise", 1)]
)
def test_seed_purpose_and_position_each_change_the_numbers(
    seed: int, purpose: str, position: int
) -> None:
    original = KeyedDraws(1, [0]).normal_like("noise", X[:1])

    other = KeyedDraws(seed, [position]).normal_like(purpose, X[:1])

    assert not torch.isclose(original, other).any()


def test_keyed_normal_numbers_are_drawn_in_fp32_and_cast() -> None:
    full = KeyedDraws(5, [9]).normal_like("noise", X[:1])

    half = KeyedDraws(5, [9]).normal_like("noise", X[:1].bfloat16())

    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.bfloat16())


def test_keyed_keep_has_the_asked_frequency() -> None:
    kept = KeyedDraws(0, range(4000)).keep("caption_dropout", 4000, 0.9)

    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(kept.mean().item() - 0.9) < 0.02  # four standard deviations


def test_keep_all_gives_one_value_to_the_whole_micro_batch() -> None:
    values = {tuple(KeyedDraws(0, [i, i + 1]).keep_all("d", 2, 0.5).tolist()) for i in range(40)}

    assert values == {(0.0, 0.0), (1.0, 1.0)}


def test_keyed_integers_stay_in_each_sample_s_own_range() -> None:
    low = torch.tensor([0, 250, 500, 999])
    high = torch.tensor([1, 251, 1000, 1000])

    drawn = KeyedDraws(3, range(4)).integers("timestep", low, high)

    assert drawn.dtype == torch.int64
    assert drawn[[0, 1, 3]].tolist() == [0, 250, 999]
    assert 500 <= int(drawn[2]) < 1000


def test_asking_for_another_number_of_samples_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="noise"):
        KeyedDraws(3, [1]).normal_like("noise", X)


def test_global_draws_are_the_global_streams_in_call_order() -> None:
    draws = GlobalDraws()
    low = torch.zeros(3, dtype=torch.int64)

    seed_everything(5)
    got = [
        draws.normal("image_noise_level", 3),
        draws.keep("caption_dropout", 3, 0.7),
        draws.integers("timestep", low, low + 1000),
        draws.normal_like("noise", X),
    ]

    torch.manual_seed(5)
    expected = [
        torch.randn(3),
        torch.bernoulli(0.7 * torch.ones(3)),
        torch.randint(0, 1000, (3,)),
        torch.randn_like(X),
    ]
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_global_keep_all_drops_when_python_s_random_is_below_the_dropout() -> None:
    random.seed(4)
    expected = [0.0 if random.random() < 0.3 else 1.0 for _ in range(20)]

    random.seed(4)
    got = [GlobalDraws().keep_all("image_dropout", 2, 1 - 0.3) for _ in range(20)]

    assert [value.tolist() for value in got] == [[e, e] for e in expected]
    assert 0.0 in expected


def test_global_integers_with_different_ranges_draw_one_by_one() -> None:
    low, high = torch.tensor([0, 500]), torch.tensor([500, 1000])
    torch.manual_seed(9)
    expected = [int(torch.randint(0, 500, (1,))), int(torch.randint(500, 1000, (1,)))]

    torch.manual_seed(9)
    drawn = GlobalDraws().integers("timestep", low, high)

    assert drawn.tolist() == expected


def test_seed_everything_seeds_python_numpy_and_torch() -> None:
    seed_everything(2**40 + 3)
    first = (random.random(), np.random.rand(), torch.rand(1).item())
    seed_everything(2**40 + 3)
    second = (random.random(), np.random.rand(), torch.rand(1).item())

    assert first == second
