"""Frozen parts that come when asked for and leave again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from app.models.text.conditioner import Conditioner
from app.run.visiting import VisitingTextEncoder, VisitingVae
from app.training.step import DiffusionModel


class Loaded:
    """Counts how often it was built."""

    built = 0

    def __init__(self) -> None:
        type(self).built += 1

    def encode(self, given: Any, samples_at_a_time: int | None = None) -> Tensor:
        return torch.full((len(given), 2, 3), 1.0)

    def decode(self, latents: Tensor) -> Tensor:
        return latents + 1


def fresh() -> type[Loaded]:
    class One(Loaded):
        built = 0

    return One


def test_a_part_is_built_at_its_first_use_and_again_after_it_left() -> None:
    kind = fresh()
    vae = VisitingVae("VAE", kind)

    assert (kind.built, vae.is_here) == (0, False)
    assert torch.equal(vae.decode(torch.zeros(2)), torch.ones(2))
    vae.encode(torch.zeros(1, 9, 3, 8, 8))
    assert (kind.built, vae.is_here) == (1, True)
    vae.leave()
    vae.leave()
    assert not vae.is_here
    vae.decode(torch.zeros(2))
    assert kind.built == 2


def test_dropping_captions_does_not_call_the_encoder_back() -> None:
    kind = fresh()
    conditioner = Conditioner(VisitingTextEncoder("text encoder", kind), ucg_rate=0.5)
    text = torch.ones(1, 2, 3)

    conditioner.drop(text, None)
    conditioner.unconditional_like(text)
    assert kind.built == 0
    assert conditioner.embed(["a cat"], None).shape == (1, 2, 3)
    assert kind.built == 1


def test_the_model_sends_visitors_away_and_keeps_others() -> None:
    model = object.__new__(DiffusionModel)
    kind, resident = fresh(), Resident()
    visitor = VisitingTextEncoder("text encoder", kind)
    visitor.encode(["a"])
    model.vae = resident  # type: ignore[assignment]
    model.conditioner = Conditioner(visitor, 0.0)

    model.send_visitors_away()

    assert not visitor.is_here
    assert model.vae is resident


class Resident:
    """A part without `leave`."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        return torch.zeros(len(captions))
