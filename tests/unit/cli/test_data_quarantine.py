from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two starts on two ranks."""
    folder = tmp_path / "runs/r"
    (folder / "quarantine").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    for name, key, reason, step in (
        ("000001-r0000", "k1", "truncated", 3),
        ("000001-r0001", "k2", "not_a_video", 4),
        ("000002-r0000", "k2", "not_a_video", 9),
    ):
        value = {
            "source": "s3://clips/disney",
            "shard": "a.tar",
            "key": key,
            "reason": reason,
            "detail": "what it is",
            "step": step,
            "attempt": int(name[:6]),
        }
        (folder / f"quarantine/{name}.jsonl").write_text(json.dumps(value) + "\n")
    return folder


def test_the_merged_list_is_a_table_with_counts(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "quarantine", str(run)]) == 0

    out = capsys.readouterr().out
    assert "a.tar:k1" in out
    assert "1, 2" in out  # the starts that met k2
    assert "2 samples by source and reason" in out


def test_the_merged_list_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "quarantine", str(run), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 2
    assert found["reasons"] == {"not_a_video": 1, "truncated": 1}
    assert found["sources"][0] == {
        "source": "s3://clips/disney",
        "reason": "not_a_video",
        "samples": 1,
    }
    assert [one["key"] for one in found["quarantined"]] == ["k1", "k2"]
    assert found["quarantined"][1]["attempts"] == [1, 2]


def test_a_run_without_bad_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}")

    assert main(["data", "quarantine", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no sample is in quarantine\n"


def test_a_folder_that_is_no_run_is_66(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "quarantine", str(tmp_path)]) == 66
    assert "there is no run here" in capsys.readouterr().err
