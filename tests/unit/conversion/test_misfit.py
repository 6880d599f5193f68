from __future__ import annotations

import pytest

from app.conversion.misfit import check_fit, num_layers
from app.errors import WeightsError

NETWORK = {
    "patch.video.weight": (8, 4),
    "patch.video.bias": (8,),
    "blocks.0.norm.weight": (8,),
    "blocks.1.norm.weight": (8,),
}


def refusal(file: dict[str, tuple[int, ...]], **words: str) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        check_fit(NETWORK, file, "w.pt", **words)  # type: ignore[arg-type]
    return caught.value


def test_the_same_names_and_shapes_fit() -> None:
    check_fit(NETWORK, dict(reversed(NETWORK.items())), "w.pt")


def test_every_kind_of_difference_is_counted_and_named() -> None:
    file = {**NETWORK, "blocks.1.norm.weight": (9,), "extra": (1,)}
    del file["blocks.0.norm.weight"]

    error = refusal(file)

    assert error.what == (
        "the weights do not fit the network: 1 missing (blocks.0.norm.weight); "
        "1 unexpected (extra); 1 misshaped (blocks.1.norm.weight is (9,), expected (8,))"
    )
    assert error.where == "w.pt"


def test_only_the_first_names_are_listed() -> None:
    error = refusal({**NETWORK, **{f"extra{i}": (1,) for i in range(5)}})

    assert "5 unexpected (extra0, extra1, extra2, ...)" in error.what


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"patch.video.bias": (16,)}, "a model of width 16"),
        ({"blocks.2.norm.weight": (8,)}, "the file has 3 layers"),
        ({"patch.video.weight": (8, 8)}, "twice in_channels"),
        ({"patch.video.weight": (8, 2)}, "half of in_channels"),
        ({"ofs_embed.0.weight": (8, 8)}, "set ofs_embed_dim"),
        ({"position.table": (1, 9, 8)}, "learned position table"),
        ({"blocks.0.attention.q.lora_a": (2, 8)}, "LoRA pairs"),
    ],
)
def test_the_likely_cause_is_named(changed: dict[str, tuple[int, ...]], cause: str) -> None:
    assert cause in refusal(NETWORK | changed).fix


def test_the_caller_may_name_what_should_fit_and_the_fix() -> None:
    error = refusal({}, what="the VAE", fix="fetch it again")

    assert error.what.startswith("the weights do not fit the VAE: 4 missing")
    assert error.fix == "fetch it again"


def test_layers_are_counted_by_the_highest_number() -> None:
    assert num_layers(["blocks.3.norm.weight", "blocks.10.norm.weight", "final.bias"]) == 11
    assert num_layers(["final.bias"]) == 0
