"""What makes a run this run, and what may change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.config.schema.run import TrainableRun
from app.errors import ConfigError
from app.run.attempt.identity import check_identity, has_frozen_weights, identity_of
from tests.support.configs import TINY, base, load_trainable

LORA = base("tiny/tiny_lora", "tiny/tiny_train")


def config(*words: str, files: list[str] = TINY) -> TrainableRun:
    return load_trainable(*files, "--save", "runs", "--run-id", "a", *words)


def stored(of: TrainableRun) -> dict[str, Any]:
    """As it is read back."""
    found: dict[str, Any] = json.loads(json.dumps(identity_of(of)))
    return found


def refused(old: dict[str, Any], new: TrainableRun) -> str:
    with pytest.raises(ConfigError) as caught:
        check_identity(old, identity_of(new), new, "run.json")
    assert caught.value.exit_code == 78
    assert "--run-id" in caught.value.fix
    return caught.value.what


def accepted(old: dict[str, Any], new: TrainableRun) -> None:
    check_identity(old, identity_of(new), new, "run.json")


def weights(path: Path, letter: str) -> str:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(letter.encode() * 100_000)
    return str(path)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.scale_factor=0.7", "model.scale_factor = 1.0, the configuration says 0.7"),
        ("model.loss_fn_config.params.offset_noise_level=0.1", "model.loss.offset_noise_level"),
        ("model.network_config.params.time_embed_dim=64", "model.network.time_embed_dim = 32"),
        (
            "model.conditioner_config.params.emb_models.0.ucg_rate=0.5",
            "model.conditioner.ucg_rate = 0.1, the configuration says 0.5",
        ),
    ],
)
def test_another_model_section_is_refused_with_key_and_both_values(word: str, said: str) -> None:
    assert said in refused(stored(config()), config(word))


def test_all_differing_keys_are_named_at_once() -> None:
    said = refused(
        stored(config()), config("model.scale_factor=0.7", "model.noised_image_dropout=0.1")
    )

    assert "model.scale_factor" in said
    assert "model.noised_image_dropout" in said


def test_a_lora_is_another_run_than_full_fine_tuning() -> None:
    assert "model.network.lora" in refused(stored(config()), config(files=LORA))
    assert "model.network.lora" in refused(stored(config(files=LORA)), config())


@pytest.mark.parametrize(
    "words",
    [
        ("--lr", "0.5"),
        ("--train-iters", "7"),
        ("--checkpoint-activations", "false", "--checkpoint-num-layers", "2"),
        ("--model-parallel-size", "2"),
        ("model.sampler_config.params.num_steps=4",),
        ("model.first_stage_config.params.cp_size=2",),
    ],
)
def test_what_only_changes_how_a_step_is_computed_may_change(words: tuple[str, ...]) -> None:
    accepted(stored(config()), config(*words))


def test_another_base_model_is_refused_by_what_it_holds_and_not_by_its_place(
    tmp_path: Path,
) -> None:
    old = stored(config("--load", weights(tmp_path / "a", "a"), files=LORA))

    said = refused(old, config("--load", weights(tmp_path / "b", "b"), files=LORA))

    assert f"load: {tmp_path}/a (content " in said
    assert f"{tmp_path}/b (content " in said
    accepted(old, config("--load", weights(tmp_path / "copy", "a"), files=LORA))
    assert "load" in refused(old, config("--load", weights(tmp_path / "a", "c"), files=LORA))


def test_weights_that_cannot_be_looked_at_are_compared_by_their_place() -> None:
    old = stored(config("--load", "nowhere", files=LORA))

    accepted(old, config("--load", "nowhere", files=LORA))
    assert "load: nowhere, and not elsewhere" in refused(
        old, config("--load", "elsewhere", files=LORA)
    )
    assert "load: nowhere, and not None" in refused(old, config(files=LORA))


def test_full_fine_tuning_goes_on_without_its_first_weights() -> None:
    accepted(stored(config("--load", "nowhere")), config())


def test_another_vae_or_text_encoder_is_refused(tmp_path: Path) -> None:
    name = "model.first_stage_config.params.ckpt_path"
    old = stored(config(f"{name}={weights(tmp_path / 'a', 'a')}"))

    assert "vae: " in refused(old, config(f"{name}={weights(tmp_path / 'b', 'b')}"))


def test_run_json_of_an_earlier_version_compares_what_it_has() -> None:
    full = stored(config("--load", "nowhere", files=LORA))
    old = {key: full[key] for key in ("format_version", "run_id", "version", "network", "load")}
    del old["network"]["rms_norm"]

    accepted(old, config("--load", "nowhere", "model.scale_factor=0.7", files=LORA))
    assert "load: nowhere" in refused(old, config("--load", "elsewhere", files=LORA))
    assert "time_embed_dim" in refused(
        old, config("--load", "nowhere", "model.network_config.params.time_embed_dim=64")
    )


def test_which_runs_need_the_weights_that_they_began_with() -> None:
    assert has_frozen_weights(config(files=LORA).model)
    assert not has_frozen_weights(config().model)
    assert has_frozen_weights(config("model.not_trainable_prefixes=[all]").model)
