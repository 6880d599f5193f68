"""Precedence of layers, clashes, one home per number, rules between arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.errors import UsageError
from tests.support.configs import TINY, base, layer, load, mistakes

SAT = ("--compat", "sat")


def wins(warnings: tuple[str, ...], *parts: str) -> bool:
    """Whether one warning holds all the parts."""
    return any(all(part in warning for part in parts) for warning in warnings)


def test_layers_from_the_weakest_to_the_strongest(tmp_path: Path) -> None:
    args_only = layer(tmp_path, {"args": {"batch_size": 7}}, "args.yaml")
    with_section = layer(
        tmp_path, {"deepspeed": {"train_micro_batch_size_per_gpu": 5}}, "section.yaml"
    )
    model = ["--base", *base("tiny/tiny")[1:]]

    assert load(*model).arguments["batch_size"] == 4
    assert load(*model, args_only).arguments["batch_size"] == 7
    assert load(*model, args_only, with_section, "--bf16").arguments["batch_size"] == 5
    flag = [*model, args_only, with_section, "--bf16", "--batch-size", "3"]
    assert load(*flag).arguments["batch_size"] == 3
    assert load(*flag, "args.batch_size=2").arguments["batch_size"] == 2
    section = load(*flag, "args.batch_size=2", "deepspeed.train_micro_batch_size_per_gpu=1")
    assert section.arguments["batch_size"] == 1


def test_number_has_one_home_and_is_written_back() -> None:
    config = load(*TINY, "--lr", "3e-4", "--weight-decay", "0.5", "args.batch_size=6")

    assert config.training is not None
    assert (config.training.optimizer.lr, config.training.optimizer.weight_decay) == (3e-4, 0.5)
    assert config.training.micro_batch == 6
    section: Any = config.sections["deepspeed"]
    assert section["optimizer"]["params"]["lr"] == 3e-4
    assert section["optimizer"]["params"]["weight_decay"] == 0.5
    assert section["train_micro_batch_size_per_gpu"] == 6
    assert config.origins["deepspeed.optimizer.params.lr"] == "flag --lr"


def test_clash_is_reported_with_both_values_and_origins() -> None:
    config = load(*TINY, "--lr", "3e-4")

    assert wins(config.warnings, "lr: 0.0003 (flag --lr) wins over 0.002", "tiny_train.yaml")


def test_yaml_beats_flags_under_compat_sat() -> None:
    config = load(*TINY, *SAT, "--lr", "0.5", "--train-iters", "5", "--seed", "9")

    assert config.arguments["lr"] == 2e-3
    assert config.arguments["train_iters"] == 60
    assert config.arguments["seed"] == 9
    assert wins(config.warnings, "lr: 0.002", "wins over 0.5 (flag --lr)")


def test_precedence_has_a_key_of_its_own() -> None:
    fixed = load(*TINY, *SAT, "--precedence", "flags", "--lr", "0.5")
    upstream = load(*TINY, "--precedence", "yaml", "--lr", "0.5")

    assert fixed.arguments["lr"] == 0.5
    assert fixed.compat.lr_curve == "sat"
    assert upstream.arguments["lr"] == 2e-3
    assert upstream.compat.lr_curve == "default"


def test_compat_can_stand_in_yaml_and_a_flag_still_decides(tmp_path: Path) -> None:
    extra = layer(tmp_path, {"args": {"compat": "sat"}})

    assert load(*TINY, extra).compat.mode == "sat"
    assert load(*TINY, extra, "--compat", "default").compat.mode == "default"


@pytest.mark.parametrize("spelling", ["--train-iters", "--train_iters"])
def test_both_spellings_of_a_flag(spelling: str) -> None:
    assert load(*TINY, spelling, "5").arguments["train_iters"] == 5


def test_flag_equal_to_its_default_still_counts_as_given(tmp_path: Path) -> None:
    extra = layer(tmp_path, {"args": {"log_interval": 7}})

    assert load(*TINY, extra, "--log-interval", "50").arguments["log_interval"] == 50


def test_types_of_flags_are_honest() -> None:
    config = load(
        *TINY, "--log-image", "False", "--sampling-image-size", "480", "720", "--strict-eval"
    )

    assert config.arguments["log_image"] is False
    assert config.arguments["strict_eval"] is True
    assert config.arguments["sampling_image_size"] == [480, 720]
    assert load(*TINY, "--sampling_image_size", "480,720").arguments["sampling_image_size"] == [
        480,
        720,
    ]


def test_types_of_flags_are_upstreams_under_compat_sat() -> None:
    config = load(*TINY, *SAT, "--log-image", "False", "--sampling-image-size", "480")

    assert config.arguments["log_image"] is True
    assert config.arguments["sampling_image_size"] == ["4", "8", "0"]


def test_train_iters_is_10000_when_nothing_says_how_long() -> None:
    assert load(*TINY, "args.train_iters=null").arguments["train_iters"] == 10000


def test_epochs_replace_train_iters() -> None:
    config = load(*TINY, "args.train_iters=null", "--epochs", "3")

    assert config.training is not None
    assert (config.training.epochs, config.training.steps) == (3, 0)
    assert config.arguments["train_iters"] is None


def test_train_iters_and_epochs_together_are_a_mistake() -> None:
    found = mistakes(*TINY, "--epochs", "3")

    assert len(found) == 1
    assert "train_iters (60, " in found[0]
    assert "epochs (3, flag --epochs)" in found[0]


def test_weights_must_match_the_data() -> None:
    found = mistakes(*TINY, "args.train_data_weights=[1,2]")

    assert "2 weights for 1 entries of train_data" in found[0]


def test_a_seed_is_one_that_torch_takes() -> None:
    largest = 2**63 - 1

    assert load(*TINY, f"args.seed={largest}").arguments["seed"] == largest
    assert "args.seed" in mistakes(*TINY, f"args.seed={largest + 1}")[0]


def test_misspelt_argument_names_the_nearest(tmp_path: Path) -> None:
    extra = layer(tmp_path, {"args": {"train_itres": 5}})

    found = mistakes(*TINY, extra)

    assert "unknown key 'train_itres'" in found[0]
    assert f"args.train_itres in {extra}" in found[0]
    assert "did you mean 'train_iters'?" in found[0]


def test_section_indented_below_args_is_explained(tmp_path: Path) -> None:
    extra = layer(tmp_path, {"args": {"deepspeed": {"gradient_clipping": 1.0}}})

    assert "section 'deepspeed' is indented below 'args'" in mistakes(*TINY, extra)[0]


def test_register_cannot_stand_in_yaml(tmp_path: Path) -> None:
    extra = layer(tmp_path, {"args": {"register": ["a.B=os:system"]}})

    assert "'register' cannot be set in YAML" in mistakes(*TINY, extra)[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train-itres", "5"], "unknown flag '--train-itres'"),
        (["--train-iters", "many"], "--train-iters cannot be 'many'"),
        (["--lr-decay-style", "wavy"], "--lr-decay-style cannot be 'wavy'"),
        (["--lr"], "expected one argument"),
        (["--register", "nonsense"], "--register cannot be 'nonsense'"),
        (["--register", "data_video.SFTDataset=a:B"], "is a name of this product"),
        (["--mode", "finetune", "stray"], "'stray' is neither a flag nor an override"),
    ],
)
def test_wrong_flag_is_a_usage_error(words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(*TINY, *words)

    assert says in caught.value.what
    assert caught.value.exit_code == 2
    assert caught.value.fix


def test_near_flag_is_suggested_with_dashes() -> None:
    with pytest.raises(UsageError, match="unknown flag") as caught:
        load(*TINY, "--train_itres", "5")

    assert caught.value.fix == "did you mean '--train-iters'?"


def test_base_is_needed() -> None:
    with pytest.raises(UsageError, match="--base is missing"):
        load("--lr", "1")


def test_base_given_twice_is_joined() -> None:
    config = load(*base("tiny/tiny"), *base("tiny/tiny_train"))

    assert config.arguments["train_iters"] == 60


def test_argument_of_a_part_not_built_is_refused_by_name() -> None:
    found = mistakes(*TINY, "--test-data", "clips")

    assert "'test_data' cannot be used yet: the final evaluation" in found[0]


def test_argument_without_effect_gives_one_warning() -> None:
    config = load(*TINY, "--lcm-steps", "4")

    assert len([line for line in config.warnings if "'lcm_steps' has no effect" in line]) == 1


def test_registration_is_not_taken_for_an_override() -> None:
    config = load(*TINY, "--register", "data.Mine=my_package.data:Mine", "data.target=data.Mine")

    assert config.registered == {"data.Mine": "my_package.data:Mine"}
    assert config.data is not None
    assert config.data.target == "data.Mine"


def test_overrides_are_found_among_the_values_of_a_flag() -> None:
    config = load("args.lr=1", *TINY, "data.params.fps=4", "--train-data", "a", "args.seed=3", "b")

    assert config.arguments["train_data"] == ["a", "b"]
    assert (config.arguments["lr"], config.arguments["seed"]) == (1.0, 3)
