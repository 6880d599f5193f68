"""A check of packed shards: each fault once, whatever the manifest and the samples both show."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.data.check.sample import CheckRules
from app.data.check.scan import Census, ScanSettings, check_dataset
from app.data.pack import PackRules, pack
from app.data.shards.captions import TextRules
from tests.support.clip_files import write_folder


def check(path: Path, rules: CheckRules | None = None) -> Census:
    return check_dataset(str(path), rules or CheckRules(), TextRules(), ScanSettings(workers=2))


def reasons(census: Census) -> list[tuple[str, str]]:
    return [(problem.key, problem.reason) for problem in census.problems]


def test_packed_shards_are_compared_with_their_manifest(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clips", {"a": "one", "b": "two", "c": "three"})
    out = tmp_path / "shards"
    pack(str(folder), str(out), PackRules(shard_bytes=1 << 10))
    assert check(out).problems == ()
    first, second, third = sorted(out.glob("*.tar"))
    data = bytearray(first.read_bytes())
    data[data.index(b"one")] ^= 1  # a letter of the caption
    first.write_bytes(data)
    second.write_bytes(second.read_bytes() + bytes(512))
    third.unlink()

    assert reasons(check(out)) == [
        (first.name, "changed_shard"),
        (second.name, "changed_shard"),
        (third.name, "missing_shard"),
    ]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips in one packed shard."""
    root = tmp_path_factory.mktemp("packed")
    folder = write_folder(root / "clips", {"a": "first one", "b": "second", "c": "third"})
    pack(str(folder), str(root / "shards"), PackRules())
    return root / "shards"


def overwritten(data: bytes, what: str) -> bytes:
    """A packed shard with one planted fault."""
    if what.startswith("cut"):
        return data[: len(data) * int(what.removeprefix("cut ")) // 100]
    if what == "caption":
        return data.replace(b"second", b"      ")
    header = data.index(b"b.mp4")
    where = {"header": header, "video": header + 512}[what]
    return data[:where] + bytes(512) + data[where + 512 :]


@pytest.mark.parametrize(
    ("what", "key", "reason"),
    [
        ("cut 0", "clips-000000.tar", "damaged_shard"),
        ("cut 50", "clips-000000.tar", "damaged_shard"),
        ("cut 80", "clips-000000.tar", "damaged_shard"),
        ("header", "clips-000000.tar", "damaged_shard"),
        ("video", "b", "not_a_video"),
        ("caption", "b", "empty_caption"),
    ],
)
def test_a_fault_planted_in_a_packed_shard_is_named_once(
    packed: Path, tmp_path: Path, what: str, key: str, reason: str
) -> None:
    shutil.copytree(packed, tmp_path / "set")
    shard = tmp_path / "set/clips-000000.tar"
    shard.write_bytes(overwritten(shard.read_bytes(), what))

    assert reasons(check(tmp_path / "set")) == [(key, reason)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clips-000000.index.json", b"{"),
        ("clips-000000.index.json", b"[" * 200_000),
        ("clips-000000.index.json", None),
        ("clips-000000.index.json", b"mp3"),
        ("clips-000000.sizes.json", b"{"),
        ("clips-000000.sizes.json", b"mp3"),
    ],
)
def test_a_side_file_that_does_not_fit_is_named_once(
    packed: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    shutil.copytree(packed, tmp_path / "set")
    side = tmp_path / "set" / name
    if content == b"mp3":  # edited
        content = side.read_bytes().replace(b"mp4", b"mp3", 1).replace(b'"data":"', b'"data":"0')
    side.unlink() if content is None else side.write_bytes(content)

    assert reasons(check(tmp_path / "set")) == [(name, "bad_index")]


def test_a_sample_that_is_only_not_wanted_explains_no_change(packed: Path, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "set")
    shard = tmp_path / "set/clips-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"second", b"tenth."))

    found = reasons(check(tmp_path / "set", CheckRules(shortest_frames=21)))

    assert found[-1] == ("clips-000000.tar", "changed_shard")
    assert {reason for _, reason in found[:-1]} == {"too_short"}
