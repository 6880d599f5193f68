"""run.json: what makes a run this run: its model, and the weights that it does not train.

Whatever is in here is compared at every start. The data has a fingerprint of its own in the
cursor of every checkpoint; learning rate, length and the like may change from start to start.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from app import __version__
from app.checkpoint.json_file import canonical_json, check_format, parse_object, take
from app.checkpoint.layout import RUN
from app.config.schema.encoders import VAEConfig
from app.config.schema.model import ModelConfig
from app.config.schema.run import TrainableRun
from app.config.snapshot import masked
from app.errors import CogvxError, ConfigError
from app.run.attempt.differences import differences, shown
from app.run.attempt.fingerprint import fingerprint
from app.storage.objects import Storage, read_if_present

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
DAMAGED = "put the file back, or name what to go on with: --resume-from STEP, or --restart"
# They change how a step is computed, or what is sampled, not what is trained.
CHANGEABLE = (
    "network.checkpoint_activations",
    "network.checkpoint_num_layers",
    "network.checkpoint_skip_layers",
    "network.model_parallel_size",
    "first_stage.params.ckpt_path",  # in `weights`
    "first_stage.params.cp_size",
    "first_stage.params.memory",
    "conditioner.text.model_dir",  # in `weights`
    "sampler",
    "encode_batch",
    "compile_model",
)


def identity_of(config: TrainableRun) -> dict[str, Any]:
    """The content of run.json for a configuration."""
    model = config.model
    parts = _public(asdict(model))
    network = parts.pop("network")["params"]
    return {
        "format_version": FORMAT_VERSION,
        "run_id": config.run_id,
        "version": __version__,
        "network": _kept(network, "network"),
        "model": _kept(parts),
        "load": masked(config.training.load),
        "weights": {name: _weights(url) for name, url in _sources(config).items()},
    }


def stored_identity(storage: Storage) -> dict[str, Any] | None:
    """What run.json says; None without one.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    data = read_if_present(storage, RUN)
    if data is None:
        return None
    where = f"{storage.url}/{RUN}"
    value = parse_object(data, where, DAMAGED)
    check_format(value, FORMAT_VERSION, where, DAMAGED)
    for name in ("network", "model", "weights"):
        if name == "network" or name in value:  # runs of earlier versions have only that
            take(value, name, dict, where, DAMAGED)
    return value


def write_identity(storage: Storage, identity: Mapping[str, Any]) -> None:
    """Write run.json."""
    storage.write_small(RUN, canonical_json(identity))


def check_identity(
    stored: Mapping[str, Any], identity: Mapping[str, Any], config: TrainableRun, where: str
) -> None:
    """Refuse a configuration of another run.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    # A key that one of two versions of this program does not know cannot be compared.
    changed = [
        f"model.{one.key} = {shown(one.old)}, the configuration says {shown(one.new)}"
        for one in differences(_model_of(stored), _model_of(identity), only_common=True)
    ]
    changed += _changed_weights(stored, identity, config)
    if changed:
        raise ConfigError(
            f"the folder holds another run, which has {'; '.join(changed)}",
            where=where,
            fix="use another --run-id, or the configuration that the run began with; --restart "
            "begins this run again at step 0",
        )


def has_frozen_weights(model: ModelConfig) -> bool:
    """Whether a checkpoint lacks a part of the network, which `load` has to give."""
    frozen = set(model.not_trainable_prefixes) - {"first_stage_model", "conditioner"}
    return bool(frozen) or model.lora_train or model.network.params.lora is not None


def _model_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    return _kept({**identity.get("model", {}), "network": identity["network"]})


def _changed_weights(
    stored: Mapping[str, Any], identity: Mapping[str, Any], config: TrainableRun
) -> list[str]:
    old, new = stored.get("weights", {}), identity["weights"]
    if "load" not in old and "load" in stored:  # of an earlier version
        old = {**old, "load": {"url": stored["load"], "digest": None}}
    return [
        f"{name}: {_described(old[name])}, and not {_described(new[name])}"
        for name in sorted(old.keys() & new.keys())
        if _are_others(old[name], new[name])
        # A checkpoint has every weight of a network without frozen ones.
        and not (name == "load" and new[name]["url"] is None and not _needs_load(config))
    ]


def _needs_load(config: TrainableRun) -> bool:
    return has_frozen_weights(config.model)


def _are_others(old: Any, new: Mapping[str, Any]) -> bool:
    if not isinstance(old, Mapping):
        return True
    digests = (old.get("digest"), new["digest"])
    if None not in digests:
        return digests[0] != digests[1]
    return bool(old.get("url") != new["url"])


def _described(weights: Any) -> str:
    if not isinstance(weights, Mapping):
        return shown(weights)
    digest = weights.get("digest")
    return f"{weights.get('url')}" + (f" (content {str(digest)[:12]})" if digest else "")


def _sources(config: TrainableRun) -> dict[str, str | None]:
    first_stage, conditioner = config.model.first_stage.params, config.model.conditioner
    found: dict[str, str | None] = {"load": config.training.load}
    if isinstance(first_stage, VAEConfig):
        found["vae"] = first_stage.ckpt_path
    if conditioner.params is None:
        found["t5"] = conditioner.text.model_dir
    return found


def _weights(url: str | None) -> dict[str, str | None]:
    digest = None
    if url is not None:
        try:
            digest = fingerprint(url)
        except (CogvxError, OSError) as problem:
            # Whoever needs the weights says what is wrong; a full fine-tuning that goes on
            # does not need its first ones any more.
            log.debug("no digest of the weights", extra={"problem": str(problem)})
    address = masked(url)
    return {"url": None if address is None else str(address), "digest": digest}


def _public(value: Any) -> Any:
    """Plain values as JSON gives them back, without the names of our classes."""
    if isinstance(value, Mapping):
        kept = {k: _public(v) for k, v in value.items() if k != "implementation"}
        return json.loads(json.dumps(masked(kept), default=str))
    return value


def _kept(section: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    kept = {}
    for key, value in section.items():
        name = f"{path}.{key}" if path else key
        if not _is_changeable(name):
            kept[key] = _kept(value, name) if isinstance(value, Mapping) else value
    return kept


def _is_changeable(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in CHANGEABLE)
