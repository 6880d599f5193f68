"""Configurations for tests: our files by name, small YAML layers, loading."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config.load import load_config
from app.config.runnable import trainable_run
from app.config.schema.run import RunConfig, TrainableRun
from app.errors import ConfigErrors
from app.registry import TARGETS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TRAINING_MODELS = (
    "cogvideox_2b",
    "cogvideox_2b_lora",
    "cogvideox_5b",
    "cogvideox_5b_lora",
    "cogvideox_5b_i2v",
    "cogvideox_5b_i2v_lora",
    "cogvideox1.5_5b",
    "cogvideox1.5_5b_i2v",
)
OUR_MODELS = ("cogvideox1.5_5b_lora", "cogvideox1.5_5b_i2v_lora")


def path_of(name: str) -> str:
    """Path of one of our files: `sft`, `tiny/tiny`."""
    return str(CONFIGS / f"{name}.yaml")


def base(*names: str) -> list[str]:
    """`--base` with files of ours, or with paths."""
    return ["--base", *(name if name.endswith(".yaml") else path_of(name) for name in names)]


TINY = base("tiny/tiny", "tiny/tiny_train")


def load(*argv: str) -> RunConfig:
    """The configuration of a command line."""
    return load_config(list(argv), TARGETS)


def load_trainable(*argv: str) -> TrainableRun:
    """The configuration of a command line that training can start with."""
    return trainable_run(load(*argv))


def mistakes(*argv: str) -> list[str]:
    """The texts of all mistakes that a command line gives."""
    with pytest.raises(ConfigErrors) as caught:
        load(*argv)
    return [str(error) for error in caught.value.errors]


def layer(folder: Path, sections: dict[str, Any] | str, name: str = "layer.yaml") -> str:
    """Write one more layer; its path."""
    path = folder / name
    path.write_text(sections if isinstance(sections, str) else yaml.safe_dump(sections))
    return str(path)


def section(name: str, key: str) -> dict[str, Any]:
    """A section of one of our files as plain containers, to change in a test."""
    found = yaml.safe_load(Path(path_of(name)).read_text())[key]
    return copy.deepcopy(found)
