"""The quirks of the original's YAML files. No other file knows them.

Two sorts live here: keys that nothing reads (accepted, one warning each), and the places where
one meaning has two spellings. Ids in comments are those of docs/upstream_differences.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.config.kinds import Kind
from app.config.problems import Problems
from app.config.reader import Reader
from app.config.schema.data import DataConfig, ShardDataConfig, split_shares
from app.config.schema.model import PatchSize
from app.errors import ConfigError

CONSTRUCTION = "it only sized parts that upstream throws away after construction"
BOOKKEEPING = "nothing reads it"

# section -> key -> why it changes nothing
DEAD_MODEL = {
    "disable_first_stage_autocast": "the VAE never runs under autocast here",
    "augmentation_dropout": BOOKKEEPING,
    "use_pd": BOOKKEEPING,
    "network_wrapper": "the network needs no wrapper",
    "log_keys": "validation shows videos, not what they are conditioned on",
}
DEAD_NETWORK = {
    "adm_in_channels": "there is no class conditioning",
    "dtype": "the precision of the run decides",
    "parallel_output": BOOKKEEPING,
}
DEAD_TRANSFORMER = {
    "vocab_size": CONSTRUCTION,
    "max_sequence_length": CONSTRUCTION,
    "skip_init": "weights are always initialised, then loaded",
}
DEAD_LORA = {"cross_attention": "there is no cross attention"}
DEAD_CODER = {
    "resolution": BOOKKEEPING,
    "attn_resolutions": "this VAE has no attention",
    "pad_mode": BOOKKEEPING,
    "dropout": "the VAE is frozen: nothing is dropped",
    "gather_norm": "group norms always see the whole clip, whoever encodes it",
}
DEAD_FIRST_STAGE = {"loss_config": "the VAE is frozen and has no loss"}
DEAD_DENOISER = {"weighting_config": "the loss has its own weights"}
DEAD_LOSS = {
    "fixed_frames": BOOKKEEPING,
    "block_scale": BOOKKEEPING,
    "block_size": BOOKKEEPING,
}
DEAD_SAMPLER = {
    "device": "it samples where the network is",
    "verbose": "progress is shown on a terminal, always",
}
DEAD_GUIDANCE = {
    "exp": "only DynamicCFG reads it",
    "num_steps": "only DynamicCFG reads it",
    "step_units": "only DynamicCFG reads it",
}
DEAD_EMBEDDER = {"input_key": "captions are the `txt` of a sample"}
DEAD_EMBEDDER_PARAMS = {
    "device": "it runs where the network is",
    "freeze": "the text encoder is always frozen",
    "cache_dir": "give 'model_dir' as a folder or an s3:// prefix",
}
# Upstream wrote these one level too high; DeepSpeed reads them inside `fp16` only (C14).
LOSS_SCALE_KEYS = ("loss_scale", "loss_scale_window", "hysteresis", "min_loss_scale")

INTERPOLATIONS = ("height_interpolation", "width_interpolation", "time_interpolation")
SCHEMES = ("s3", "file", "http", "https")  # of data, read by app/data/shards/urls.py
PLACEHOLDER = re.compile(r"\{[^{}]*[A-Za-z][^{}]*\}")


def patch_size_kind() -> Kind:
    """`patch_size`: [frames, rows, columns], or an int p of the 1.0 files for (1, p, p) (C1)."""

    def convert(value: object) -> PatchSize:
        if isinstance(value, str | bool) or value is None:
            raise ValueError
        if isinstance(value, Sequence):
            sizes = [int(entry) for entry in value]
            if len(sizes) != 3 or list(value) != sizes:
                raise ValueError
        elif isinstance(value, int | float) and value == int(value):
            sizes = [1, int(value), int(value)]
        else:
            raise ValueError
        if min(sizes) < 1:
            raise ValueError
        return PatchSize(frames=sizes[0], rows=sizes[1], columns=sizes[2])

    noun = "an integer p, or [frames, rows, columns], each at least 1"
    limits = {"minimum": 1, "minItems": 3, "maxItems": 3}
    return Kind(noun, convert, ("integer", "array"), limits=limits)


def interpolation_nodes(network: Reader, position: Reader | None) -> dict[str, Any]:
    """Interpolation factors, given to the network or to its position part; the inner wins (C2)."""
    found: dict[str, Any] = {}
    for source in (network, position):
        for key in INTERPOLATIONS:
            if source is not None and source.has(key):
                found[key] = source.values[key]
    return found


def check_schedules(schedules: Mapping[str, Any], problems: Problems) -> None:
    """The noise schedule is written in three places of a file: they must say the same."""
    given = {path: schedule for path, schedule in schedules.items() if schedule is not None}
    if len(set(given.values())) <= 1:
        return
    fields = list(next(iter(given.values())).__slots__)
    for name in fields:
        values = {path: getattr(schedule, name) for path, schedule in given.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{path}.{name} = {value}" for path, value in values.items())
            problems.add(
                f"the noise schedules differ in '{name}': {shown}",
                where=f"{next(iter(values))}.{name}",
                fix="write the same value in all three places",
            )


def latents_of_pixels(latent_input: bool, data_gives_pixels: bool, problems: Problems) -> bool:
    """Whether batches hold latents: not when the dataset gives pixels, whatever it says (C3)."""
    if latent_input and data_gives_pixels:
        problems.warn(
            "'latent_input: true' with a dataset of videos: the VAE encodes them",
            where="model.latent_input",
        )
        return False
    return latent_input


def optimizer_kind(name: str, params: Mapping[str, object]) -> str | None:
    """Our optimizer for `deepspeed.optimizer.type`; None if there is none of that name.

    DeepSpeed's "Adam" decouples weight decay, as AdamW does, unless `adam_w_mode` is false.
    """
    word = name.lower()
    if word == "sat.ops.fusedemaadam":
        return "ema_adamw"
    if word == "adamw":
        return "adamw"
    if word in ("adam", "fusedadam"):
        return "adam" if params.get("adam_w_mode", True) is False else "adamw"
    return None


def placeholders(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Paths that still say `{your ...}`, as (dotted path, text).

    Braces with a comma or `..` are shard ranges, such as `{000..123}`, not placeholders.
    """
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from placeholders(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from placeholders(entry, f"{path}.{index}")
    elif isinstance(value, str):
        for match in PLACEHOLDER.finditer(value):
            if ".." not in match.group() and "," not in match.group():
                yield path, value
                break


def flag_value_as_upstream(name: str, texts: Any) -> tuple[bool, Any]:
    """The value that upstream's parser makes of a flag's text, where it is a strange one (C7).

    Returns:
        (True, value) for the arguments that upstream declares with `type=bool` or `type=list`:
        any text but the empty one is true, a text becomes the list of its characters.
        (False, None) for all others.
    """
    text = texts if isinstance(texts, str) else (texts[0] if len(texts) == 1 else None)
    if name in ("log_image", "only_save_latents", "only_log_video_latents"):
        return True, bool(text)
    if name == "sampling_image_size" and text is not None:
        return True, tuple(text)
    return False, None


def storage_urls(paths: Sequence[str] | None, where: str, problems: Problems) -> tuple[str, ...]:
    """Data paths with upstream's schemes as ours: `boto3://` is `s3://` (C15)."""
    found = []
    for path in paths or ():
        scheme, separator, rest = path.partition("://")
        if separator and scheme in ("boto3", "metaboto3"):
            found.append(f"s3://{rest}")
        elif path.startswith("pipe:") or (separator and scheme.lstrip(";") not in SCHEMES):
            problems.add(
                f"'{path}' cannot be read: {path.partition(':')[0]}: is not supported",
                where=where,
                fix="give a folder, a .tar path, an s3:// or an https:// address",
            )
        else:
            found.append(path)
    return tuple(found)


def rename_sizes(params: Reader, known: set[str]) -> None:
    """The two dataset classes name the same two sizes differently; either name is read (C16)."""
    for one, other in (("video_size", "image_size"), ("max_num_frames", "num_frames")):
        for given, meant in ((one, other), (other, one)):
            if meant in known and given in params.values and meant not in params.values:
                params.values[meant] = params.values.pop(given)
                params.problems.warn(f"'{given}' is read as '{meant}'", where=params.path(given))


def check_iterable(values: Mapping[str, Any], data: DataConfig, problems: Problems) -> None:
    """`iterable_dataset`, which the class of the dataset decides here (C9)."""
    if values["iterable_dataset"] == "custom":
        problems.add(
            "datasets that yield ready batches are not supported",
            where="args.iterable_dataset",
            fix="name a class with --register and leave iterable_dataset out",
        )
        return
    shards = isinstance(data.params, ShardDataConfig)
    if values["iterable_dataset"] and not shards and not isinstance(data.params, dict):
        problems.warn(
            f"'iterable_dataset' has no effect: {data.target} reads files, not shards",
            where="args.iterable_dataset",
        )


def check_split(values: Mapping[str, Any], problems: Problems) -> None:
    """`split`: shares of training, validation and test data; named data goes before its share.

    Upstream's parts overlap between ranks, ours never do (C10, app/data/sources/views.py).
    """
    try:
        given = {name: values.get(f"{name}_data") is not None for name in ("valid", "test")}
        split_shares(str(values["split"]), has_valid=given["valid"], has_test=given["test"])
    except ConfigError as error:
        problems.add(error.what, where=error.where, fix=error.fix)
