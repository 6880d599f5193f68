from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)

from app.config.schema.diffusion import ScheduleConfig
from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.config.schema.model import DiTConfig, PatchSize
from app.conversion.diffusers import transformer_config
from app.conversion.pipeline import (
    PipelineFacts,
    check_scheduler_near,
    copy_text_encoder,
    image_scale_note,
    read_facts,
    released_facts,
    released_image_scale,
    scheduler_config,
    write_index,
)
from app.conversion.vae import vae_json
from app.errors import ConfigError, InputMissingError, WeightsError
from app.registry import TARGETS
from tests.support.networks import tiny


def test_every_sampler_says_which_scheduler_of_diffusers_it_is() -> None:
    found = {
        name.rpartition(".")[2]: row.scheduler
        for name, row in TARGETS.items()
        if row.role == "sampler"
    }

    # CogVideoXDPMScheduler draws noise in every step, so the ordinary equation has none.
    assert found == {
        "VPSDEDPMPP2MSampler": "dpm",
        "VPODEDPMPP2MSampler": None,
        "VideoDDIMSampler": "ddim",
    }


def test_a_sampler_without_a_scheduler_is_named_unless_one_is_chosen() -> None:
    facts = PipelineFacts(
        scale_factor=0.7,
        schedule=ScheduleConfig(),
        image_latent_scale=0.7,
        scheduler=None,
        sampler="sampling.VPODEDPMPP2MSampler",
    )

    with pytest.raises(ConfigError, match=r"like sampling\.VPODEDPMPP2MSampler"):
        facts.scheduler_of(None)
    assert facts.scheduler_of("ddim") == "ddim"


def test_an_index_names_classes_that_diffusers_has(tmp_path: Path) -> None:
    import diffusers

    written = write_index(tmp_path, tiny("5b_i2v"), ScheduleConfig(shift_scale=3.0), "ddim")

    loaded = diffusers.CogVideoXDDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert loaded.config.snr_shift_scale == 3.0
    assert [path.name for path in written] == ["scheduler_config.json", "model_index.json"]
    index = diffusers.CogVideoXImageToVideoPipeline.load_config(tmp_path)
    assert index["_class_name"] == "CogVideoXImageToVideoPipeline"
    assert all(hasattr(diffusers, index[part][1]) for part in ("scheduler", "transformer", "vae"))


@pytest.mark.parametrize("key", ["keep_start", "post_shift"])
def test_a_schedule_that_diffusers_lacks_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="no noise schedule"):
        scheduler_config(ScheduleConfig(**{key: True}), "dpm")


def test_a_folder_without_scheduler_and_vae_is_not_a_pipeline(tmp_path: Path) -> None:
    assert read_facts(tmp_path) is None


def test_released_networks_of_1_5_divide_the_image_latent() -> None:
    config = tiny("1.5_i2v")
    assert config.patch == PatchSize(frames=2, rows=2, columns=2)

    scale = released_facts(config).latent_scale

    assert (scale.factor, scale.is_inverted) == (0.7, True)
    assert not released_facts(tiny("5b_i2v")).latent_scale.is_inverted


def test_a_text_encoder_without_its_tokenizer_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "t5"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"")
    (source / "config.json").write_text("{}")

    with pytest.raises(InputMissingError, match="no tokenizer"):
        copy_text_encoder(source, tmp_path / "out", apart=False)

    assert not (tmp_path / "out").exists()


def test_a_text_encoder_in_one_folder_is_taken_apart(tmp_path: Path) -> None:
    source = tmp_path / "t5"
    source.mkdir()
    for name in ("model.safetensors", "config.json", "spiece.model", "README.md"):
        (source / name).write_text(name)

    written = copy_text_encoder(source, tmp_path / "out", apart=True)

    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in written) == [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
    ]


def written_scheduler(folder: Path, **changes: object) -> Path:
    """A pipeline's scheduler with some keys changed, or taken out (None)."""
    write_index(folder, tiny("5b"), ScheduleConfig(shift_scale=3.0), "dpm")
    path = folder / "scheduler/scheduler_config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


OTHER_NOISE = {
    "epsilon": {"prediction_type": "epsilon"},
    "epsilon by default": {"prediction_type": None},
    "no zero snr": {"rescale_betas_zero_snr": False},
    "no zero snr by default": {"rescale_betas_zero_snr": None},
    "linear betas": {"beta_schedule": "linear"},
    "other betas": {"beta_end": 0.02},
    "listed betas": {"trained_betas": [0.1, 0.2]},
    "fewer steps": {"num_train_timesteps": 500},
    "other class": {"_class_name": "DDIMScheduler"},
}


@pytest.mark.parametrize("changes", OTHER_NOISE.values(), ids=OTHER_NOISE)
def test_a_scheduler_of_another_kind_is_refused_with_what_differs(
    changes: dict[str, object], tmp_path: Path
) -> None:
    path = written_scheduler(tmp_path, **changes)
    (tmp_path / "transformer").mkdir()
    key = next(iter(changes)).removeprefix("_class_name")

    for place in (tmp_path, tmp_path / "transformer"):
        with pytest.raises(WeightsError, match=key) as caught:
            check_scheduler_near(place)
        assert caught.value.where == str(path)


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
def test_what_differs_between_the_released_schedulers_is_taken(
    scheduler: Literal["dpm", "ddim"], tmp_path: Path
) -> None:
    write_index(tmp_path, tiny("5b"), ScheduleConfig(shift_scale=1.0), scheduler)

    check_scheduler_near(tmp_path)
    check_scheduler_near(tmp_path / "elsewhere/model.safetensors")


def fed_by_diffusers(config: DiTConfig, facts: PipelineFacts) -> float:
    """What the real pipeline, with the configs that we write, multiplies an image latent by."""
    part = VAEPartConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)
    content = vae_json(VAEConfig(encoder=part, decoder=part), facts.latent_scale)
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX.from_config(content).eval()
    network = CogVideoXTransformer3DModel.from_config(transformer_config(config))
    pipeline = CogVideoXImageToVideoPipeline(None, None, vae, network, CogVideoXDDIMScheduler())
    image = torch.rand(1, 3, 32, 32)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    with torch.no_grad():
        _, latents = pipeline.prepare_latents(
            image, 1, 4, 9, 32, 32, torch.float32, torch.device("cpu"), generator()
        )
        posterior = vae.encode(image[:, :, None]).latent_dist
        plain = posterior.sample(generator())
    return float((latents[:, 0] / plain[:, :, 0]).median())


@pytest.mark.parametrize("trained", [1.0, 1 / 0.7, 0.7])
@pytest.mark.parametrize("kind", ["1.5_i2v", "5b_i2v"])
def test_what_the_pipeline_feeds_is_said_where_the_training_had_another_image_latent(
    kind: str, trained: float
) -> None:
    config = tiny(kind)
    facts = replace(released_facts(config), image_latent_scale=trained)

    fed = fed_by_diffusers(config, facts)
    note = image_scale_note(config, facts, facts.fed_image_scale)

    assert facts.fed_image_scale == pytest.approx(fed, rel=1e-5)
    if trained == 1.0:  # of the two values that diffusers knows, neither
        assert fed == pytest.approx(1 / 0.7)
        assert note is not None
        assert "x 1.429, this network was trained with x 1:" in note
        assert "model.image_latent_scale=1.428571" in note
    else:
        assert fed == pytest.approx(trained)
        assert note is None


def test_the_released_pipeline_fits_1_0_and_not_the_default_of_1_5() -> None:
    notes = {}
    for kind in ("5b", "5b_i2v", "1.5", "1.5_i2v"):
        config = tiny(kind)
        facts = released_facts(config)
        fed = released_image_scale(config, facts.scale_factor)
        notes[kind] = image_scale_note(config, facts, fed) is not None

    assert notes == {"5b": False, "5b_i2v": False, "1.5": False, "1.5_i2v": True}
