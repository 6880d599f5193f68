"""Networks are recognized by the shapes of their tensors, or by the notes in our own files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.architecture import (
    NETWORK_KEY,
    lora_of,
    network_of_metadata,
    released_network,
)
from app.errors import WeightsError
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import stock, tiny

NAMES = {
    "2b": "CogVideoX-2B",
    "5b": "CogVideoX-5B",
    "5b_i2v": "CogVideoX-5B-I2V",
    "1.5": "CogVideoX1.5-5B",
    "1.5_i2v": "CogVideoX1.5-5B-I2V",
}
PAIR = {"attention.q.lora_a": (4, 32), "attention.q.lora_b": (32, 4)}


def shapes_of(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    state = DiffusionTransformer(config, device="meta").state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("kind", NAMES)
def test_a_released_network_is_known_by_its_shapes(kind: str) -> None:
    # Two layers of the whole network are enough: the rest have the same shapes.
    config = stock(kind)
    two = shapes_of(replace(config, num_layers=2))
    layer = {name: shape for name, shape in two.items() if name.startswith("blocks.1.")}
    shapes = dict(two)
    for number in range(config.num_layers):
        shapes |= {f"blocks.{number}.{name[9:]}": shape for name, shape in layer.items()}

    assert released_network(shapes) == (NAMES[kind], config)
    assert released_network(two) is None
    assert released_network(shapes_of(tiny(kind))) is None
    assert released_network({}) is None


@pytest.mark.parametrize(("kind", "found"), [("2b", "CogVideoX-2B"), ("5b_i2v", None)])
def test_only_a_table_that_can_be_computed_may_be_left_out(kind: str, found: str | None) -> None:
    config = stock(kind)
    shapes = shapes_of(replace(config, num_layers=1))
    shapes[f"blocks.{config.num_layers - 1}.mlp.up.bias"] = (1,)  # the layer count is its number
    rows, width = shapes["position.table"][1:]
    left_out = {name: shape for name, shape in shapes.items() if name != "position.table"}

    known = released_network(left_out)

    assert (None if known is None else known[0]) == found
    assert released_network(shapes) is not None
    assert released_network({**shapes, "position.table": (1, rows + 1, width)}) is None


def test_lora_pairs_give_rank_and_layers() -> None:
    every = {f"blocks.{n}.{name}": shape for n in range(3) for name, shape in PAIR.items()}
    some = {name: shape for name, shape in every.items() if not name.startswith("blocks.1.")}

    assert lora_of(every, 3) == LoraConfig(rank=4, alpha=1.0, layer_range=None)
    assert lora_of(some, 3) == LoraConfig(rank=4, alpha=1.0, layer_range=(0, 2))
    assert lora_of({"blocks.0.attention.q.weight": (32, 32)}, 3) is None


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=8.0, layer_range=(1,))])
def test_notes_in_a_header_are_the_config_that_was_written(lora: LoraConfig | None) -> None:
    config = tiny("5b_i2v", lora=lora)

    assert network_of_metadata({NETWORK_KEY: json.dumps(asdict(config))}, "a file") == config
    assert network_of_metadata({"format": "pt"}, "a file") is None


@pytest.mark.parametrize(
    "change",
    [
        {"heads": 3},
        {"hidden_size": 33},
        {"patch": {"frames": 1, "rows": 2}},
        {"position": 5},
        {"lora": {"rank": 2, "layers": [1]}},
    ],
)
def test_notes_of_another_version_are_an_error(change: dict[str, object]) -> None:
    content = asdict(tiny("5b")) | change

    with pytest.raises(WeightsError, match="does not parse"):
        network_of_metadata({NETWORK_KEY: json.dumps(content)}, "a file")
