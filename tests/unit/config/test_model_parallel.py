"""How many processes may share one copy of the network."""

from __future__ import annotations

import pytest

from tests.support.configs import base, load, mistakes

TRANSFORMER = "model.network_config.params.transformer_args"


@pytest.mark.parametrize(
    ("model", "degrees"),
    [
        ("cogvideox_2b", "2, 3, 5, 6, 10, 15, 30"),
        ("cogvideox_5b_lora", "2, 3, 4, 6, 8, 12, 16, 24, 48"),
        ("cogvideox1.5_5b_i2v", "2, 3, 4, 6, 8, 12, 16, 24, 48"),
    ],
)
def test_degrees_are_the_divisors_of_the_head_count(model: str, degrees: str) -> None:
    words = base(model, "sft")

    for degree in degrees.split(", "):
        config = load(*words, "--model-parallel-size", degree)
        assert config.training is not None
        assert config.model is not None
        assert config.training.model_parallel_size == int(degree)
        assert config.model.network.params.model_parallel_size == int(degree)

    for other in ("7", "9", "20" if "2b" not in model else "4", "60"):
        found = mistakes(*words, "--model-parallel-size", other)
        assert f"model_parallel_size is {other}" in found[0]
        assert f"use one of 1, {degrees}" in found[0]


def test_an_mlp_of_an_odd_width_leaves_fewer_degrees() -> None:
    odd = f"{TRANSFORMER}.inner_hidden_size=130"  # 4 heads, but 130 is no multiple of 4

    found = mistakes(*base("tiny/tiny", "tiny/tiny_train"), odd, "--model-parallel-size", "4")

    assert "width 130" in found[0]
    assert "use one of 1, 2" in found[0]


@pytest.mark.parametrize("words", [(), ("--model-parallel-size", "2")])
def test_the_key_of_the_network_counts_too(words: tuple[str, ...]) -> None:
    stock = base("cogvideox_2b", "sft")  # says 1 in both places

    config = load(*stock, f"{TRANSFORMER}.model_parallel_size=2", *words)

    assert config.model is not None
    assert config.training is not None
    assert config.model.network.params.model_parallel_size == 2
    assert config.training.model_parallel_size == 2
    assert config.arguments["model_parallel_size"] == 2


def test_two_different_numbers_are_a_mistake() -> None:
    inside = f"{TRANSFORMER}.model_parallel_size=2"

    found = mistakes(*base("cogvideox_2b", "sft"), inside, "--model-parallel-size", "3")

    assert "transformer_args.model_parallel_size is 2, args.model_parallel_size 3" in found[0]


def test_sampling_gives_every_process_a_network_of_its_own() -> None:
    config = load(*base("tiny/tiny"), "--mode", "inference", "--model-parallel-size", "2")

    assert config.model is not None
    assert config.model.network.params.model_parallel_size == 1
