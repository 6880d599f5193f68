"""A whole diffusers pipeline: transformer, VAE, scheduler, text encoder and tokenizer in a folder.

Source: diffusers' CogVideoXPipeline and CogVideoXImageToVideoPipeline, and the folders that the
models were released in.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.config.schema.diffusion import ScheduleConfig
from app.config.schema.model import DiTConfig
from app.conversion.diffusers import CLASS_NAME, DIFFUSERS_VERSION
from app.conversion.vae import CLASS_NAME as VAE_CLASS_NAME
from app.conversion.vae import LatentScale
from app.conversion.weights_file import json_mapping, read_json
from app.errors import ConfigError, InputMissingError, WeightsError

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

    @property
    def fed_image_scale(self) -> float:
        """What a pipeline that is written with these facts multiplies the image latent by."""
        return 1.0 / self.scale_factor if self.latent_scale.is_inverted else self.scale_factor

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


def released_image_scale(config: DiTConfig, scale_factor: float) -> float:
    """What the released pipeline of such a network multiplies the image latent by."""
    return scale_factor if config.patch.frames == 1 else 1.0 / scale_factor


def image_scale_note(config: DiTConfig, facts: PipelineFacts, fed: float) -> str | None:
    """What to say where diffusers feeds another image latent than the training did.

    Args:
        config: of the network.
        facts: of the training.
        fed: what the pipeline multiplies the image latent by.

    Returns:
        None for text-to-video, and where both are the same.
    """
    trained = facts.image_latent_scale
    if not is_image_to_video(config) or math.isclose(fed, trained, rel_tol=1e-3):
        return None
    return (
        f"diffusers feeds the image latent x {fed:.4g}, this network was trained with x "
        f"{trained:.4g}: to use it there, train with model.image_latent_scale={fed:.7g}; cogvx "
        "sample takes the value of the training (docs/conversion.md)"
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


# What the noise of every released network is; with other noise the weights mean another thing.
_NOISE: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "trained_betas": None,
}
# What the classes take for a key that the file leaves out, where that is not the same.
_NOISE_DEFAULTS: dict[str, Any] = {
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}


def check_scheduler(content: Mapping[str, Any], where: str) -> None:
    """Raise WeightsError unless a scheduler_config.json is of the released kind.

    Only `snr_shift_scale` differs between the released ones; what only sampling reads is free.

    Args:
        content: of the file.
        where: the file.
    """
    fix = (
        "weights trained with other noise need a model file that says so (--base); if only the "
        "scheduler was changed, restore it, and with either take this file out of the folder"
    )
    name = content.get("_class_name")
    if name not in _SCHEDULERS.values():
        expected = " or ".join(_SCHEDULERS.values())
        raise WeightsError(f"the scheduler is {name}, not {expected}", where=where, fix=fix)
    found = {key: content.get(key, _NOISE_DEFAULTS.get(key, _NOISE[key])) for key in _NOISE}
    other = [
        f"{key} {found[key]!r} instead of {_NOISE[key]!r}"
        for key in _NOISE
        if found[key] != _NOISE[key]
    ]
    if other:
        raise WeightsError(
            f"the scheduler is of another kind: {', '.join(other)}", where=where, fix=fix
        )


def check_scheduler_near(path: Path) -> None:
    """`check_scheduler` of the pipeline that a transformer is in, if it is in one.

    Args:
        path: of a pipeline, of a folder in it, or of a file in that.
    """
    folder = path if path.is_dir() else path.parent
    places = (place / SCHEDULER_FILE for place in (folder, folder.parent))
    found = next((place for place in places if place.is_file()), None)
    if found is not None:
        check_scheduler(json_mapping(found.read_bytes(), str(found)), str(found))


def read_facts(folder: Path) -> PipelineFacts | None:
    """What a pipeline folder says; None where the folder is not one.

    Raises:
        WeightsError: a file does not parse, or the scheduler is of another kind.
    """
    scheduler, vae = read_json(folder / SCHEDULER_FILE), read_json(folder / "vae/config.json")
    if scheduler is None or vae is None:
        return None
    check_scheduler(scheduler, str(folder / SCHEDULER_FILE))
    scale = float(vae.get("scaling_factor", 1.15258426))
    inverted = bool(vae.get("invert_scale_latents", False))
    return PipelineFacts(
        scale_factor=scale,
        schedule=ScheduleConfig(shift_scale=float(scheduler.get("snr_shift_scale", 3.0))),
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
