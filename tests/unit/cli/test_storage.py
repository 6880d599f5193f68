"""`cogvx storage ls`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import main
from app.cli.storage import size_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run/samples").mkdir(parents=True)
    (tmp_path / "run/samples/a.mp4").write_bytes(b"v" * 1536)
    (tmp_path / "run/run.json").write_bytes(b"{}")
    (tmp_path / "run/empty").mkdir()
    return tmp_path


def test_json_holds_every_object_with_its_size(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["storage", "ls", str(folder), "--json"])

    assert code == 0
    assert json.loads(capsys.readouterr().out) == [
        {"key": "run/run.json", "size_bytes": 2},
        {"key": "run/samples/a.mp4", "size_bytes": 1536},
    ]


def test_lines_are_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storage", "ls", str(folder / "run")]) == 0
    assert capsys.readouterr().out == "       2 B  run.json\n   1.5 KiB  samples/a.mp4\n"


def test_nothing_there_is_said_and_keeps_json_parseable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "nowhere")

    codes = [main(["storage", "ls", place]), main(["storage", "ls", place, "--json"])]

    shown = capsys.readouterr()
    assert codes == [0, 0]
    assert json.loads(shown.out) == []
    assert shown.err.count(f"no objects under {place}") == 2


def test_other_schemes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storage", "ls", "gs://bucket/x"]) == 78
    assert "the kind 'gs:' is not supported" in capsys.readouterr().err


def test_an_unknown_action_is_a_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["storage", "rm", "x"])

    assert ended.value.code == 2
    assert "invalid choice: 'rm'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text
