"""Every command that reads a dataset names what it does not read, in the same words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import main
from app.config.schema.data import DataConfig, SFTDataConfig
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.sources.folder import list_folder
from app.storage.opening import open_storage
from tests.support.clip_files import encode
from tests.support.encoding import Inputs, write_inputs
from tests.support.s3_servers import RunningServer, set_environment
from tests.support.tiny_run import clean_environment, cogvx

LINE = (
    "4 of 9 videos are left out: unsupported_suffix 3 (videos/x.flv, videos/y.gif, videos/z.wmv), "
    "unusable_name 1 (videos/a\\b.mp4)"
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Five clips that are read, four with captions that are not, and a hidden one."""
    made = write_inputs(tmp_path_factory.mktemp("inputs"))
    for name in ("x.flv", "y.gif", "z.wmv", "a\\b.mp4", "._c0.mp4"):
        (made.clips / "videos" / name).write_bytes(b"\0" * 4000)
        (made.clips / "labels" / f"{name.rpartition('.')[0]}.txt").write_text("words")
    return made


def said(captured: str) -> list[str]:
    """The lines of a log, and of plain text, that say what is left out."""
    return [line for line in captured.splitlines() if "are left out" in line]


def test_check(inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(inputs.clips), "--json", "--workers", "1"]) == 65

    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 5
    assert [(problem["key"], problem["reason"]) for problem in report["problems"]] == [
        ("videos/a\\b.mp4", "unusable_name"),
        *((f"videos/{name}", "unsupported_suffix") for name in ("x.flv", "y.gif", "z.wmv")),
    ]
    assert report["left_out"] == LINE


def test_pack(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "pack", str(inputs.clips), "--out", str(tmp_path / "out")]

    assert main(words) == 65
    assert "4 of 9 videos" in capsys.readouterr().err
    assert main([*words, "--max-left-out", "0.5"]) == 0
    assert said(capsys.readouterr().err) == [f"warning: {LINE}"]


@pytest.mark.parametrize("command", ["train", "encode"])
def test_train_and_encode(command: str, inputs: Inputs, tmp_path: Path) -> None:
    own = {
        "train": ["--train-iters", "1", "--save-interval", "1", "args.load=null"],
        "encode": ["--out", str(tmp_path / "cache")],
    }[command]

    ended = cogvx([command, *inputs.words(*own)], clean_environment(tmp_path / "tmp"))

    assert ended.code == 0, ended.err[-3000:]
    lines = said(ended.out + ended.err)
    assert len(lines) == 1
    assert LINE in lines[0].replace("\\\\", "\\")


def test_keys_of_a_bucket_that_cannot_be_used_end_no_run(
    moto_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consoles and scripts make keys with an empty part; rclone cannot hold them, AWS can."""
    set_environment(monkeypatch, moto_server.environment)
    root = f"s3://{moto_server.bucket}/odd-names"
    storage = open_storage(root)
    video = encode(tmp_path / "a.mp4")
    for key in ("videos/1.mp4", "videos/2.mp4"):
        storage.upload(video, key)
        storage.write_small(f"labels/{Path(key).stem}.txt", b"words")
    control = storage._control.get()  # type: ignore[attr-defined]
    odd = ["videos//3.mp4", "videos/a\\b.mp4", "videos/tab\tbed.mp4", "videos/._1.mp4"]
    for key in odd:
        control.put(f"odd-names/{key}", video.read_bytes())

    found = list_folder(root)

    assert found.videos == ("videos/1.mp4", "videos/2.mp4")
    assert [(one.key, one.reason) for one in found.left_out] == [
        (key, "unusable_name") for key in odd[:3]
    ]
    config = DataConfig(
        target="data_video.SFTDataset",
        implementation="",
        params=SFTDataConfig(video_size=(32, 48), fps=8, max_num_frames=9),
        cache_dir=str(tmp_path / "cache"),
    )
    request = LoaderRequest(paths=[root], share=Share(0, 1, 2), seed=1)
    with open_loader(config, request) as loader:
        (batch,) = loader.batches(0, 1)
    assert sorted(batch["keys"]) == ["videos/1.mp4", "videos/2.mp4"]
