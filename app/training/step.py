"""From a batch to a loss: what upstream's YAML calls SATVideoDiffusionEngine.

Axes: B batch, T pixel frames, t latent frames, C channels, H and W pixels, h and w latents.
All random numbers come from the micro-batch's `Draws`, in upstream's order: image noise,
posterior of the image, posterior of the clip, image dropout, caption dropout, timestep, noise.
Source: sat/diffusion_video.py, shared_step, encode_first_stage, log_video.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, ModelConfig
from app.data.batch import FIRST_FRAME, LOGVAR, MEAN, TEXT
from app.diffusion.denoiser import Network
from app.diffusion.frames_padding import drop_padding, pad_latent_frames, padding_count
from app.diffusion.image_conditioning import noised_image, placed_image_latent
from app.diffusion.loss import VideoDiffusionLoss
from app.diffusion.samplers.loop import Sampler
from app.diffusion.timesteps import RankStratum, Strata
from app.distributed.seeding import Draws
from app.errors import ConfigError, DataError
from app.models.conditioning import Conditioning
from app.models.text.conditioner import Conditioner
from app.models.vae.gaussian import Gaussian
from app.telemetry.timing import PartTimes

log = logging.getLogger(__name__)

HALF_RANGE = 127.5  # uint8 pixels p become (p - 127.5) / 127.5
MAX_LOGGED = 8  # samples that log_video looks at


class FirstStage(Protocol):
    """The frozen autoencoder: VideoAutoencoder, or a class that a user registers."""

    def encode(self, video: Tensor, samples_at_a_time: int | None = None) -> Any:
        """(B, T, 3, H, W) -> posterior with `draw(draws, purpose) -> (B, t, C, h, w)`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, t, C, h, w), not scaled -> (B, T, 3, H, W)."""
        ...


class TrainingModules(Protocol):
    """What a DiffusionModel consists of; only the network trains."""

    @property
    def network(self) -> Network: ...
    @property
    def vae(self) -> Any: ...
    @property
    def conditioner(self) -> Conditioner: ...
    @property
    def loss(self) -> VideoDiffusionLoss: ...
    @property
    def sampler(self) -> Sampler: ...


@dataclass(frozen=True, slots=True)
class Randomness:
    """Where the random numbers of a micro-batch come from.

    Attributes:
        draws: positions of the samples in the run's global order -> their random numbers.
        strata: positions -> ranges of their timesteps; None draws from all.
        shared_image_dropout: one decision for the micro-batch (upstream) instead of one each.
    """

    draws: Callable[[Sequence[int]], Draws]
    strata: Callable[[Sequence[int]], Strata | RankStratum | None] = lambda positions: None
    shared_image_dropout: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the loss needs.

    Attributes:
        latents: (B, t, C, h, w), scaled, with `padding` copies of the first frame in front.
        conditioning: captions and, for image-to-video, image latents of the same t.
    """

    latents: Tensor
    conditioning: Conditioning
    padding: int


class DiffusionModel:
    """Network, VAE, text encoder and loss as one thing that takes batches.

    `network` may be replaced by what the training engine wraps around it.
    """

    def __init__(
        self,
        modules: TrainingModules,
        config: ModelConfig,
        randomness: Randomness,
        *,
        device: torch.device,
        dtype: torch.dtype,
        times: PartTimes | None = None,
    ) -> None:
        self.network: Network = modules.network
        self.vae: FirstStage = modules.vae
        self.conditioner = modules.conditioner
        self.loss = modules.loss
        self.sampler = modules.sampler
        self.config = config
        self.randomness = randomness
        self.device = device
        self.dtype = dtype
        self.times = times
        self.videos_to: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None] | None = None
        self._warned = False
        if config.noised_image_input and config.latent_input:
            raise ConfigError(
                "image-to-video training needs pixels: the noise of the first frame is drawn again "
                "in every step",
                where="model.latent_input and model.noised_image_input",
                fix="set latent_input: false",
            )

    # training

    def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one micro-batch, and the same under its name.

        Args:
            batch: `mp4` (B, T, 3, H, W) uint8, or floats in [-1, 1], or with `latent_input`
                unscaled latents (B, C, t, h, w); `txt` B captions; `positions` of the samples.
                Encoded clips have `latent_mean` and `latent_logvar` (B, t, C, h, w) and
                `text_embedding` (B, n, D) instead of pixels, and for image-to-video
                `first_frame` (B, 1, 3, H, W).
        """
        positions = self.positions(batch)
        draws = self.randomness.draws(positions)
        with self._part("encode"):
            encoded = self.encode(batch, draws)
        with self._part("forward"):
            strata = self.randomness.strata(positions)
            result = self.loss(self.network, encoded.latents, encoded.conditioning, draws, strata)
            loss = result.per_sample.mean()
        return loss, {"loss": loss}

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any], draws: Draws, *, dropout: bool = True) -> Encoded:
        """Encode clips and captions with the frozen modules.

        Args:
            dropout: False keeps every caption and image (validation).
        """
        image = None
        if MEAN in batch:
            if self.config.noised_image_input:
                image = self._image_latent(self.pixels(self.on_device(batch[FIRST_FRAME])), draws)
            latents = self._cached_latents(batch, draws)
        else:
            video = self.on_device(batch[self.config.input_key])
            is_latent = self._holds_latents(video)
            if not is_latent:
                video = self.pixels(video)
            if self.config.noised_image_input:  # pixels: the constructor excludes latents
                image = self._image_latent(video[:, :1], draws)
            latents = self._latents(video, is_latent, draws)
        frames, multiple = latents.shape[1], self._network_config.patch.frames
        latents = pad_latent_frames(latents, multiple)
        if image is not None:
            image = self._placed(image, latents.shape[1], draws, dropout=dropout)
        text = self._text(batch, draws if dropout else None)
        conditioning = Conditioning(text=text, image=image, ofs=self.ofs())
        return Encoded(latents, conditioning, padding_count(frames, multiple))

    def positions(self, batch: Mapping[str, Any]) -> list[int]:
        """Positions of the samples in the run's global order, which the loader gives."""
        count = len(batch["txt"])
        clips = len(batch[MEAN if MEAN in batch else self.config.input_key])
        positions = [int(position) for position in batch.get("positions", range(count))]
        if len(positions) != count or clips != count:
            raise DataError(
                f"a batch of {clips} clips has {count} captions and {len(positions)} positions",
                where="the batch of the data loader",
                fix="provide one caption (txt) per clip",
            )
        return positions

    def ofs(self) -> Tensor | None:
        """(1,) the constant for networks that embed it (1.5 image-to-video), else None."""
        if self._network_config.ofs_embed_dim is None:
            return None
        return torch.full((1,), self.config.ofs, device=self.device)

    def pixels(self, video: Tensor) -> Tensor:
        """Pixels in [-1, 1] in the dtype of training, on the device."""
        if video.dtype == torch.uint8:
            # In fp32: bf16 has too few digits for the difference.
            video = (video.float() - HALF_RANGE) / HALF_RANGE
        return video.to(self.dtype)

    def on_device(self, value: Tensor) -> Tensor:
        return value.to(self.device, non_blocking=True)

    def _holds_latents(self, video: Tensor) -> bool:
        if not self.config.latent_input:
            return False
        # Latents come as (B, C, t, h, w), pixels as (B, T, 3, H, W).
        channels = self._network_config.out_channels
        if video.dtype != torch.uint8 and video.shape[1] == channels:
            return True
        if not self._warned:
            self._warned = True
            log.warning(
                "latent_input is true but the dataset gives pixels: the VAE encodes them",
                extra={"shape": list(video.shape), "latent_channels": channels},
            )
        return False

    def _latents(self, video: Tensor, is_latent: bool, draws: Draws) -> Tensor:
        if is_latent:
            return video.to(self.dtype).transpose(1, 2) * self.config.scale_factor
        posterior = self.vae.encode(video, self.config.encode_batch)
        latents: Tensor = posterior.draw(draws, "posterior")
        return latents * self.config.scale_factor

    def _cached_latents(self, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """Latents drawn from moments that were encoded before, as the VAE's own would be."""
        params = self.config.first_stage.params
        posterior = Gaussian(
            self.on_device(batch[MEAN]).to(self.dtype),
            self.on_device(batch[LOGVAR]).to(self.dtype),
            is_sampled=getattr(params, "sample_posterior", True),
        )
        return posterior.draw(draws, "posterior") * self.config.scale_factor

    def _text(self, batch: Mapping[str, Any], draws: Draws | None) -> Tensor:
        """(B, n, D) of the captions, some of them dropped; None as draws drops none."""
        if TEXT in batch:
            return self.conditioner.drop(self.on_device(batch[TEXT]), draws)
        return self.conditioner.embed(batch["txt"], draws)

    def _image_latent(self, first_frame: Tensor, draws: Draws) -> Tensor:
        """(B, 1, C, h, w) of the first frame (B, 1, 3, H, W) with noise on it."""
        posterior = self.vae.encode(noised_image(first_frame, draws), self.config.encode_batch)
        latent: Tensor = posterior.draw(draws, "image_posterior")
        return latent * self.image_latent_scale

    @property
    def image_latent_scale(self) -> float:
        """Factor of the image latent: 1 for 1.5 image-to-video, whose weights were made so."""
        if self.config.image_latent_scale is not None:
            return self.config.image_latent_scale
        has_ofs = self._network_config.ofs_embed_dim is not None
        return 1.0 if has_ofs else self.config.scale_factor

    def _placed(self, latent: Tensor, frames: int, draws: Draws, *, dropout: bool) -> Tensor:
        keep = None
        if dropout:
            drawn = draws.keep_all if self.randomness.shared_image_dropout else draws.keep
            keep = drawn("image_dropout", len(latent), 1 - self.config.noised_image_dropout)
        every = self.config.noised_image_all_concat
        return placed_image_latent(latent, frames, keep, all_frames=every)

    @property
    def _network_config(self) -> DiTConfig:
        return self.config.network.params

    def _part(self, name: str) -> Any:
        return self.times.part(name) if self.times is not None else nullcontext()

    def offload(self) -> None:
        """Free the frozen modules that are loaded on demand; others stay."""
        for module in (self.vae, getattr(self.conditioner, "encoder", None)):
            offload = getattr(module, "offload", None)
            if callable(offload):
                offload()

    # samples to look at

    @torch.no_grad()
    def log_video(
        self,
        batch: Mapping[str, Any],
        N: int = MAX_LOGGED,
        ucg_keys: Sequence[str] | None = None,
        only_log_video_latents: bool = False,
    ) -> dict[str, Tensor]:
        """Videos of a batch to look at: `inputs`, `reconstructions` and `samples`.

        Args:
            batch: as for `shared_step`.
            N: the largest number of samples.
            ucg_keys: upstream's; every conditioning is zero in the unconditional half.
            only_log_video_latents: `latents` (B, C, t, h, w) instead of the decoded two.

        Returns:
            Pixels (B, T, 3, H, W), about -1 to 1.
        """
        few = {name: value[:N] for name, value in batch.items() if hasattr(value, "__getitem__")}
        draws = self.randomness.draws(self.positions(few))
        encoded = self.encode(few, draws, dropout=False)
        videos: dict[str, Tensor] = {}
        padding = encoded.padding
        if MEAN not in few:  # encoded clips have no pixels
            video = self.on_device(few[self.config.input_key])
            if not self._holds_latents(video):
                videos["inputs"] = self.pixels(video)
        if not only_log_video_latents:
            videos["reconstructions"] = self.decode(drop_padding(encoded.latents, padding))
        noise = draws.normal_like("initial_noise", encoded.latents.float())
        both = encoded.conditioning.for_guidance()
        sampled = self.sampler.sample(self.network, noise, both, draws)
        sampled = drop_padding(sampled.to(self.dtype), padding)
        if only_log_video_latents:
            videos["latents"] = sampled.transpose(1, 2) / self.config.scale_factor
        else:
            videos["samples"] = self.decode(sampled)
        return videos

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, t, C, h, w) scaled latents -> (B, T, 3, H, W), one sample at a time."""
        plain = latents / self.config.scale_factor
        return torch.cat([self.vae.decode(plain[i : i + 1]) for i in range(len(plain))])
