from __future__ import annotations

import stat
from pathlib import Path

import decord
import pytest
import torch
from torch import Tensor

from app.errors import CogvxError, ShapeError
from app.evaluation.video_file import to_uint8, write_video


def gradient_frames(count: int, rows: int, columns: int) -> Tensor:
    """(T, 3, H, W) uint8: smooth ramps, so that compression changes them little."""
    t = torch.linspace(0, 1, count)[:, None, None, None]
    y = torch.linspace(0, 1, rows)[:, None]
    x = torch.linspace(0, 1, columns)
    red, green, blue = (t + y + x) / 3, (1 - t + y + x) / 3, (t + 2 - y - x) / 3
    return to_uint8(torch.cat([red, green, blue], dim=1))


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (34, 50)])
def test_the_file_has_the_given_frames_size_and_rate(
    tmp_path: Path, rows: int, columns: int
) -> None:
    frames = gradient_frames(9, rows, columns)

    path = write_video(tmp_path / "new" / "a.mp4", frames, fps=8)

    reader = decord.VideoReader(str(path))
    assert len(reader) == 9
    assert reader.get_avg_fps() == 8
    decoded = torch.from_numpy(reader.get_batch(range(9)).asnumpy()).permute(0, 3, 1, 2)
    assert decoded.shape == frames.shape
    assert (decoded.float() - frames.float()).abs().mean() < 3  # lossy, but the same picture


def test_colours_survive_the_conversion(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (16, 16, 16)]
    frames = torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 32, 32)

    path = write_video(tmp_path / "a.mp4", frames, fps=5)

    reader = decord.VideoReader(str(path))
    decoded = reader.get_batch(range(5)).asnumpy()[:, 16, 16].astype(int)
    assert abs(decoded - torch.tensor(colours).numpy()).max() <= 4


def test_the_same_frames_give_the_same_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    frames = gradient_frames(5, 32, 32)

    first = write_video(tmp_path / "a.mp4", frames, fps=8).read_bytes()
    second = write_video(tmp_path / "a.mp4", frames, fps=8).read_bytes()

    assert first == second
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_floats_are_cut_off_and_not_rounded() -> None:
    video = torch.tensor([0.0, 0.5, 0.999, 1.0, 1.5, -0.2, float("nan")])

    assert to_uint8(video).tolist() == [0, 127, 254, 255, 255, 0, 0]


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 3, 33, 32, dtype=torch.uint8),
        torch.zeros(2, 3, 32, 33, dtype=torch.uint8),
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(0, 3, 32, 32, dtype=torch.uint8),
    ],
)
def test_frames_that_do_not_fit_are_refused(tmp_path: Path, frames: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"a\.mp4"):
        write_video(tmp_path / "a.mp4", frames, fps=8)

    assert list(tmp_path.iterdir()) == []


def fake_ffmpeg(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))


def test_a_failing_encoder_is_reported_with_the_end_of_its_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg(tmp_path, "echo no space left on device >&2; exit 3", monkeypatch)

    with pytest.raises(CogvxError, match="exit code 3: no space left on device") as caught:
        write_video(tmp_path / "out" / "a.mp4", gradient_frames(5, 32, 32), fps=8)

    assert caught.value.where.endswith("a.mp4")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_hanging_encoder_is_killed_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ffmpeg(tmp_path, "exec sleep 60", monkeypatch)

    with pytest.raises(CogvxError, match=r"did not finish in 0\.5 s"):
        write_video(tmp_path / "a.mp4", gradient_frames(5, 32, 32), fps=8, timeout_s=0.5)


def test_an_encoder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "missing"))

    with pytest.raises(CogvxError, match="did not start") as caught:
        write_video(tmp_path / "a.mp4", gradient_frames(5, 32, 32), fps=8)

    assert "IMAGEIO_FFMPEG_EXE" in caught.value.fix


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(CogvxError, match="cannot be written"):
        write_video(tmp_path / "file" / "a.mp4", gradient_frames(5, 32, 32), fps=8)
