from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile

import pytest

from app.data.shards.index import (
    RangeFile,
    ShardIndex,
    index_digest,
    index_shard,
    video_of,
    walk_shard,
)
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


@pytest.mark.parametrize("kind", ["mov", "M4V", "mkv", "webm", "avi", "mpg", "mpeg", "MP4"])
def test_every_kind_of_video_makes_a_sample(kind: str) -> None:
    found = index_of(tar_bytes([(f"a.{kind}", b"v" * 600), ("a.txt", b"t"), *samples(["b"])]))

    assert [video_of(sample).key for sample in found.samples()] == ["a", "b"]
    assert video_of(found.samples()[0]).size == 600
    assert found.left_out == ()


def test_a_sample_with_two_videos_has_a_reason_of_its_own() -> None:
    found = index_of(tar_bytes([*samples(["a"]), ("a.mkv", b"v"), *samples(["b"])]))

    assert [sample["txt"].key for sample in found.samples()] == ["b"]
    assert found.left_out == (("a", "two_videos"),)


@pytest.mark.parametrize("kind", ["flv", "gif", "wmv", "ts", "3gp", "v1.flv"])
def test_a_sample_of_another_kind_is_not_read(kind: str) -> None:
    found = index_of(tar_bytes([(f"a.{kind}", b"v"), ("a.txt", b"t"), *samples(["b"])]))

    assert found.left_out == (("a", "unsupported_suffix"),)


def test_names_with_dots_are_named_one_by_one() -> None:
    dotted = ["video.v1.final", "clip 1.0 (x)", "2024.01.02 10.00", "2024.01.02 11.00"]

    found = index_of(tar_bytes([*samples(dotted), *samples(["sub.dir/fine"])]))

    assert [member.key for member in found.members] == ["sub.dir/fine"] * 2
    assert found.left_out == tuple((f"{name}.mp4", "dots_in_name") for name in dotted)


def test_a_view_of_a_sample_is_no_clip_and_one_with_a_caption_is_a_lost_one() -> None:
    views = [*samples(["a"]), ("a.left.mp4", b"v")]
    clips = [*samples(["b"]), *samples(["b.v1"])]

    found = index_of(tar_bytes([*views, *clips]))

    assert [sorted(sample) for sample in found.samples()] == [
        ["left.mp4", "mp4", "txt"],
        ["mp4", "txt", "v1.mp4", "v1.txt"],
    ]
    assert found.left_out == (("b.v1.mp4", "dots_in_name"),)


@pytest.mark.parametrize(("video", "text"), [("\u00e9", "e\u0301"), ("e\u0301", "\u00e9")])
def test_a_caption_in_another_normal_form_belongs_to_its_video(video: str, text: str) -> None:
    data = tar_bytes([(f"{text}.txt", b"words"), (f"{video}.mp4", b"v"), *samples(["b"])], pax=True)

    found = index_of(data)

    first = next(sample for sample in found.samples() if video_of(sample).key == video)
    assert data[first["txt"].offset :][:5] == b"words"
    assert found.left_out == ()


def test_two_videos_in_two_normal_forms_keep_their_own_captions() -> None:
    names = ["\u00e9", "e\u0301"]

    found = index_of(tar_bytes(samples(names), pax=True))

    assert [member.key for member in found.members] == [names[0]] * 2 + [names[1]] * 2


def chained(kind: bytes, count: int) -> bytes:
    """A shard that begins with `count` headers, each of which describes the next one."""
    info = tarfile.TarInfo("h")
    info.type = kind
    content = b"9 x=abcd\n" if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) else b"a.mp4\0"
    info.size = len(content)
    one = info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return one * count + tar_bytes(samples(["a"]))


CHAINS = [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE]


@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize("count", [150, 2_000, 20_000])
def test_a_chain_of_headers_is_damage_and_bounded(kind: bytes, count: int) -> None:
    data = chained(kind, count)

    index, damage = walk_shard(io.BytesIO(data), len(data))

    assert "too many headers" in str(damage)
    assert index.members == ()
    with pytest.raises(DataError, match="damaged"):
        index_of(data)


@pytest.mark.parametrize("kind", CHAINS)
def test_one_header_that_describes_the_next_is_none(kind: bytes) -> None:
    assert len(index_of(chained(kind, 1)).samples()) == 1


PACKED = {
    "gzip": gzip.compress(ABC),
    "bzip2": bz2.compress(ABC),
    "xz": lzma.compress(ABC),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(range(1, 200)) * 20,
    "lz4": b"\x04\x22\x4d\x18" + bytes(range(1, 200)) * 20,
    "zip": b"PK\x03\x04" + bytes(range(1, 200)) * 20,
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_compressed_file_named_tar_is_said_to_be_compressed(kind: str) -> None:
    with pytest.raises(DataError, match=rf"damaged or not an uncompressed .*compressed \({kind}\)"):
        index_of(PACKED[kind])


def test_a_damaged_member_called_like_a_magic_number_is_not_compressed() -> None:
    data = bytearray(tar_bytes(samples(["BZh9"])))
    data[148:156] = b"0000000\0"  # the checksum

    with pytest.raises(DataError) as caught:
        index_of(bytes(data))

    assert "compressed (" not in caught.value.what


def test_an_index_of_the_first_version_is_read_and_outdated_only_where_it_left_videos_out() -> None:
    def written(left_out: list[list[str]]) -> ShardIndex:
        content = {
            "format_version": 1,
            "shard": "x.tar",
            "members": [["a", "mp4", 512, 9]],
            "left_out": left_out,
        }
        return ShardIndex.from_json(json.dumps(content).encode(), "x")

    assert not written([]).is_outdated
    assert not written([["b", "duplicate_key"]]).is_outdated
    assert written([["b", "no_video"]]).is_outdated
    assert written([]).members == (("a", "mp4", 512, 9),)


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
