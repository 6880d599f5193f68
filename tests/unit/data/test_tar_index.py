from __future__ import annotations

import io
import tarfile

import pytest

from app.data.tar_index import RangeFile, ShardIndex, index_digest, index_shard
from app.errors import DataError
from tests.support.shards import samples, tar_bytes


def index_of(data: bytes) -> ShardIndex:
    return index_shard(io.BytesIO(data), len(data), "x.tar")


def test_members_lie_where_the_index_says() -> None:
    data = tar_bytes([*samples(["a"]), ("a.json", b"{}")])

    found = index_of(data)

    assert [sorted(sample) for sample in found.samples()] == [["json", "mp4", "txt"]]
    member = found.samples()[0]["txt"]
    assert data[member.offset : member.offset + member.size] == b"about a"


def test_the_key_ends_at_the_first_dot_of_the_base_name() -> None:
    found = index_of(tar_bytes([("d.1/k.MP4", b"v"), ("d.1/k.seg.txt", b"t")]))

    assert [(m.key, m.suffix) for m in found.members] == [("d.1/k", "mp4"), ("d.1/k", "seg.txt")]


def test_long_names_and_extended_headers_are_understood() -> None:
    name = "d" * 120 + "/" + "n" * 60
    found = index_of(tar_bytes([(f"{name}.mp4", b"v"), ("ä.mp4", b"v")], pax=True))

    assert [m.key for m in found.members] == [name, "ä"]


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_what_cannot_be_used_is_left_out_and_named() -> None:
    data = tar_bytes(
        [
            *samples(["good"]),
            ("../up.mp4", b"v"),
            ("/abs.mp4", b"v"),
            ("n" * 300 + ".mp4", b"v"),
            *samples(["twice"]),
            ("twice.txt", b"again"),
            ("lonely.txt", b"no video"),
            link("linked.mp4"),
            (".hidden.mp4", b"v"),
            ("README", b"no suffix"),
        ],
        pax=True,
    )

    found = index_of(data)

    assert [m.key for m in found.members] == ["good", "good"]
    reasons = {key[:8]: reason for key, reason in found.left_out}
    assert reasons == {
        "../up": "unsafe_name",
        "/abs": "unsafe_name",
        "nnnnnnnn": "unsafe_name",
        "twice": "duplicate_key",
        "linked": "not_a_file",
        "lonely": "no_video",
    }


def test_an_empty_archive_has_no_sample() -> None:
    assert index_of(tar_bytes([])).members == ()


@pytest.mark.parametrize("blocks", range(1, 9))
def test_a_cut_at_any_block_is_found(blocks: int) -> None:
    data = tar_bytes(samples(["a", "b"]))
    # Two samples: 4 headers, 2 videos of 2 blocks, 2 captions of 1: ten blocks, then zeros.

    with pytest.raises(DataError, match="damaged"):
        index_of(data[: 512 * blocks])


@pytest.mark.parametrize("stop", [100, 700, 1300, 2100, 3333])
def test_a_cut_inside_a_block_is_found(stop: int) -> None:
    with pytest.raises(DataError, match="damaged"):
        index_of(tar_bytes(samples(["a", "b"]))[:stop])


def test_a_garbled_header_in_the_middle_is_found() -> None:
    data = bytearray(tar_bytes(samples(["a", "b", "c"])))
    second = data.index(b"b.mp4")
    data[second + 100 : second + 160] = b"\xff" * 60

    with pytest.raises(DataError, match="end-of-archive"):
        index_of(bytes(data))


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 100, b"\x1f\x8b" + b"\0" * 2000])
def test_what_is_no_tar_file_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="damaged"):
        index_of(data)


def test_ranged_reads_give_the_same_index_with_few_requests() -> None:
    data = tar_bytes(samples([f"s{i}" for i in range(20)], video=b"v" * 100_000))
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return data[start:stop]

    found = index_shard(RangeFile(read, len(data)), len(data), "x.tar")  # type: ignore[arg-type]

    assert found == index_of(data)
    assert len(asked) <= 22
    assert sum(stop - start for start, stop in asked) < len(data) / 4


def test_an_index_survives_json_and_its_digest_follows_the_members() -> None:
    found = index_of(tar_bytes(samples(["a", "ü"])))
    other = index_of(tar_bytes(samples(["a", "u"])))

    assert ShardIndex.from_json(found.to_json("x.tar"), "x") == found
    assert index_digest(found) != index_digest(other)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format_version": 9}', b'{"format_version": 1}'])
def test_a_damaged_index_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match="not the index"):
        ShardIndex.from_json(data, "x.index.json")
