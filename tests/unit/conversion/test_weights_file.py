from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors
from app.config.schema.model import LoraConfig
from app.conversion.export import (
    DIFFUSERS_STEM,
    export_diffusers,
    export_lora,
    export_safetensors,
    export_sat,
)
from app.conversion.sat import to_sat
from app.conversion.weights_file import kind_of, open_weights
from app.errors import CogvxError, InputMissingError, WeightsError
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import KINDS, tiny

LORA = LoraConfig(rank=2)


def state_of(kind: str = "5b", lora: LoraConfig | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = DiffusionTransformer(tiny(kind, lora=lora)).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def assert_holds(path: Path, kind: str, expected: dict[str, Tensor]) -> None:
    with open_weights(path) as file:
        assert file.kind == kind
        outline = file.our_outline()
        found = dict(file.our_tensors())
    assert set(found) == set(outline) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert outline[name].is_meta
        assert outline[name].shape == tensor.shape


@pytest.mark.parametrize("kind", KINDS)
def test_every_export_opens_again_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config, state = tiny(kind), state_of(kind)

    export_sat(tmp_path / "sat", state, config)
    export_diffusers(tmp_path / "diffusers", state, config)
    export_safetensors(tmp_path / "ours" / "model.safetensors", state, config)

    assert_holds(tmp_path / "sat", "sat", state)
    without_fixed_table = {n: t for n, t in state.items() if kind != "2b" or n != "position.table"}
    assert_holds(tmp_path / "diffusers", "diffusers", without_fixed_table)
    assert_holds(tmp_path / "ours" / "model.safetensors", "ours", state)
    assert_holds(tmp_path / "ours", "ours", state)


def test_adapter_export_opens_again(tmp_path: Path) -> None:
    state = state_of(lora=LORA)

    files = export_lora(tmp_path / "adapter", state, tiny("5b", lora=LORA), fold_scale=False)

    pairs = {name: tensor for name, tensor in state.items() if ".lora_" in name}
    for path in files[:2]:
        assert_holds(path, "peft", pairs)
    assert_holds(tmp_path / "adapter", "peft", pairs)


@pytest.mark.parametrize("tag", ["release", "1000"])
def test_latest_names_the_folder_of_a_sat_checkpoint(tmp_path: Path, tag: str) -> None:
    state = state_of()
    (tmp_path / tag).mkdir()
    (tmp_path / "latest").write_text(f"{tag}\n")
    file = tmp_path / tag / "mp_rank_00_model_states.pt"
    torch.save({"module": to_sat(state, tiny("5b").patch)}, file)

    for path in (tmp_path, tmp_path / tag, file):
        assert_holds(path, "sat", state)


@pytest.mark.parametrize("tag", ["7-ema", "", "-3", "newest"])
def test_tag_that_is_neither_number_nor_release_is_refused(tmp_path: Path, tag: str) -> None:
    (tmp_path / "latest").write_text(tag)

    with pytest.raises(WeightsError, match="neither a positive number nor 'release'"):
        open_weights(tmp_path).__enter__()


def test_tensor_parallel_ranks_are_put_together(tmp_path: Path) -> None:
    state = state_of()
    written = to_sat(state, tiny("5b").patch)
    (tmp_path / "latest").write_text("5")
    (tmp_path / "5").mkdir()
    for rank in range(2):
        shard = {
            name: t[64 * rank : 64 * rank + 64] if "dense_h_to_4h" in name else t
            for name, t in written.items()
        }
        for name, t in written.items():
            if "query_key_value" in name:
                shard[name] = torch.cat([part.chunk(2)[rank] for part in t.chunk(3)])
            elif name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
                shard[name] = t.chunk(2, dim=1)[rank]
        torch.save({"module": shard}, tmp_path / "5" / f"mp_rank_{rank:02d}_model_states.pt")

    assert_holds(tmp_path, "sat", state)


def test_shards_listed_by_an_index_are_read_together(tmp_path: Path) -> None:
    config, state = tiny("1.5"), state_of("1.5")
    export_diffusers(tmp_path, state, config)
    whole = tmp_path / f"{DIFFUSERS_STEM}.safetensors"
    with open_weights(tmp_path) as file:
        tensors = {name: file.read(name).clone() for name in file.names}
    whole.unlink()
    names = sorted(tensors)
    weight_map = {name: f"part-{index % 2}.safetensors" for index, name in enumerate(names)}
    for part in set(weight_map.values()):
        mine = {name: tensors[name] for name in names if weight_map[name] == part}
        write_tensors(tmp_path / part, mine, {"format": "pt"})
    index = tmp_path / f"{DIFFUSERS_STEM}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))

    assert_holds(tmp_path, "diffusers", state)

    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(CogvxError):
        open_weights(tmp_path).__enter__()
    index.write_text("{")
    with pytest.raises(WeightsError, match="index does not parse"):
        open_weights(tmp_path).__enter__()


def test_transformer_of_a_pipeline_folder_is_found(tmp_path: Path) -> None:
    state = state_of()
    export_diffusers(tmp_path / "transformer", state, tiny("5b"))
    (tmp_path / "vae").mkdir()

    assert_holds(tmp_path, "diffusers", state)


def test_nothing_to_open_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no such weights"):
        open_weights(tmp_path / "absent").__enter__()
    with pytest.raises(InputMissingError, match="0 safetensors files and no latest"):
        open_weights(tmp_path).__enter__()
    (tmp_path / "latest").write_text("5")
    with pytest.raises(InputMissingError, match="there is no mp_rank_00_model_states"):
        open_weights(tmp_path).__enter__()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "peft"),
        ("transformer_blocks.0.norm1.linear.weight", "diffusers"),
        ("blocks.0.attention.q.lora_a", "ours"),
        ("model.diffusion_model.time_embed.0.weight", "sat"),
        ("time_embed.0.weight", "sat"),
        ("transformer.layers.0.attention.dense.weight", "sat"),
    ],
)
def test_layout_is_told_by_the_names(name: str, kind: str) -> None:
    assert kind_of([name]) == kind
