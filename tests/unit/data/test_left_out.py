from __future__ import annotations

from app.data.left_out import LeftOut, summary, why


def test_one_line_counts_and_names_by_reason() -> None:
    left_out = [
        *(LeftOut("", f"{n}.gif", "unsupported_suffix") for n in "abcde"),
        LeftOut("", "x\ty.mp4", "unusable_name"),
        LeftOut("s-0.tar", "k", "two_videos"),
    ]

    assert summary(left_out, videos=3) == (
        "7 of 10 videos are left out: unsupported_suffix 5 (a.gif, b.gif, c.gif and 2 more), "
        r"two_videos 1 (s-0.tar:k), unusable_name 1 ('x\ty.mp4')"
    )


def test_those_without_a_known_name_are_counted() -> None:
    line = summary([LeftOut("a.tar", "k", "no_video")], videos=5, unnamed=4)

    assert line == "5 of 10 videos are left out: no_video 1 (a.tar:k), and 4 more"


def test_a_reason_says_what_is_wrong_with_this_name() -> None:
    assert "backslash" in why(LeftOut("", "a\\b.mp4", "unusable_name"))
    assert "'2024.01.02.mp4' has 3 dots" in why(LeftOut("", "d.1/2024.01.02.mp4", "dots_in_name"))
    assert ".mkv" in why(LeftOut("", "a.gif", "unsupported_suffix"))
