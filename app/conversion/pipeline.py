"""A whole diffusers pipeline: transformer, VAE, scheduler, text encoder and tokenizer in a folder.

Source: diffusers' CogVideoXPipeline and CogVideoXImageToVideoPipeline, and the folders that the
models were released in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.config.schema.diffusion import ScheduleConfig
from app.config.schema.model import DiTConfig
from app.conversion.diffusers import CLASS_NAME, DIFFUSERS_VERSION
from app.conversion.vae import CLASS_NAME as VAE_CLASS_NAME
from app.conversion.vae import LatentScale
from app.conversion.weights_file import read_json
from app.errors import ConfigError, InputMissingError

INDEX_FILE = "model_index.json"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
Scheduler = Literal["dpm", "ddim"]
_SCHEDULERS = {"dpm": "CogVideoXDPMScheduler", "ddim": "CogVideoXDDIMScheduler"}
TEXT_FOLDERS = ("text_encoder", "tokenizer")
_ENCODER_ENDS = (".safetensors", ".bin", ".index.json")
_TOKENIZER_FILES = (
    "added_tokens.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineFacts:
    """What a pipeline says beyond the network's own sizes."""

    scale_factor: float  # latents seen by the network = scale_factor * VAE latents
    schedule: ScheduleConfig
    image_latent_scale: float  # of the image latent of image-to-video
    scheduler: Scheduler | None = "dpm"  # None: diffusers has none that samples like `sampler`
    sampler: str = ""  # the model's, by its `target`

    @property
    def latent_scale(self) -> LatentScale:
        """diffusers knows two scales of an image latent, scale_factor and 1 / scale_factor.

        The released 1.5 folders divide, although 1 is what the network was trained with
        (upstream_differences.md, T8).
        """
        return LatentScale(self.scale_factor, self.image_latent_scale != self.scale_factor)

    def scheduler_of(self, choice: Scheduler | None) -> Scheduler:
        """The scheduler that was chosen, or the one that samples as the model's sampler does.

        Raises:
            ConfigError: diffusers has none.
        """
        found = choice or self.scheduler
        if found is None:
            raise ConfigError(
                f"diffusers has no scheduler that samples like {self.sampler}",
                where="model.sampler_config.target",
                fix="choose one that it has: --scheduler dpm, or --scheduler ddim",
            )
        return found


def released_facts(config: DiTConfig) -> PipelineFacts:
    """Those of the released network of the same kind."""
    is_2b = config.position.kind == "sincos3d"
    scale = 1.15258426 if is_2b else 0.7
    return PipelineFacts(
        scale_factor=scale,
        schedule=ScheduleConfig(shift_scale=3.0 if is_2b else 1.0),
        image_latent_scale=scale if config.patch.frames == 1 else 1.0,
    )


def is_image_to_video(config: DiTConfig) -> bool:
    """Whether the network takes an image with the noisy latents."""
    return config.in_channels > config.out_channels


def model_index(config: DiTConfig, scheduler: Scheduler) -> dict[str, Any]:
    """The content of model_index.json."""
    image = is_image_to_video(config)
    return {
        "_class_name": "CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", _SCHEDULERS[scheduler]],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", CLASS_NAME],
        "vae": ["diffusers", VAE_CLASS_NAME],
    }


def scheduler_config(schedule: ScheduleConfig, scheduler: Scheduler) -> dict[str, Any]:
    """The content of scheduler_config.json: the noise table of the network, sampled as upstream
    does.

    Raises:
        ConfigError: diffusers has no such schedule.
    """
    if schedule.keep_start or schedule.post_shift:
        raise ConfigError(
            "diffusers has no noise schedule with keep_start or post_shift",
            where="model.denoiser_config.params.discretization_config.params",
            fix="convert the transformer alone (--part transformer)",
        )
    return {
        "_class_name": _SCHEDULERS[scheduler],
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_end": schedule.linear_end,
        "beta_schedule": "scaled_linear",
        "beta_start": schedule.linear_start,
        "clip_sample": False,
        "clip_sample_range": 1.0,
        "num_train_timesteps": schedule.num_timesteps,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "sample_max_value": 1.0,
        "set_alpha_to_one": True,
        "snr_shift_scale": schedule.shift_scale,
        "steps_offset": 0,
        "timestep_spacing": "trailing",
        "trained_betas": None,
    }


def write_index(
    folder: Path, config: DiTConfig, schedule: ScheduleConfig, scheduler: Scheduler
) -> list[Path]:
    """The scheduler's file, then model_index.json, which makes the folder a pipeline."""
    contents = {
        SCHEDULER_FILE: scheduler_config(schedule, scheduler),
        INDEX_FILE: model_index(config, scheduler),
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return [folder / name for name in contents]


def read_facts(folder: Path) -> PipelineFacts | None:
    """What a pipeline folder says; None where the folder is not one.

    Raises:
        WeightsError: a file does not parse.
    """
    scheduler, vae = read_json(folder / SCHEDULER_FILE), read_json(folder / "vae/config.json")
    if scheduler is None or vae is None:
        return None
    scale = float(vae.get("scaling_factor", 1.15258426))
    inverted = bool(vae.get("invert_scale_latents", False))
    usual = ScheduleConfig()
    return PipelineFacts(
        scale_factor=scale,
        schedule=ScheduleConfig(
            linear_start=float(scheduler.get("beta_start", usual.linear_start)),
            linear_end=float(scheduler.get("beta_end", usual.linear_end)),
            num_timesteps=int(scheduler.get("num_train_timesteps", usual.num_timesteps)),
            shift_scale=float(scheduler.get("snr_shift_scale", 3.0)),
        ),
        image_latent_scale=1.0 if inverted else scale,
        scheduler="ddim" if scheduler.get("_class_name") == _SCHEDULERS["ddim"] else "dpm",
    )


def copy_text_encoder(source: Path, target: Path, *, apart: bool) -> list[Path]:
    """Copy a T5 encoder and its tokenizer.

    Args:
        source: both in one folder, or in `text_encoder` and `tokenizer` of a pipeline.
        target: folder of the copy.
        apart: in two folders, as a pipeline has them; otherwise in one, as `model_dir` names it.

    Returns:
        The files written.

    Raises:
        InputMissingError: encoder or tokenizer are not there.
    """
    found = {name: list(_text_files(source, name)) for name in TEXT_FOLDERS}
    missing = [name for name, files in found.items() if not files]
    if missing:
        raise InputMissingError(
            f"there is no {missing[0].replace('_', ' ')} here",
            where=str(source),
            fix="name a folder with the T5 encoder and its tokenizer (--t5)",
        )
    written = []
    for name, files in found.items():
        folder = target / name if apart else target
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / file.name)
            written.append(folder / file.name)
    return written


def _text_files(source: Path, name: str) -> Iterator[Path]:
    folder = source / name if (source / name).is_dir() else source
    files = sorted(path for path in folder.glob("*") if path.is_file())
    if name == "tokenizer":
        yield from (path for path in files if path.name in _TOKENIZER_FILES)
    elif any(path.name.endswith(_ENCODER_ENDS) for path in files):
        mine = (".json", *_ENCODER_ENDS)
        yield from (p for p in files if p.name.endswith(mine) and p.name not in _TOKENIZER_FILES)
