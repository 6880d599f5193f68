"""What we write opens in the real diffusers and peft, with nothing missing or unexpected."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.utils import logging as their_logging
from peft import PeftModel
from torch import Tensor

from app.checkpoint.tensor_file import open_tensors
from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.diffusers import transformer_config
from app.conversion.export import (
    SatForm,
    export_diffusers,
    export_lora,
    export_safetensors,
    export_sat,
)
from app.errors import ConfigError
from app.models.conditioning import Conditioning
from app.models.dit.rotary import rotation_for
from app.models.dit.tokens import grid_of
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import KINDS, inputs, tiny


def network_of(config: DiTConfig) -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_" in name or (name == "position.table" and parameter.requires_grad):
                parameter.normal_(std=0.2)
    return network


@torch.no_grad()
def their_output(
    model: CogVideoXTransformer3DModel, config: DiTConfig, *, as_converted: bool = False
) -> Tensor:
    if not as_converted:
        # Theirs is 1e-5; the released networks were trained with this one.
        model.norm_out.norm.eps = 1e-6
    latents, timesteps, conditioning = inputs(config)
    grid = grid_of(tuple(latents.shape), config.patch)
    rope = config.position.kind == "rope3d"
    if conditioning.image is not None:
        latents = torch.cat([latents, conditioning.image], dim=2)
    return model(
        hidden_states=latents,
        encoder_hidden_states=conditioning.text,
        timestep=timesteps,
        ofs=conditioning.ofs,
        image_rotary_emb=tuple(rotation_for(grid, config.head_dim, latents)) if rope else None,
    ).sample


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_folder_opens_and_gives_the_same_output(kind: str, tmp_path: Path) -> None:
    config = tiny(kind)
    network = network_of(config)

    files = export_diffusers(tmp_path / "transformer", network.state_dict(), config)

    model, info = CogVideoXTransformer3DModel.from_pretrained(
        tmp_path, subfolder="transformer", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sorted(file.name for file in files) == sorted(
        file.name for file in (tmp_path / "transformer").iterdir()
    )
    ours = network(*inputs(config))
    unchanged = their_output(model, config, as_converted=True)
    torch.testing.assert_close(unchanged, ours, rtol=0, atol=1e-4)
    torch.testing.assert_close(their_output(model, config), ours, rtol=0, atol=5e-6)


def test_diffusers_folder_of_a_lora_network_holds_the_merged_weights(tmp_path: Path) -> None:
    config = tiny("5b", lora=LoraConfig(rank=2, alpha=4.0))
    network = network_of(config)

    export_diffusers(tmp_path, network.state_dict(), config, torch.float32)

    layer = network.blocks[1].attention.v
    with open_tensors(tmp_path / "diffusion_pytorch_model.safetensors") as file:
        written = file.read("transformer_blocks.1.attn1.to_v.weight")
    merged = layer.weight + 4.0 / 2 * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(written, merged.detach())


@pytest.mark.parametrize("fold_scale", [False, True])
@pytest.mark.parametrize(("kind", "layer_range"), [*((kind, None) for kind in KINDS), ("5b", (1,))])
def test_adapter_opens_in_a_diffusers_pipeline_and_acts_as_ours(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fold_scale: bool,
    kind: str,
    layer_range: tuple[int, ...] | None,
) -> None:
    lora = LoraConfig(rank=2, alpha=6.0, layer_range=layer_range)
    config = tiny(kind, lora=lora)
    network = network_of(config)
    base = {name: t for name, t in network.state_dict().items() if ".lora_" not in name}
    export_diffusers(tmp_path / "base", base, replace(config, lora=None))
    export_lora(tmp_path / "adapter", network.state_dict(), config, fold_scale=fold_scale)
    model = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "base")
    pipeline = CogVideoXPipeline(None, None, None, model, CogVideoXDDIMScheduler())

    their_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(tmp_path / "adapter")

    their_logging.disable_propagation()
    keys = [record.message for record in caplog.records if "keys" in record.message]
    assert keys == []
    loaded = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert len(loaded) == 8 * len(layer_range or (0, 1))
    ours = network(*inputs(config))
    unchanged = their_output(model, config, as_converted=True)
    torch.testing.assert_close(unchanged, ours, rtol=0, atol=1e-4)
    torch.testing.assert_close(their_output(model, config), ours, rtol=0, atol=5e-6)


WEIGHT = "transformer_blocks.1.attn1.to_v"


@pytest.fixture(params=[(2, 6.0), (8, 1.0)], ids=["strong", "weak"])
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Tensor]:
    """A folder with `base` and `adapter`, and what the adapter adds to one weight."""
    rank, alpha = request.param
    config = tiny("5b", lora=LoraConfig(rank=rank, alpha=alpha))
    network = network_of(config)
    base = {name: t for name, t in network.state_dict().items() if ".lora_" not in name}
    export_diffusers(tmp_path / "base", base, replace(config, lora=None))
    export_lora(tmp_path / "adapter", network.state_dict(), config)
    layer = network.blocks[1].attention.v
    return tmp_path, (alpha / rank * layer.lora_b @ layer.lora_a).detach()


def their_model(folder: Path) -> CogVideoXTransformer3DModel:
    return CogVideoXTransformer3DModel.from_pretrained(folder / "base")


def their_pipeline(folder: Path) -> CogVideoXPipeline:
    return CogVideoXPipeline(None, None, None, their_model(folder), CogVideoXDDIMScheduler())


def added(pipeline: CogVideoXPipeline, **fuse: float) -> Tensor:
    """What a loaded adapter adds to the weight, as fusing computes it."""
    layer = pipeline.transformer.get_submodule(WEIGHT)
    before = layer.base_layer.weight.detach().clone()
    pipeline.fuse_lora(components=["transformer"], **fuse)
    return layer.base_layer.weight.detach() - before


def stored(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file.names()}


def test_diffusers_takes_the_exported_folder_at_its_trained_strength(
    exported: tuple[Path, Tensor],
) -> None:
    folder, expected = exported
    pipeline = their_pipeline(folder)

    pipeline.load_lora_weights(folder / "adapter")

    torch.testing.assert_close(added(pipeline), expected)


def test_a_diffusers_that_ignores_the_header_takes_it_at_its_trained_strength(
    exported: tuple[Path, Tensor],
) -> None:
    # Releases before 0.35 read no header; given tensors, every release does as they do.
    folder, expected = exported
    pipeline = their_pipeline(folder)

    pipeline.load_lora_weights(stored(folder / "adapter/pytorch_lora_weights.safetensors"))

    torch.testing.assert_close(added(pipeline), expected)


def test_the_wrapper_for_comfyui_takes_it_at_its_trained_strength(
    exported: tuple[Path, Tensor],
) -> None:
    # Its calls: the file by name with the rank of B's tensors, strength 1, then fused with scale 1.
    folder, expected = exported
    pipeline, file = their_pipeline(folder), "pytorch_lora_weights.safetensors"
    rank = next(t.shape[1] for n, t in stored(folder / "adapter" / file).items() if "lora_B" in n)

    pipeline.load_lora_weights(
        folder / "adapter", weight_name=file, lora_rank=rank, adapter_name="mine"
    )
    pipeline.set_adapters(["mine"], adapter_weights=[1.0])

    torch.testing.assert_close(added(pipeline, lora_scale=1.0), expected)


def test_peft_opens_the_exported_folder_at_its_trained_strength(
    exported: tuple[Path, Tensor], recwarn: pytest.WarningsRecorder
) -> None:
    folder, expected = exported

    model = PeftModel.from_pretrained(their_model(folder), folder / "adapter")

    assert [str(one.message) for one in recwarn if "keys" in str(one.message)] == []
    layer = model.base_model.model.get_submodule(WEIGHT)
    torch.testing.assert_close(layer.get_delta_weight("default").detach(), expected)
    loaded = [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert len(loaded) == 16


@pytest.mark.parametrize(
    ("file", "prefix"),
    [
        ("pytorch_lora_weights.safetensors", "transformer"),
        ("adapter_model.safetensors", "base_model.model"),
    ],
)
def test_comfyui_takes_both_files_at_their_trained_strength(
    exported: tuple[Path, Tensor], file: str, prefix: str
) -> None:
    # Its rule: scale alpha / rank where there is a tensor `<layer>.alpha`, else 1.
    folder, expected = exported
    tensors, layer = stored(folder / "adapter" / file), f"{prefix}.{WEIGHT}"

    up, down = tensors[f"{layer}.lora_B.weight"], tensors[f"{layer}.lora_A.weight"]
    alpha = tensors.get(f"{layer}.alpha")
    scale = 1.0 if alpha is None else alpha.item() / down.shape[0]

    torch.testing.assert_close(scale * up @ down, expected)


def test_tensors_of_alpha_would_close_the_file_to_diffusers(
    exported: tuple[Path, Tensor],
) -> None:
    folder, _ = exported
    tensors = stored(folder / "adapter/pytorch_lora_weights.safetensors")

    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        their_pipeline(folder).load_lora_weights(
            tensors | {f"transformer.{WEIGHT}.alpha": torch.tensor(1.0)}
        )


def test_our_own_file_says_what_it_is(tmp_path: Path) -> None:
    config = tiny("5b", lora=LoraConfig(rank=2, alpha=6.0))

    path = export_safetensors(
        tmp_path / "deep" / "w.safetensors", network_of(config).state_dict(), config, torch.bfloat16
    )

    with open_tensors(path) as file:
        assert json.loads(file.metadata["cogvx.network"])["hidden_size"] == 32
        assert file.metadata["cogvx.lora_alpha"] == "6.0"
        assert {file.dtype(name) for name in file.names()} == {torch.bfloat16}


def test_sat_folder_is_laid_out_as_upstream_reads_it(tmp_path: Path) -> None:
    config = tiny("5b")

    export_sat(
        tmp_path, network_of(config).state_dict(), config, SatForm(layout="v1"), torch.float16
    )

    assert (tmp_path / "latest").read_text() == "1"
    content = torch.load(tmp_path / "1" / "mp_rank_00_model_states.pt", weights_only=True)
    assert set(content) == {"module"}
    assert all(name.startswith("model.diffusion_model.") for name in content["module"])
    angles = {name for name in content["module"] if ".freqs_" in name}
    assert len(angles) == 2  # always fp32: upstream casts them itself
    others = [tensor for name, tensor in content["module"].items() if name not in angles]
    assert {tensor.dtype for tensor in others} == {torch.float16}


def test_sat_file_is_no_larger_than_its_tensors(tmp_path: Path) -> None:
    config = tiny("5b")
    state = network_of(config).state_dict()
    stacked = torch.zeros(1000, 32)
    stacked[:32] = state["blocks.0.attention.out.weight"]
    state["blocks.0.attention.out.weight"] = stacked[:32]  # a view of something larger

    path, *_ = export_sat(tmp_path, state, config)

    size_bytes = sum(tensor.numel() * 4 for tensor in state.values())
    assert path.stat().st_size < size_bytes + 50_000


def test_network_without_lora_has_no_adapter(tmp_path: Path) -> None:
    config = tiny("5b")

    with pytest.raises(ConfigError, match="no LoRA pairs to export"):
        export_lora(tmp_path, network_of(config).state_dict(), config)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"swiglu": True}, "use_SwiGLU"),
        ({"rms_norm": True}, "use_RMSNorm"),
        ({"qk_norm": False}, "qk_ln"),
        ({"elementwise_affine": False}, "elementwise_affine"),
        ({"inner_hidden_size": 100}, "inner_hidden_size"),
    ],
)
def test_network_that_diffusers_cannot_express_is_refused(
    change: dict[str, int], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        transformer_config(replace(tiny("5b"), **change))


def test_position_tables_that_diffusers_cannot_express_are_refused() -> None:
    config = tiny("2b")
    uneven = replace(config.position, height_interpolation=1.0)
    flat = replace(config.position, kind="sincos2d")

    for position, reason in ((uneven, "interpolation"), (flat, "2D position table")):
        with pytest.raises(ConfigError, match=reason):
            transformer_config(replace(config, position=position))


@pytest.mark.parametrize("rule", ["diffusers", "sat"])
def test_a_portrait_clip_means_the_same_in_the_exported_pipeline_under_its_own_rule(
    rule: str, tmp_path: Path
) -> None:
    config = tiny("5b")  # made for 8 x 12 latents
    position = replace(config.position, fits_size=rule == "diffusers")
    network = network_of(replace(config, position=position))
    export_diffusers(tmp_path, network.state_dict(), config)
    model = CogVideoXTransformer3DModel.from_pretrained(tmp_path)
    model.norm_out.norm.eps = 1e-6
    vae = AutoencoderKLCogVideoX.from_config({"block_out_channels": [32, 32, 32, 32]})
    pipeline = CogVideoXPipeline(None, None, vae, model, CogVideoXDDIMScheduler())
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 3, 16, 12, 8, generator=generator)
    text, timesteps = torch.randn(1, 5, 24, generator=generator), torch.tensor([500])

    positions = pipeline._prepare_rotary_positional_embeddings(96, 64, 3, torch.device("cpu"))
    with torch.no_grad():
        theirs = model(latents, text, timesteps, image_rotary_emb=positions).sample
        ours = network(latents, timesteps, Conditioning(text=text))

    if rule == "diffusers":
        torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-6)
    else:
        assert (theirs - ours).abs().max() > 1e-3
