"""Checks of the network's sizes and of the shapes of its inputs.

Axes: B batch, T latent frames, C channels, H rows, W columns, n text tokens, D text width.
"""

from __future__ import annotations

from torch import Tensor

from app.config.schema.model import DiTConfig
from app.errors import ConfigError, ShapeError
from app.models.conditioning import Conditioning
from app.models.dit.tokens import PatchGrid, grid_of

WHERE = "model.network_config.params"


def check_sizes(config: DiTConfig) -> None:
    """Check sizes that the configuration alone allows.

    Raises:
        ConfigError: the network cannot have them.
    """
    # An eighth of the width must be even: time, columns and rows get 2, 3 and 3 eighths in pairs.
    if config.position.kind == "sincos3d" and config.hidden_size % 16:
        raise ConfigError(
            f"hidden_size {config.hidden_size} cannot be divided among time, rows and columns",
            where=f"{WHERE}.hidden_size",
            fix="use a multiple of 16",
        )


def checked_grid(
    config: DiTConfig, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> PatchGrid:
    """The patch grid of the latents, once all inputs fit the configuration and each other.

    Raises:
        ShapeError: an input does not fit.
    """
    if latents.ndim != 5:
        raise ShapeError(
            f"latents have {latents.ndim} axes, not the five of (B, T, C, H, W)",
            where=f"latents of shape {tuple(latents.shape)}",
            fix="add the batch axis, time before channels",
        )
    grid = grid_of(tuple(latents.shape), config.patch)
    _check_channels(config, latents, conditioning.image)
    _check_batch(latents.shape[0], timesteps, conditioning)
    if conditioning.text.ndim != 3 or conditioning.text.shape[2] != config.text_hidden_size:
        raise ShapeError(
            f"text embeddings are not (B, n, {config.text_hidden_size})",
            where=f"conditioning.text of shape {tuple(conditioning.text.shape)}",
            fix="use the text encoder whose width is text_hidden_size",
        )
    return grid


def _check_channels(config: DiTConfig, latents: Tensor, image: Tensor | None) -> None:
    channels = latents.shape[2]
    if image is not None:
        expected = (*latents.shape[:2], image.shape[2], *latents.shape[3:])
        if tuple(image.shape) != expected:
            raise ShapeError(
                f"the image latent does not match the latents of shape {tuple(latents.shape)}",
                where=f"conditioning.image of shape {tuple(image.shape)}",
                fix="give it the same batch, frames, rows and columns; pad frames with zeros",
            )
        channels += image.shape[2]
    if channels != config.in_channels:
        hint = "no image latent was given" if image is None else "an image latent was given"
        raise ShapeError(
            f"the network takes {config.in_channels} channels, got {channels} ({hint})",
            where=f"latents of shape {tuple(latents.shape)}",
            fix="in_channels counts latents and image latent: 16 for text-to-video, "
            "32 with noised_image_input",
        )


def _check_batch(batch: int, timesteps: Tensor, conditioning: Conditioning) -> None:
    if tuple(timesteps.shape) != (batch,):
        raise ShapeError(
            f"{batch} samples need {batch} timesteps",
            where=f"timesteps of shape {tuple(timesteps.shape)}",
            fix="give one timestep per sample, shape (B,)",
        )
    if conditioning.text.shape[0] != batch:
        raise ShapeError(
            f"{batch} samples need {batch} text embeddings, got {conditioning.text.shape[0]}",
            where=f"conditioning.text of shape {tuple(conditioning.text.shape)}",
            fix="give one text embedding per sample",
        )
    ofs = conditioning.ofs
    if ofs is not None and tuple(ofs.shape) not in ((1,), (batch,)):
        raise ShapeError(
            f"ofs must have shape (1,) or ({batch},)",
            where=f"conditioning.ofs of shape {tuple(ofs.shape)}",
            fix="give one value for all samples, or one per sample",
        )
