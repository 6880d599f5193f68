from __future__ import annotations

from collections.abc import Sequence

import pytest

from app.config.schema.model import LoraConfig
from app.conversion.sat import sat_names
from app.errors import ConfigError
from app.models.dit.transformer import DiffusionTransformer
from app.models.trainable import TrainableReport, TrainableRules, select_trainable
from tests.support.networks import tiny

LAYERS = "model.diffusion_model.transformer.layers."


def choose(
    network: DiffusionTransformer, prefixes: Sequence[str] = (), *, lora_train: bool = False
) -> TrainableReport:
    rules = TrainableRules(prefixes, lora_train)
    return select_trainable(network.named_parameters(), rules, sat_names)


def network_of(kind: str = "5b", *, lora: bool = False) -> DiffusionTransformer:
    config = tiny(kind, lora=LoraConfig(rank=2) if lora else None)
    return DiffusionTransformer(config, device="meta")


def names_that_train(network: DiffusionTransformer) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def test_stock_prefixes_leave_everything_trainable() -> None:
    network = network_of()

    report = choose(network, ("first_stage_model", "conditioner"))

    assert report.frozen == ()
    assert report.trainable_count == sum(p.numel() for p in network.parameters())
    assert report.unused_prefixes == ()


def test_all_freezes_everything_but_the_pairs() -> None:
    network = network_of(lora=True)

    report = choose(network, ("all",))

    assert all(".lora_" in name for name in report.trainable)
    assert list(report.trainable) == names_that_train(network)
    assert report.trainable_count == 2 * 4 * (2 * 32 + 32 * 2)
    assert not any(".lora_" in name for name in report.frozen)


def test_lora_train_trains_exactly_the_pairs() -> None:
    one, other = network_of(lora=True), network_of(lora=True)

    assert choose(one, lora_train=True) == choose(other, ("all",))
    assert names_that_train(one) == names_that_train(other)


def test_prefix_speaks_upstreams_names() -> None:
    network = network_of()

    report = choose(network, (f"{LAYERS}0.attention",))

    expected = [
        name
        for name, _ in network.named_parameters()
        if name.startswith("blocks.0.attention.") and "norm_" not in name
    ]
    assert list(report.frozen) == expected


def test_prefix_of_a_wrapped_weight_matches_with_and_without_original() -> None:
    for spelling in ("query_key_value.original", "query_key_value.w"):
        network = network_of(lora=True)

        report = choose(network, (f"{LAYERS}1.attention.{spelling}",))

        assert "blocks.1.attention.k.weight" in report.frozen
        assert "blocks.1.attention.k.lora_a" in report.trainable


def test_pairs_train_even_under_a_matching_prefix() -> None:
    report = choose(network_of(lora=True), ("model.diffusion_model",))

    assert all(".lora_" in name for name in report.trainable)


@pytest.mark.parametrize(("kind", "frozen"), [("2b", ("position.table",)), ("5b_i2v", ())])
def test_fixed_table_stays_frozen_and_a_learned_one_trains(
    kind: str, frozen: tuple[str, ...]
) -> None:
    report = choose(network_of(kind))

    assert report.frozen == frozen


def test_learned_table_is_frozen_in_a_lora_run() -> None:
    assert "position.table" in choose(network_of("5b_i2v", lora=True), ("all",)).frozen


def test_prefix_that_matches_nothing_is_reported() -> None:
    report = choose(network_of(), ("model.diffusion_modle", "conditioner.embedders"))

    assert report.unused_prefixes == ("model.diffusion_modle",)


@pytest.mark.parametrize("lora_train", [False, True])
def test_nothing_left_to_train_is_an_error(lora_train: bool) -> None:
    with pytest.raises(ConfigError, match="nothing is left to train"):
        choose(network_of(), () if lora_train else ("all",), lora_train=lora_train)
