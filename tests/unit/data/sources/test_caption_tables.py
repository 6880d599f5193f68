"""Tables of captions: what is read, and what is refused rather than shifted by a line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from app.data.sources.caption_tables import by_video, caption_rows
from app.errors import DataError
from app.storage.local import LocalStorage


def rows(root: Path, files: dict[str, str | bytes]) -> list[tuple[str, object, str]]:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    storage = LocalStorage(root)
    entries = {entry.key: entry for entry in storage.list()}
    return [(row.video, row.text, row.where) for row in caption_rows(storage, entries)]


def test_a_csv_file_names_videos_relative_to_itself(tmp_path: Path) -> None:
    table = 'file_name,text,score\r\nvideos/1.mp4,"a cat, asleep",3\r\n./2.mp4,"two\nlines",4\r\n'

    found = rows(tmp_path, {"metadata.csv": table, "train/metadata.csv": "\ufeff" + table})

    assert found == [
        ("videos/1.mp4", "a cat, asleep", "metadata.csv, line 2"),
        ("2.mp4", "two\nlines", "metadata.csv, line 4"),
        ("train/videos/1.mp4", "a cat, asleep", "train/metadata.csv, line 2"),
        ("train/2.mp4", "two\nlines", "train/metadata.csv, line 4"),
    ]


@pytest.mark.parametrize(
    "header", ["file_name,text", "file_name,caption", "video,prompt", "video_file_name,text"]
)
def test_the_columns_of_other_trainers_are_known(header: str, tmp_path: Path) -> None:
    found = rows(tmp_path, {"metadata.csv": f"{header}\na.mp4,words\n"})

    assert found == [("a.mp4", "words", "metadata.csv, line 2")]


def test_json_lines(tmp_path: Path) -> None:
    lines = (
        '{"file_name": "a.mp4", "text": "x\\ny"}\n\n{"text": null, "file_name": "sub\\\\b.mp4"}\n'
    )

    assert rows(tmp_path, {"metadata.jsonl": lines}) == [
        ("a.mp4", "x\ny", "metadata.jsonl, line 1"),
        ("sub/b.mp4", None, "metadata.jsonl, line 3"),
    ]


@pytest.mark.parametrize("prompts", ["prompts.txt", "prompt.txt", "captions.txt"])
@pytest.mark.parametrize("videos", ["videos.txt", "video.txt"])
def test_line_i_of_the_prompts_belongs_to_line_i_of_the_videos(
    prompts: str, videos: str, tmp_path: Path
) -> None:
    # A line separator of Unicode is part of a caption, not its end.
    files = {prompts: "one\u2028more\r\ntwo\r\n\r\n", videos: "videos/1.mp4\nvideos/2.mp4\n"}

    assert rows(tmp_path, files) == [
        ("videos/1.mp4", "one\u2028more", f"{prompts}, line 1"),
        ("videos/2.mp4", "two", f"{prompts}, line 2"),
    ]


def test_prompts_without_a_list_of_videos_are_no_table(tmp_path: Path) -> None:
    assert rows(tmp_path, {"prompts.txt": "one\ntwo\n"}) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"prompts.txt": "a\nb\n", "videos.txt": "1.mp4\n"}, "has 1 lines and prompts.txt has 2"),
        ({"prompts.txt": "a\nb\nc", "videos.txt": "1.mp4\n\n3.mp4"}, "line 2 is empty"),
        ({"metadata.csv": "file_name,text\na.mp4,a cat, asleep\n"}, "line 2 has 3 fields"),
        ({"metadata.csv": "file_name,text\na.mp4\n"}, "line 2 has 1 fields, the header 2"),
        ({"metadata.csv": 'file_name,text\na.mp4,"open\n'}, "unexpected end"),
        ({"metadata.csv": b"file_name,text\na.mp4,caf\xe9\n"}, "not UTF-8"),
        ({"metadata.jsonl": '{"file_name": "a.mp4", "text": "b"}\n{"file_'}, "line 2 is not JSON"),
        ({"metadata.jsonl": "[" * 100_000}, "line 1 is not JSON"),
        ({"metadata.jsonl": "[1]\n"}, "line 1 is not an object"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_with_its_line(
    files: dict[str, str | bytes], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        rows(tmp_path, files)

    assert str(tmp_path) in caught.value.where


def test_a_metadata_file_of_something_else_is_named_and_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert rows(tmp_path, {"metadata.csv": "id;length\n1;2\n"}) == []

    (record,) = caplog.records
    assert "metadata.csv is not read as captions" in record.getMessage()
    assert "id;length" in record.getMessage()


def test_rows_find_their_videos_by_normal_form_and_the_rest_is_lost(tmp_path: Path) -> None:
    text = "file_name,text\ncaf\u00e9.mp4,one\n/abs/a.mp4,two\n../a.mp4,three\na.mp4,four\n"
    (tmp_path / "metadata.csv").write_text(text)
    storage = LocalStorage(tmp_path)
    entries = {entry.key: entry for entry in storage.list()}

    found, lost = by_video(caption_rows(storage, entries), ["a.mp4", "cafe\u0301.mp4"])

    assert {key: [row.text for row in rows] for key, rows in found.items()} == {
        "cafe\u0301.mp4": ["one"],
        "a.mp4": ["four"],
    }
    assert [row.text for row in lost] == ["two", "three"]
