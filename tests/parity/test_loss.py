"""The loss against recorded runs, and against numbers that need no recording."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import DenoiserConfig, LossConfig
from app.config.sections.diffusion import read_loss
from app.config.sections.parse import parse_denoiser, parse_section
from app.diffusion.denoiser import Denoiser
from app.diffusion.loss import VideoDiffusionLoss
from app.distributed.seeding import GlobalDraws
from app.models.conditioning import Conditioning
from app.models.text.conditioner import Conditioner
from app.registry import TARGETS
from tests.parity.golden import RUNNING, Case, cases, name_of, placed, text_embedding
from tests.parity.recorded_draws import RecordedDraws
from tests.parity.recorded_network import gradients_of, network_of

ITEMS = ("07",)
# Cases with their noise under draw/noise are the loss alone; the others are whole engine steps.
LOSS_CASES = [case for case in cases(*ITEMS) if case.has("draw/noise")]

DRAWS = {  # purpose: (tensor of the file, kind in its draw_order)
    "caption_dropout": ("draw/ucg_bernoulli", "bernoulli"),
    "timestep": ("idx", "randint"),
    "noise": ("draw/noise", "randn_like"),
    "offset_noise": ("draw/offset", "randn"),
}


class StubEncoder:
    """The recording's text encoder: an embedding by formula."""

    def __init__(self, length: int, dim: int) -> None:
        self.length, self.dim = length, dim

    def encode(self, captions: list[str]) -> Tensor:
        return placed(torch.stack([text_embedding(t, self.length, self.dim) for t in captions]))


def embedded_text(case: Case, draws: RecordedDraws) -> Tensor:
    embedder = case.json["model_config"]["conditioner_config"]["params"]["emb_models"][0]
    encoder = StubEncoder(**embedder["params"])
    conditioner = Conditioner(encoder, embedder["ucg_rate"])  # type: ignore[arg-type]
    return conditioner.embed(case.json["txt"], draws)


def recorded_draws(case: Case) -> RecordedDraws:
    return RecordedDraws(
        {purpose: case.tensor(name) for purpose, (name, _) in DRAWS.items() if case.has(name)}
    )


def loss_of(case: Case) -> VideoDiffusionLoss:
    model = case.json["model_config"]
    denoiser = Denoiser(parse_denoiser(model["denoiser_config"], case.path.name, TARGETS))
    return VideoDiffusionLoss(
        parse_section(read_loss, model["loss_fn_config"], case.path.name, TARGETS), denoiser
    )


@pytest.mark.parametrize("case", LOSS_CASES, ids=name_of)
def test_loss_and_gradients_are_the_recorded_ones(case: Case) -> None:
    with case:
        network, loss, draws = network_of(case), loss_of(case), recorded_draws(case)
        outputs: list[Tensor] = []

        def recording(x: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
            outputs.append(network(x, timesteps, conditioning))
            return outputs[-1]

        conditioning = Conditioning(
            text=embedded_text(case, draws),
            image=placed(case.tensor("concat_images")) if case.has("concat_images") else None,
            ofs=placed(torch.tensor([2.0])) if network.config.ofs_embed_dim else None,
        )
        result = loss(recording, placed(case.tensor("latents")), conditioning, draws)
        result.per_sample.mean().backward()

        assert len(outputs) == 1
        check_draws(case, draws)
        case.assert_close(conditioning.text, case.tensor("crossattn"), "text")
        alphas = loss.alpha_bar_sqrt.cpu()[result.timesteps.cpu()]
        torch.testing.assert_close(alphas, case.tensor("alphas_cumprod_sqrt"), rtol=0, atol=2e-7)
        case.assert_close(result.noisy, case.tensor("noised_input"), "denoised", "noised_input")
        case.assert_close(outputs[0], case.tensor("network_output"), "denoised", "network_output")
        case.assert_close(result.denoised, case.tensor("denoised"), "denoised")
        expected = case.tensor("loss_per_sample")
        for actual, one in zip(result.per_sample, expected, strict=True):
            case.assert_close(actual, one, "loss", "loss_per_sample")
        case.assert_close(result.per_sample.mean().reshape(1), case.tensor("loss"), "loss")
        check_gradients(case, gradients_of(network))


def check_draws(case: Case, draws: RecordedDraws) -> None:
    """Everything recorded was asked for, in the recorded order and shapes."""
    asked = [f"{DRAWS[p][1]}:{tuple(draws.recorded[p].shape)}" for p in draws.asked]
    assert asked == [entry.split(":", 1)[1] for entry in case.json["draw_order"]]


def check_gradients(case: Case, gradients: dict[str, Tensor]) -> None:
    for key, expected in case.tensors("grad/").items():
        if case.noise_only(key):
            assert gradients[key].abs().max() < 1e-7 * RUNNING.slack
        else:
            case.assert_close(gradients[key], expected, "grad", key)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    assert norm == pytest.approx(case.json["grad_norm_all"], rel=1e-4)


# Numbers of the original for a network without weights, v = 0.3 * x_t.
PLAIN = {
    torch.float32: [1.244157, 0.760141, 1.102378],
    torch.bfloat16: [1.243208, 0.759958, 1.102113],
}


@pytest.mark.parametrize("dtype", PLAIN)
def test_loss_of_a_network_without_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    latents = torch.randn(3, 2, 4, 4, 4).to(dtype)
    loss = VideoDiffusionLoss(LossConfig(), Denoiser(DenoiserConfig()))

    torch.manual_seed(5)
    result = loss(lambda x, t, c: 0.3 * x, latents, None, GlobalDraws())

    assert result.timesteps.tolist() == [411, 814, 767]
    assert result.per_sample.tolist() == pytest.approx(PLAIN[dtype], abs=2e-6)
