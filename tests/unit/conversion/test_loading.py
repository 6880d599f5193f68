from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.export import export_diffusers, export_lora, export_safetensors, export_sat
from app.conversion.loading import load_lora_weights, load_network_weights
from app.conversion.sat import to_sat
from app.errors import WeightsError
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import KINDS, inputs, tiny

LORA = LoraConfig(rank=2, alpha=4.0)


def network_of(config: DiTConfig, seed: int = 0) -> DiffusionTransformer:
    torch.manual_seed(seed)
    network = DiffusionTransformer(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not (name == "position.table" and not parameter.requires_grad):
                parameter.normal_(std=0.2)
    return network


def on_meta(config: DiTConfig, dtype: torch.dtype = torch.float32) -> DiffusionTransformer:
    return DiffusionTransformer(config, device="meta", dtype=dtype)


def assert_same(network: DiffusionTransformer, expected: dict[str, Tensor]) -> None:
    state = network.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def refusal(network: DiffusionTransformer, path: Path) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        load_network_weights(network, path)
    return error.value


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_fills_a_network_without_memory(kind: str, tmp_path: Path) -> None:
    config = tiny(kind)
    source = network_of(config)
    state = source.state_dict()
    export_sat(tmp_path / "sat", state, config)
    export_diffusers(tmp_path / "diffusers", state, config)
    export_safetensors(tmp_path / "ours.safetensors", state, config)

    for name in ("sat", "diffusers", "ours.safetensors"):
        network = on_meta(config)
        report = load_network_weights(network, tmp_path / name)

        assert_same(network, state)
        frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
        assert frozen == (["position.table"] if kind == "2b" else [])
        assert report.lora == "none"
        assert report.computed == (
            ("position.table",) if (kind, name) == ("2b", "diffusers") else ()
        )
        assert torch.equal(network(*inputs(config)), source(*inputs(config)))


def test_values_go_straight_into_the_dtype_of_the_network(tmp_path: Path) -> None:
    config = tiny("2b")
    state = network_of(config).state_dict()
    export_sat(tmp_path, state, config)
    network = on_meta(config, torch.bfloat16)

    load_network_weights(network, tmp_path)

    assert_same(network, {name: tensor.bfloat16() for name, tensor in state.items()})
    assert all(p.dtype == torch.bfloat16 for p in network.parameters())


def test_loaded_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    config = tiny("5b")
    path = export_safetensors(tmp_path / "w.safetensors", network_of(config).state_dict(), config)
    network = on_meta(config)

    load_network_weights(network, path)

    assert str(path) not in Path("/proc/self/maps").read_text()


def test_loading_into_an_allocated_network_keeps_its_parameters(tmp_path: Path) -> None:
    config = tiny("5b")
    state = network_of(config).state_dict()
    export_sat(tmp_path, state, config)
    network = network_of(config, seed=1)
    before = dict(network.named_parameters())

    load_network_weights(network, tmp_path)

    assert_same(network, state)
    assert all(parameter is before[name] for name, parameter in network.named_parameters())


def test_training_checkpoint_with_text_encoder_and_vae_is_accepted(tmp_path: Path) -> None:
    config = tiny("5b")
    state = network_of(config).state_dict()
    more = {"first_stage_model.x": torch.zeros(1), "conditioner.embedders.0.y": torch.zeros(1)}
    torch.save({"module": to_sat(state, config.patch) | more}, tmp_path / "w.pt")
    network = on_meta(config)

    report = load_network_weights(network, tmp_path / "w.pt")

    assert_same(network, state)
    assert report.left_out == 2


@pytest.mark.parametrize("meta", [True, False])
def test_base_checkpoint_leaves_new_pairs_at_their_start(tmp_path: Path, meta: bool) -> None:
    base = network_of(tiny("5b")).state_dict()
    export_sat(tmp_path, base, tiny("5b"))
    config = tiny("5b", lora=LORA)
    network = on_meta(config) if meta else DiffusionTransformer(config)

    report = load_network_weights(network, tmp_path)

    assert report.lora == "initial"
    assert_same(network, base)
    pair = network.blocks[0].attention.q
    assert pair.lora_b.abs().max() == 0
    assert 0 < pair.lora_a.abs().max() <= 32**-0.5
    assert pair.lora_a.requires_grad


def test_lora_checkpoint_fills_base_and_pairs(tmp_path: Path) -> None:
    config = tiny("5b", lora=LORA)
    state = network_of(config).state_dict()
    export_sat(tmp_path, state, config)
    network = on_meta(config)

    assert load_network_weights(network, tmp_path).lora == "loaded"
    assert_same(network, state)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_tensors_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    config = tiny("2b")
    state = network_of(config).state_dict()
    state["blocks.1.attention.q.weight"][0, 0] = value
    export_safetensors(tmp_path / "ours.safetensors", state, config)

    error = refusal(on_meta(config), tmp_path / "ours.safetensors")

    assert error.exit_code == 65
    assert "1 of " in error.what
    assert error.what.endswith("the first: blocks.1.attention.q.weight")


def test_values_that_only_the_dtype_cannot_hold_are_named_too(tmp_path: Path) -> None:
    config = tiny("2b")
    state = network_of(config).state_dict()
    state["blocks.1.attention.q.weight"][0, 0] = 1e6
    export_safetensors(tmp_path / "ours.safetensors", state, config)

    error = refusal(on_meta(config, torch.float16), tmp_path / "ours.safetensors")

    assert "use bf16" in error.fix
    load_network_weights(on_meta(config, torch.bfloat16), tmp_path / "ours.safetensors")


def test_fixed_table_of_another_size_is_computed_instead(tmp_path: Path) -> None:
    small = replace(tiny("2b"), latent_height=4)
    export_sat(tmp_path, network_of(small).state_dict(), small)
    network = on_meta(tiny("2b"))

    report = load_network_weights(network, tmp_path)

    assert report.computed == ("position.table",)
    assert network.position is not None
    assert torch.equal(network.position.table, network.position.computed())


# refusals


def test_lora_file_for_a_network_without_pairs(tmp_path: Path) -> None:
    config = tiny("5b", lora=LORA)
    export_sat(tmp_path, network_of(config).state_dict(), config)

    found = refusal(on_meta(tiny("5b")), tmp_path)

    assert "16 unexpected (blocks.0.attention.q.lora_a, " in found.what
    assert "add lora_config" in found.fix


def test_pairs_alone_for_a_network_without_its_base(tmp_path: Path) -> None:
    config = tiny("5b", lora=LORA)
    pairs = {n: t for n, t in network_of(config).state_dict().items() if ".lora_" in n}
    export_sat(tmp_path, pairs, config)

    found = refusal(on_meta(config), tmp_path)

    assert "missing (patch.video.weight, " in found.what
    assert "load the base weights first" in found.fix


def test_pairs_of_another_rank(tmp_path: Path) -> None:
    config = tiny("5b", lora=LORA)
    export_sat(tmp_path, network_of(config).state_dict(), config)

    found = refusal(on_meta(tiny("5b", lora=LoraConfig(rank=3))), tmp_path)

    assert "16 misshaped (blocks.0.attention.q.lora_a is (2, 32), expected (3, 32)" in found.what
    assert "another rank" in found.fix


def test_pairs_of_another_alpha(tmp_path: Path) -> None:
    config = tiny("5b", lora=LORA)
    path = export_safetensors(tmp_path / "w.safetensors", network_of(config).state_dict(), config)

    found = refusal(on_meta(tiny("5b", lora=LoraConfig(rank=2, alpha=1.0))), path)

    assert "alpha / r = 2" in found.what


@pytest.mark.parametrize(
    ("written", "wanted", "cause"),
    [
        ("5b", "5b_i2v", "text-to-video weights for an image-to-video config"),
        ("5b_i2v", "5b", "image-to-video weights for a text-to-video config"),
        ("1.5", "1.5_i2v", "text-to-video weights for an image-to-video config"),
        ("5b", "1.5", "weights of another generation"),
        ("1.5", "5b", "weights of another generation"),
        ("5b", "2b", None),
    ],
)
def test_weights_of_another_kind(
    tmp_path: Path, written: str, wanted: str, cause: str | None
) -> None:
    export_sat(tmp_path, network_of(tiny(written)).state_dict(), tiny(written))
    network = on_meta(tiny(wanted))

    if cause is None:  # same tensors but the table, which can be computed
        assert load_network_weights(network, tmp_path).computed == ("position.table",)
    else:
        assert cause in refusal(network, tmp_path).fix


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"hidden_size": 48, "num_attention_heads": 3}, "of width 32, the config of width 48"),
        ({"num_layers": 3}, "2 layers, the config num_layers 3"),
        ({"ofs_embed_dim": 16}, "unset ofs_embed_dim"),
        ({"text_hidden_size": 12}, "same model"),
    ],
)
def test_other_sizes_are_named(tmp_path: Path, change: dict[str, int], cause: str) -> None:
    export_sat(tmp_path, network_of(tiny("5b")).state_dict(), tiny("5b"))

    found = refusal(on_meta(replace(tiny("5b"), **change)), tmp_path)

    assert cause in found.fix
    assert str(tmp_path) in found.where


def test_ofs_in_the_file_only(tmp_path: Path) -> None:
    export_sat(tmp_path, network_of(tiny("1.5_i2v")).state_dict(), tiny("1.5_i2v"))

    found = refusal(on_meta(replace(tiny("1.5_i2v"), ofs_embed_dim=None)), tmp_path)

    assert "set ofs_embed_dim" in found.fix


def test_learned_table_of_another_size(tmp_path: Path) -> None:
    export_sat(tmp_path, network_of(tiny("5b_i2v")).state_dict(), tiny("5b_i2v"))

    found = refusal(on_meta(replace(tiny("5b_i2v"), num_frames=17)), tmp_path)

    assert "1 misshaped (position.table is (1, 77, 32), expected (1, 125, 32))" in found.what
    assert "learned position table" in found.fix


def test_one_missing_tensor_is_enough(tmp_path: Path) -> None:
    state = network_of(tiny("5b")).state_dict()
    del state["blocks.1.mlp.down.bias"]
    path = export_safetensors(tmp_path / "w.safetensors", state, tiny("5b"))

    assert "1 missing (blocks.1.mlp.down.bias)" in refusal(on_meta(tiny("5b")), path).what


# force_train


def test_forced_load_leaves_modules_that_the_file_lacks_at_their_start(tmp_path: Path) -> None:
    source = replace(tiny("5b_i2v"), position=tiny("5b").position)
    export_sat(tmp_path, network_of(source).state_dict(), source)
    network = network_of(tiny("5b_i2v"), seed=1)
    assert network.position is not None
    start = network.position.table.clone()

    load_network_weights(network, tmp_path, force=True)

    assert torch.equal(network.position.table, start)
    assert_same(network, network_of(source).state_dict())


def test_forced_load_stays_strict_on_everything_else(tmp_path: Path) -> None:
    state = network_of(tiny("5b")).state_dict()
    del state["norm.weight"]
    path = export_safetensors(tmp_path / "w.safetensors", state, tiny("5b"))

    with pytest.raises(WeightsError, match=r"1 missing \(norm.weight\)"):
        load_network_weights(network_of(tiny("5b")), path, force=True)


# adapters


def test_adapter_is_loaded_over_a_base(tmp_path: Path) -> None:
    config = tiny("5b", lora=LORA)
    trained = network_of(config)
    export_lora(tmp_path, trained.state_dict(), config, fold_scale=False)
    network = network_of(config, seed=1)
    base = {n: t.clone() for n, t in network.state_dict().items() if ".lora_" not in n}

    report = load_lora_weights(network, tmp_path)

    assert_same(network, {n: t for n, t in trained.state_dict().items() if ".lora_" in n})
    assert_same(network, base)
    assert (report.kind, report.num_tensors) == ("peft", 16)


@pytest.mark.parametrize("fold_scale", [False, True])
def test_adapter_of_another_alpha_acts_as_it_was_trained(tmp_path: Path, fold_scale: bool) -> None:
    config = tiny("5b", lora=LORA)
    trained = network_of(config)
    export_lora(tmp_path, trained.state_dict(), config, fold_scale=fold_scale)
    network = network_of(tiny("5b", lora=LoraConfig(rank=2, alpha=1.0)), seed=1)
    network.load_state_dict(
        {n: t for n, t in trained.state_dict().items() if ".lora_" not in n}, strict=False
    )

    load_lora_weights(network, tmp_path)

    torch.testing.assert_close(network(*inputs(config)), trained(*inputs(config)))


def test_adapter_for_a_network_without_pairs(tmp_path: Path) -> None:
    config = tiny("5b", lora=LORA)
    export_lora(tmp_path, network_of(config).state_dict(), config)

    with pytest.raises(WeightsError, match="16 unexpected") as error:
        load_lora_weights(network_of(tiny("5b")), tmp_path)

    assert "add lora_config" in error.value.fix


def test_base_given_as_an_adapter(tmp_path: Path) -> None:
    export_sat(tmp_path, network_of(tiny("5b")).state_dict(), tiny("5b"))

    with pytest.raises(WeightsError, match="no LoRA pairs"):
        load_lora_weights(network_of(tiny("5b", lora=LORA)), tmp_path)
