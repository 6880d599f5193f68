"""What keeps a valid configuration from starting."""

from __future__ import annotations

import pytest

from app.config.runnable import lacking, trainable_run
from app.errors import ConfigErrors
from tests.support.configs import TINY, base, load


def reasons(*argv: str) -> list[str]:
    return [f"{error.what} | {error.where}" for error in lacking(load(*argv)).errors]


def test_complete_configuration_may_start() -> None:
    trainable_run(load(*TINY))


def test_missing_sections_and_paths_are_named_together() -> None:
    found = reasons(*base("tiny/tiny"))

    assert [line.split(" | ")[1] for line in found] == ["data", "args.train_data", "args.save"]
    assert "there is no section 'model'" in reasons(*base("tiny/tiny_train"))[0]


def test_placeholder_names_its_key_and_file() -> None:
    config = load(*TINY, "model.first_stage_config.params.ckpt_path='{your vae}/3d-vae.pt'")

    with pytest.raises(ConfigErrors) as caught:
        trainable_run(config)

    assert caught.value.exit_code == 78
    assert "'{your vae}/3d-vae.pt' is a placeholder" in str(caught.value)
    assert "model.first_stage_config.params.ckpt_path" in caught.value.errors[0].where


def test_placeholder_in_the_text_encoder_is_found() -> None:
    key = "model.conditioner_config.params.emb_models.0.params.model_dir"

    assert any(key in line for line in reasons(*TINY, f"{key}='{{your t5}}'"))


def test_a_configuration_of_sampling_is_not_trained() -> None:
    found = reasons(*base("cogvideox_2b", "inference"), "--load", "weights")

    assert found == [
        "mode: inference samples from prompts, it does not train | args.mode in "
        + (base("inference")[1])
    ]


def test_validation_without_data_is_a_warning() -> None:
    missing = lacking(load(*TINY, "args.valid_data=null"))

    assert missing.errors == []
    assert missing.warnings == [
        "eval_interval is set, but there is no valid_data: nothing is validated"
    ]


PORTRAIT = "data.buckets=[9x32x64,9x64x32]"  # the tiny network is made for 32 x 64
LEARNED = "model.network_config.params.modules.pos_embed_config.params.learnable_pos_embed=true"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((PORTRAIT,), ()),
        (("--rotary-positions", "sat"), ()),
        (("--rotary-positions", "sat", PORTRAIT), ("64x32, and", "rotary_positions: diffusers")),
        (("--compat", "sat", PORTRAIT), ("64x32, and", "rotary_positions: diffusers")),
        ((LEARNED, PORTRAIT), ("64x32, and", "cogvx sample alone")),
        ((LEARNED,), ()),
    ],
)
def test_clips_whose_positions_diffusers_takes_otherwise_are_a_warning(
    words: tuple[str, ...], says: tuple[str, ...]
) -> None:
    warnings = [one for one in lacking(load(*TINY, *words)).warnings if "diffusers" in one]

    assert len(warnings) == bool(says)
    assert all(text in warnings[0] for text in says)


def test_addresses_of_parts_not_built_are_refused_by_name() -> None:
    t5 = "model.conditioner_config.params.emb_models.0.params.model_dir"

    found = reasons(*TINY, "--load", "hf://a/b", f"{t5}=https://h/t5", "--save", "s3://b/runs")

    assert [line.split(" | ")[0] for line in found] == [
        "'hf://a/b' cannot be used: hf:// is not supported",
        "'https://h/t5' cannot be used: https:// is not supported",
    ]
