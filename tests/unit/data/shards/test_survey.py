"""Manifest and survey: what is found out, kept and refused before a run starts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from app.data.shards.index import ShardIndex, index_digest
from app.data.shards.manifest import MANIFEST_NAME, DatasetManifest, fingerprint
from app.data.shards.survey import Folder, SurveyRules, file_sha256, survey
from app.data.shards.urls import parse_shard_path
from app.errors import ConfigError, DataError, InputMissingError
from app.storage.opening import open_storage
from tests.support.shards import samples, write_shard


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    write_shard(folder / "a-000.tar", samples(["one", "two", "three"]))
    write_shard(folder / "a-001.tar", samples([]))
    write_shard(folder / "B_002.tar", samples(["four", "five"]))
    return folder


def look(folder: Path, path: str = "", rescan: bool = False) -> Folder:
    rules = SurveyRules(on_changed_shard="rescan" if rescan else "error")
    patterns = parse_shard_path(path or str(folder))
    return survey(open_storage(str(folder)), patterns, folder.parent / "cache", rules)


def test_a_first_look_writes_manifest_and_indexes_beside_the_shards(shards: Path) -> None:
    found = look(shards)

    assert [(s.name, s.samples) for s in found.shards] == [
        ("B_002.tar", 2),
        ("a-000.tar", 3),
        ("a-001.tar", 0),
    ]
    written = json.loads((shards / MANIFEST_NAME).read_text())
    assert written["format_version"] == 1
    assert written["samples_total"] == 5
    assert [shard["bytes"] for shard in written["shards"]] == [
        (shards / shard["name"]).stat().st_size for shard in written["shards"]
    ]
    assert (shards / "a-000.index.json").exists()
    index = found.indexes.index(found.shards[1])
    assert index is not None
    assert {member.key for member in index.members} == {"one", "two", "three"}


def test_a_second_look_reads_no_shard(shards: Path) -> None:
    first = look(shards)
    for path in shards.glob("*.tar"):
        stat = path.stat()
        path.write_bytes(b"\xff" * stat.st_size)  # not a tar file any more
        os.utime(path, (stat.st_atime, stat.st_mtime))

    assert look(shards).shards == first.shards


def test_two_looks_write_the_same_bytes(shards: Path) -> None:
    look(shards)
    first = (shards / MANIFEST_NAME).read_bytes()
    (shards / MANIFEST_NAME).unlink()
    look(shards)

    assert (shards / MANIFEST_NAME).read_bytes() == first


def test_a_folder_that_may_not_be_written_keeps_its_manifest_in_the_cache(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(shards))

    def refuse(key: str, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(storage, "write_small", refuse)
    cache = shards.parent / "cache"
    patterns = parse_shard_path(str(shards))

    first = survey(storage, patterns, cache, SurveyRules())
    second = survey(storage, patterns, cache, SurveyRules())

    assert second.shards == first.shards
    assert not (shards / MANIFEST_NAME).exists()
    assert len(list(cache.rglob(MANIFEST_NAME))) == 1


def test_a_missing_shard_is_named(shards: Path) -> None:
    look(shards)
    (shards / "a-000.tar").unlink()

    with pytest.raises(InputMissingError) as caught:
        look(shards)

    assert caught.value.exit_code == 66
    assert caught.value.where.endswith("data/a-000.tar")


def test_a_shard_named_by_braces_must_be_there(shards: Path) -> None:
    with pytest.raises(InputMissingError) as caught:
        look(shards, f"{shards}/a-{{000..002}}.tar")

    assert caught.value.where.endswith("a-002.tar")


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError, match="no shard"):
        look(tmp_path / "nothing")


def test_a_shard_of_another_size_is_an_error_with_both_sizes(shards: Path) -> None:
    look(shards)
    old = (shards / "a-000.tar").stat().st_size
    write_shard(shards / "a-000.tar", samples([f"other{i}" for i in range(40)]))
    new = (shards / "a-000.tar").stat().st_size

    with pytest.raises(DataError) as caught:
        look(shards)

    assert caught.value.exit_code == 65
    assert f"{old} bytes" in caught.value.what
    assert f"{new} bytes" in caught.value.what
    assert caught.value.where.endswith("a-000.tar")


def test_a_rewritten_shard_of_the_same_size_is_an_error_with_both_times(shards: Path) -> None:
    look(shards)
    os.utime(shards / "a-000.tar", (1_000_000, 1_000_000))

    with pytest.raises(DataError, match=r"modification time was 20.* is now 1970-01-12"):
        look(shards)


def test_rescan_takes_a_changed_shard_as_it_is_now(shards: Path) -> None:
    look(shards)
    write_shard(shards / "a-001.tar", samples(["new"]))

    found = look(shards, rescan=True)

    assert {s.name: s.samples for s in found.shards}["a-001.tar"] == 1
    assert look(shards).shards == found.shards


def test_a_copy_of_a_shard_with_a_known_digest_is_accepted_by_its_content(shards: Path) -> None:
    look(shards)
    path = shards / MANIFEST_NAME
    manifest = DatasetManifest.from_json(path.read_bytes(), "m")
    known = [
        type(s)(
            **{**{f: getattr(s, f) for f in s.__slots__}, "sha256": file_sha256(shards / s.name)}
        )
        for s in manifest.shards
    ]
    path.write_bytes(DatasetManifest(tuple(known), "test").to_json())
    os.utime(shards / "a-000.tar", (1_000_000, 1_000_000))

    assert len(look(shards).shards) == 3  # touched, same content

    data = bytearray((shards / "a-000.tar").read_bytes())
    data[600] ^= 1
    (shards / "a-000.tar").write_bytes(data)
    with pytest.raises(DataError, match="sha256 was"):
        look(shards)


@pytest.mark.parametrize("content", [b"{", b"[" * 200_000, b"other", None])
def test_an_index_that_cannot_be_used_is_made_again_from_the_shard(
    shards: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = look(shards)
    side, shard = shards / "a-000.index.json", found.shards[1]
    whole = side.read_bytes()
    if content == b"other":
        content = (shards / "a-001.index.json").read_bytes()
    side.unlink() if content is None else side.write_bytes(content)

    index = look(shards).indexes.index(shard)

    assert index is not None
    assert {member.key for member in index.members} == {"one", "two", "three"}
    assert side.read_bytes() == whole
    assert "cannot be used" in caplog.text


def test_an_index_is_not_made_of_a_shard_that_is_another_one(shards: Path) -> None:
    found = look(shards)
    (shards / "a-000.index.json").write_bytes(b"{")
    write_shard(shards / "a-000.tar", samples(["one", "two", "other"]))

    assert found.indexes.index(found.shards[1]) is None


def test_a_new_shard_is_scanned_and_added(shards: Path) -> None:
    look(shards)
    write_shard(shards / "sub" / "c.tar", samples(["six"]))

    assert [s.name for s in look(shards).shards][-1] == "sub/c.tar"


def test_a_subset_keeps_what_the_manifest_knows_about_the_rest(shards: Path) -> None:
    look(shards)

    chosen = look(shards, f"{shards}/a-*.tar").shards

    assert [s.name for s in chosen] == ["a-000.tar", "a-001.tar"]
    assert len(json.loads((shards / MANIFEST_NAME).read_text())["shards"]) == 3


def test_repeated_folders_count_as_often_as_they_say(shards: Path) -> None:
    chosen = look(shards, f";{shards}*2").shards

    assert [s.name for s in chosen] == sorted(["B_002.tar", "a-000.tar", "a-001.tar"] * 2)


def test_a_damaged_shard_stops_the_start(shards: Path) -> None:
    data = (shards / "a-000.tar").read_bytes()
    (shards / "a-000.tar").write_bytes(data[:1536])

    with pytest.raises(DataError, match="damaged") as caught:
        look(shards)

    assert caught.value.where.endswith("a-000.tar")


def test_a_manifest_changed_by_hand_is_refused(shards: Path) -> None:
    look(shards)
    path = shards / MANIFEST_NAME
    path.write_text(path.read_text().replace('"samples": 3', '"samples": 4'))

    with pytest.raises(DataError, match="digest"):
        look(shards)


def test_an_unknown_rule_for_changed_shards_is_an_error(shards: Path) -> None:
    with pytest.raises(ConfigError, match="on_changed_shard"):
        survey(
            open_storage(str(shards)),
            parse_shard_path(str(shards)),
            shards.parent / "cache",
            SurveyRules(on_changed_shard="ignore"),
        )


def test_the_fingerprint_ignores_times_and_follows_content(shards: Path) -> None:
    before = fingerprint(("0", s) for s in look(shards).shards)
    os.utime(shards / "a-000.tar", (1_000_000, 1_000_000))
    touched = fingerprint(("0", s) for s in look(shards, rescan=True).shards)
    write_shard(shards / "a-000.tar", samples(["one", "two", "3hree"]))
    changed = fingerprint(("0", s) for s in look(shards, rescan=True).shards)

    assert touched == before
    assert changed != before


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.tar.gz", "compressed"),
        ("x.tgz", "compressed"),
        ("x.tar.zst", "compressed"),
        ("x.TAR", "ends in .TAR"),
        ("a\nb.tar", "control character"),
        ("b.tar ", "ends with a blank"),
    ],
)
def test_a_shard_that_would_be_passed_over_is_an_error_before_the_start(
    name: str, reason: str, shards: Path
) -> None:
    (shards / name).write_bytes((shards / "a-000.tar").read_bytes())

    with pytest.raises(DataError) as caught:
        look(shards)

    assert caught.value.exit_code == 65
    assert name.encode("unicode_escape").decode() in caught.value.what
    assert reason in caught.value.what
    assert not (shards / MANIFEST_NAME).exists()
    assert len(look(shards, f"{shards}/a-*.tar").shards) == 2  # they are not asked for


def test_a_compressed_shard_cannot_be_named_either(shards: Path) -> None:
    with pytest.raises(ConfigError, match="compressed"):
        parse_shard_path(f"{shards}/x-001.tar.gz")


def test_a_link_to_nothing_is_not_a_shorter_dataset(shards: Path) -> None:
    (shards / "c.tar").symlink_to("nowhere.tar")

    with pytest.raises(DataError, match=r"c\.tar \(this is a link to nothing"):
        look(shards)


def test_hidden_shards_are_ignored_and_linked_folders_are_read(shards: Path) -> None:
    before = look(shards).shards
    (shards / MANIFEST_NAME).unlink()
    for name in ("._a-000.tar", ".Trash-0/a-000.tar", "__MACOSX/._a-000.tar", "._x.tar.gz"):
        (shards / name).parent.mkdir(exist_ok=True)
        (shards / name).write_bytes(b"\x00\x05\x16\x07" * 1000)
    write_shard(shards.parent / "more" / "z.tar", samples(["six"]))
    (shards / "link").symlink_to(shards.parent / "more")
    (shards / "link2").symlink_to(shards)  # a loop

    found = folder_of(shards)

    assert [shard.name for shard in found.shards] == [*(s.name for s in before), "link/z.tar"]
    assert found.shards[:3] == before


def folder_of(shards: Path) -> Folder:
    storage = open_storage(str(shards), follow_links=True)
    patterns = parse_shard_path(str(shards))
    return survey(storage, patterns, shards.parent / "cache", SurveyRules())


def test_what_is_left_out_is_said_with_reasons_and_names(
    shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = [("d.x.mp4", b"v"), ("e.flv", b"v"), ("e.txt", b"t"), *samples(["f"]), ("f.avi", b"v")]
    write_shard(shards / "c.tar", [*samples(["fine"]), *left])

    with caplog.at_level("WARNING"):
        look(shards)
    first = [record.getMessage() for record in caplog.records]
    caplog.clear()
    with caplog.at_level("WARNING"):
        look(shards)

    assert (
        first
        == [record.getMessage() for record in caplog.records]
        == [
            "3 of 9 videos are left out: dots_in_name 1 (c.tar:d.x.mp4), two_videos 1 (c.tar:f), "
            "unsupported_suffix 1 (c.tar:e)"
        ]
    )


def test_a_manifest_made_when_only_mp4_was_read_is_brought_up_to_date(shards: Path) -> None:
    """A dataset of .mp4 stays as it was; of other kinds, what was left out is read now."""
    old = look(shards)
    members = [("a.mkv", b"v"), ("a.txt", b"t"), *samples(["b"]), ("lonely.txt", b"t")]
    write_shard(shards / "c.tar", members)
    new = look(shards)
    # As the first version wrote them: the sample `a` was left out.
    index = json.loads((shards / "c.index.json").read_text())
    index["members"] = [member for member in index["members"] if member[0] == "b"]
    index |= {"format_version": 1, "left_out": [["a", "no_video"], ["lonely", "no_video"]]}
    (shards / "c.index.json").write_text(json.dumps(index))
    shard = new.shards[-1]
    members = ShardIndex.from_json(json.dumps(index).encode(), "c")
    first = replace(shard, samples=1, left_out=2, index_sha256=index_digest(members))
    manifest = DatasetManifest((*old.shards, first), "cogvx", index_version=1)
    assert b"index_version" not in manifest.to_json()
    (shards / MANIFEST_NAME).write_bytes(manifest.to_json())

    found = look(shards)

    assert found.shards == new.shards
    assert [shard.samples for shard in found.shards] == [2, 3, 0, 2]
    assert json.loads((shards / "c.index.json").read_text())["format_version"] == 2
    assert json.loads((shards / MANIFEST_NAME).read_text())["index_version"] == 2


def test_a_manifest_of_the_first_version_that_left_nothing_out_stays_as_it_is(
    shards: Path,
) -> None:
    found = look(shards)
    old = DatasetManifest(found.shards, "cogvx", index_version=1).to_json()
    (shards / MANIFEST_NAME).write_bytes(old)

    assert look(shards).shards == found.shards
    assert (shards / MANIFEST_NAME).read_bytes() == old
