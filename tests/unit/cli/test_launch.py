"""`cogvx launch` as typed: both forms, its own flags, codes and messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from app.cli.main import main


def launch(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "app", "launch", *words],
        env={**kept, "PYTHONPATH": os.getcwd(), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_both_forms_start_the_command_with_its_flags(separator: list[str]) -> None:
    result = launch(*separator, "doctor", "--json")

    assert result.returncode == 0
    assert json.loads(result.stdout)["rank"]["mode"] == "single"


def test_its_own_flags_stand_before_the_command() -> None:
    result = launch("--wait-for-master-s", "1", "--grace-period-s", "60", "doctor", "--json")

    assert result.returncode == 0


def test_one_line_says_where_the_pod_stands() -> None:
    result = launch("doctor", "--json", RANK="0", WORLD_SIZE="1", MASTER_ADDR="m", MASTER_PORT="1")

    events = [json.loads(line) for line in result.stderr.splitlines()]
    placement = next(line for line in events if line["event"] == "placement")
    assert placement["rank"]["mode"] == "plain"
    assert placement["rank"]["sources"]["master_addr"] == "MASTER_ADDR"


def test_a_wrong_flag_of_the_command_is_2() -> None:
    assert launch("doctor", "--no-such-flag").returncode == 2


def test_an_unknown_command_is_2() -> None:
    assert launch("no-such-command").returncode == 2


def test_nothing_to_launch_is_a_usage_error() -> None:
    result = launch()

    assert result.returncode == 2
    assert "name a command" in result.stderr


def test_a_contradiction_is_78_with_three_lines() -> None:
    result = launch("train", RANK="2", WORLD_SIZE="2", MASTER_ADDR="m", MASTER_PORT="1")

    assert result.returncode == 78
    assert "error: RANK is 2 of WORLD_SIZE 2" in result.stderr
    assert "where:" in result.stderr
    assert "fix:" in result.stderr


def test_a_grace_period_that_is_no_number_is_refused() -> None:
    assert launch("doctor", COGVX_GRACE_PERIOD_S="soon").returncode == 2


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1" + "0" * 400])
def test_seconds_that_nobody_waits_are_a_wrong_use(seconds: str) -> None:
    for flag in ("--grace-period-s", "--wait-for-master-s"):
        with pytest.raises(SystemExit) as ended:
            main(["launch", f"{flag}={seconds}", "doctor"])
        assert ended.value.code == 2


def test_a_grace_period_of_the_environment_that_nobody_waits_is_one_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COGVX_GRACE_PERIOD_S", "inf")

    assert main(["launch", "doctor"]) == 2
    assert "COGVX_GRACE_PERIOD_S" in capsys.readouterr().err


def test_a_secret_in_the_command_is_masked_in_the_log() -> None:
    result = launch("doctor", "--data", "s3://hunter22/x", AWS_SECRET_ACCESS_KEY="hunter22")

    assert "***" in result.stderr
    assert "s3://hunter22" not in "".join(
        line for line in result.stderr.splitlines() if '"started"' in line
    )
