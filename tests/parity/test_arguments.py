"""Recorded command lines (item 12): our Namespace holds what upstream's held, under compat sat."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config.argument import Disposition
from app.config.arguments.table import ARGUMENTS
from app.errors import CogvxError, ConfigErrors
from app.run.arguments import get_args, leave_distributed
from tests.parity.golden import Case, cases, name_of

ITEMS = ("12",)
ROOT = Path(__file__).resolve().parents[2]
DIFFERENCES = ROOT / "docs" / "upstream_differences.md"
# They depend on the machine and on the launcher, not on the command line.
OF_THE_MACHINE = ("device", "cuda", "rank", "world_size", "local_rank", "master_ip", "master_port")
# A part of the recorded error -> id of the difference that fixes it.
MENDED = {
    "deepspeed_zero": "C8",
    "No such file": "C8",
    "FileNotFoundError": "C8",
    "NoneType": "C8",
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One process, from the root of the repository, leaving nothing behind."""
    monkeypatch.chdir(ROOT)
    before = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield
    leave_distributed()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_namespace_holds_every_recorded_value(case: Case) -> None:
    for name, row in case.json["rows"].items():
        argv = [*row["argv"], "--compat", "sat"]
        if "args" not in row:
            _check_recorded_error(name, argv, str(row.get("error", row)))
            continue
        try:
            args = get_args(argv)
        except ConfigErrors as refusal:
            _check_refusal(name, argv, refusal)
            continue
        differences = _differences(row["args"], vars(args))
        assert not differences, f"{name}: {differences}"


def _differences(recorded: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    return {
        key: (value, ours.get(key, "missing"))
        for key, value in recorded.items()
        if key not in OF_THE_MACHINE
        and (
            ours.get(key, "missing") != value
            or type(ours[key]) is not type(_plain(value, ours[key]))
        )
    }


def _plain(recorded: Any, ours: Any) -> Any:
    """The recorded value as the type that ours may have: a section is a dict with attributes."""
    return ours if isinstance(recorded, dict) and isinstance(ours, dict) else recorded


def _check_recorded_error(name: str, argv: list[str], recorded: str) -> None:
    """Upstream failed here: we give a valid result, or one clear message."""
    fixed = next((identity for part, identity in MENDED.items() if part in recorded), None)
    refusal: CogvxError | None = None
    args = None
    try:
        args = get_args(argv)
    except CogvxError as error:
        refusal = error
    if refusal is not None:
        assert fixed is None, f"{name}: {fixed} says that this works, but: {refusal}"
        assert refusal.exit_code in (2, 78)
        assert refusal.fix
        return
    assert isinstance(args, argparse.Namespace)
    assert set(ARGUMENTS) <= set(vars(args))
    if fixed is not None:
        assert f"| {fixed} |" in DIFFERENCES.read_text()


def _check_refusal(name: str, argv: list[str], refusal: ConfigErrors) -> None:
    """An argument whose part is not built may be refused where upstream took it, by its name."""
    later = {
        argument.name
        for argument in ARGUMENTS.values()
        if argument.disposition is Disposition.LATER
        and (argument.flag in argv or f"--{argument.name}" in argv)
    }
    for error in refusal.errors:
        named = [argument for argument in later if f"'{argument}'" in error.what]
        assert named, f"{name}: {error}"


def test_flags_win_over_files_without_compat(monkeypatch: pytest.MonkeyPatch) -> None:
    base = ["--base", "configs/cogvideox_5b_lora.yaml", "configs/sft.yaml"]

    args = get_args([*base, "--train-iters", "5", "--lr", "0.5", "--batch-size", "9"])

    assert (args.train_iters, args.lr, args.batch_size) == (5, 0.5, 9)
    assert args.deepspeed_config["optimizer"]["params"]["lr"] == 0.5
    assert args.deepspeed_config["train_micro_batch_size_per_gpu"] == 9
