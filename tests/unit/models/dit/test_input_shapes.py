"""Inputs that do not fit are refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.errors import ShapeError
from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import inputs, tiny


def refusal(kind: str, **change: torch.Tensor | None) -> ShapeError:
    """The error for the right inputs with one changed; the network is on the meta device."""
    network = DiffusionTransformer(tiny(kind), device="meta")
    latents, timesteps, conditioning = inputs(tiny(kind))
    latents = change.pop("latents", latents)
    timesteps = change.pop("timesteps", timesteps)
    conditioning = replace(conditioning, **change)
    with pytest.raises(ShapeError) as error:  # meta weights with CPU inputs cannot compute at all
        network(latents, timesteps, conditioning)
    return error.value


def test_four_axes() -> None:
    assert "4 axes" in refusal("5b", latents=torch.zeros(2, 16, 8, 12)).what


def test_time_and_channels_swapped() -> None:
    found = refusal("5b", latents=torch.zeros(2, 16, 3, 8, 12))

    assert "takes 16 channels, got 3" in found.what


def test_odd_frames_for_a_patch_of_two() -> None:
    assert "axis T has 3 entries" in refusal("1.5", latents=torch.zeros(2, 3, 16, 8, 12)).what


def test_image_to_video_without_an_image() -> None:
    found = refusal("5b_i2v", image=None)

    assert found.what == "the network takes 32 channels, got 16 (no image latent was given)"


def test_text_to_video_with_an_image() -> None:
    assert "got 32" in refusal("5b", image=torch.zeros(2, 3, 16, 8, 12)).what


def test_image_of_one_frame() -> None:
    found = refusal("5b_i2v", image=torch.zeros(2, 1, 16, 8, 12))

    assert "does not match the latents" in found.what


def test_one_timestep_for_two_samples() -> None:
    assert "need 2 timesteps" in refusal("5b", timesteps=torch.tensor([5])).what


def test_one_text_for_two_samples() -> None:
    assert (
        "2 samples need 2 text embeddings, got 1" in refusal("5b", text=torch.zeros(1, 5, 24)).what
    )


def test_text_of_another_encoder() -> None:
    assert "not (B, n, 24)" in refusal("5b", text=torch.zeros(2, 5, 4096)).what


def test_text_length_of_a_table() -> None:
    assert "text has 4 tokens" in refusal("2b", text=torch.zeros(2, 4, 24)).what


def test_missing_ofs() -> None:
    assert "no ofs was given" in refusal("1.5_i2v", ofs=None).what


def test_ofs_of_another_batch() -> None:
    assert "(1,) or (2,)" in refusal("1.5_i2v", ofs=torch.zeros(3)).what


def test_more_frames_than_a_learned_table() -> None:
    found = refusal(
        "5b_i2v", latents=torch.zeros(2, 4, 16, 8, 12), image=torch.zeros(2, 4, 16, 8, 12)
    )

    assert "larger than the learned position table" in found.what


def test_unused_ofs_is_ignored() -> None:
    network = DiffusionTransformer(tiny("5b"))
    latents, timesteps, conditioning = inputs(tiny("5b"))

    output = network(latents, timesteps, Conditioning(conditioning.text, ofs=torch.tensor([2.0])))

    assert torch.equal(output, network(latents, timesteps, conditioning))
