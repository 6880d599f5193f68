"""Weight conversion and LoRA export against recorded names, bytes and outputs, and against the
real diffusers classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors
from app.config.schema.model import DiTConfig
from app.conversion.diffusers import from_diffusers, to_diffusers, transformer_config
from app.conversion.lora import FILE_NAME, from_peft, to_peft
from app.conversion.sat import PREFIX, from_sat, to_sat
from app.conversion.vae import vae_from_diffusers, vae_to_diffusers
from app.models.conditioning import Conditioning
from app.models.dit.rotary import rotation_for
from app.models.dit.tokens import PatchGrid
from app.models.dit.transformer import DiffusionTransformer
from tests.parity.golden import Case, cases, name_of, weight
from tests.parity.recorded_network import config_of

ITEMS = ("14",)
CASES = cases(*ITEMS)
TRANSFORMERS = [case for case in CASES if "diffusers_init_kwargs" in case.json]
VAES = [case for case in CASES if "first_stage_config" in case.json]
LORAS = [case for case in CASES if "key_map" in case.json]


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def check_digests(tensors: Mapping[str, Tensor], recorded: Mapping[str, Any]) -> None:
    assert set(tensors) == set(recorded)
    for name, entry in recorded.items():
        assert list(tensors[name].shape) == entry["shape"], name
        assert digest(tensors[name]) == entry["sha256_16"], name


def formula_weights(case: Case, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """A Conv2d patch weight is the flattened one, reshaped."""
    made = {}
    for key, shape in shapes.items():
        flat = (shape[0], -1) if key.endswith("patch_embed.proj.weight") else shape
        size = torch.empty(shape, device="meta").reshape(flat).shape
        made[key] = weight(case.json["weights_salt"], key, tuple(size)).reshape(shape)
    return made


def sat_checkpoint(case: Case, network: DiffusionTransformer) -> dict[str, Tensor]:
    """The tiny checkpoint as recorded: names and shapes of the file, values of the formula."""
    computed = {"model.diffusion_model.mixins.pos_embed.pos_embedding": "position.table"}
    shapes = {key: tuple(entry["shape"]) for key, entry in case.json["sat_keys"].items()}
    made = formula_weights(case, shapes)
    for key, ours in computed.items():
        if key in made and ours in network.computed_parameters():
            made[key] = network.computed_parameters()[ours]
    return made


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Conditioning]:
    def optional(name: str) -> Tensor | None:
        return case.tensor(name) if case.has(name) else None

    conditioning = Conditioning(case.tensor("context"), optional("concat_images"), optional("ofs"))
    return case.tensor("x"), case.tensor("timesteps"), conditioning


@torch.no_grad()
def diffusers_output(
    model: CogVideoXTransformer3DModel, network: DiffusionTransformer, case: Case
) -> Tensor:
    x, timesteps, conditioning = inputs_of(case)
    patch, config = network.config.patch, network.config
    rotary = None
    if config.position.kind == "rope3d":
        _, T, _, H, W = x.shape
        grid = PatchGrid(T // patch.frames, H // patch.rows, W // patch.columns)
        rotary = tuple(rotation_for(grid, config.head_dim, x))
    if conditioning.image is not None:
        x = torch.cat([x, conditioning.image], dim=2)
    return model(
        hidden_states=x,
        encoder_hidden_states=conditioning.text,
        timestep=timesteps,
        ofs=conditioning.ofs,
        image_rotary_emb=rotary,
    ).sample


@pytest.mark.parametrize("case", TRANSFORMERS, ids=name_of)
def test_transformer_converts_to_the_recorded_bytes_and_back(case: Case) -> None:
    with case:
        network = DiffusionTransformer(config_of(case.json["network_config"], case))
        checkpoint = sat_checkpoint(case, network)
        # The recorded file has the real RoPE buffers there, which no one reads.
        recorded = {k: v for k, v in case.json["sat_keys"].items() if "freqs_" not in k}
        check_digests({key: checkpoint[key] for key in recorded}, recorded)
        ours = dict(from_sat(checkpoint, checkpoint.__getitem__, "sat"))
        network.load_state_dict(ours)

        exported = to_diffusers(ours, network.config)

        check_digests(exported, case.json["diffusers_keys"])
        for key, entry in case.json["diffusers_keys"].items():
            shares_digest = entry["sha256_16"] == digest(checkpoint[entry["source"][0]])
            assert shares_digest or "linear" in key or "attn1" in key
        check_round_trips(ours, exported, checkpoint, network.config)
        x, timesteps, conditioning = inputs_of(case)
        with torch.no_grad():
            output = network(x, timesteps, conditioning)
        case.assert_close(output, case.tensor("sat_output"), "output", "sat_output")
        compare_with_diffusers(case, network, exported)


def check_round_trips(
    ours: dict[str, Tensor],
    exported: dict[str, Tensor],
    checkpoint: dict[str, Tensor],
    config: DiTConfig,
) -> None:
    back = dict(from_diffusers(exported, exported.__getitem__, "diffusers"))
    for name, tensor in back.items():
        assert torch.equal(tensor, ours[name]), name
    assert set(ours) - set(back) <= {"position.table"}
    layout = "v1" if checkpoint[PREFIX + "mixins.patch_embed.proj.weight"].ndim == 4 else "head"
    again = to_sat(ours, config.patch, layout)
    for name, tensor in again.items():
        assert torch.equal(tensor, checkpoint[name]), name
    unread = ("position_embeddings.weight", "freqs_sin", "freqs_cos")
    assert all(name.endswith(unread) for name in checkpoint if name not in again)


def compare_with_diffusers(
    case: Case, network: DiffusionTransformer, exported: dict[str, Tensor]
) -> None:
    written = transformer_config(network.config)
    theirs = {key: value for key, value in written.items() if not key.startswith("_")}
    assert theirs == case.json["diffusers_init_kwargs"]
    model = CogVideoXTransformer3DModel(**theirs)
    model.load_state_dict(exported, strict=True)

    as_converted = diffusers_output(model, network, case)
    case.assert_close(as_converted, case.tensor("sat_output"), "diffusers", "diffusers output")

    # diffusers builds its last norm with eps 1e-5, the released networks have 1e-6.
    model.norm_out.norm.eps = 1e-6
    with torch.no_grad():
        difference = diffusers_output(model, network, case) - case.tensor("sat_output")
    assert difference.abs().max() < 5e-6


@pytest.mark.parametrize("case", LORAS, ids=name_of)
def test_lora_exports_to_the_recorded_bytes_and_acts_alike(case: Case, tmp_path: Path) -> None:
    with case:
        config = config_of(case.json["network_config"], case)
        assert config.lora is not None
        network = DiffusionTransformer(config)
        shapes = {k: tuple(t.shape) for k, t in to_sat(network.state_dict(), config.patch).items()}
        checkpoint = formula_weights(case, shapes)
        for key, stored in case.tensors("sat/").items():
            assert torch.equal(checkpoint[key], stored)
        network.load_state_dict(dict(from_sat(checkpoint, checkpoint.__getitem__, "sat")))

        exported = to_peft(network.state_dict(), config.lora, config.num_layers)

        recorded = case.tensors("exported/")
        assert set(exported.tensors) == set(recorded) == set(case.json["key_map"])
        for key, tensor in recorded.items():
            assert torch.equal(exported.tensors[key], tensor), key
            assert torch.equal(tensor, checkpoint[case.json["key_map"][key]]), key
        back = dict(from_peft(recorded, recorded.__getitem__, "peft"))
        assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in back.items())
        x, timesteps, conditioning = inputs_of(case)
        with torch.no_grad():
            output = network(x, timesteps, conditioning)
        case.assert_close(output, case.tensor("sat_output"), "output", "sat_output")
        for fold_scale in (False, True):
            compare_adapter(case, network, tmp_path, fold_scale=fold_scale)


def compare_adapter(
    case: Case, network: DiffusionTransformer, folder: Path, *, fold_scale: bool
) -> None:
    config = network.config
    assert config.lora is not None
    base = {name: t for name, t in network.state_dict().items() if ".lora_" not in name}
    model = CogVideoXTransformer3DModel.from_config(transformer_config(config))
    model.load_state_dict(to_diffusers(base, config), strict=True)
    peft = to_peft(network.state_dict(), config.lora, config.num_layers, fold_scale=fold_scale)
    write_tensors(folder / FILE_NAME, peft.tensors, peft.metadata)

    model.load_lora_adapter(folder, weight_name=FILE_NAME, prefix="transformer")

    output = diffusers_output(model, network, case)
    case.assert_close(output, case.tensor("sat_output"), "diffusers", "adapter in diffusers")


@pytest.mark.parametrize("case", VAES, ids=name_of)
def test_vae_converts_to_the_recorded_bytes_and_back(case: Case) -> None:
    salt, gain = case.json["weights_salt"], case.json["gain"]
    checkpoint = {
        key: weight(salt, key, tuple(shape), gain) for key, shape in case.json["sat_keys"].items()
    }

    exported = vae_to_diffusers(checkpoint)

    check_digests(exported, case.json["diffusers_keys"])
    for key, entry in case.json["diffusers_keys"].items():
        assert torch.equal(exported[key], checkpoint[entry["source"]])
    back = dict(vae_from_diffusers(exported, exported.__getitem__, "diffusers"))
    assert set(back) == {key for key in checkpoint if not key.startswith("loss.")}
    assert all(torch.equal(tensor, checkpoint[name]) for name, tensor in back.items())
