"""Whole engine steps against recordings: pixels to the loss, through the VAE, with gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from app.diffusion.loss import LossResult
from tests.parity.golden import Case, cases, name_of, u01
from tests.parity.recorded_engine import draws_of, model_config_of, model_of, parts_of
from tests.parity.recorded_network import gradients_of

ITEMS = ("07",)
# The other cases of this item are the loss alone; they have their runner.
STEP_CASES = [case for case in cases(*ITEMS) if case.has("draw/randint0")]


def pixels_of(case: Case) -> Tensor:
    """The rule is told in words: "... T=9 H=64 W=96"."""
    text = case.json["pixels"]
    frames, rows, columns = (int(re.search(rf"{axis}=(\d+)", text)[1]) for axis in "THW")  # type: ignore[index]
    shape = (frames, 3, rows, columns)
    samples = [
        2 * u01(f"pixel/{i}", frames * 3 * rows * columns) - 1 for i in range(len(case.json["txt"]))
    ]
    return torch.stack([torch.from_numpy(s).float().reshape(shape) for s in samples])


@pytest.mark.parametrize("case", STEP_CASES, ids=name_of)
def test_a_step_from_pixels_to_the_loss_is_the_recorded_one(case: Case) -> None:
    with case:
        config, parts = model_config_of(case), parts_of(case)
        draws = draws_of(case, case.json["draw_order"], case.tensors("draw/"), config)
        model = model_of(parts, config, lambda positions: draws)
        seen = recording(model)

        loss, metrics = model.shared_step({"mp4": pixels_of(case), "txt": case.json["txt"]})
        loss.backward()

        result: LossResult = seen["result"]
        case.assert_close(seen["latents"], case.tensor("latents"), "latents")
        if config.noised_image_input:
            image = seen["conditioning"].image
            case.assert_close(image, case.tensor("concat_images"), "latents", "concat_images")
        case.assert_close(result.denoised, case.tensor("denoised"), "latents", "denoised")
        expected = case.tensor("loss_weight")
        torch.testing.assert_close(result.weight.cpu(), expected.flatten(), rtol=1e-4, atol=0)
        case.assert_close(result.per_sample, case.tensor("loss_per_sample"), "loss")
        case.assert_close(loss.reshape(1), case.tensor("loss"), "loss")
        assert metrics["loss"] is loss
        gradients = gradients_of(parts.network)
        for key, value in case.tensors("grad/").items():
            torch.testing.assert_close(
                gradients[key].cpu(), value, rtol=0, atol=1e-4 * float(value.abs().max()) + 1e-8
            )
        assert sorted(draws.asked) == sorted(draws.recorded)


def recording(model: Any) -> dict[str, Any]:
    """What the model's loss is given and what it answers, once it is called."""
    seen: dict[str, Any] = {}
    loss = model.loss

    def called(
        network: Any, latents: Tensor, conditioning: Any, draws: Any, strata: Any
    ) -> LossResult:
        seen.update(latents=latents, conditioning=conditioning)
        seen["result"] = loss(network, latents, conditioning, draws, strata)
        return seen["result"]

    model.loss = called
    return seen
