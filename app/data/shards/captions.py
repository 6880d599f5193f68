"""Captions and metadata of a shard's samples: members of the tar, and upstream's sidecar file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from app.data.bad_clip import BadClipError
from app.data.json_files import UNREADABLE, parsed_lines
from app.data.shards.index import Member
from app.data.video.clip import caption_text
from app.errors import DataError
from app.storage.objects import ObjectMissingError, Storage

log = logging.getLogger(__name__)

LARGEST_JSON_BYTES = 1 << 20
SIDECAR_SUFFIX = ".meta.jsonl"
ID_SEPARATOR = "-$#%@&"  # upstream looks the part before it up
Records = Mapping[str, Mapping[str, object]]
ReadMember = Callable[[Member], bytes]


@dataclass(frozen=True, slots=True)
class TextRules:
    """Which names a dataset uses: the caption's key, and fields of the sidecar (empty: all)."""

    txt_key: str = "caption"
    meta_names: Sequence[str] = ()


def metadata(
    sample: Mapping[str, Member], read: ReadMember, sidecar: Callable[[], Records], rules: TextRules
) -> Mapping[str, object]:
    """Fields of the sample's JSON member, and above them those of the sidecar file.

    Raises:
        BadClipError: the JSON member cannot be read, or is not an object.
    """
    facts: dict[str, object] = {}
    if "json" in sample:
        try:
            facts |= _json_object(read(sample["json"]))
        except DataError as problem:
            raise BadClipError("bad_metadata", problem.what) from problem
        except UNREADABLE as problem:
            detail = f"the metadata is not readable JSON: {problem}"
            raise BadClipError("bad_metadata", detail) from problem
    if "id" in sample:
        name = caption_text(read(sample["id"])).strip()
        record = sidecar().get(name.partition(ID_SEPARATOR)[0], {})
        names = rules.meta_names or tuple(record)
        facts |= {name: record[name] for name in names if name in record}
    return facts


def _json_object(data: bytes) -> dict[str, object]:
    if len(data) > LARGEST_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes, more than {LARGEST_JSON_BYTES}")
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def caption(
    sample: Mapping[str, Member], read: ReadMember, facts: Mapping[str, object], rules: TextRules
) -> str | None:
    """The member named by txt_key, else that field of the metadata, else the .txt member.

    A field that is null or blank says nothing: the .txt member counts then.

    Raises:
        BadClipError: the member or field is too long, not text, or not UTF-8.
    """
    if rules.txt_key in sample:
        return caption_text(read(sample[rules.txt_key]))
    written = facts.get(rules.txt_key)
    text = None if written is None else field_text(written)
    if "txt" in sample and (text is None or not text.strip()):
        return caption_text(read(sample["txt"]))
    return text


def field_text(value: object) -> str:
    """A caption from a field of JSON, which may hold anything, by the rules of a caption file.

    Raises:
        BadClipError: it is not text, too long, or cannot be UTF-8.
    """
    if not isinstance(value, str):
        raise BadClipError("bad_caption", f"its caption is not text but a {type(value).__name__}")
    try:
        data = value.encode()
    except UnicodeEncodeError as problem:  # JSON can write half of a surrogate pair
        raise BadClipError("bad_caption", f"its caption is not UTF-8 ({problem})") from problem
    return caption_text(data)


def sidecar_name(shard: str) -> str:
    """`a/x-000.tar` -> `a/x-000.meta.jsonl`: up to the first dot of the file name."""
    folder, _, base = shard.rpartition("/")
    return f"{folder}/" * bool(folder) + base.partition(".")[0] + SIDECAR_SUFFIX


def read_sidecar(storage: Storage, shard: str) -> Records:
    """Records of the file beside a shard; none where there is no such file."""
    try:
        return sidecar_records(storage.read_small(sidecar_name(shard)))
    except ObjectMissingError:
        return {}


def sidecar_records(data: bytes) -> Records:
    """JSON lines by their `key`; lines that are not readable are counted and left out."""
    pairs, unreadable = parsed_lines(data, lambda record: (str(record["key"]), record))
    if unreadable:
        log.warning("lines of a sidecar file are not readable", extra={"lines": unreadable})
    return dict(pairs)
