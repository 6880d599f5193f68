"""`cogvx export`: flags to a request, files to lines or JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import app.run.weights.export
from app.cli.main import main
from app.run.weights.export import ExportRequest

FILES = ["s3://runs/a/export/step-0000000004/model.safetensors"]
Asked = tuple[str, ExportRequest, str | None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    calls: list[Asked] = []

    def export_run(url: str, request: ExportRequest, out: str | None, cache: Path) -> list[str]:
        assert cache.is_dir()
        calls.append((url, request, out))
        return FILES

    monkeypatch.setattr(app.run.weights.export, "export_run", export_run)
    return calls


def test_files_are_printed_one_a_line(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "s3://runs/a"]) == 0
    assert capsys.readouterr().out == f"{FILES[0]}\n"
    assert asked == [("s3://runs/a", ExportRequest("auto", None, "master", "fp32"), None)]


def test_every_flag_reaches_the_request(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--kind diffusers --step 4 --weights ema --dtype bf16 --out there --fold-scale --json"

    assert main(["export", "s3://runs/a", *flags.split()]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": FILES}
    assert asked == [("s3://runs/a", ExportRequest("diffusers", 4, "ema", "bf16", True), "there")]


@pytest.mark.parametrize("flag", [["--kind", "onnx"], ["--dtype", "int8"], ["--step", "last"]])
def test_other_values_are_a_wrong_use(flag: list[str], asked: list[Asked]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "s3://runs/a", *flag])

    assert ended.value.code == 2
    assert asked == []


def test_a_folder_without_a_run_is_66(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path)]) == 66
    assert "cogvx storage ls" in capsys.readouterr().err
