"""Captions that come as one file for many videos, in the three layouts of other trainers.

`metadata.csv` and `metadata.jsonl` name a video and its caption in each row (Hugging Face's
ImageFolder and VideoFolder; columns file_name and text). Of two files of lines, line i of the
captions belongs to line i of the videos (CogVideoX-Factory and finetrainers: prompts.txt and
videos.txt). Names of videos are relative to the folder of the file.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.data.names import normal_form
from app.errors import DataError
from app.storage.objects import Entry, Storage

log = logging.getLogger(__name__)

CSV, JSON_LINES = "metadata.csv", "metadata.jsonl"
PROMPT_FILES = ("prompts.txt", "prompt.txt", "captions.txt", "caption.txt")
VIDEO_FILES = ("videos.txt", "video.txt")
TABLE_NAMES = (CSV, JSON_LINES, *PROMPT_FILES, *VIDEO_FILES)
# The first is Hugging Face's, `video` that of diffusers' scripts; in the order of their rank.
VIDEO_COLUMNS = ("file_name", "video_file_name", "video")
# Of Hugging Face and diffusers, of finetrainers, of diffusers' imagefolder script.
CAPTION_COLUMNS = ("text", "caption", "prompt")
COLUMNS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Row:
    """What a table says about a video.

    Attributes:
        video: key of the video, as written, relative to the root of the dataset.
        text: the caption: text, or whatever else JSON held; None or blank says nothing.
        where: the table and its line, for messages.
    """

    video: str
    text: object
    where: str


def is_table(key: str) -> bool:
    """Whether a file may be one of these, by its name."""
    return key.rpartition("/")[2] in TABLE_NAMES


def caption_rows(storage: Storage, entries: Mapping[str, Entry]) -> Iterator[Row]:
    """Rows of every table among the files of a dataset.

    Raises:
        DataError: a table that cannot be read; nothing of it is used, so that no video gets the
            caption of another.
    """
    for key in sorted(entries):
        folder, _, name = key.rpartition("/")
        where = f"{storage.url}/{key}"
        if name == CSV:
            yield from _rows(key, _csv_records(storage.read_small(key), where))
        elif name == JSON_LINES:
            yield from _rows(key, _json_records(storage.read_small(key), where))
        elif name in VIDEO_FILES:
            for prompts in (posixpath.join(folder, other) for other in PROMPT_FILES):
                if prompts in entries:
                    yield from _line_rows(storage, key, prompts)


def by_video(
    rows: Iterator[Row], videos: Sequence[str]
) -> tuple[dict[str, list[Row]], tuple[Row, ...]]:
    """Rows by the key of their video, and those whose video is not there.

    Names match by their normal form where they do not match as they are.
    """
    known = set(videos)
    by_form = {normal_form(key): key for key in videos if not key.isascii()}
    found: dict[str, list[Row]] = {}
    lost = []
    for row in rows:
        key = row.video if row.video in known else by_form.get(normal_form(row.video))
        if key is None:
            lost.append(row)
        else:
            found.setdefault(key, []).append(row)
    return found, tuple(lost)


def _rows(key: str, records: Iterator[tuple[int, Mapping[str, object]]]) -> Iterator[Row]:
    folder = key.rpartition("/")[0]
    for line, record in records:
        name = next((record[column] for column in VIDEO_COLUMNS if record.get(column)), None)
        if not isinstance(name, str):
            continue
        written = [column for column in CAPTION_COLUMNS if column in record]
        for column in written or ["text"]:
            suffix = f", column {column}" * (len(written) > 1)
            where = f"{key}, line {line}{suffix}"
            yield Row(_key_of(folder, name), record.get(column), where)


def _csv_records(data: bytes, where: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Line and fields of each row; nothing of a file without the columns of a caption table."""
    reader = csv.reader(io.StringIO(_text(data, where), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not _is_table(header, where):
            return
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise _unreadable(
                    f"line {reader.line_num} has {len(fields)} fields, the header {len(header)}",
                    where,
                    'write a caption with a comma as "a, b"',
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as problem:
        raise _unreadable(f"line {reader.line_num}: {problem}", where) from problem


def _json_records(data: bytes, where: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    records: list[tuple[int, Mapping[str, object]]] = []
    for number, line in enumerate(_text(data, where).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise _unreadable(f"line {number} is not JSON: {problem}", where) from problem
        if not isinstance(record, dict):
            raise _unreadable(f"line {number} is not an object", where)
        records.append((number, record))
    if _is_table(list(dict.fromkeys(name for _, record in records for name in record)), where):
        yield from records


def _line_rows(storage: Storage, videos: str, prompts: str) -> Iterator[Row]:
    names, texts = (
        _lines(_text(storage.read_small(key), f"{storage.url}/{key}")) for key in (videos, prompts)
    )
    if len(names) != len(texts):
        raise DataError(
            f"{videos} has {len(names)} lines and {prompts} has {len(texts)}",
            where=storage.url,
            fix="write one line for each video in both: line i of one belongs to line i of the "
            "other",
        )
    folder = videos.rpartition("/")[0]
    for number, (name, text) in enumerate(zip(names, texts, strict=True), start=1):
        if name.strip():
            yield Row(_key_of(folder, name), text, f"{prompts}, line {number}")
        elif text.strip():
            raise _unreadable(
                f"line {number} is empty, and line {number} of {prompts} is not",
                f"{storage.url}/{videos}",
            )


def _is_table(columns: Sequence[str], where: str) -> bool:
    """Whether a metadata file has captions: others may be called so too."""
    if set(columns) & set(VIDEO_COLUMNS) and set(columns) & set(CAPTION_COLUMNS):
        return True
    log.warning(
        "%s is not read as captions: needs a column of %s and one of %s, and has %s",
        where,
        VIDEO_COLUMNS,
        CAPTION_COLUMNS,
        list(columns)[:COLUMNS_SHOWN],
    )
    return False


def _lines(text: str) -> list[str]:
    """Lines without empty ones at the end. Only line feeds part lines: captions may have others."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _key_of(folder: str, name: str) -> str:
    """Key of a video that a table in `folder` names; one outside of the dataset fits nothing."""
    written = name.strip().replace("\\", "/")
    return posixpath.normpath(posixpath.join(folder, written))


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise _unreadable(f"it is not UTF-8 ({problem})", where) from problem


def _unreadable(detail: str, where: str, fix: str = "correct the file") -> DataError:
    return DataError(f"captions cannot be read: {detail}", where=where, fix=fix)
