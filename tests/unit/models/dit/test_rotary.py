from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

from app.models.dit.rotary import after_text, rotate, rotation_for
from app.models.dit.tokens import PatchGrid

GRID = PatchGrid(3, 4, 5)
WIDTH = 32  # time 8, rows 12, columns 12


def test_table_equals_the_one_of_diffusers() -> None:
    rotation = rotation_for(GRID, WIDTH, torch.zeros(1))

    cos, sin = get_3d_rotary_pos_embed(
        WIDTH, ((0, 0), (GRID.rows, GRID.columns)), (GRID.rows, GRID.columns), GRID.frames
    )
    assert torch.equal(rotation.cos, cos)
    assert torch.equal(rotation.sin, sin)


def test_rotate_equals_that_of_diffusers() -> None:
    heads = torch.randn(2, 3, GRID.num_tokens, WIDTH, generator=torch.Generator().manual_seed(0))
    rotation = rotation_for(GRID, WIDTH, heads)

    torch.testing.assert_close(rotate(heads, rotation), apply_rotary_emb(heads, tuple(rotation)))


def test_rotate_is_multiplication_by_a_complex_phase() -> None:
    heads = torch.randn(1, 1, GRID.num_tokens, WIDTH, generator=torch.Generator().manual_seed(0))
    rotation = rotation_for(GRID, WIDTH, heads)

    turned = rotate(heads, rotation)

    pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)).contiguous())
    phases = torch.complex(rotation.cos[:, ::2], rotation.sin[:, ::2])
    expected = torch.view_as_real(pairs * phases).flatten(-2)
    torch.testing.assert_close(turned, expected)


def test_a_smaller_grid_is_the_top_left_part_of_a_larger_one() -> None:
    large = rotation_for(GRID, WIDTH, torch.zeros(1)).cos.unflatten(0, GRID)

    small = rotation_for(PatchGrid(2, 2, 3), WIDTH, torch.zeros(1)).cos

    assert torch.equal(small, large[:2, :2, :3].flatten(0, 2))


def test_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    rotation = rotation_for(PatchGrid(1, 1, 8), WIDTH, q)

    scores = rotate(q.expand(8, -1), rotation) @ rotate(k.expand(8, -1), rotation).T

    for offset in (-3, 0, 2):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_angles_are_made_in_fp32_and_given_in_the_dtype_asked_for() -> None:
    low = rotation_for(PatchGrid(1, 1, 150), WIDTH, torch.zeros(1, dtype=torch.bfloat16))

    full = rotation_for(PatchGrid(1, 1, 150), WIDTH, torch.zeros(1))
    assert low.cos.dtype == torch.bfloat16
    assert torch.equal(low.cos, full.cos.bfloat16())


def test_text_tokens_are_left_as_they_are() -> None:
    heads = torch.randn(2, 3, 7 + GRID.num_tokens, WIDTH)
    image = rotation_for(GRID, WIDTH, heads)

    turned = rotate(heads, after_text(image, 7))

    assert torch.equal(turned[:, :, :7], heads[:, :, :7])
    assert torch.equal(turned[:, :, 7:], rotate(heads[:, :, 7:], image))


NATIVE = (30, 45)  # rows and columns of 480 x 720


@pytest.mark.parametrize(
    "size", [(45, 30), (30, 45), (48, 85), (36, 36), (20, 45), (1, 45), (29, 44), (64, 9)]
)
def test_another_size_is_fitted_into_the_networks_as_in_diffusers(size: tuple[int, int]) -> None:
    grid = PatchGrid(3, *size)

    rotation = rotation_for(grid, 64, torch.zeros(1), NATIVE)

    crop = get_resize_crop_region_for_grid(size, NATIVE[1], NATIVE[0])
    cos, sin = get_3d_rotary_pos_embed(64, crop, size, grid.frames)
    assert torch.equal(rotation.cos, cos)
    assert torch.equal(rotation.sin, sin)


def test_the_networks_own_size_has_the_same_positions_under_both_rules() -> None:
    grid = PatchGrid(3, *NATIVE)

    fitted, counted = (rotation_for(grid, 64, torch.zeros(1), native) for native in (NATIVE, None))

    assert torch.equal(fitted.cos, counted.cos)
    assert torch.equal(fitted.sin, counted.sin)
