"""The run id of who names none."""

from __future__ import annotations

import pytest

from app.config.run_name import run_name
from tests.support.configs import OUR_MODELS, TRAINING_MODELS, base, load

NAMES = {
    "cogvideox_2b": "cogvideox-2b-full",
    "cogvideox_2b_lora": "cogvideox-2b-lora",
    "cogvideox_5b": "cogvideox-5b-full",
    "cogvideox_5b_lora": "cogvideox-5b-lora",
    "cogvideox_5b_i2v": "cogvideox-5b-i2v-full",
    "cogvideox_5b_i2v_lora": "cogvideox-5b-i2v-lora",
    "cogvideox1.5_5b": "cogvideox1.5-5b-full",
    "cogvideox1.5_5b_i2v": "cogvideox1.5-5b-i2v-full",
    "cogvideox1.5_5b_lora": "cogvideox1.5-5b-lora",
    "cogvideox1.5_5b_i2v_lora": "cogvideox1.5-5b-i2v-lora",
}


@pytest.mark.parametrize("model", [*TRAINING_MODELS, *OUR_MODELS])
def test_stock_files_have_the_name_of_model_and_mode(model: str) -> None:
    config = load(*base(model, "sft"))

    assert config.run_id == NAMES[model]
    assert config.arguments["experiment_name"] == "lora-disney"  # as upstream's Namespace has it


def test_a_name_of_the_users_own_comes_first() -> None:
    stock = base("cogvideox_2b_lora", "sft")

    assert load(*stock, "--experiment-name", "My Cats").run_id == "my-cats"
    assert load(*stock, "--experiment-name", "lora-disney").run_id == "lora-disney"
    assert load(*stock, "args.experiment_name=lora-disney").run_id == "lora-disney"
    assert load(*stock, "--run-id", "lora-disney").run_id == "lora-disney"


def test_another_size_is_named_by_its_layers_and_width() -> None:
    model = load(*base("tiny/tiny_lora", "tiny/tiny_train")).model

    assert model is not None
    assert run_name(model) == "cogvideox-2x64-lora"
