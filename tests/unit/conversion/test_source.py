"""What is read for a conversion is whole, and its scale is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors
from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.config.schema.model import LoraConfig
from app.conversion.diffusers import network_of_config, transformer_config
from app.conversion.export import export_lora, export_safetensors, export_sat_lora
from app.conversion.pickle_file import read_state_dict
from app.conversion.source import (
    LoraWeights,
    NetworkWeights,
    SidecarConfig,
    WeightsOverrides,
    read_network_weights,
)
from app.conversion.vae import LatentScale, vae_config_of_json, vae_json
from app.conversion.weights_file import open_weights, sat_tag
from app.errors import ConfigError, InputMissingError, WeightsError
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import tiny

LORA = LoraConfig(rank=2, alpha=6.0)
METADATA = "lora_adapter_metadata"


def pairs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = DiffusionTransformer(tiny("5b", lora=LORA)).state_dict()
    return {name: torch.randn_like(t) for name, t in state.items() if ".lora_" in name}


def nothing(_: Path) -> SidecarConfig:
    return SidecarConfig(None, None)


def read(path: Path, overrides: WeightsOverrides | None = None) -> NetworkWeights | LoraWeights:
    return read_network_weights(path, overrides or WeightsOverrides(), nothing)


def drop_half(tensors: dict[str, Tensor]) -> None:
    del tensors["blocks.1.attention.v.lora_b"]


def drop_pair(tensors: dict[str, Tensor]) -> None:
    for half in "ab":
        del tensors[f"blocks.1.attention.v.lora_{half}"]


def other_rank(tensors: dict[str, Tensor]) -> None:
    tensors["blocks.1.attention.v.lora_a"] = torch.zeros(4, 32)
    tensors["blocks.1.attention.v.lora_b"] = torch.zeros(32, 4)


@pytest.mark.parametrize("damage", [drop_half, drop_pair, other_rank])
def test_pairs_that_are_not_whole_or_of_several_ranks_are_refused(
    damage: Callable[[dict[str, Tensor]], None], tmp_path: Path
) -> None:
    tensors = pairs()
    damage(tensors)
    export_sat_lora(tmp_path, tensors, LORA)

    with pytest.raises(WeightsError, match=r"blocks\.1\.attention\.v\.lora_"):
        read(tmp_path)


def test_pairs_of_another_width_than_the_model_are_refused(tmp_path: Path) -> None:
    export_sat_lora(tmp_path, pairs(), LORA)
    wide = DiffusionTransformer(tiny("5b", lora=LORA)).config
    object.__setattr__(wide, "hidden_size", 48)

    with pytest.raises(WeightsError, match="misshaped"):
        read(tmp_path, WeightsOverrides(wide, None))


def test_pairs_with_a_model_file_that_has_none_need_their_alpha(tmp_path: Path) -> None:
    config = tiny("5b")
    export_sat_lora(tmp_path, pairs(), LORA)

    with pytest.raises(ConfigError, match="alpha is not known"):
        read(tmp_path, WeightsOverrides(config, None))

    assert read(tmp_path, WeightsOverrides(config, 3.0)).lora == LoraConfig(rank=2, alpha=3.0)


@pytest.mark.parametrize(
    ("entry", "alpha"), [({}, 6.0), ({"use_rslora": True}, 6.0 * math.sqrt(2))]
)
def test_the_scale_of_an_adapter_is_that_of_its_header(
    entry: dict[str, object], alpha: float, tmp_path: Path
) -> None:
    write_adapter(tmp_path, entry)

    found = read(tmp_path / "adapter.safetensors")

    assert found.lora is not None
    assert found.lora.alpha == pytest.approx(alpha)
    assert found.alpha_origin == "the header of the file"


@pytest.mark.parametrize("entry", [{"use_dora": True}, {"alpha_pattern": {"to_q": 16}}])
def test_an_adapter_that_does_more_than_a_plain_lora_is_refused(
    entry: dict[str, object], tmp_path: Path
) -> None:
    write_adapter(tmp_path, entry)

    with pytest.raises(WeightsError, match=next(iter(entry))):
        read(tmp_path / "adapter.safetensors")


def test_an_adapter_that_says_no_alpha_is_said_to_say_none(tmp_path: Path) -> None:
    tensors, _ = adapter(tmp_path)
    write_tensors(tmp_path / "bare.safetensors", tensors, {"format": "pt"})

    found = read(tmp_path / "bare.safetensors")

    assert found.lora == LoraConfig(rank=2, alpha=2.0)
    assert found.alpha_origin.startswith("nothing: taken as the rank")


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_the_files_of_peft_itself_are_read(prefix: str, tmp_path: Path) -> None:
    tensors, expected = adapter(tmp_path)
    renamed = {prefix + name.removeprefix("transformer."): t for name, t in tensors.items()}
    write_tensors(tmp_path / "adapter_model.safetensors", renamed, {"format": "pt"})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 5}))

    found = read(tmp_path / "adapter_model.safetensors")

    assert found.lora == LoraConfig(rank=2, alpha=5.0)
    assert set(found.tensors) == set(expected)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())


def test_tensors_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    config = tiny("5b")
    tensors = dict(DiffusionTransformer(config).state_dict())
    tensors["norm.bias"] = torch.zeros(32, dtype=torch.int64)
    export_safetensors(tmp_path / "w.safetensors", tensors, config)

    with pytest.raises(WeightsError, match=r"norm\.bias is int64"):
        read(tmp_path / "w.safetensors")


def test_a_torch_file_that_is_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"module": {"a": torch.randn(2000), "b": torch.randn(2000)}}, path)
    whole = path.read_bytes()

    for share in range(1, 20):
        path.write_bytes(whole[: len(whole) * share // 20])
        with pytest.raises(WeightsError):
            read_state_dict(path)


@pytest.mark.parametrize("content", ["²", "\ufffd\ufffd", "", "-1", "../1"])
def test_a_tag_that_is_no_number_is_an_error(content: str) -> None:
    with pytest.raises(WeightsError):
        sat_tag(content, "here")


def test_a_gap_in_tensor_parallel_shards_names_the_missing_file(tmp_path: Path) -> None:
    for rank in (0, 2):
        torch.save(
            {"module": {"x": torch.zeros(1)}}, tmp_path / f"mp_rank_{rank:02}_model_states.pt"
        )

    with pytest.raises(InputMissingError, match="mp_rank_01"), open_weights(tmp_path):
        pass


def adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Names and tensors of an exported adapter, and the pairs that it was made of."""
    from app.checkpoint.tensor_file import open_tensors

    expected = pairs()
    path, *_ = export_lora(folder / "made", expected, tiny("5b", lora=LORA), fold_scale=False)
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file.names()}, expected


def write_adapter(folder: Path, entry: dict[str, object]) -> None:
    """An adapter with more in its header."""
    tensors, _ = adapter(folder)
    packed = {"r": 2, "lora_alpha": 6.0, **entry}
    header = {METADATA: json.dumps({f"transformer.{key}": v for key, v in packed.items()})}
    write_tensors(folder / "adapter.safetensors", tensors, {"format": "pt", **header})


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_keys_that_a_class_of_diffusers_does_not_have_are_named(
    part: str, caplog: pytest.LogCaptureFixture
) -> None:
    content: dict[str, object] = {"use_swiglu": True, "_name_or_path": "x", "frames_first": 1}

    with caplog.at_level("WARNING"):
        if part == "transformer":
            known = transformer_config(tiny("5b"))
            assert network_of_config(known | content, "here/config.json") == tiny("5b")
        else:
            vae = VAEConfig(encoder=VAEPartConfig(), decoder=VAEPartConfig())
            vae_config_of_json(vae_json(vae, LatentScale(0.7)) | content, "here/config.json")

    (record,) = caplog.records
    assert "here/config.json" in record.getMessage()
    assert "frames_first, use_swiglu" in record.getMessage()
    assert "_name_or_path" not in record.getMessage()
