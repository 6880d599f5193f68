"""The step functions with upstream's contract."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from app.telemetry.timing import PartTimes
from app.training.forward import broad_cast_batch, flat_views, forward_step, forward_step_eval
from tests.unit.training.models import batch_of, tiny_model


def test_a_step_takes_the_next_batch_and_gives_loss_and_metrics() -> None:
    model, times = tiny_model(), PartTimes()
    expected, _ = model.shared_step(batch_of())

    loss, metrics = forward_step(iter([batch_of()]), model, Namespace(iteration=3), times)

    assert torch.equal(loss, expected)
    assert metrics == {"loss": loss}
    assert loss.requires_grad
    assert set(times.take()) == {"data loader"}


def test_the_batch_knows_the_step() -> None:
    seen: list[Mapping[str, Any]] = []

    class Model:
        def shared_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            seen.append(batch)
            return torch.zeros(()), {}

    model: Any = Model()
    forward_step(iter([{"mp4": 1}]), model, Namespace(iteration=3), PartTimes())

    assert seen == [{"mp4": 1, "global_step": 3}]


def test_a_batch_is_already_where_it_must_be() -> None:
    batch = batch_of()

    assert broad_cast_batch(batch) is batch


def test_validation_has_no_gradients_and_hands_over_videos() -> None:
    model, given = tiny_model(), []
    model.videos_to = lambda videos, batch: given.append((set(videos), len(batch["txt"])))

    loss, metrics = forward_step_eval(
        iter([batch_of()]), model, Namespace(iteration=0, log_image=True), PartTimes()
    )

    assert not loss.requires_grad
    assert metrics["loss"].dtype == torch.float32
    assert given == [({"inputs", "reconstructions", "samples"}, 2)]


@pytest.mark.parametrize("log_image", [False])
def test_videos_can_be_switched_off(log_image: bool) -> None:
    model, given = tiny_model(), []
    model.videos_to = lambda videos, batch: given.append(videos)

    forward_step_eval(iter([batch_of()]), model, Namespace(log_image=log_image), PartTimes())

    assert given == []


def test_latents_instead_of_videos_are_an_argument() -> None:
    model, given = tiny_model(), []
    model.videos_to = lambda videos, batch: given.append(set(videos))

    forward_step_eval(
        iter([batch_of()]), model, Namespace(), PartTimes(), only_log_video_latents=True
    )

    assert given == [{"inputs", "latents"}]


def test_views_become_samples_with_their_captions() -> None:
    clips = torch.arange(2 * 3).reshape(2, 3, 1, 1, 1, 1)
    batch = {
        "mp4": clips,
        "txt": [["a0", "a1"], ["b0", "b1"], ["c0", "c1"]],  # [view][sample]
        "positions": [4, 5],
    }

    flat = flat_views(batch)

    assert flat["mp4"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert flat["txt"] == ["a0", "b0", "c0", "a1", "b1", "c1"]
    assert flat["positions"] == [12, 13, 14, 15, 16, 17]
