"""Write the weights of a run for other tools, from what its folder holds.

Works wherever the folder can be read: the network is described by the configuration that the run's
last attempt left there, trained weights come from a checkpoint, frozen ones from `load`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from app.checkpoint.attempts import read_attempts
from app.checkpoint.catalog import checkpoint_of_step, run_checkpoint
from app.checkpoint.layout import CheckpointRef, config_key, export_folder
from app.checkpoint.reader import Checkpoint, open_checkpoint
from app.config.schema.data import parse_bucket
from app.config.schema.model import DiTConfig
from app.config.sections.parse import parse_network
from app.conversion.export import export_diffusers, export_lora, export_safetensors
from app.conversion.loading import load_network_weights
from app.conversion.pipeline import image_scale_note, released_image_scale
from app.errors import ConfigError, DataError, InputMissingError
from app.models.dit.transformer import DiffusionTransformer
from app.registry import TARGETS
from app.run.build import DTYPES
from app.run.weights.description import describe_section
from app.storage.fetch import fetch
from app.storage.objects import Storage
from app.storage.opening import open_storage

log = logging.getLogger(__name__)

WHOLE_FILE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export.

    Attributes:
        kind: "auto" (LoRA if the run trained one, else safetensors), "lora", "safetensors" or
            "diffusers".
        step: of the checkpoint; None: the newest.
        weights: "master" or "ema".
        dtype: of the files: fp32, bf16 or fp16.
        fold_scale: multiply B of LoRA pairs by alpha / r and write alpha = r; None: where there
            are pairs.
    """

    kind: str = "auto"
    step: int | None = None
    weights: str = "master"
    dtype: str = "fp32"
    fold_scale: bool | None = None


def export_run(url: str, request: ExportRequest, out: str | None, cache_dir: Path) -> list[str]:
    """Export a run into a folder or s3:// prefix; default: the run's own export/ folder.

    Returns:
        URLs of the files written.

    Raises:
        InputMissingError: no such run, or it has no complete checkpoint of that step.
        ConfigError: the run has no LoRA, or diffusers has no such network.
    """
    storage = open_storage(url)
    ref = _checkpoint_ref(storage, request.step)
    record = _run_record(storage, ref)
    config = _network_config(record, storage.url)
    if request.kind == "auto":
        request = replace(request, kind="safetensors" if config.lora is None else "lora")
    for note in _notes(record, config, storage.url) if request.kind != "safetensors" else ():
        log.warning(note)
    tensors = _weights(storage, ref, request, record, cache_dir)
    with tempfile.TemporaryDirectory() as folder:
        files = write_export(Path(folder), tensors, config, request)
        target = storage if out is None else open_storage(out)
        prefix = export_folder(ref.step) if out is None else ""
        written = []
        for file in files:
            key = prefix + file.relative_to(folder).as_posix()
            target.upload(file, key)
            written.append(f"{target.url}/{key}")
    log.info("exported", extra={"checkpoint": ref.name, "files": written})
    return written


def run_weights(url: str, request: ExportRequest, cache_dir: Path) -> dict[str, Tensor]:
    """Every tensor of a run's network, by our names; `request` chooses the checkpoint and the kind.

    Raises:
        InputMissingError: no such run, or it has no complete checkpoint of that step.
    """
    storage = open_storage(url)
    ref = _checkpoint_ref(storage, request.step)
    return _weights(storage, ref, request, _run_record(storage, ref), cache_dir)


def run_step(url: str, step: int | None) -> int:
    """The step of the checkpoint at `step`, or of the newest for None.

    Raises:
        InputMissingError: there is none.
    """
    return _checkpoint_ref(open_storage(url), step).step


def run_model_section(url: str) -> dict[str, object]:
    """The `model` section that a run's last attempt had, merged, as plain values.

    Raises:
        InputMissingError: there is no run.
    """
    return dict(_run_record(open_storage(url))["model"])


def _weights(
    storage: Storage,
    ref: CheckpointRef,
    request: ExportRequest,
    record: dict[str, dict[str, object]],
    cache_dir: Path,
) -> dict[str, Tensor]:
    with open_checkpoint(storage, ref) as checkpoint:
        tensors = read_weights(checkpoint, request.weights)
    if request.kind == "lora":  # the pairs are trained: no need to fetch what was frozen
        return tensors
    config = _network_config(record, storage.url)
    return _complete(tensors, config, _text(record["args"].get("load")), cache_dir)


def read_weights(checkpoint: Checkpoint, kind: str) -> dict[str, Tensor]:
    """Whole fp32 tensors of every trained parameter, by our names.

    Raises:
        ConfigError: the run kept no averaged weights.
    """
    tensors: dict[str, Tensor] = {}
    for name, record in checkpoint.manifest.parameters.items():
        if kind not in record.kinds:
            raise ConfigError(
                f"the checkpoint holds no '{kind}' weights",
                where=f"checkpoint {checkpoint.ref.name}",
                fix="export --weights master",
            )
        tensors[name] = checkpoint.read_whole(name, kind)
    return tensors


def write_export(
    folder: Path, tensors: dict[str, Tensor], config: DiTConfig, request: ExportRequest
) -> list[Path]:
    """Write the files of one export into a local folder."""
    dtype = DTYPES[request.dtype]
    if request.kind == "lora":
        fold_scale = request.fold_scale is not False
        return export_lora(folder, tensors, config, dtype, fold_scale=fold_scale)
    if request.fold_scale is not None:
        raise ConfigError(
            "--fold-scale changes LoRA pairs, and this export does not write any",
            where=f"--kind {request.kind}",
            fix="leave --fold-scale and --no-fold-scale out, or ask for --kind lora",
        )
    if request.kind == "diffusers":
        return export_diffusers(folder, tensors, config, dtype)
    return [export_safetensors(folder / WHOLE_FILE, tensors, config, dtype)]


def _complete(
    trained: dict[str, Tensor], config: DiTConfig, load: str | None, cache_dir: Path
) -> dict[str, Tensor]:
    """The trained tensors, with those that were frozen."""
    with torch.device("meta"):
        wanted = {name for name, _ in DiffusionTransformer(config).named_parameters()}
    frozen = wanted - set(trained)
    if not frozen:
        return trained
    network = DiffusionTransformer(config)
    if load is not None:
        load_network_weights(network, fetch(load, cache_dir))
    elif frozen - set(network.computed_parameters()):
        raise InputMissingError(
            "the run froze weights, which no checkpoint holds, and has no `load` to read them from",
            where=f"first of them: {min(frozen)}",
            fix="export the LoRA alone (--kind lora)",
        )
    return {
        name: trained.get(name, parameter.detach().float())
        for name, parameter in network.named_parameters()
    }


def _checkpoint_ref(storage: Storage, step: int | None) -> CheckpointRef:
    ref = run_checkpoint(storage) if step is None else checkpoint_of_step(storage, step)
    if ref is None:
        raise InputMissingError(
            "no complete checkpoint" + ("" if step is None else f" of step {step}"),
            where=storage.url,
            fix="check the URL of the run: <save>/<run id>; list it with cogvx storage ls",
        )
    return ref


def _run_record(storage: Storage, ref: CheckpointRef | None = None) -> dict[str, dict[str, object]]:
    """The configuration of the attempt that wrote a checkpoint, or of the last one."""
    attempts = read_attempts(storage)
    if not attempts:
        raise InputMissingError(
            "there is no run here",
            where=storage.url,
            fix="give the folder of a run: <save>/<run id>",
        )
    wrote = [one for one in attempts if ref is not None and one.number == ref.attempt]
    last = (wrote or attempts)[-1]
    key = config_key(last.number, last.owner)
    try:
        return dict(yaml.safe_load(storage.read_small(key)))
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise DataError(
            "the configuration of the run is damaged",
            where=f"{storage.url}/{key}",
            fix="put the file back; a start of the run writes another",
        ) from error


def _notes(record: dict[str, dict[str, object]], config: DiTConfig, where: str) -> Iterator[str]:
    """Where diffusers, with the released pipeline around what is exported, differs from the run."""
    facts = describe_section(record["model"], f"{where}: model").facts
    if facts is not None:
        fed = released_image_scale(config, facts.scale_factor)
        note = image_scale_note(config, facts, fed)
        if note is not None:
            yield note
    fits_size = record.get("compat", {}).get("rotary_positions") == "diffusers"
    position = replace(config.position, fits_size=fits_size and config.can_fit_size)
    note = replace(config, position=position).in_diffusers(_clip_sizes(record.get("data", {})))
    if note is not None:
        yield note


def _clip_sizes(section: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Rows and columns of a run's clips, in pixels, from its merged `data` section."""
    if section.get("buckets"):
        buckets = [parse_bucket(bucket) for bucket in section["buckets"]]
        return [(bucket.rows, bucket.columns) for bucket in buckets]
    params = section.get("params") or {}
    size = params.get("video_size") or params.get("image_size")
    return [(int(size[0]), int(size[1]))] if size else []


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _network_config(record: dict[str, dict[str, object]], where: str) -> DiTConfig:
    node = record["model"]["network_config"]
    return parse_network(node, f"{where}: model.network_config", TARGETS).params
