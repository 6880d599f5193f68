"""`cogvx weights`: flags to a request, YAML to standard output, the rest to standard error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import app.run.weights.put
from app.cli.main import main
from app.run.weights.put import PutReport, PutRequest

PART = {"layout": "sat", "files": {"a": {"size_bytes": 3}, "b": {"size_bytes": 4}}, "entry": "vae"}
Asked = tuple[str, str, PutRequest]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    calls: list[Asked] = []

    def put(
        source: str, target: str, request: PutRequest, scratch: Path, tell: Callable[[str], None]
    ) -> PutReport:
        assert scratch.is_dir()
        calls.append((source, target, request))
        return PutReport(target, {"vae": PART}, ["a"], ["b"], "args:\n  load: x\n")

    monkeypatch.setattr(app.run.weights.put, "put_weights", put)
    return calls


def test_standard_output_is_the_yaml_alone(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "put", "src", "s3://b/w"]) == 0

    shown = capsys.readouterr()
    assert shown.out == "args:\n  load: x\n"
    assert "1 files uploaded, 1 existed" in shown.err
    assert "2 files  7 bytes  s3://b/w/vae" in shown.err
    assert asked == [("src", "s3://b/w", PutRequest())]


def test_every_flag_reaches_the_request(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--transformer n --vae v --t5 t --base a.yaml --no-verify --overwrite --json"

    assert main(["weights", "put", "src", "dst", *flags.split()]) == 0

    assert json.loads(capsys.readouterr().out)["uploaded"] == ["a"]
    given = {"transformer": "n", "vae": "v", "t5": "t"}
    expected = PutRequest(given=given, base=("a.yaml",), verify=False, overwrite=True)
    assert asked == [("src", "dst", expected)]


def test_a_check_counts_the_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        app.run.weights.put, "check_weights", lambda url, tell: {"url": url, "files": 3}
    )

    assert main(["weights", "check", "s3://b/w"]) == 0
    assert capsys.readouterr().out == "3 files match the manifest: s3://b/w\n"
