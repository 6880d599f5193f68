"""Lines of text to prompts, and prompts to names of folders."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import DataError
from app.evaluation.prompts import MOST_BYTES, MOST_CHARACTERS, Prompt, folder_name, read_prompts
from app.storage.objects import check_key


def test_a_prompt_keeps_the_number_of_its_line_and_blank_lines_are_passed_over() -> None:
    found = read_prompts(["a cat\n", "\n", "  \n", "  a dog \r\n"], "p.txt", with_images=False)

    assert list(found) == [Prompt(0, "a cat"), Prompt(3, "a dog")]


def test_a_line_of_image_to_video_is_cut_at_its_last_mark() -> None:
    found = read_prompts(["me@@work @@ /tmp/a b.png\n"], "p.txt", with_images=True)

    assert list(found) == [Prompt(0, "me@@work", "/tmp/a b.png")]


def test_an_image_in_a_line_for_a_text_to_video_model_is_an_error() -> None:
    with pytest.raises(DataError, match="makes videos from text") as caught:
        list(read_prompts(["a cat", "a dog@@dog.png"], "p", with_images=False))

    assert caught.value.where == "p, line 2"


@pytest.mark.parametrize("line", ["a cat", "a cat@@", "a cat@@  "])
def test_a_line_without_an_image_is_named(line: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_prompts(["a@@b.png", line], "p.txt", with_images=True))

    assert caught.value.where == "p.txt, line 2"


def test_lines_are_asked_for_one_at_a_time() -> None:
    lines = iter(["first", "second"])

    assert next(read_prompts(lines, "typed", with_images=False)).text == "first"
    assert next(lines) == "second"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A red ball, rolling / left", "7_A_red_ball_rolling__left"),
        ("../../etc/passwd", "7_....etcpasswd"),
        ("一只猫 在 跑", "7_一只猫_在_跑"),
        ("???", "7"),
        ("dots...", "7_dots"),
    ],
)
def test_names_keep_letters_and_nothing_with_a_meaning_in_paths(text: str, name: str) -> None:
    assert folder_name(Prompt(7, text)) == name


def test_long_names_are_cut_by_characters_and_by_bytes() -> None:
    assert len(folder_name(Prompt(0, "a" * 300))) == MOST_CHARACTERS
    wide = folder_name(Prompt(0, "猫" * 300))
    assert len(wide.encode()) <= MOST_BYTES
    assert wide == "0_" + "猫" * 84


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1), st.integers(0, 10**6))
def test_any_prompt_gives_a_name_that_storage_takes(text: str, number: int) -> None:
    name = folder_name(Prompt(number, text))

    assert check_key(name, "here") == name
    assert "/" not in name
    assert len(name) <= MOST_CHARACTERS
    assert name.startswith(str(number))
