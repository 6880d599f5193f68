"""Upstream's file names work, alone and combined; ours add the LoRA files for 1.5."""

from __future__ import annotations

import pytest

from app.config.runnable import lacking
from app.config.schema.data import SFTDataConfig, ShardDataConfig
from app.config.schema.encoders import VAEConfig
from app.config.schema.model import DiTConfig
from tests.support.configs import OUR_MODELS, TRAINING_MODELS, base, load, section

ALL_MODELS = (*TRAINING_MODELS, *OUR_MODELS)
# Parameters counted from upstream's constructed models: attention LoRA is 8 matrices a layer.
LORA_PARAMETERS = {
    "cogvideox_2b_lora": 58_982_400,
    "cogvideox_5b_lora": 132_120_576,
    "cogvideox_5b_i2v_lora": 264_241_152,
}


def network_of(name: str) -> DiTConfig:
    model = load(*base(name, "sft")).model
    assert model is not None
    return model.network.params


@pytest.mark.parametrize("compat", ["default", "sat"])
@pytest.mark.parametrize("recipe", ["sft", "inference"])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_combination_is_valid(name: str, recipe: str, compat: str) -> None:
    config = load(*base(name, recipe), "--compat", compat)

    assert config.model is not None
    assert (config.training is None) == (recipe == "inference")
    assert (config.data is None) == (recipe == "inference")


@pytest.mark.parametrize("name", ALL_MODELS)
def test_sizes_of_the_released_models(name: str) -> None:
    network = network_of(name)

    small = "2b" in name
    assert network.num_layers == (30 if small else 42)
    assert network.hidden_size == (1920 if small else 3072)
    assert network.head_dim == 64
    assert network.in_channels == (32 if "i2v" in name else 16)
    assert network.grid == ((21, 150, 150) if "1.5" in name else (13, 30, 45))
    assert network.patch.frames == (2 if "1.5" in name else 1)
    assert network.position.kind == ("sincos3d" if small else "rope3d")
    assert network.position.learnable == name.startswith("cogvideox_5b_i2v")
    assert network.position.height_interpolation == (1.875 if small else 1.0)
    assert network.ofs_embed_dim == (512 if "1.5_5b_i2v" in name else None)
    assert network.inner_hidden_size == 4 * network.hidden_size
    assert network.checkpoint_activations


@pytest.mark.parametrize(("name", "parameters"), LORA_PARAMETERS.items())
def test_lora_has_the_published_number_of_parameters(name: str, parameters: int) -> None:
    network = network_of(name)

    assert network.lora is not None
    assert network.lora.alpha == 1
    assert 8 * network.num_layers * network.hidden_size * network.lora.rank == parameters


@pytest.mark.parametrize("name", [name for name in ALL_MODELS if "lora" in name])
def test_lora_file_is_the_full_file_with_lora(name: str) -> None:
    lora, full = section(name, "model"), section(name.removesuffix("_lora"), "model")

    assert lora.pop("not_trainable_prefixes") == ["all"]
    assert lora["network_config"]["params"]["modules"].pop("lora_config")["params"]["r"] in (
        128,
        256,
    )
    for unread in ("augmentation_dropout", "latent_input"):
        lora.pop(unread, None)
        full.pop(unread, None)
    assert lora == full


@pytest.mark.parametrize("name", ALL_MODELS)
def test_scale_and_schedule_go_with_the_model(name: str) -> None:
    model = load(*base(name, "sft")).model

    assert model is not None
    assert model.scale_factor == (1.15258426 if "2b" in name else 0.7)
    shift = 3.0 if "2b" in name else 1.0
    schedules = (model.denoiser.schedule, model.loss.timesteps.schedule)
    assert all(schedule.shift_scale == shift for schedule in schedules)
    assert model.sampler.params.schedule.shift_scale == shift
    assert model.noised_image_input == ("i2v" in name)


def test_first_stage_is_the_released_vae() -> None:
    config = load(*base("cogvideox_5b", "sft"))

    assert config.model is not None
    vae = config.model.first_stage.params
    assert isinstance(vae, VAEConfig)
    assert vae.encoder.ch_mult == (1, 2, 2, 4)
    ignored = [line for line in config.warnings if "'gather_norm' has no effect" in line]
    assert len(ignored) == 2  # true in the encoder, false in the decoder: nothing reads it
    assert vae.ignore_keys == ("loss",)
    assert vae.sample_posterior


def test_recipe_of_upstream_means_what_it_says() -> None:
    config = load(*base("cogvideox_2b", "sft"))

    training = config.training
    assert training is not None
    assert training.optimizer.kind == "ema_adamw"
    assert training.optimizer.betas == (0.9, 0.95)
    assert (training.optimizer.lr, training.optimizer.weight_decay) == (1e-5, 1e-4)
    assert training.optimizer.ema_decay == 0.9999
    assert (training.zero_stage, training.precision, training.gradient_clipping) == (2, "bf16", 0.1)
    assert (training.micro_batch, training.accumulation, training.steps) == (2, 1, 1000)
    assert config.run_id == "cogvideox-2b-full"


def test_placeholder_is_a_mistake_only_before_a_run() -> None:
    config = load(*base("cogvideox_2b", "sft"))

    found = lacking(config).errors
    assert [error.where.split()[0] for error in found] == ["args.load"]
    assert lacking(load(*base("cogvideox_2b", "sft"), "--load", "weights")).errors == []


def test_latent_input_with_videos_is_one_warning_and_the_vae_encodes() -> None:
    config = load(*base("cogvideox1.5_5b", "sft"))

    assert config.model is not None
    assert config.model.latent_input is False
    assert len([line for line in config.warnings if "the VAE encodes" in line]) == 1


def test_latents_of_a_registered_dataset_are_kept() -> None:
    config = load(
        *base("cogvideox1.5_5b", "sft"),
        *("--register", "mine.Latents=my_package.data:Latents"),
        "data.target=mine.Latents",
    )

    assert config.model is not None
    assert config.data is not None
    assert config.model.latent_input is True
    assert config.data.implementation == "my_package.data:Latents"
    assert config.data.params == section("sft", "data")["params"]
    assert config.registered == {"mine.Latents": "my_package.data:Latents"}


@pytest.mark.parametrize("name", ["tiny", "tiny_lora"])
@pytest.mark.parametrize("recipe", ["tiny_train", "tiny_sft"])
def test_tiny_files_are_complete_and_warn_of_nothing(name: str, recipe: str) -> None:
    config = load(*base(f"tiny/{name}", f"tiny/{recipe}"))

    assert config.model is not None
    assert config.data is not None
    assert config.warnings == ("run_id: tiny (from experiment_name 'tiny')",)
    assert lacking(config).errors == []
    network, vae = config.model.network.params, config.model.first_stage.params
    assert network.head_dim == 16
    assert vae.encoder.z_channels == network.out_channels
    params = config.data.params
    assert isinstance(params, SFTDataConfig | ShardDataConfig)
    shards = isinstance(params, ShardDataConfig)
    rows, columns = params.image_size if shards else params.video_size
    assert (network.latent_height, network.latent_width) == (rows // 8, columns // 8)
