"""The whole engine of a recorded run: parts with the recorded weights, and its random draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.config.schema.model import ModelConfig
from app.config.sections.parse import parse_model
from app.config.target import RegistryRow
from app.diffusion.denoiser import Denoiser
from app.diffusion.loss import VideoDiffusionLoss
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.conditioner import Conditioner
from app.models.vae.autoencoder import VideoAutoencoder
from app.registry import TARGETS
from app.telemetry.timing import PartTimes
from app.training.step import DiffusionModel, Randomness
from tests.parity.golden import RUNNING, Case, placed, text_embedding, weight
from tests.parity.recorded_draws import RecordedDraws
from tests.parity.recorded_network import network_of

STUBS = {
    "gstub.StubTextEmbedder": RegistryRow(dict, "tests.parity.recorded_engine:StubEncoder"),
    "gstub.StubFirstStage": RegistryRow(dict, "tests.parity.recorded_engine:StubFirstStage"),
}
IMAGE_NOISE = (-3.0, 0.5)  # mean and spread of the log; files hold the log itself


class StubEncoder:
    """The recording's text encoder: an embedding by formula."""

    def __init__(self, length: int, dim: int) -> None:
        self.length, self.dim = length, dim

    def encode(self, captions: Sequence[str]) -> Tensor:
        return placed(torch.stack([text_embedding(t, self.length, self.dim) for t in captions]))


class StubFirstStage:
    """The recording's VAE: every 4th frame and 8th pixel, one factor per channel, no noise."""

    def __init__(self, zc: int) -> None:
        self.channels = zc

    def encode(self, video: Tensor, samples_at_a_time: int | None = None) -> StubFirstStage:
        picked = video[:, ::4, :, ::8, ::8]
        channels = [picked[:, :, c % 3] * (1 + 0.1 * c) for c in range(self.channels)]
        self.latents = torch.stack(channels, dim=2)
        return self

    def draw(self, draws: object, purpose: str) -> Tensor:
        return self.latents

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class RecordedParts:
    """What DiffusionModel is made from."""

    network: DiffusionTransformer
    vae: Any
    conditioner: Conditioner
    loss: VideoDiffusionLoss
    sampler: Any = None


def model_config_of(case: Case) -> ModelConfig:
    node = case.json.get("model_config") or case.json["spec"]["model_config"]
    return parse_model(node, case.path.name, {**TARGETS, **STUBS})


def parts_of(case: Case) -> RecordedParts:
    """Parts with the weights that the case names."""
    node = case.json.get("model_config") or case.json["spec"]["model_config"]
    case.json.setdefault("model_config", node)
    config = model_config_of(case)
    embedder = node["conditioner_config"]["params"]["emb_models"][0]
    encoder = StubEncoder(**embedder["params"])
    return RecordedParts(
        network=network_of(case),
        vae=vae_of(case, config),
        conditioner=Conditioner(encoder, config.conditioner.ucg_rate),
        loss=VideoDiffusionLoss(config.loss, Denoiser(config.denoiser)),
    )


def vae_of(case: Case, config: ModelConfig) -> Any:
    part = config.first_stage
    if part.target in STUBS:
        return StubFirstStage(**part.params)  # type: ignore[arg-type]
    vae = VideoAutoencoder(part.params)
    salt, gain = case.json["vae_weights_salt"], float(case.json["vae_gain"])
    state = {
        key: weight(salt, key, tuple(value.shape), gain) for key, value in vae.state_dict().items()
    }
    vae.load_state_dict(state)
    return placed(vae.eval().requires_grad_(False))


def model_of(
    parts: RecordedParts,
    config: ModelConfig,
    draws: Callable[[Sequence[int]], RecordedDraws],
    dtype: torch.dtype = torch.float32,
) -> DiffusionModel:
    """The engine under `compat: sat`."""
    return DiffusionModel(
        parts,
        config,
        Randomness(draws=draws, shared_image_dropout=True),
        device=RUNNING.device,
        dtype=dtype,
        times=PartTimes(),
    )


def draws_of(
    case: Case, order: Sequence[str], tensors: Mapping[str, Tensor], config: ModelConfig
) -> RecordedDraws:
    """Recorded draws by our purposes, after checking that upstream drew the same kinds in order.

    Args:
        order: `draw_order` of the case.
        tensors: `<kind><n>` -> tensor.
    """
    count = len(tensors["randint0"])
    wanted = purposes_of(config, count)
    kinds = [entry.split(":")[1] for entry in order]
    assert kinds == [kind for _, kind in wanted], f"{case.path.stem}: {kinds}"
    met: dict[str, int] = {}
    found: dict[str, list[Tensor]] = {}
    for purpose, kind in wanted:
        number = met.get(kind, 0)
        met[kind] = number + 1
        found.setdefault(purpose, []).append(tensors[f"{kind}{number}"])
    recorded = {
        purpose: values[0] if len(values) == 1 else torch.cat(values)
        for purpose, values in found.items()
    }
    if "image_noise_level" in recorded:
        mean, spread = IMAGE_NOISE
        recorded["image_noise_level"] = (recorded["image_noise_level"] - mean) / spread
    return RecordedDraws(recorded)


def purposes_of(config: ModelConfig, count: int) -> list[tuple[str, str]]:
    """(purpose, upstream's kind of draw) of one micro-batch, in upstream's order."""
    has_posterior = config.first_stage.target not in STUBS
    slices = math.ceil(count / (config.encode_batch or count))
    wanted: list[tuple[str, str]] = []
    if config.noised_image_input:
        wanted += [("image_noise_level", "normal"), ("image_noise", "randn_like")]
        wanted += [("image_posterior", "randn_like")] * (slices * has_posterior)
    if has_posterior and not config.latent_input:
        wanted += [("posterior", "randn_like")] * slices
    if config.noised_image_input:
        wanted.append(("image_dropout", "py_random"))
    if config.conditioner.ucg_rate > 0:
        wanted.append(("caption_dropout", "bernoulli"))
    wanted += [("timestep", "randint"), ("noise", "randn_like")]
    if config.loss.offset_noise_level > 0:
        wanted.append(("offset_noise", "randn"))
    return wanted
