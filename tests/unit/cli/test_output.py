"""What is printed where."""

from __future__ import annotations

import json

import pytest

from app.cli import output
from app.errors import ConfigError, ConfigErrors


def test_answers_go_to_standard_output_and_words_for_people_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.line("answer")
    output.as_json({"ä": [1, None]})
    output.note("by the way")

    shown = capsys.readouterr()
    answer, rest = shown.out.split("\n", 1)
    assert answer == "answer"
    assert json.loads(rest) == {"ä": [1, None]}
    assert shown.err == "by the way\n"


def test_every_mistake_of_a_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = [ConfigError(f"mistake {n}", where="here", fix="so") for n in (1, 2)]

    output.error(ConfigErrors(mistakes))

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: mistake 1\n  where: here\n  fix:   so\n")
    assert "mistake 2\n  where: here\n  fix:   so\n" in shown.err


def test_a_table_off_the_terminal_holds_long_cells_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "/a/" + "long/" * 20 + "file.mp4"

    output.table("what lies where", ("what", "where"), [("[a video]", path), ("count", 3)])

    shown = capsys.readouterr().out
    assert shown.startswith("what lies where ")
    assert path in shown
    assert "[a video]" in shown  # no markup
    assert "\x1b" not in shown


def test_facts_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    output.facts("versions", {"torch": "2", "cogvx-train": 1})

    assert capsys.readouterr().out == "versions\n  torch        2\n  cogvx-train  1\n"


def test_a_redrawn_line_replaces_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    output.redraw("step 1")

    assert capsys.readouterr().err == "\r\x1b[2Kstep 1"


def test_progress_off_the_terminal_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("packing", 2) as bar:
        bar.advance(bar.task_ids[0])

    assert capsys.readouterr().out == ""
