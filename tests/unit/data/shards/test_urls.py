from __future__ import annotations

import pytest

from app.data.shards.urls import ShardPattern, expand_braces, parse_shard_path
from app.errors import ConfigError


def test_braces_count_and_keep_zeros() -> None:
    assert expand_braces("x-{008..011}.tar") == [f"x-{n}.tar" for n in ("008", "009", "010", "011")]
    assert expand_braces("{2..0}") == ["2", "1", "0"]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert sorted(expand_braces("x{a,b{1..2}}")) == ["xa", "xb1", "xb2"]


@pytest.mark.parametrize(
    ("text", "names"),  # what bash 5.2 makes of them
    [
        ("{0..10..5}", "0 5 10"),
        ("{10..0..5}", "10 5 0"),
        ("{0..10..-5}", "0 5 10"),
        ("{0..11..5}", "0 5 10"),
        ("{001..010..4}", "001 005 009"),
        ("{0..2..0}", "0 1 2"),
        ("{c..a}", "c b a"),
        ("{a..g..3}", "a d g"),
        ("{a..c..0}", "a b c"),
    ],
)
def test_steps_and_letters_are_those_of_a_shell(text: str, names: str) -> None:
    assert expand_braces(text) == names.split()


def test_names_that_a_step_leaves_out_do_not_count() -> None:
    names = expand_braces("x-{0..9999999..1000}.tar")

    assert (len(names), names[0], names[-1]) == (10_000, "x-0.tar", "x-9999000.tar")


@pytest.mark.parametrize(
    "text", [f"{{0..{'9' * 5000}}}", f"{{0..9..{'9' * 5000}}}", "{" * 3000 + "}" * 3000]
)
def test_braces_that_cannot_be_read_are_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        expand_braces(text)


@pytest.mark.parametrize("text", ["{a", "a}", "x{1..2}}"])
def test_a_brace_without_partner_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="partner"):
        expand_braces(text)


@pytest.mark.parametrize(
    "text",
    [
        "{0..999999999}",
        "{0..999999999..0}",
        "{0..9999999999..1000}",
        "{0..999999999\n}",
        "{0..9}" * 5000,
        "{0..999}{0..999}{0,1}",
        "{a,x{b,{0..9999}{0..9999}}}",
    ],
)
def test_braces_for_more_than_a_million_names_are_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="more than"):
        expand_braces(text)


def test_alternatives_add_up_and_do_not_multiply() -> None:
    assert len(expand_braces("{x-{000..999},y-{000..999},z-{000..999}}.tar")) == 3000


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/d/a.tar", [ShardPattern("/d", "a.tar")]),
        ("a.tar", [ShardPattern(".", "a.tar")]),
        ("/d/", [ShardPattern("/d", "")]),
        ("s3://b/p", [ShardPattern("s3://b/p", "")]),
        ("s3://b", [ShardPattern("s3://b", "")]),
        ("s3://b/p/x-*.tar", [ShardPattern("s3://b/p", "x-*.tar")]),
        ("/d/*/x.tar", [ShardPattern("/d", "*/x.tar")]),
        ("/a.tar::s3://b/c.tar", [ShardPattern("/", "a.tar"), ShardPattern("s3://b", "c.tar")]),
        (
            ";/one,/two*3",
            [ShardPattern("/one", "", 1, True), ShardPattern("/two", "", 3, True)],
        ),
    ],
)
def test_paths_become_folders_and_patterns(path: str, expected: list[ShardPattern]) -> None:
    found = parse_shard_path(path)

    assert [(p.folder, p.pattern, p.repeat) for p in found] == [
        (p.folder, p.pattern, p.repeat) for p in expected
    ]


def test_include_dirs_come_beside_the_path() -> None:
    found = parse_shard_path("/d/a.tar", include_dirs="/e*2")

    assert [(p.folder, p.repeat, p.skip_empty) for p in found] == [
        ("/d", 1, False),
        ("/e", 2, True),
    ]


@pytest.mark.parametrize(
    "path",
    [
        "pipe:cat /etc/passwd",
        "pipe://x",
        "rclone://r:b/x.tar",
        "boto3://b/x.tar",
        "ftp://h/x.tar",
        "gs://b/x.tar",
    ],
)
def test_what_runs_a_command_or_is_unknown_is_refused(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_shard_path(path)

    assert caught.value.exit_code == 78
    assert "s3://" in caught.value.fix


def test_no_path_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no path"):
        parse_shard_path("")


@pytest.mark.parametrize(
    "path",
    [
        "https://h/x.tar?X-Amz-Signature=hunter2",
        "HTTPS://u:p@h/{a,b}.tar?token=hunter2",
        "/data::http://h/x-{000..1.tar?sig=hunter2",
        ";https://h/dir?sig=hunter2,/data",
    ],
)
def test_an_address_with_a_query_is_refused_and_not_shown(path: str) -> None:
    with pytest.raises(ConfigError, match="query") as caught:
        parse_shard_path(path)

    assert "hunter2" not in str(caught.value)
    assert "u:p" not in str(caught.value)


def test_a_question_mark_is_still_a_glob() -> None:
    assert parse_shard_path("https://h/a/x-00?.tar")[0].pattern == "x-00?.tar"
    assert parse_shard_path("https://h/a/x-?/date=1/y.tar")[0].pattern == "x-?/date=1/y.tar"
