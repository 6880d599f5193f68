from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.conversion.export import SatForm, export_sat
from app.errors import ConfigError, InputMissingError, UsageError
from app.models.dit.transformer import DiffusionTransformer
from app.run.weights.convert import ConvertRequest, convert_weights
from app.run.weights.description import describe_files
from app.run.weights.source import SourceRequest
from tests.support.configs import CONFIGS

TINY = str(CONFIGS / "tiny/tiny.yaml")
ODE = "sgm.modules.diffusionmodules.sampling.VPODEDPMPP2MSampler"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    config = describe_files([TINY]).network
    assert config is not None
    torch.manual_seed(0)
    export_sat(tmp_path / "sat", DiffusionTransformer(config).state_dict(), config)
    return tmp_path / "sat"


def source_with(sampler: str) -> SourceRequest:
    return SourceRequest(base=(TINY,), overrides=(f"model.sampler_config.target={sampler}",))


def test_a_pipeline_of_a_sampler_that_diffusers_lacks_is_refused_before_weights_are_read(
    weights: Path, tmp_path: Path
) -> None:
    request = ConvertRequest(to="diffusers", part="pipeline", source=source_with(ODE))
    steps: list[str] = []

    with pytest.raises(ConfigError, match=ODE) as caught:
        convert_weights(str(weights), str(tmp_path / "out"), request, tmp_path, steps.append)

    assert "--scheduler" in caught.value.fix
    assert steps == [f"reading {weights}"]
    assert not (tmp_path / "out").exists()


def test_a_chosen_scheduler_takes_its_place(weights: Path, tmp_path: Path) -> None:
    source = source_with(ODE)
    request = ConvertRequest(to="diffusers", part="pipeline", scheduler="dpm", source=source)

    # The next thing that is missing: these weights have no VAE.
    with pytest.raises(InputMissingError):
        convert_weights(str(weights), str(tmp_path / "out"), request, tmp_path, lambda _: None)


def test_a_transformer_alone_needs_no_scheduler(weights: Path, tmp_path: Path) -> None:
    request = ConvertRequest(to="diffusers", source=source_with(ODE))

    report = convert_weights(str(weights), str(tmp_path / "out"), request, tmp_path, lambda _: None)

    assert [Path(url).name for url in report.files] == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": "lora", "part": "vae"},
        {"to": "diffusers", "form": SatForm(shards=2)},
        {"to": "diffusers", "fold_scale": True},
    ],
)
def test_flags_that_do_not_go_together_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ConvertRequest(**wrong)  # type: ignore[arg-type]
