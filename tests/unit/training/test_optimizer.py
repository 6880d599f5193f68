"""Parameter groups and the optimizer over them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.config.schema.training import OptimizerConfig
from app.errors import ConfigError
from app.training.optimizer import make_optimizer, parameter_groups


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.layer = nn.LayerNorm(3)
        self.rms = nn.RMSNorm(3)
        self.group = nn.GroupNorm(1, 3)
        self.table = nn.Parameter(torch.zeros(2, 3))
        self.spared = nn.Parameter(torch.zeros(2, 3))
        self.spared.no_weight_decay = True  # type: ignore[attr-defined]
        self.still = nn.Parameter(torch.zeros(2), requires_grad=False)


def test_norms_biases_and_marked_parameters_do_not_decay() -> None:
    decay, spared = parameter_groups(Mixed())

    assert decay.names == ("table", "linear.weight", "group.weight")
    assert spared.names == (
        "spared",
        "linear.bias",
        "layer.weight",
        "layer.bias",
        "rms.weight",
        "group.bias",
    )


def test_a_shared_parameter_is_in_one_group_once() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight

    (decay,) = parameter_groups(network)

    assert decay.names == ("0.weight",)


def test_an_empty_group_is_left_out() -> None:
    assert [group.kind for group in parameter_groups(nn.LayerNorm(2))] == ["no_decay"]


def test_nothing_trainable_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ConfigError) as caught:
        parameter_groups(nn.Linear(2, 2).requires_grad_(False))

    assert caught.value.where == "model.not_trainable_prefixes"


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("adamw", torch.optim.AdamW),
        ("ema_adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
    ],
)
def test_the_optimizer_of_each_kind_has_the_configured_numbers(
    kind: str, made: type[torch.optim.Optimizer]
) -> None:
    config = OptimizerConfig(kind=kind, lr=0.5, betas=(0.1, 0.2), eps=1e-3, weight_decay=0.3)

    optimizer = make_optimizer(parameter_groups(Mixed()), config, fused=False)

    assert type(optimizer) is made
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    first = optimizer.param_groups[0]
    assert (first["lr"], first["betas"], first["eps"]) == (0.5, (0.1, 0.2), 1e-3)


def test_an_unknown_optimizer_is_an_error() -> None:
    config = OptimizerConfig(kind="lion", lr=1.0)

    with pytest.raises(ConfigError, match="'lion' is not available"):
        make_optimizer(parameter_groups(Mixed()), config, fused=False)
