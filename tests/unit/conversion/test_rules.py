from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.conversion.rules import (
    Concat,
    Drop,
    Rename,
    Reshape,
    Rule,
    Split,
    apply_rules,
    counterparts,
    inverse,
    plan,
)
from app.errors import WeightsError

TABLE: tuple[Rule, ...] = (
    Rename("in.{p}", "entry.{p}"),
    Split("layer.{i}.qkv.{p}", ("l.{i}.q.{p}", "l.{i}.k.{p}", "l.{i}.v.{p}")),
    Split("layer.{i}.mod", ("l.{i}.a", "l.{i}.b"), parts=((0, 2), (1, 3))),
    Reshape("conv", "flat"),
    Rename("extra.{rest}", "more.{rest}", required=False),
    Drop("junk", why="never read"),
)


def source() -> dict[str, Tensor]:
    return {
        "in.weight": torch.arange(4.0).reshape(2, 2),
        "in.bias": torch.arange(2.0),
        "layer.0.qkv.weight": torch.arange(12.0).reshape(6, 2),
        "layer.11.qkv.weight": torch.arange(12.0, 24.0).reshape(6, 2),
        "layer.0.mod": torch.arange(8.0),
        "conv": torch.arange(8.0).reshape(2, 1, 2, 2),
        "junk": torch.zeros(1),
    }


def converted(
    tensors: dict[str, Tensor], table: tuple[Rule, ...] = TABLE, *, partial: bool = False
) -> dict[str, Tensor]:
    return dict(apply_rules(tensors, tensors.__getitem__, table, "a file", partial=partial))


def test_names_fields_rows_and_shapes_follow_the_table() -> None:
    result = converted(source())

    assert result["entry.bias"].tolist() == [0, 1]
    assert result["l.11.k.weight"].tolist() == [[16, 17], [18, 19]]
    assert result["l.0.v.weight"].tolist() == [[8, 9], [10, 11]]
    assert result["l.0.a"].tolist() == [0, 1, 4, 5]
    assert result["l.0.b"].tolist() == [2, 3, 6, 7]
    assert result["flat"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "junk" not in result
    assert len(result) == 2 + 6 + 2 + 1


def test_inverse_brings_everything_back_but_what_was_dropped() -> None:
    back = converted(
        converted(source()),
        tuple(
            Reshape("flat", "conv", trailing=(2, 2)) if isinstance(rule, Reshape) else rule
            for rule in inverse(TABLE)
        ),
    )

    assert set(back) == set(source()) - {"junk"}
    for name, tensor in back.items():
        assert torch.equal(tensor, source()[name]), name


def test_inverse_of_the_inverse_is_the_table() -> None:
    table = tuple(rule for rule in TABLE if not isinstance(rule, Drop))

    assert inverse(inverse(table)) == table


def test_reshape_knows_the_shape_of_its_source_for_the_way_back() -> None:
    rules = inverse((Reshape("conv", "flat", source_trailing=(2, 2)),))

    (shape,) = (t.shape for t in converted({"flat": torch.zeros(3, 8)}, rules).values())

    assert tuple(shape) == (3, 2, 2, 2)


def test_name_without_a_rule_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"1 tensors have a name that no rule knows.*stray"):
        converted(source() | {"stray": torch.zeros(1)})


def test_field_matches_its_own_kind_only() -> None:
    with pytest.raises(WeightsError, match=r"layer\.one\.mod"):
        converted(source() | {"layer.one.mod": torch.zeros(4)})


def test_rule_that_met_no_name_is_an_error_unless_the_source_is_partial() -> None:
    tensors = source()
    del tensors["conv"]

    with pytest.raises(WeightsError, match="no tensor is named like conv"):
        converted(tensors)
    assert "flat" not in converted(tensors, partial=True)


def test_half_of_what_belongs_together_is_an_error() -> None:
    rule = Concat(("q.{i}", "k.{i}"), "qk.{i}")

    with pytest.raises(WeightsError, match=r"k\.7 is missing, but q\.7 is there"):
        converted({"q.7": torch.zeros(1)}, (rule,))


def test_rows_that_do_not_divide_are_an_error_of_the_file() -> None:
    with pytest.raises(WeightsError, match="7 rows do not divide into 3"):
        converted({"x": torch.zeros(7, 2)}, (Split("x", ("a", "b", "c")),))


def test_plan_is_made_before_anything_is_read() -> None:
    steps = plan(["in.weight", "in.bias"], TABLE[:1], "a file", partial=False)

    assert [(step.sources, step.targets) for step in steps] == [
        (("in.weight",), ("entry.weight",)),
        (("in.bias",), ("entry.bias",)),
    ]


def test_pieces_of_a_split_are_views_of_what_was_read() -> None:
    tensors = source()

    result = converted(tensors)

    assert result["l.0.k.weight"].data_ptr() == tensors["layer.0.qkv.weight"][2:].data_ptr()


def test_counterparts_are_the_names_on_the_other_side() -> None:
    assert counterparts("layer.3.qkv.bias", TABLE) == ("l.3.q.bias", "l.3.k.bias", "l.3.v.bias")
    assert counterparts("l.3.k.bias", inverse(TABLE)) == ("layer.3.qkv.bias",)
    assert counterparts("junk", TABLE) == ()
    assert counterparts("nonsense", TABLE) == ()
