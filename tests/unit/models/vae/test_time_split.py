from __future__ import annotations

import pytest

from app.models.vae.time_split import shares


@pytest.mark.parametrize(
    ("num_latents", "size", "expected"),
    [(13, 1, [13]), (13, 4, [4, 3, 3, 3]), (8, 4, [2, 2, 2, 2]), (3, 3, [1, 1, 1])],
)
def test_the_first_ranks_have_one_more_where_uneven(
    num_latents: int, size: int, expected: list[int]
) -> None:
    assert shares(num_latents, size) == expected
