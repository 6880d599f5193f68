"""The JSON schema of the YAML files: it is current, and refuses what the readers refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from omegaconf import OmegaConf

from app.config.editor_schema import editor_schema
from app.errors import CogvxError
from app.registry import TARGETS
from tests.support.configs import CONFIGS, ROOT, TINY, load

FILES = sorted(CONFIGS.rglob("*.yaml"))
COPIES = ("deploy/helm/files/configs", "deploy/kustomize/base/config")
VALIDATOR = jsonschema.Draft7Validator(json.loads((CONFIGS / "schema.json").read_text()))
NETWORK = "model.network_config.params"
SAMPLER = "model.sampler_config.params"


def tiny(override: str = "") -> Any:
    """The sections of the demo's files, with one `key=value`."""
    files = [OmegaConf.load(path) for path in TINY[1:]]
    merged = OmegaConf.merge(*files, OmegaConf.from_dotlist([override] if override else []))
    return OmegaConf.to_container(merged)


def test_the_file_is_current() -> None:
    written = json.loads((CONFIGS / "schema.json").read_text())

    derived = json.loads(json.dumps(editor_schema(CONFIGS, TARGETS)))

    assert written == derived, "run: make docs"


def test_the_schema_is_a_valid_one() -> None:
    jsonschema.Draft7Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_stock_files_name_the_schema_and_are_valid(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    named = path.parent / first.removeprefix("# yaml-language-server: $schema=")

    found = OmegaConf.to_container(OmegaConf.load(path))

    assert named.resolve() == CONFIGS / "schema.json"
    assert [error.message for error in VALIDATOR.iter_errors(found)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_stock_files_are_valid_as_yaml_1_1_reads_them(path: Path) -> None:
    assert VALIDATOR.is_valid(yaml.safe_load(path.read_text()))  # 1e-8 is text there


@pytest.mark.parametrize("folder", COPIES)
def test_the_schema_beside_the_copies_points_at_the_one(folder: str) -> None:
    pointer = json.loads((ROOT / folder / "schema.json").read_text())

    assert (ROOT / folder / pointer["$ref"]).resolve() == CONFIGS / "schema.json"


@pytest.mark.parametrize(
    "override",
    [
        "arg.lr=1",
        "args.train_iter=10",
        "args.train_iters=many",
        "args.batch_size=0",
        "args.mode=sleep",
        "args.bf16=perhaps",
        "args.run_id=[a]",
        "args.base=[a.yaml]",  # a flag only
        "model.scale_facto=1",
        "model.scale_factor=0",
        "model.lora_train=2",
        "model.noised_image_dropout=1.5",
        f"{NETWORK}.hidden=64",
        f"{NETWORK}.num_layers=2.5",
        f"{NETWORK}.patch_size=[1,2]",
        f"{NETWORK}.input_time=seconds",
        f"{NETWORK}.transformer_args.use_bias=false",
        f"{NETWORK}.modules.pos_embed=1",
        "model.first_stage_config.params.parking=attic",
        f"{SAMPLER}.num_steps=1",
        f"{SAMPLER}.guider_config.params.scal=6",
        "data.params.max_num_frame=9",
        "data.params.fps=0",
        "data.params.image_size=[32,48,3]",
        "data.params.image_size=32",
        "data.order.lanes=0",
        "data.quarantine.max_share=2",
        "data.missing_captions=ignore",
        "deepspeed.gradient_cliping=1",
        "deepspeed.gradient_clipping=-1",
        "deepspeed.zero_optimization.stage=4",
        "deepspeed.zero_optimization=2",
        "deepspeed.optimizer.params.betas=[0.9]",
        "deepspeed.optimizer.params.lr=fast",
        "deepspeed.train_micro_batch_size_per_gpu=auto",
        "deepspeed.bf16.enable=true",
    ],
)
def test_mistakes_are_refused_by_the_schema_and_by_the_readers(override: str) -> None:
    assert VALIDATOR.is_valid(tiny())
    assert not VALIDATOR.is_valid(tiny(override))
    with pytest.raises(CogvxError):
        load(*TINY, override)


@pytest.mark.parametrize(
    "override",
    [
        "args.train-iters=10",
        "args.train_iters='10'",
        "args.train_iters=10.",
        "args.train_iters=null",
        "args.train_data=one",
        "args.bf16=yes",
        "args.bf16='OFF'",
        "args.lr='1e-5'",
        "args.lr=${model.scale_factor}",
        "args.experiment_name=2024",
        "model.log_keys=txt",
        f"{NETWORK}.patch_size=2",
        f"{NETWORK}.patch_size=[2,2,2]",
        "data.target=my_data.Clips",
        "data.cache_dir=none",
        "deepspeed.optimizer=null",
        "deepspeed.zero_optimization.stage='2'",
        "deepspeed.optimizer.params.ema_decay=none",
    ],
)
def test_what_the_readers_accept_is_accepted(override: str) -> None:
    assert VALIDATOR.is_valid(tiny(override))


def test_params_of_a_class_of_ones_own_are_free() -> None:
    own = copy.deepcopy(tiny("data.target=my_data.Clips"))
    own["data"]["params"] = {"fps": "fast", "shards": 3}

    assert VALIDATOR.is_valid(own)
    assert not VALIDATOR.is_valid({"data": {"params": own["data"]["params"]}})
