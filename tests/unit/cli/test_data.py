"""`cogvx data pack` and `index`: flags to rules, the report to a line or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import app.data.pack
from app.cli.main import main
from app.data.pack import PackReport, PackRules
from tests.support.shards import samples, write_shard

Asked = tuple[str, str, PackRules]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    calls: list[Asked] = []

    def pack(
        folder: str, out: str, rules: PackRules, progress: Callable[[int, int], None]
    ) -> PackReport:
        calls.append((folder, out, rules))
        progress(1, 2)
        return PackReport("s3://b/x", 2, 9, 3 * 2**20, "s3://b/x/dataset.manifest.json")

    monkeypatch.setattr(app.data.pack, "pack", pack)
    return calls


def test_the_report_is_a_line(asked: list[Asked], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", "clips", "--out", "s3://b/x"]) == 0

    assert capsys.readouterr().out == (
        "9 clips in 2 shards, 3.0 MiB: s3://b/x/dataset.manifest.json\n"
    )
    assert asked == [("clips", "s3://b/x", PackRules())]


def test_every_flag_reaches_the_rules(
    asked: list[Asked], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--shard-mib 0.5 --name pets --missing-captions empty --overwrite --json "
    flags += "--max-left-out 0.25"

    assert main(["data", "pack", "clips", "--out", "x", *flags.split()]) == 0

    assert json.loads(capsys.readouterr().out)["samples"] == 9
    rules = PackRules(
        name="pets",
        shard_bytes=2**19,
        missing_captions="empty",
        max_left_out=0.25,
        overwrite=True,
    )
    assert asked == [("clips", "x", rules)]


@pytest.mark.parametrize(
    "flags", [["--shard-mib", "0"], ["--missing-captions", "x"], ["--max-left-out", "2"], []]
)
def test_other_values_are_a_wrong_use(flags: list[str], asked: list[Asked]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "pack", "clips", *flags])

    assert ended.value.code == 2
    assert asked == []


def test_shards_are_indexed_and_the_next_call_reads_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "x-0.tar", samples(["a", "b"]))

    assert main(["data", "index", str(tmp_path)]) == 0
    assert main(["data", "index", str(tmp_path), "--json"]) == 0

    line, _, report = capsys.readouterr().out.partition("\n")
    assert line == (f"2 samples in 1 shards, 1 of them read now: {tmp_path}/dataset.manifest.json")
    assert json.loads(report) == {
        "manifests": [f"{tmp_path}/dataset.manifest.json"],
        "shards": 1,
        "samples": 2,
        "left_out": 0,
        "scanned": 0,
    }
