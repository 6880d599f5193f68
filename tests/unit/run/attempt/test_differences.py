"""Which keys of two configurations differ."""

from __future__ import annotations

from app.run.attempt.differences import LONGEST_VALUE, MISSING, Difference, differences, shown

OLD = {"a": {"x": 1, "y": [1, 2]}, "b": None, "list": [{"dir": "t5"}], "gone": 1}
NEW = {"a": {"x": 2, "y": [1, 2]}, "b": {"rank": 4}, "list": [{"dir": "other"}], "fresh": 2}


def test_every_key_that_differs_is_found_by_its_dotted_name() -> None:
    assert list(differences(OLD, NEW)) == [
        Difference("a.x", 1, 2),
        Difference("b", None, {"rank": 4}),
        Difference("fresh", MISSING, 2),
        Difference("gone", 1, MISSING),
        Difference("list.0.dir", "t5", "other"),
    ]


def test_keys_of_one_side_only_can_be_left_out() -> None:
    found = [one.key for one in differences(OLD, NEW, only_common=True)]

    assert found == ["a.x", "b", "list.0.dir"]


def test_equal_values_have_no_differences() -> None:
    assert list(differences(OLD, {**OLD})) == []


def test_a_long_value_is_cut_in_a_message() -> None:
    assert shown([1, 2]) == "[1, 2]"
    assert len(shown("x" * 1000)) == LONGEST_VALUE + 3
