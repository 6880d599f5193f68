from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import pytest

from app.cli.main import main
from tests.support.clip_files import write_folder
from tests.support.configs import layer, path_of
from tests.support.shards import write_shard


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faulty")
    write_folder(root, {"a": "fine", "b": None, "c": "also fine"})
    (root / "videos" / "d.mp4").write_bytes(b"")
    (root / "labels" / "d.txt").write_text("zero bytes")
    return root


def test_the_json_report_has_the_promised_names(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["data", "check", str(faulty), "--json", "--workers", "2"])

    report = json.loads(capsys.readouterr().out)
    assert code == 65
    assert report["samples"] == 4
    assert report["usable"] == 2
    assert report["problems"] == [
        {"source": str(faulty), "key": "videos/b.mp4", "reason": "no_caption"},
        {"source": str(faulty), "key": "videos/d.mp4", "reason": "not_a_video"},
    ]
    assert report["frames"] == {"min": 20, "median": 21, "max": 22, "total": 63}
    assert report["sizes"] == {"48x64": 3}
    assert report["caption_tokens"]["estimated"] is True


def test_a_clean_set_is_exit_code_0_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, {"a": "fine"})

    code = main(["data", "check", str(tmp_path)])

    assert code == 0
    assert "no fault found" in capsys.readouterr().out


def test_buckets_are_counted_and_short_clips_are_faults_of_named_ones(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--bucket", "21x48x64", "--bucket", "21x64x48"]

    code = main(["data", "check", str(faulty), "--json", *sizes, "--missing-captions", "empty"])

    report = json.loads(capsys.readouterr().out)
    assert code == 65
    assert report["buckets"] == {
        "21x48x64": 2,
        "21x64x48": 0,
        "shorter than every bucket": 1,
        "not usable": 1,
    }
    assert [(p["key"], p["reason"]) for p in report["problems"]] == [
        ("videos/a.mp4", "too_short"),
        ("videos/d.mp4", "not_a_video"),
    ]


def test_the_picture_is_a_png_with_histograms_above_the_clips(faulty: Path, tmp_path: Path) -> None:
    shown = tmp_path / "new" / "picture.png"

    main(["data", "check", str(faulty), "--png", str(shown)])

    data = shown.read_bytes()
    assert data.startswith(b"\x89PNG")
    columns, rows = struct.unpack(">II", data[16:24])
    assert columns == 990
    assert rows == 490 + 3 * 96 + 2 * 4  # three panels, then the clips that can be decoded
    start = data.index(b"IDAT") + 4
    (size,) = struct.unpack(">I", data[start - 8 : start - 4])
    pixels = zlib.decompress(data[start : start + size])
    assert len(pixels) == rows * (1 + 3 * columns)
    line = pixels[(490 + 20) * (1 + 3 * columns) :][1 : 1 + 3 * 128 * 5]
    assert len(set(line)) == 5  # five gray frames of 128 columns


def test_a_configuration_gives_sizes_and_limits(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = layer(
        tmp_path,
        {
            "data": {
                "target": "data_video.SFTDataset",
                "params": {"video_size": [48, 64], "fps": 8, "max_num_frames": 17},
                "missing_captions": "empty",
            },
        },
    )

    main(["data", "check", str(faulty), "--json", "--base", path_of("tiny/tiny"), recipe])

    report = json.loads(capsys.readouterr().out)
    # 20, 21 and 22 frames, of which 3 at both ends are left out: only 22 leave 16, none 17.
    assert report["buckets"] == {"17x48x64": 0, "shorter than every bucket": 3, "not usable": 1}
    assert [problem["reason"] for problem in report["problems"]] == ["not_a_video"]


def test_a_bucket_that_cannot_be_is_refused(
    faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(faulty), "--bucket", "48x480x720"]) == 78
    assert "use 49" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--fps", "nan"),
        ("--fps", "0"),
        ("--fps", "-3"),
        ("--fps", "inf"),
        ("--skip", "-5"),
        ("--workers", "-1"),
        ("--workers", "0"),
        ("--max-tokens", "0"),
        ("--max-tokens", "many"),
    ],
)
def test_a_number_out_of_range_is_a_mistake_of_the_command_line(
    flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", str(tmp_path), flag, value])

    assert ended.value.code == 2
    assert flag in capsys.readouterr().err


def test_a_folder_in_place_of_the_picture_is_refused_before_the_scan(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["data", "check", str(faulty), "--json", "--png", str(tmp_path)])

    shown = capsys.readouterr()
    assert code == 2
    assert "--png" in shown.err
    assert shown.out == ""


def test_a_manifest_nested_beyond_all_depth_is_one_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "x.tar", [("0.txt", b"words")])
    (tmp_path / "dataset.manifest.json").write_text("[" * 200_000)

    code = main(["data", "check", str(tmp_path), "--json"])

    reasons = [one["reason"] for one in json.loads(capsys.readouterr().out)["problems"]]
    assert code == 65
    assert reasons == ["bad_manifest", "no_video"]
