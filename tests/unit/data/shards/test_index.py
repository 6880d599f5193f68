from __future__ import annotations

import io
import tarfile

import pytest

from app.data.shards.index import RangeFile, ShardIndex, index_digest, index_shard, walk_shard
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


def zeroed(data: bytes, name: bytes, blocks: int = 1) -> bytes:
    """The shard with the header of a member overwritten by zeros."""
    at = data.index(name)
    return data[:at] + bytes(512 * blocks) + data[at + 512 * blocks :]


ABC = tar_bytes(samples(["a", "b", "c"]))


@pytest.mark.parametrize(
    "data",
    [
        zeroed(ABC, b"b.mp4"),
        zeroed(ABC, b"b.mp4", 2),
        zeroed(ABC, b"c.txt"),
        zeroed(ABC, b"a.mp4"),
        ABC + tar_bytes(samples(["d"])),
        ABC + b"trailing",
        ABC + bytes(100_000) + b"x",
    ],
)
def test_data_behind_the_end_mark_is_damage(data: bytes) -> None:
    with pytest.raises(DataError, match=r"damaged.*follows the end-of-archive mark"):
        index_of(data)


@pytest.mark.parametrize("padding", [0, 1, 511, 512, 200_000])
def test_zeros_behind_the_end_mark_are_none(padding: int) -> None:
    assert index_of(ABC + bytes(padding)) == index_of(ABC)


def test_one_block_of_zeros_is_end_enough() -> None:
    assert index_of(ABC.rstrip(b"\0") + bytes(-len(ABC.rstrip(b"\0")) % 512 + 512)) == index_of(ABC)


@pytest.mark.parametrize("size", [-1, -512, -4096])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_member_with_a_negative_size_is_damage(size: int, kind: bytes) -> None:
    info = tarfile.TarInfo("b.mp4")
    info.size, info.type = size, kind
    header = info.tobuf(tarfile.GNU_FORMAT)  # GNU headers can say less than nothing
    data = tar_bytes(samples(["a"])).rstrip(b"\0")
    data += bytes(-len(data) % 512) + header + b"v" * 2048 + bytes(1024)

    index, damage = walk_shard(io.BytesIO(data), len(data))

    assert damage is not None
    assert index.members == ()  # `a` is the last one before the damage


def test_hidden_files_are_ignored_wherever_they_lie() -> None:
    names = [
        "train/._000.mp4",
        "train/.DS_Store",
        "._a.mp4",
        "__MACOSX/train/._000.mp4",
        "train/__MACOSX/000.txt",
        ".git/a.mp4",
    ]
    hidden = [(name, b"x") for name in names]

    found = index_of(tar_bytes([*samples(["train/000"]), *hidden, *samples(["./b", "__MACOS/c"])]))

    assert [m.key for m in found.members[::2]] == ["train/000", "./b", "__MACOS/c"]
    assert found.left_out == ()


def test_a_hidden_name_that_leaves_its_place_is_still_named() -> None:
    found = index_of(tar_bytes([*samples(["a"]), ("../.ssh/x.mp4", b"x")]))

    assert found.left_out == (("../.ssh/x", "unsafe_name"),)


def test_a_name_that_is_no_utf8_can_be_written_down() -> None:
    data = tar_bytes(samples(["a", "bbb"]))
    # 0xE4 is an umlaut in Latin-1 and no UTF-8; the checksum of the header must fit.
    at = data.index(b"bbb.mp4")
    info = tarfile.TarInfo("b\udce4b.mp4")
    info.size = 700
    header = info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    data = data[:at] + header + data[at + 512 :]

    found = index_of(data)

    assert found.left_out[0] == ("b\\xe4b", "unsafe_name")
    assert ShardIndex.from_json(found.to_json("x.tar"), "x") == found


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
