from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.sat import PREFIX, from_sat, sat_names, to_sat
from app.errors import ConfigError, WeightsError
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import KINDS, tiny

QKV = f"{PREFIX}transformer.layers.1.attention.query_key_value"


def tensors_of(config: DiTConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = DiffusionTransformer(config).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def read(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(from_sat(tensors, tensors.__getitem__, "a file"))


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [None, 2])
def test_there_and_back_is_bit_exact(kind: str, rank: int | None) -> None:
    config = tiny(kind, lora=LoraConfig(rank=rank) if rank else None)
    tensors = tensors_of(config)

    assert_same(read(to_sat(tensors, config.patch)), tensors)


@pytest.mark.parametrize("kind", ["2b", "5b", "5b_i2v"])
def test_v1_layout_is_a_convolution_and_reads_back(kind: str) -> None:
    config = tiny(kind)
    tensors = tensors_of(config)

    written = to_sat(tensors, config.patch, "v1")

    weight = written[f"{PREFIX}mixins.patch_embed.proj.weight"]
    assert weight.shape == (32, config.in_channels, 2, 2)
    assert torch.equal(weight.flatten(1), tensors["patch.video.weight"])
    assert_same(read(written), tensors)


def test_15_has_no_v1_layout() -> None:
    config = tiny("1.5")

    with pytest.raises(ConfigError, match="no v1 layout"):
        to_sat(tensors_of(config), config.patch, "v1")


def test_options_without_stock_file_convert_too() -> None:
    config = replace(tiny("5b"), swiglu=True, rms_norm=True, qk_norm=False)
    tensors = tensors_of(config)

    written = to_sat(tensors, config.patch)

    assert written[f"{PREFIX}mixins.swiglu.w2.1.weight"].shape == (128, 32)
    assert_same(read(written), tensors)


def test_query_key_and_value_are_blocks_of_rows() -> None:
    config = tiny("5b")
    tensors = tensors_of(config)

    written = to_sat(tensors, config.patch)[f"{QKV}.weight"]

    for row, name in ((0, "q"), (32, "k"), (64, "v")):
        expected = tensors[f"blocks.1.attention.{name}.weight"]
        assert torch.equal(written[row : row + 32], expected)


def test_wrapped_layers_keep_their_base_under_original_others_do_not() -> None:
    config = tiny("5b", lora=LoraConfig(rank=2, layer_range=(1,)))

    written = to_sat(tensors_of(config), config.patch)

    assert f"{QKV}.original.weight" in written
    assert f"{QKV}.weight" not in written
    assert f"{QKV.replace('.1.', '.0.')}.weight" in written
    assert written[f"{QKV}.matrix_A.2"].shape == (2, 32)
    assert written[f"{QKV}.matrix_B.0"].shape == (32, 2)


def test_base_and_lora_checkpoint_give_the_same_base_names() -> None:
    base = tensors_of(tiny("5b"))
    config = tiny("5b", lora=LoraConfig(rank=2))
    pairs = {name: t for name, t in tensors_of(config).items() if ".lora_" in name}

    from_lora = read(to_sat(base | pairs, config.patch))

    assert_same({n: t for n, t in from_lora.items() if ".lora_" not in n}, base)


def test_pairs_alone_are_a_file_too() -> None:
    config = tiny("5b", lora=LoraConfig(rank=2))
    pairs = {name: t for name, t in tensors_of(config).items() if ".lora_" in name}

    written = to_sat(pairs, config.patch)

    assert len(written) == 2 * 8
    assert_same(read(written), pairs)


@pytest.mark.parametrize("prefix", ["", PREFIX, f"{PREFIX}_orig_mod.", "_orig_mod."])
def test_prefixes_of_engine_and_compiler_are_taken_off(prefix: str) -> None:
    config = tiny("2b")
    tensors = tensors_of(config)
    stored = {
        prefix + name.removeprefix(PREFIX): t for name, t in to_sat(tensors, config.patch).items()
    }

    assert_same(read(stored), tensors)


def test_text_encoder_vae_and_unread_rows_are_passed_over() -> None:
    config = tiny("5b")
    tensors = tensors_of(config)
    more = {
        "conditioner.embedders.0.transformer.shared.weight": torch.zeros(1),
        "first_stage_model.encoder.conv_in.conv.weight": torch.zeros(1),
        f"{PREFIX}transformer.position_embeddings.weight": torch.zeros(64, 32),
        f"{PREFIX}mixins.pos_embed.freqs_sin": torch.zeros(1),
        f"{PREFIX}mixins.pos_embed.freqs_cos": torch.zeros(1),
    }

    assert_same(read(to_sat(tensors, config.patch) | more), tensors)


def test_file_without_the_network_is_refused() -> None:
    with pytest.raises(WeightsError, match="no tensor of the network"):
        read({"first_stage_model.encoder.conv_in.conv.weight": torch.zeros(1)})


def test_unknown_tensor_of_the_network_is_refused() -> None:
    config = tiny("5b")
    written = to_sat(tensors_of(config), config.patch)

    with pytest.raises(WeightsError, match="unheard_of"):
        read(written | {f"{PREFIX}mixins.unheard_of": torch.zeros(1)})


def test_same_tensor_twice_is_refused() -> None:
    config = tiny("5b")
    written = to_sat(tensors_of(config), config.patch)

    with pytest.raises(WeightsError, match="are the same tensor"):
        read(written | {f"{QKV}.original.weight": torch.zeros(96, 32)})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("patch.video.weight", ("mixins.patch_embed.proj.weight",)),
        ("blocks.7.modulation.bias", ("mixins.adaln_layer.adaLN_modulations.7.1.bias",)),
        (
            "blocks.7.attention.k.bias",
            (
                "transformer.layers.7.attention.query_key_value.bias",
                "transformer.layers.7.attention.query_key_value.original.bias",
            ),
        ),
        (
            "blocks.7.attention.out.lora_b",
            ("transformer.layers.7.attention.dense.matrix_B.0",),
        ),
        ("final.linear.weight", ("mixins.final_layer.linear.weight",)),
    ],
)
def test_sat_names_of_our_names(ours: str, theirs: tuple[str, ...]) -> None:
    assert sat_names(ours) == tuple(PREFIX + name for name in theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_sat_name_that_a_file_really_holds(kind: str) -> None:
    config = tiny(kind, lora=LoraConfig(rank=2, layer_range=(0,)))
    network = DiffusionTransformer(config, device="meta")

    keys = set(to_sat(network.state_dict(), config.patch))

    covered = [set(sat_names(name)) & keys for name, _ in network.named_parameters()]
    assert all(covered)
    assert set.union(*covered) == keys


def test_name_that_is_not_ours_is_refused() -> None:
    with pytest.raises(WeightsError, match="not a tensor of the network"):
        sat_names("transformer.layers.0.attention.dense.weight")
