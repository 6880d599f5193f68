from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from app.config.schema.model import LoraConfig
from app.config.sections.parse import parse_network
from app.conversion.sat import to_sat
from app.conversion.sat_files import ShardedTensors, model_section
from app.errors import WeightsError
from app.models.dit.transformer import DiffusionTransformer
from app.registry import TARGETS
from tests.support.configs import path_of
from tests.support.networks import tiny

RANKS = 2


def whole_checkpoint() -> dict[str, Tensor]:
    torch.manual_seed(0)
    config = tiny("5b", lora=LoraConfig(rank=2))
    state = DiffusionTransformer(config).state_dict()
    return to_sat({name: torch.randn_like(t) for name, t in state.items()}, config.patch)


def slice_of(name: str, tensor: Tensor, rank: int) -> Tensor:
    """What rank `rank` of 2 holds, written out with row and column numbers (width 32, MLP 128)."""
    if "query_key_value" in name and "matrix" not in name:
        rows = [torch.arange(start + 16 * rank, start + 16 * rank + 16) for start in (0, 32, 64)]
        return tensor[torch.cat(rows)]
    if "query_key_value.matrix_B" in name:
        return tensor[16 * rank : 16 * rank + 16]
    if "dense_h_to_4h" in name:
        return tensor[64 * rank : 64 * rank + 64]
    if name.endswith("dense_4h_to_h.weight"):
        return tensor[:, 64 * rank : 64 * rank + 64]
    if name.endswith("attention.dense.original.weight"):
        return tensor[:, 16 * rank : 16 * rank + 16]
    return tensor


def test_shards_give_the_whole_checkpoint_bit_for_bit() -> None:
    whole = whole_checkpoint()
    shards = [{n: slice_of(n, t, rank) for n, t in whole.items()} for rank in range(RANKS)]

    merged = ShardedTensors(shards, "a folder")

    assert list(merged) == list(whole)
    assert len(merged) == len(whole)
    for name, tensor in whole.items():
        assert torch.equal(merged[name], tensor), name


def test_one_shard_is_given_as_it_is() -> None:
    whole = whole_checkpoint()

    merged = ShardedTensors([whole], "a folder")

    assert all(merged[name] is tensor for name, tensor in whole.items())


def test_ranks_of_different_checkpoints_are_refused() -> None:
    with pytest.raises(WeightsError, match="rank 1 and rank 0 differ in b"):
        ShardedTensors([{"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}], "here")


def test_the_yaml_of_v1_weights_is_what_upstreams_code_of_that_time_takes() -> None:
    section = model_section(tiny("2b"), is_v1=True)["model"]["network_config"]["params"]

    stock = yaml.safe_load(Path(path_of("cogvideox_2b")).read_text())  # a file of that time
    known = stock["model"]["network_config"]["params"]
    assert section["patch_size"] == known["patch_size"] == 2
    position = section["modules"]["pos_embed_config"]
    assert position["params"] == known["modules"]["pos_embed_config"]["params"] | {"text_length": 5}
    newer = {"use_SwiGLU", "use_RMSNorm"}  # false, and upstream's defaults
    assert set(section) - set(known) == newer
    assert not any(section[key] for key in newer)


@pytest.mark.parametrize("is_v1", [True, False])
@pytest.mark.parametrize("kind", ["2b", "5b", "5b_i2v"])
def test_the_yaml_of_either_layout_describes_the_network(kind: str, is_v1: bool) -> None:
    node = model_section(tiny(kind), is_v1=is_v1)["model"]["network_config"]

    assert parse_network(node, "network_config", TARGETS).params == tiny(kind)
