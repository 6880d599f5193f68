"""`cogvx demo`: flags to a plan, failed checks to an exit code, what a terminal shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import app.rehearsal.demo
from app.cli.demo import Terminal
from app.cli.main import main
from app.rehearsal.demo import Audience, DemoPlan


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[DemoPlan]:
    """The plans of demos that were run; one of 20 steps fails."""
    made: list[DemoPlan] = []

    class Fake:
        def __init__(self, plan: DemoPlan, audience: Audience) -> None:
            made.append(plan)

        def run(self) -> list[str]:
            return [] if made[-1].steps > 20 else ["missing: a.mp4", "no complete.json"]

    monkeypatch.setattr(app.rehearsal.demo, "Demo", Fake)
    return made


def test_checks_that_hold_are_0(plans: list[DemoPlan], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == "all checks passed\n"
    assert (plans[0].out, plans[0].precision) == (
        Path("demo-output"),
        app.rehearsal.demo.fast_precision(os.environ),
    )


def test_flags_reach_the_plan_and_failed_checks_are_1(
    plans: list[DemoPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--out there --steps 20 --lora-steps 7 --precision fp32"

    assert main(["demo", *flags.split()]) == 1

    shown = capsys.readouterr()
    assert shown.out == "the demo failed\n"
    assert shown.err == "error: missing: a.mp4\nerror: no complete.json\n"
    plan = plans[0]
    assert (plan.out, plan.steps, plan.lora_steps) == (Path("there"), 20, 7)
    assert plan.precision == "fp32"


def test_a_terminal_numbers_the_steps_and_draws_progress(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = Terminal()

    terminal.step("making clips")
    terminal.detail("24 to train on")
    terminal.step("training")
    terminal.progress("full: loss 1.0", 15, 60)
    terminal.progress("nothing to do", 0, 0)

    assert capsys.readouterr().out.splitlines() == [
        "[1] making clips",
        "    24 to train on",
        "[2] training",
        f"    [{'#' * 7}{'.' * 23}] 15/60  full: loss 1.0",
        f"    [{'.' * 30}] 0/0  nothing to do",
    ]


def test_a_terminal_shows_tables(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().table("validation loss", ("run", "loss"), [("full", 0.5)])

    shown = capsys.readouterr().out
    assert "validation loss" in shown
    assert "full" in shown
