"""From a batch to latents, conditioning and a loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from app.diffusion.loss import LossResult
from app.diffusion.timesteps import Strata
from app.distributed.seeding import KeyedDraws
from app.errors import ConfigError, DataError
from tests.unit.training.models import COLUMNS, ROWS, SCALE, batch_of, tiny_model

# 9 frames fit the tables of the 1.0 kinds; 1.5 has room for 13.
KINDS = [("2b", 9), ("5b", 9), ("5b_i2v", 9), ("1.5", 9), ("1.5_i2v", 9)]


def draws(*positions: int) -> KeyedDraws:
    return KeyedDraws(7, positions)


def loss_result(model: Any, batch: dict[str, Any]) -> LossResult:
    """What the loss answered inside a step."""
    seen: list[LossResult] = []
    loss = model.loss

    def called(*arguments: Any) -> LossResult:
        seen.append(loss(*arguments))
        return seen[-1]

    model.loss = called
    model.shared_step(batch)
    model.loss = loss
    return seen[0]


@pytest.mark.parametrize(("kind", "frames"), KINDS)
def test_every_kind_of_model_gives_a_loss_with_gradients(kind: str, frames: int) -> None:
    model = tiny_model(kind)

    loss, metrics = model.shared_step(batch_of(frames=frames))
    loss.backward()

    assert loss.ndim == 0
    assert bool(torch.isfinite(loss))
    assert metrics == {"loss": loss}
    network: Any = model.network
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["5b", "5b_i2v"])
def test_the_loss_of_a_sample_does_not_depend_on_its_micro_batch(kind: str) -> None:
    model = tiny_model(kind)

    together = loss_result(model, batch_of(count=3)).per_sample
    alone = [loss_result(model, batch_of(count=1, first=i)).per_sample for i in range(3)]

    torch.testing.assert_close(together, torch.cat(alone))


def test_bytes_become_minus_one_to_one() -> None:
    model = tiny_model()

    pixels = model.pixels(torch.tensor([0, 255, 127], dtype=torch.uint8))

    assert pixels.tolist() == pytest.approx([-1.0, 1.0, -0.5 / 127.5])


def test_floats_of_a_users_dataset_stay_as_they_are() -> None:
    assert tiny_model().pixels(torch.tensor([0.25])).tolist() == [0.25]


def test_latents_are_scaled_and_captions_may_be_dropped() -> None:
    model, batch = tiny_model(), batch_of(count=8)

    encoded = model.encode(batch, draws(*range(8)))

    posterior = model.vae.encode(model.pixels(batch["mp4"]))
    expected = posterior.draw(draws(*range(8)), "posterior") * SCALE
    torch.testing.assert_close(encoded.latents, expected)
    kept = encoded.conditioning.text.flatten(1).abs().amax(dim=1) > 0
    assert 0 < int(kept.sum()) < 8
    assert encoded.padding == 0


def test_validation_keeps_every_caption_and_image() -> None:
    model, batch = tiny_model("5b_i2v"), batch_of(count=8)

    encoded = model.encode(batch, draws(*range(8)), dropout=False)

    image = encoded.conditioning.image
    assert image is not None
    assert bool((encoded.conditioning.text.flatten(1).abs().amax(dim=1) > 0).all())
    assert bool((image[:, 0].flatten(1).abs().amax(dim=1) > 0).all())


def test_an_odd_number_of_latents_is_padded_in_front_for_patches_of_two() -> None:
    model = tiny_model("1.5")

    encoded = model.encode(batch_of(frames=9), draws(0, 1))

    assert encoded.latents.shape[1] == 4
    assert encoded.padding == 1
    assert torch.equal(encoded.latents[:, 0], encoded.latents[:, 1])
    assert not torch.equal(encoded.latents[:, 1], encoded.latents[:, 2])


def test_the_image_lies_on_the_first_latent_of_the_padded_clip() -> None:
    model = tiny_model("1.5_i2v")

    encoded = model.encode(batch_of(frames=9), draws(0, 1), dropout=False)

    image = encoded.conditioning.image
    assert image is not None
    assert image.shape == encoded.latents.shape
    assert float(image[:, 0].abs().min()) > 0
    assert float(image[:, 1:].abs().max()) == 0


@pytest.mark.parametrize(
    ("kind", "given", "scale"),
    [("5b_i2v", None, SCALE), ("1.5_i2v", None, 1.0), ("5b_i2v", 0.25, 0.25)],
)
def test_the_image_latent_has_the_scale_of_its_model(
    kind: str, given: float | None, scale: float
) -> None:
    model = tiny_model(kind, image_latent_scale=given)

    assert model.image_latent_scale == scale
    encoded = model.encode(batch_of(), draws(0, 1), dropout=False)
    noised: Tensor = model.vae.encoded[0]  # type: ignore[attr-defined]
    assert noised.shape == (2, 1, 3, ROWS, COLUMNS)
    posterior = model.vae.encode(noised)
    expected = posterior.draw(draws(0, 1), "image_posterior")[:, 0] * scale
    image = encoded.conditioning.image
    assert image is not None
    torch.testing.assert_close(image[:, 0], expected)


def test_images_are_dropped_one_by_one_or_all_at_once() -> None:
    def kept(at_once: bool) -> list[bool]:
        model = tiny_model("5b_i2v", at_once=at_once)
        image = model.encode(batch_of(count=8), draws(*range(8))).conditioning.image
        assert image is not None
        return [bool(x) for x in image[:, 0].flatten(1).abs().amax(dim=1) > 0]

    assert 0 < sum(kept(at_once=False)) < 8
    assert sum(kept(at_once=True)) in (0, 8)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 64), (0.1, 58), (0.9, 6), (1.0, 0)])
def test_noised_image_dropout_is_the_share_of_images_that_are_dropped(
    dropout: float, kept: int, at_once: bool
) -> None:
    model = tiny_model("5b_i2v", at_once=at_once, noised_image_dropout=dropout)
    batches = [batch_of(count=1, frames=1, first=position) for position in range(64)]

    images = [model.encode(b, draws(*b["positions"])).conditioning.image for b in batches]

    found = sum(bool(image.any()) for image in images if image is not None)
    assert found == pytest.approx(kept, abs=0 if dropout in (0.0, 1.0) else 8)  # 3 deviations


def test_only_models_that_embed_ofs_are_given_the_constant() -> None:
    with_ofs, without = tiny_model("1.5_i2v").ofs(), tiny_model("5b_i2v").ofs()

    assert without is None
    assert with_ofs is not None
    assert with_ofs.tolist() == [2.0]


def test_latents_of_the_dataset_are_scaled_and_not_encoded() -> None:
    model = tiny_model(latent_input=True)
    latents = torch.randn(2, 16, 3, 8, 12)  # (B, C, t, h, w)

    encoded = model.encode({**batch_of(), "mp4": latents}, draws(0, 1))

    assert torch.equal(encoded.latents, latents.transpose(1, 2) * SCALE)
    assert model.vae.encoded == []  # type: ignore[attr-defined]


def test_pixels_where_latents_are_expected_are_encoded_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model(latent_input=True)

    for _ in range(2):
        model.encode(batch_of(), draws(0, 1))

    assert len(model.vae.encoded) == 2  # type: ignore[attr-defined]
    assert [record.getMessage() for record in caplog.records] == [
        "latent_input is true but the dataset gives pixels: the VAE encodes them"
    ]


def test_image_to_video_from_latents_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_model("5b_i2v", latent_input=True)

    assert "latent_input" in caught.value.where


def test_a_batch_with_too_few_captions_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of 2 clips has 1 captions"):
        tiny_model().shared_step({**batch_of(), "txt": ["one"], "positions": [0]})


def test_timesteps_come_from_the_stratum_of_the_position() -> None:
    model = tiny_model(strata=lambda positions: Strata(tuple(p % 4 for p in positions), 4))

    result = loss_result(model, batch_of(count=4, first=8))

    assert [int(t) // 250 for t in result.timesteps] == [0, 1, 2, 3]


def test_a_bf16_model_draws_in_bf16_and_answers_in_fp32() -> None:
    model = tiny_model(dtype=torch.bfloat16)

    encoded = model.encode(batch_of(), draws(0, 1))
    loss, _ = model.shared_step(batch_of())

    assert encoded.latents.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_log_video_shows_inputs_reconstructions_and_samples() -> None:
    model = tiny_model("1.5_i2v")

    shown = model.log_video(batch_of(count=3), N=2)

    assert set(shown) == {"inputs", "reconstructions", "samples"}
    assert {tuple(video.shape) for video in shown.values()} == {(2, 9, 3, ROWS, COLUMNS)}


def test_log_video_may_leave_the_latents_undecoded() -> None:
    shown = tiny_model("1.5").log_video(batch_of(), only_log_video_latents=True)

    assert set(shown) == {"inputs", "latents"}
    assert shown["latents"].shape == (2, 16, 3, 8, 12)
