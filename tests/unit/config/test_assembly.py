"""What the sections and the arguments say together: run id, training section, origins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.configs import TINY, base, layer, load, mistakes


@pytest.mark.parametrize(
    ("name", "run_id"),
    [
        ("My Run_7", "my-run-7"),
        ("--lora--", "lora"),
        ("2024", "2024"),
    ],
)
def test_a_run_id_is_made_of_the_experiment_name_and_shown(name: str, run_id: str) -> None:
    config = load(*TINY, f"args.experiment_name='{name}'")

    assert config.run_id == run_id
    assert f"run_id: {run_id} (from experiment_name '{name}')" in config.warnings


def test_a_given_run_id_is_kept_and_a_bad_one_refused() -> None:
    config = load(*TINY, "--run-id", "a.b_c-1")

    assert config.run_id == "a.b_c-1"
    assert not any(warning.startswith("run_id") for warning in config.warnings)
    for wrong in ("A", "a/b", "-a", "a."):
        [message] = mistakes(*TINY, f"args.run_id='{wrong}'")
        assert f"'{wrong}' is not a valid run id" in message
        assert "args.run_id" in message
    [message] = mistakes(*TINY, "args.experiment_name='猫'")
    assert "such as 'my-run'" in message


def test_sampling_has_no_training_section() -> None:
    config = load(*base("tiny/tiny"), "args.mode=inference", "args.load=weights")

    assert config.training is None
    assert "deepspeed" not in config.sections


def test_a_configuration_without_model_and_data_has_training_alone(tmp_path: Path) -> None:
    config = load("--base", layer(tmp_path, {"args": {"train_iters": 7, "bf16": True}}))

    assert (config.model, config.data) == (None, None)
    assert config.training is not None
    assert (config.training.steps, config.training.precision) == (7, "bf16")


def test_validation_takes_the_batch_of_training_where_it_has_none_of_its_own() -> None:
    own = load(*TINY, "args.eval_batch_size=3").training
    same = load(*TINY, "args.eval_batch_size=null").training

    assert own is not None
    assert same is not None
    assert own.evaluation.batch_size == 3
    # train_micro_batch_size_per_gpu of the recipe
    assert same.evaluation.batch_size == 2


def test_every_key_knows_who_set_it() -> None:
    config = load(*TINY, "--train-iters", "9", "model.scale_factor=2.0")

    model, recipe = TINY[1:]
    assert config.origins["args.train_iters"] == "flag --train-iters"
    assert config.origins["model.scale_factor"] == "override model.scale_factor"
    assert config.origins["model.network_config.params.num_layers"] == model
    assert config.origins["data.params.fps"] == recipe
    assert config.origins["args.seed"] == "default"


def test_arguments_reach_into_the_model_where_they_are_given() -> None:
    silent, given = load(*TINY), load(*TINY, "args.checkpoint_activations=false")
    kept = load(*TINY, "args.checkpoint_activations=false", "--activation-checkpointing", "model")

    for config, expected in ((silent, True), (given, False), (kept, True)):
        assert config.model is not None
        assert config.model.network.params.checkpoint_activations is expected
    assert any("checkpoint_activations: False" in warning for warning in given.warnings)
