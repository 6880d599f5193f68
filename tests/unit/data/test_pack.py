from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from app.cli import main as cli
from app.data.pack import PackRules, pack
from app.data.shards.manifest import MANIFEST_NAME
from app.errors import ConfigError, DataError, InputMissingError
from tests.support.clip_files import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"a": "first", "b.2": "second", "sub/c": "third"}
    return write_folder(tmp_path_factory.mktemp("in"), names)


def contents(out: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.iterdir()
        if path.name != MANIFEST_NAME  # it holds modification times
    }


def test_shards_index_and_manifest(folder: Path, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []

    report = pack(str(folder), str(tmp_path), PackRules(), lambda *n: reported.append(n))

    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    shard = manifest["shards"][0]
    data = (tmp_path / "clips-000000.tar").read_bytes()
    assert (report.shards, report.samples, report.bytes) == (1, 3, len(data))
    assert (shard["samples"], shard["bytes"]) == (3, len(data))
    assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    with tarfile.open(tmp_path / "clips-000000.tar") as archive:
        names = archive.getnames()
        description = json.load(archive.extractfile("b_2.json"))  # type: ignore[arg-type]
    assert names == [
        f"{key}.{kind}" for key in ("a", "b_2", "sub/c") for kind in ("json", "mp4", "txt")
    ]
    assert description["num_frames"] == 21
    assert (description["width"], description["height"]) == (64, 48)
    assert description["fps"] == pytest.approx(8.0)
    assert description["caption_sha256"] == hashlib.sha256(b"second").hexdigest()
    assert reported == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), str(tmp_path / "one"), PackRules())
    pack(str(folder), str(tmp_path / "two"), PackRules())

    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_shards_stay_below_their_bound(folder: Path, tmp_path: Path) -> None:
    bound = 12_000

    report = pack(str(folder), str(tmp_path), PackRules(shard_bytes=bound, name="part"))

    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("part-*.tar"))]
    assert report.shards == len(sizes) > 1
    assert max(sizes) <= 20_480  # tar rounds up to records of 10,240 bytes


def test_bad_videos_are_all_named_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "in", {"a": "x", "b": "y", "c": "z"})
    for name in ("b", "c"):
        path = root / "videos" / f"{name}.mp4"
        path.write_bytes(path.read_bytes()[:1500])

    with pytest.raises(DataError, match="2 of 3 videos cannot be used") as caught:
        pack(str(root), str(tmp_path / "out"), PackRules(shard_bytes=2000))

    assert "videos/b.mp4 (truncated" in caught.value.what
    assert list((tmp_path / "out").glob("*")) == []


def test_missing_captions_stop_packing_before_the_first_shard(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "in", {"a": "x", "b": None})

    with pytest.raises(DataError, match="1 of 2 videos have no caption"):
        pack(str(root), str(tmp_path / "out"), PackRules())
    report = pack(str(root), str(tmp_path / "out"), PackRules(missing_captions="empty"))

    assert report.samples == 2


def test_a_dataset_is_not_replaced_unless_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(str(folder), str(out), PackRules(shard_bytes=2000))
    before = len(list(out.glob("*.tar")))

    with pytest.raises(ConfigError, match="already"):
        pack(str(folder), str(out), PackRules())
    pack(str(folder), str(out), PackRules(overwrite=True))

    assert before == 3
    assert [path.name for path in out.glob("*.tar")] == ["clips-000000.tar"]
    assert len(list(out.glob("*.index.json"))) == 1


def test_two_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "in", {"a.b": "x", "a_b": "y"}, frames=4)

    with pytest.raises(DataError, match="two videos would be named 'a_b'"):
        pack(str(root), str(tmp_path / "out"), PackRules())


def test_an_empty_folder_is_exit_code_66(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError):
        pack(str(tmp_path), str(tmp_path / "out"), PackRules())


def test_the_command_prints_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["data", "pack", str(folder), "--out", str(tmp_path / "o"), "--json"])

    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["samples"] == 3
    assert printed["manifest"].endswith(MANIFEST_NAME)


def test_the_command_returns_the_exit_code_of_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["data", "pack", str(tmp_path / "none"), "--out", str(tmp_path / "o")])

    assert code == 66
    assert "no video" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1"])
def test_a_shard_size_out_of_range_is_a_mistake_of_the_command_line(
    size: str, folder: Path, tmp_path: Path
) -> None:
    words = ["data", "pack", str(folder), "--out", str(tmp_path), "--shard-mib", size]

    with pytest.raises(SystemExit) as ended:
        cli.main(words)

    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("source", "out"),
    [("", ""), ("", "videos"), ("", "../link"), ("videos", ""), ("videos", "labels/x")],
)
def test_shards_are_not_written_among_their_videos(source: str, out: str, tmp_path: Path) -> None:
    clips = write_folder(tmp_path / "clips", {"a": "first"})
    (tmp_path / "link").symlink_to(clips)

    with pytest.raises(ConfigError, match="among the videos") as caught:
        pack(str(clips / source), f"{clips}/{out}", PackRules())

    assert "--out" in caught.value.fix
    assert list(clips.rglob("*.tar")) == []


def test_nor_among_the_videos_of_a_linked_folder(tmp_path: Path) -> None:
    clips = write_folder(tmp_path / "clips", {"a": "first"})
    (tmp_path / "set").mkdir()
    for kind in ("videos", "labels"):
        (tmp_path / "set" / kind).symlink_to(clips / kind)

    with pytest.raises(ConfigError, match="among the videos"):
        pack(str(tmp_path / "set"), f"{clips}/videos/shards", PackRules())


def test_shards_may_lie_in_a_folder_of_their_own_below_the_videos(tmp_path: Path) -> None:
    clips = write_folder(tmp_path / "clips", {"a": "first"})

    assert pack(str(clips), f"{clips}/shards", PackRules()).samples == 1


def put(root: Path, names: list[str], video: bytes) -> Path:
    """videos/<name> with a caption for each."""
    for name in names:
        for kind, file, data in (
            ("videos", name, video),
            ("labels", f"{name.rpartition('.')[0]}.txt", b"words"),
        ):
            (root / kind / file).parent.mkdir(parents=True, exist_ok=True)
            (root / kind / file).write_bytes(data)
    return root


SEVEN = ["1.mp4", "2.MP4", "3.gif", "4.wmv", "5.flv", "6.ts", "a\\b.mp4"]


@pytest.fixture(scope="module")
def video(folder: Path) -> bytes:
    return (folder / "videos" / "a.mp4").read_bytes()


def test_more_left_out_than_allowed_is_an_exit_code_and_writes_nothing(
    video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = put(tmp_path / "in", SEVEN, video), tmp_path / "out"

    code = cli.main(["data", "pack", str(root), "--out", str(out)])

    said = capsys.readouterr().err
    assert code == 65
    assert "5 of 7 videos cannot be used" in said
    for name in SEVEN[2:]:
        assert f"videos/{name} (" in said
    assert "--max-left-out (0.01)" in said
    assert not out.exists()


def test_what_is_left_out_below_the_limit_is_said(
    video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = put(tmp_path / "in", SEVEN, video), tmp_path / "out"
    (root / "videos" / "1.mp4").write_bytes(video[:1500])
    words = ["data", "pack", str(root), "--out", str(out), "--max-left-out"]

    assert cli.main([*words, "0.8"]) == 65  # 6 of 7, and one of them is known in the middle only
    assert list(out.glob("*")) == []
    capsys.readouterr()
    assert cli.main([*words, "0.86", "--json"]) == 0

    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["samples"], report["left_out"]) == (1, 6)
    line = (
        "6 of 7 videos are left out: unsupported_suffix 4 (videos/3.gif, videos/4.wmv, "
        "videos/5.flv and 1 more), truncated 1 (videos/1.mp4), "
        "unusable_name 1 (videos/a\\b.mp4)"
    )
    assert printed.err == f"warning: {line}\n"
    assert report["left_out_why"] == line


def test_a_folder_of_which_nothing_is_left_is_never_packed(video: bytes, tmp_path: Path) -> None:
    root = put(tmp_path / "in", ["1.mp4"], video[:1500])

    with pytest.raises(DataError, match="1 of 1 videos cannot be used"):
        pack(str(root), str(tmp_path / "out"), PackRules(max_left_out=1.0))


def test_each_kind_keeps_its_name_in_the_shard_and_hidden_files_are_in_none(
    video: bytes, tmp_path: Path
) -> None:
    root = put(tmp_path / "in", ["a.MP4", "b.c.mkv", "d\u00a0e.mov", "._a.mp4"], video)
    (root / "videos" / "link").symlink_to(put(tmp_path / "more", ["x.webm"], video) / "videos")
    (root / "labels" / "link").symlink_to(tmp_path / "more" / "labels")

    report = pack(str(root), str(tmp_path / "out"), PackRules())

    with tarfile.open(tmp_path / "out" / "clips-000000.tar") as archive:
        names = [name for name in archive.getnames() if not name.endswith((".json", ".txt"))]
    assert names == ["a.mp4", "b_c.mkv", "d_e.mov", "link/x.webm"]
    assert (report.samples, report.left_out) == (4, 0)


def test_hints_name_the_flags_of_this_command(
    video: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put(tmp_path / "in", ["a.mp4"], video)
    (root / "labels" / "a.txt").unlink()
    tars = tmp_path / "tars"
    tars.mkdir()
    (tars / "x.tar").write_bytes(b"")

    cli.main(["data", "pack", str(root), "--out", str(tmp_path / "out")])
    missing = capsys.readouterr().err
    cli.main(["data", "pack", str(tars), "--out", str(tmp_path / "out")])
    packed = capsys.readouterr().err
    code = cli.main(["data", "pack", f"{root} ", "--out", str(tmp_path / "out")])

    assert "--missing-captions empty" in missing
    assert "data.missing_captions" not in missing
    assert "packed already" in packed
    assert "data.target" not in packed
    assert code == 78
    assert "ends with a blank" in capsys.readouterr().err


def test_captions_of_a_table_are_packed_as_they_are(video: bytes, tmp_path: Path) -> None:
    root = put(tmp_path / "in", ["a.mp4"], video)
    (root / "labels" / "a.txt").unlink()
    (root / "metadata.csv").write_text("file_name,text\nvideos/a.mp4,from a table\n")

    pack(str(root), str(tmp_path / "out"), PackRules())

    with tarfile.open(tmp_path / "out" / "clips-000000.tar") as archive:
        member = archive.extractfile("a.txt")
        assert member is not None
        assert member.read() == b"from a table"
