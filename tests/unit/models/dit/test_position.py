from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_3d_sincos_pos_embed

from app.config.schema.model import PositionConfig
from app.errors import ShapeError
from app.models.dit.position import MOST_GRIDS, PositionTable, sincos_table
from app.models.dit.tokens import PatchGrid
from tests.support.networks import tiny

GRID = PatchGrid(3, 4, 6)  # the tiny networks' own


def fixed_table() -> PositionTable:
    return PositionTable(tiny("2b"))


def learned_table() -> PositionTable:
    table = PositionTable(tiny("5b_i2v"))
    with torch.no_grad():
        table.table.copy_(torch.arange(table.table.numel()).view_as(table.table))
    return table


def test_fixed_table_equals_the_one_of_diffusers() -> None:
    config = PositionConfig(
        kind="sincos3d", text_length=0, height_interpolation=1.875, width_interpolation=1.875
    )

    ours = sincos_table(PatchGrid(5, 30, 45), 64, config)

    theirs = get_3d_sincos_pos_embed(64, (45, 30), 5, 1.875, 1.0, output_type="pt")
    torch.testing.assert_close(ours, theirs.flatten(0, 1).float(), rtol=0, atol=1e-7)


def test_column_part_stands_before_row_part() -> None:
    table = sincos_table(GRID, 32, PositionConfig(kind="sincos3d", text_length=0))
    rows = table.unflatten(0, GRID)

    time, column, row = rows.split([8, 12, 12], dim=-1)

    for part, axis in ((time, 0), (column, 2), (row, 1)):
        moved = [part.diff(dim=other).abs().max() for other in range(3) if other != axis]
        assert max(moved) == 0
        assert part.diff(dim=axis).abs().max() > 0


def test_interpolation_divides_the_coordinates() -> None:
    stretched = PositionConfig(kind="sincos3d", text_length=0, width_interpolation=2.0)

    table = sincos_table(PatchGrid(1, 1, 5), 32, stretched)

    plain = sincos_table(PatchGrid(1, 1, 3), 32, PositionConfig(kind="sincos3d", text_length=0))
    torch.testing.assert_close(table[::2], plain)


def test_2d_table_gives_columns_the_first_half() -> None:
    table = sincos_table(
        PatchGrid(1, 4, 6), 32, PositionConfig(kind="sincos2d", text_length=0)
    ).unflatten(0, (4, 6))

    assert table[..., :16].diff(dim=0).abs().max() == 0
    assert table[..., 16:].diff(dim=1).abs().max() == 0


def test_text_rows_of_the_fixed_table_are_zero_and_it_does_not_train() -> None:
    table = fixed_table()

    assert table.table.shape == (1, 5 + GRID.num_tokens, 32)
    assert not table.table.requires_grad
    assert table.table[:, :5].abs().max() == 0


@pytest.mark.parametrize("grid", [(3, 4, 6), (1, 4, 6), (2, 4, 6), (3, 2, 5), (1, 1, 1)])
def test_learned_rows_are_indexed_by_frame_row_and_column(grid: tuple[int, int, int]) -> None:
    table = learned_table()

    rows = table(PatchGrid(*grid))

    stored = table.table[0, 5:].reshape(3, 4, 6, 32)
    expected = [stored[t, y, x] for t, y, x in np.ndindex(grid)]
    assert torch.equal(rows[0, :5], table.table[0, :5])
    assert torch.equal(rows[0, 5:], torch.stack(expected))


@pytest.mark.parametrize("kind", ["2b", "5b_i2v"])
@pytest.mark.parametrize("grid", [(3, 4, 6), (1, 4, 6), (3, 2, 5), (2, 5, 7)])
def test_first_rows_are_used_where_upstreams_numbers_are_asked_for(
    kind: str, grid: tuple[int, int, int]
) -> None:
    config = tiny(kind)
    table = PositionTable(replace(config, position=replace(config.position, first_rows=True)))

    table.check(PatchGrid(*grid), 5)
    rows = table(PatchGrid(*grid))

    tokens = grid[0] * grid[1] * grid[2]
    assert torch.equal(rows[0], table.table[0, : 5 + tokens])
    with pytest.raises(ShapeError, match="larger than the learned"):
        learned_table().check(PatchGrid(2, 5, 7), 5)


@pytest.mark.parametrize("grid", [(2, 3, 4), (5, 4, 6), (3, 7, 9)])
def test_fixed_rows_of_any_size_are_those_of_a_table_of_that_size(
    grid: tuple[int, int, int],
) -> None:
    rows = fixed_table()(PatchGrid(*grid))

    expected = sincos_table(PatchGrid(*grid), 32, tiny("2b").position)
    torch.testing.assert_close(rows[0, 5:], expected)


def test_learned_table_refuses_a_larger_grid() -> None:
    with pytest.raises(ShapeError, match=r"larger than the learned position table of \(3, 4, 6\)"):
        learned_table().check(PatchGrid(3, 4, 7), 5)


def test_table_refuses_another_text_length() -> None:
    with pytest.raises(ShapeError, match="text has 6 tokens, the position table has rows for 5"):
        fixed_table().check(GRID, 6)


def test_2d_table_refuses_more_than_one_frame() -> None:
    config = tiny("2b")
    config = replace(config, position=replace(config.position, kind="sincos2d"))
    table = PositionTable(config)

    table.check(PatchGrid(1, 4, 6), 5)
    with pytest.raises(ShapeError, match="cannot tell frames apart"):
        table.check(PatchGrid(2, 4, 6), 5)


def test_rows_of_a_larger_grid_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[PatchGrid] = []

    def counted(grid: PatchGrid, width: int, config: PositionConfig) -> torch.Tensor:
        computed.append(grid)
        return sincos_table(grid, width, config)

    table = fixed_table()
    saved = set(table.state_dict())
    monkeypatch.setattr("app.models.dit.position.sincos_table", counted)
    grids = [PatchGrid(5, 4, 6), PatchGrid(3, 7, 9), PatchGrid(5, 4, 6)]

    first, other, again = (table(grid) for grid in grids)

    assert computed == grids[:2]
    assert torch.equal(first, again)
    assert other.shape == (1, 5 + 3 * 7 * 9, 32)
    assert set(table.state_dict()) == saved
    assert table.to(torch.float64)(grids[0]).dtype == torch.float64
    assert computed == [*grids[:2], grids[0]]


def test_tables_of_few_grids_are_kept() -> None:
    table = fixed_table()

    for rows in range(5, 5 + 3 * MOST_GRIDS):
        table(PatchGrid(3, rows, 6))

    assert len(table._computed) == MOST_GRIDS


def test_a_table_made_while_validating_serves_training() -> None:
    table, grid = fixed_table(), PatchGrid(5, 4, 6)
    with torch.inference_mode():
        table(grid)
    tokens = torch.ones(1, 5 + grid.num_tokens, 32, requires_grad=True)

    (tokens * table(grid)).sum().backward()

    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad, fixed_table()(grid).detach())
