from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors
from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.conversion.loading import load_vae_weights
from app.conversion.vae import vae_from_diffusers, vae_to_diffusers
from app.errors import WeightsError
from app.models.vae.autoencoder import VideoAutoencoder

PART = VAEPartConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=4)
CONFIG = VAEConfig(encoder=PART, decoder=PART)


def vae_of(seed: int = 0, *, device: str = "cpu") -> VideoAutoencoder:
    torch.manual_seed(seed)
    with torch.device(device):
        return VideoAutoencoder(CONFIG)


def state_of(seed: int = 0) -> dict[str, Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in vae_of(seed).state_dict().items()}


def assert_loaded(vae: VideoAutoencoder, state: dict[str, Tensor]) -> None:
    assert all(torch.equal(vae.state_dict()[name], tensor) for name, tensor in state.items())


def test_names_for_diffusers_load_strictly_there() -> None:
    state = state_of()
    blocks = len(PART.ch_mult)
    theirs = AutoencoderKLCogVideoX(
        block_out_channels=[PART.ch * multiple for multiple in PART.ch_mult],
        down_block_types=["CogVideoXDownBlock3D"] * blocks,
        up_block_types=["CogVideoXUpBlock3D"] * blocks,
        latent_channels=PART.z_channels,
        layers_per_block=PART.num_res_blocks,
        temporal_compression_ratio=4,
    )

    theirs.load_state_dict(vae_to_diffusers(state), strict=True)

    back = dict(vae_from_diffusers(theirs.state_dict(), theirs.state_dict().__getitem__, "x"))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_decoder_levels_are_counted_from_the_other_end() -> None:
    names = vae_to_diffusers(state_of())

    assert "decoder.up_blocks.0.resnets.0.conv1.conv.weight" in names
    expected = state_of()["decoder.up.2.block.0.conv1.conv.weight"]
    assert torch.equal(names["decoder.up_blocks.0.resnets.0.conv1.conv.weight"], expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_released_file_layout_fills_the_vae(tmp_path: Path, device: str) -> None:
    state = state_of()
    path = tmp_path / "3d-vae.pt"
    torch.save({"state_dict": state | {"loss.logvar": torch.zeros(1)}}, path)
    vae = vae_of(1, device=device)

    count = load_vae_weights(vae, path, ignore_keys=("loss",))

    assert count == len(state)
    assert_loaded(vae, state)


def test_vae_inside_a_training_checkpoint_is_found(tmp_path: Path) -> None:
    state = state_of()
    stored = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    stored["model.diffusion_model.time_embed.0.weight"] = torch.zeros(1)
    torch.save({"module": stored}, tmp_path / "w.pt")
    vae = vae_of(1)

    load_vae_weights(vae, tmp_path / "w.pt")

    assert_loaded(vae, state)


@pytest.mark.parametrize("folder", ["", "vae"])
def test_diffusers_folder_fills_the_vae(tmp_path: Path, folder: str) -> None:
    state = state_of()
    (tmp_path / folder).mkdir(exist_ok=True)
    write_tensors(
        tmp_path / folder / "diffusion_pytorch_model.safetensors", vae_to_diffusers(state)
    )
    vae = vae_of(1)

    load_vae_weights(vae, tmp_path)

    assert_loaded(vae, state)


def test_discriminator_must_be_named_to_be_left_out(tmp_path: Path) -> None:
    torch.save({"state_dict": state_of() | {"loss.logvar": torch.zeros(1)}}, tmp_path / "w.pt")

    with pytest.raises(WeightsError, match=r"1 unexpected \(loss.logvar\)") as error:
        load_vae_weights(vae_of(), tmp_path / "w.pt")

    assert "ignore_keys to [loss]" in error.value.fix


def test_file_that_is_no_vae_is_refused(tmp_path: Path) -> None:
    torch.save({"module": {"model.diffusion_model.x": torch.zeros(1)}}, tmp_path / "w.pt")

    with pytest.raises(WeightsError, match="missing") as error:
        load_vae_weights(vae_of(), tmp_path / "w.pt")

    assert "3d-vae.pt" in error.value.fix


def test_one_misshaped_tensor_is_named(tmp_path: Path) -> None:
    state = state_of()
    state["encoder.norm_out.bias"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "w.pt")

    with pytest.raises(WeightsError, match=r"1 misshaped \(encoder.norm_out.bias is \(3,\)"):
        load_vae_weights(vae_of(), tmp_path / "w.pt")
