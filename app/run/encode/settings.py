"""From a configuration to the settings of its latent cache, and to the command that makes it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from app.config.layers import OVERRIDE_ORIGIN
from app.config.schema.data import DataConfig, SFTDataConfig, ShardDataConfig
from app.config.schema.encoders import VAEConfig
from app.config.schema.model import ModelConfig
from app.config.schema.run import EncodableRun, RunConfig
from app.data.latent_cache import CacheSettings
from app.errors import ConfigError
from app.run.encode.digests import weights_sha256
from app.storage.objects import Storage

# Version of decoding, resizing and encoding: raised when a change of code changes the latents.
METHOD = 2
# Keys that nothing reads any more: part of the digest of caches, whose latents are the same.
UNREAD_OF_ENCODER = {"dropout": 0.0, "gather_norm": True}
FIRST_STAGE = "model.first_stage_config"
TEXT = "model.conditioner_config.params.emb_models.0"

# setting -> its place in a configuration
PLACES: dict[str, str] = {
    "method": "the version of cogvx",
    "vae_weights": f"{FIRST_STAGE}.params.ckpt_path",
    "vae": FIRST_STAGE,
    "text_weights": f"{TEXT}.params.model_dir",
    "text": TEXT,
    "max_length": f"{TEXT}.params.max_length",
    "dtype": "args.bf16 and args.fp16",
    "frame_rule": "args.frame_rule",
    "frames": "data.params: max_num_frames or num_frames",
    "rows": "data.params: video_size or image_size",
    "columns": "data.params: video_size or image_size",
    "fps": "data.params.fps",
    "skip_frms_num": "data.params.skip_frms_num",
    "dataset": "data.target and data.params",
    "buckets": "data.buckets",
    "first_frame": "model.noised_image_input",
}
WEIGHTS = ("vae_weights", "text_weights")  # settings that are None when the files are not there

# Arguments that change what is encoded; others are left out of the command.
ENCODING_ARGUMENTS = (
    "train_data",
    "valid_data",
    "bf16",
    "fp16",
    "frame_rule",
    "compat",
    "precedence",
    "section_precision",
    "flag_types",
)
ENCODING_SECTIONS = ("model.", "data.", "deepspeed.bf16", "deepspeed.fp16")
_PLAIN = re.compile(r"[\w./:-]+")


def cache_settings(config: EncodableRun, root: Storage, *, keeps: bool = False) -> CacheSettings:
    """Everything that an encoded clip depends on, but the clip.

    Args:
        config: as training has it.
        root: of the cache, where digests of weights may be known.
        keeps: write new digests there.

    Raises:
        ConfigError: clips of this configuration cannot be encoded once.
    """
    check_encoded_once(config)
    model, conditioner = config.model, config.model.conditioner
    values: dict[str, object] = {
        "method": METHOD,
        "vae_weights": weights_sha256(_vae_path(model), root, keeps=keeps),
        "vae": _vae(model),
        "text_weights": weights_sha256(conditioner.text.model_dir or None, root, keeps=keeps),
        "text": {"class": conditioner.implementation, "params": conditioner.params or {}},
        "max_length": conditioner.text.max_length,
        "dtype": config.training.precision,
        "frame_rule": config.compat.frame_rule,
        "first_frame": model.noised_image_input,
        **_clips(config.data),
    }
    return CacheSettings(json.loads(json.dumps(values)))


def check_encoded_once(config: EncodableRun) -> None:
    """Raise ConfigError where latents would depend on more than the clip."""
    data, model = config.data, config.model
    random = None
    if data.temporal_crop == "random":
        random = "data.temporal_crop: random"
    elif isinstance(data.params, ShardDataConfig) and config.compat.frame_rule == "sat":
        random = "frame_rule: sat of shards"
    if random is not None:
        raise ConfigError(
            f"{random} gives a clip other frames in every epoch: they cannot be encoded once",
            where="the latent cache of this configuration",
            fix="set data.temporal_crop: start and frame_rule: exact, or train without "
            "latent_cache",
        )
    if model.latent_input and isinstance(data.params, dict):
        raise ConfigError(
            "the dataset gives latents already (latent_input: true)",
            where="model.latent_input",
            fix="train without latent_cache",
        )
    if _vae_path(model) is None and isinstance(model.first_stage.params, VAEConfig):
        raise ConfigError(
            "the VAE has no weights: its latents change with every start",
            where=f"{FIRST_STAGE}.params.ckpt_path",
            fix="set the VAE's weights file",
        )


def encode_command(config: RunConfig, out: str) -> str:
    """The command line that makes a latent cache for this configuration."""
    words = ["cogvx", "encode", "--base", *_texts(config.arguments.get("base"))]
    for name, implementation in config.registered.items():
        words += ["--register", f"{name}={implementation}"]
    return shlex.join([*words, "--out", out, *sorted(set(_overrides(config)))])


def described(differences: Mapping[str, tuple[object, object]]) -> str:
    """Differences in words, from (value in the cache, value here) by name."""
    return "; ".join(
        f"{name} is {_short(cached)} in the cache and {_short(own)} here ({PLACES.get(name, name)})"
        for name, (cached, own) in differences.items()
    )


def _overrides(config: RunConfig) -> Iterator[str]:
    """Every override of the command line that changes the latents, as key=value."""
    for name in ENCODING_ARGUMENTS:
        origin = config.origins.get(f"args.{name}", "default")
        if origin.startswith((OVERRIDE_ORIGIN, "flag ")):
            yield f"args.{name}={_text(config.arguments[name])}"
    for path, origin in config.origins.items():
        if origin.startswith(OVERRIDE_ORIGIN) and path.startswith(ENCODING_SECTIONS):
            yield f"{path}={_text(_value_at(config.sections, path))}"


def _value_at(sections: Mapping[str, object], path: str) -> object:
    value: object = sections
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = value[int(part)]
    return value


def _text(value: object) -> str:
    """A value as an override takes it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _short(value: object) -> str:
    """A value in a message; digests by their first digits."""
    if value is None:
        return "nothing"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"sha256 {value[:12]}..."
    return value if isinstance(value, str) else json.dumps(value)


def _vae_path(model: ModelConfig) -> str | None:
    path = getattr(model.first_stage.params, "ckpt_path", None)
    return None if path is None else str(path)


def _vae(model: ModelConfig) -> dict[str, object]:
    """The class and the encoder's configuration, without the path of its weights."""
    params: object = model.first_stage.params
    found: dict[str, object] = {"class": model.first_stage.implementation, "encoder": params}
    if isinstance(params, VAEConfig):
        found["encoder"] = asdict(params.encoder) | UNREAD_OF_ENCODER
        # Chunks in time and ranks that share a clip change nothing; tiles change their seams.
        memory = getattr(params, "memory", None)
        tile = getattr(memory, "tile_size", None)
        if tile is not None:
            found["tiles"] = {"size": tile, "overlap": getattr(memory, "tile_overlap", None)}
    elif not isinstance(params, Mapping):
        found["encoder"] = repr(params)
    return found


def _clips(data: DataConfig) -> dict[str, object]:
    """Size and frame rate of the clips; the same for a folder and the shards made from it."""
    params = data.params
    if isinstance(params, dict):
        return {"dataset": {"target": data.target, "params": params}}
    if isinstance(params, SFTDataConfig):
        frames, (rows, columns) = params.max_num_frames, params.video_size
    else:
        frames, (rows, columns) = params.num_frames, params.image_size
    sizes: dict[str, object] = {"frames": frames, "rows": rows, "columns": columns}
    if data.buckets:  # a clip's bucket depends on the clip only
        sizes = {"buckets": [str(bucket) for bucket in data.buckets]}
    return {**sizes, "fps": params.fps, "skip_frms_num": params.skip_frms_num}
