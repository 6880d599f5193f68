"""The first frame of image-to-video sampling, from a picture file to the latent on its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from app.diffusion.frames_padding import padding_count
from app.diffusion.image_conditioning import placed_image_latent
from app.distributed.seeding import Draws
from app.evaluation.condition_image import covered, resized, size_by_ratio
from app.evaluation.video_file import read_image
from app.run.sample.request import VideoSize
from app.storage.fetch import fetch
from app.storage.node_disk import node_folder
from app.training.step import DiffusionModel

PIXELS_PER_LATENT = 8


def count_images(urls: Iterable[str]) -> int:
    """Read every picture, so that a missing or damaged one is found before anything is computed.

    Raises:
        InputMissingError, DataError: one is not there, or is no picture.
    """
    return len([read_image(fetch(url, node_folder("images"))) for url in sorted(set(urls))])


@torch.no_grad()
def placed_image(
    model: DiffusionModel, url: str, size: VideoSize, draws: Draws
) -> tuple[Tensor, VideoSize]:
    """The picture as the network wants it, and the size of the video.

    1.5 keeps the picture's proportions: the short side is that of `size`, the long one follows.
    1.0 fills the asked size, its centre kept.

    Args:
        url: of a picture, local or s3://.
        draws: asked for image_posterior.

    Returns:
        (1, t + padding, C, h, w) scaled latent on the first latent frame, zeros after it.
    """
    network = model.config.network.params
    picture = read_image(fetch(url, node_folder("images")))
    if network.patch.frames > 1:
        multiple = PIXELS_PER_LATENT * network.patch.rows
        old = (picture.shape[1], picture.shape[2])
        rows, columns = size_by_ratio(old, size.short_side, multiple)
        size = replace(size, rows=rows, columns=columns)
        picture = resized(picture, (rows, columns))
    else:
        picture = covered(picture, (size.rows, size.columns))
    frame = model.pixels(model.on_device(picture))[None, None]
    latent = model.vae.encode(frame).draw(draws, "image_posterior") * model.image_latent_scale
    frames = size.latent_frames + padding_count(size.latent_frames, network.patch.frames)
    every = model.config.noised_image_all_concat
    return placed_image_latent(latent, frames, None, all_frames=every), size
