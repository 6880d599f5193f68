"""`cogvx convert`: flags to a request, the report to lines or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import app.run.weights.convert
from app.cli.main import main
from app.conversion.export import SatForm
from app.run.weights.convert import ConvertReport, ConvertRequest
from app.run.weights.source import SourceRequest

Asked = tuple[str, str, ConvertRequest]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    calls: list[Asked] = []

    def convert(
        source: str, target: str, request: ConvertRequest, cache: Path, tell: Callable[[str], None]
    ) -> ConvertReport:
        assert cache.is_dir()
        calls.append((source, target, request))
        return ConvertReport({"depth": 2, "width": None}, ["out/model.safetensors"], {}, ["note"])

    monkeypatch.setattr(app.run.weights.convert, "convert_weights", convert)
    return calls


def test_what_is_known_of_the_source_and_the_files_are_printed(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "src", "dst", "--to", "diffusers"]) == 0

    shown = capsys.readouterr()
    assert shown.out == "source\n  depth  2\nout/model.safetensors\n"
    assert shown.err == "note\n"
    ((source, target, request),) = asked
    assert (source, target) == ("src", "dst")
    assert (request.to, request.part, request.dtype) == ("diffusers", "transformer", None)
    assert request.max_shard_bytes == 5 * 2**30


def test_every_flag_reaches_the_request(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--to sat --part pipeline --dtype bf16 --base a.yaml b.yaml --lora-alpha 4 --vae v --t5 t "
        "--step 7 --weights ema --layout v1 --shards 2 --max-shard-gib 0.5 --fold-scale "
        "--scheduler ddim --overwrite --verify --json"
    )

    assert main(["convert", "src", "dst", *flags.split()]) == 0

    assert json.loads(capsys.readouterr().out)["files"] == ["out/model.safetensors"]
    assert asked[0][2] == ConvertRequest(
        to="sat",
        part="pipeline",
        form=SatForm(layout="v1", shards=2),
        dtype="bf16",
        max_shard_bytes=2**29,
        fold_scale=True,
        scheduler="ddim",
        verify=True,
        overwrite=True,
        source=SourceRequest(
            base=("a.yaml", "b.yaml"), alpha=4.0, step=7, weights="ema", vae="v", t5="t"
        ),
    )


@pytest.mark.parametrize(
    "flag",
    [
        ["--shards", "0"],
        *(["--max-shard-gib", size] for size in ("0", "nan", "inf", "1e308", "1" + "0" * 400)),
    ],
)
def test_sizes_must_be_above_zero_and_finite(flag: list[str], asked: list[Asked]) -> None:
    assert main(["convert", "src", "dst", "--to", "sat", *flag]) == 2
    assert asked == []
