from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from app.data.bad_clip import BadClipError
from app.data.video import decoder as decode
from app.data.video.decoder import DecodeLimits, DecoderOfThread, VideoDecoder
from app.errors import ConfigError, RetryableError
from tests.support.clip_files import encode, number_of, run_ffmpeg
from tests.support.decoding import Workers, frames_of, worker_pids


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("decode") / "a.mp4"
    return encode(path, frames=30, options=["-bf", "2", "-g", "12"]).read_bytes()


def test_facts_of_a_plain_file(decoder: VideoDecoder, video: bytes) -> None:
    facts = decoder.probe(video)

    assert (facts.frames, facts.reported) == (30, 30)
    assert facts.fps == pytest.approx(8.0)
    np.testing.assert_allclose(facts.times, np.arange(30) / 8, atol=1e-4)


def test_each_chosen_frame_comes_in_its_place(decoder: VideoDecoder, video: bytes) -> None:
    chosen = [0, 1, 7, 8, 13, 29]

    taken = frames_of(decoder, video, chosen)

    assert [number_of(taken[place]) for place in range(6)] == chosen
    assert taken[0].shape == (48, 64, 3)


def test_an_edit_list_hides_the_first_frames(decoder: VideoDecoder, tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", frames=50, fps=10.0, options=["-g", "20", "-bf", "0"])
    cut = tmp_path / "cut.mp4"
    run_ffmpeg(["-ss", "2.5", "-i", str(whole), "-c", "copy", str(cut)])

    facts = decoder.probe(cut.read_bytes())
    taken = frames_of(decoder, cut.read_bytes(), [0, 1, facts.frames - 1])

    # Copied from the key frame 20 on, shown from frame 25 on.
    assert facts.frames < facts.reported
    assert facts.times[0] == pytest.approx(0.0, abs=0.05)
    assert [number_of(taken[place]) for place in range(3)] == [25, 26, 49]


@pytest.mark.parametrize("size", [(64, 48), (64, 32), (32, 16), (50, 66)])
def test_narrow_videos_keep_their_pixels(
    decoder: VideoDecoder, tmp_path: Path, size: tuple[int, int]
) -> None:
    blob = encode(tmp_path / "narrow.mp4", frames=60, size=size).read_bytes()

    taken = frames_of(decoder, blob, [2, 9, 30])

    assert [number_of(taken[place]) for place in range(3)] == [2, 9, 30]
    assert {frame.shape for frame in taken.values()} == {(*size, 3)}
    assert max(float(frame.std()) for frame in taken.values()) < 1  # plain gray: nothing shifted


def test_a_turned_video_is_decoded_upright(decoder: VideoDecoder, tmp_path: Path) -> None:
    plain = encode(tmp_path / "plain.mp4")
    turned = tmp_path / "turned.mp4"
    run_ffmpeg(["-display_rotation", "90", "-i", str(plain), "-c", "copy", str(turned)])

    taken = frames_of(decoder, turned.read_bytes(), [0])

    assert taken[0].shape == (64, 48, 3)


def test_garbled_frames_are_an_error_of_the_file_and_the_decoder_continues(
    decoder: VideoDecoder, video: bytes
) -> None:
    start, stop = video.index(b"mdat") + 4, video.index(b"moov") - 4
    garbled = video[:start] + b"\xa5" * (stop - start) + video[stop:]

    with pytest.raises(BadClipError):
        frames_of(decoder, garbled, [0, 29])

    assert number_of(frames_of(decoder, video, [5])[0]) == 5


def test_a_crash_costs_one_process_and_the_second_try_works(video: bytes) -> None:
    decoder, workers = VideoDecoder(), Workers()
    decoder.probe(video)
    os.kill(workers.pid, signal.SIGSEGV)

    taken = frames_of(decoder, video, [4])
    decoder.close()

    assert number_of(taken[0]) == 4


def test_a_hanging_decoder_is_killed_twice_and_then_blamed_on_the_file(
    video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, workers = VideoDecoder(DecodeLimits(deadline_s=0.2)), Workers()
    pids: list[int] = []

    def choose_and_freeze(facts: decode.VideoFacts) -> list[int]:
        pids.append(workers.pid)
        os.kill(pids[-1], signal.SIGSTOP)
        return [1]

    with pytest.raises(BadClipError) as caught:
        decoder.decode(video, choose_and_freeze, lambda place, frame: None)
    decoder.close()

    assert caught.value.reason == "decoder_timeout"
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_closing_from_another_thread_ends_a_running_read(video: bytes) -> None:
    decoder, workers = VideoDecoder(), Workers()
    frozen, outcome = threading.Event(), []

    def choose(facts: decode.VideoFacts) -> list[int]:
        os.kill(workers.pid, signal.SIGSTOP)
        frozen.set()
        return [0]

    def work() -> None:
        try:
            decoder.decode(video, choose, lambda place, frame: None)
        except BadClipError as problem:
            outcome.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    assert frozen.wait(30)
    decoder.close()
    thread.join(10)

    assert not thread.is_alive()
    assert len(outcome) == 1


def test_each_thread_has_its_own_decoder() -> None:
    decoders, found = DecoderOfThread(), []
    threads = [threading.Thread(target=lambda: found.append(decoders.get())) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()

    assert decoders.get() is decoders.get()
    assert len({id(d) for d in [*found, decoders.get()]}) == 3
    decoders.close()


def test_the_decoder_dies_with_its_parent(tmp_path: Path, video: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video)
    script = (
        "import sys, time; from app.data.video.decoder import VideoDecoder\n"
        f"d = VideoDecoder(); d.probe(open({str(path)!r}, 'rb').read())\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    (child,) = worker_pids(parent.pid)

    parent.kill()
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{child}").exists()


def test_the_worker_sees_no_credentials_and_imports_no_torch(
    video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    decoder, workers = VideoDecoder(), Workers()
    decoder.probe(video)
    proc = Path(f"/proc/{workers.pid}")

    environment = (proc / "environ").read_bytes()
    mapped = (proc / "maps").read_text()
    limits = (proc / "limits").read_text()
    decoder.close()

    assert b"hunter2" not in environment
    assert "libtorch" not in mapped
    assert f"Max address space         {3 << 30}" in limits
    assert "Max file size             0" in limits


def test_a_codec_that_the_decoder_cannot_read_is_named(
    decoder: VideoDecoder, tmp_path: Path
) -> None:
    path = tmp_path / "a.mkv"
    run_ffmpeg(["-f", "lavfi", "-i", "testsrc2=s=128x128:d=0.5:r=8", "-c:v", "ffv1", str(path)])

    with pytest.raises(BadClipError) as caught:
        decoder.probe(path.read_bytes())

    assert caught.value.reason == "unsupported_codec"
    assert "ffv1" in caught.value.detail
    assert "re-encode" in caught.value.fix


def test_a_decoder_without_memory_to_start_is_no_fault_of_a_clip(video: bytes) -> None:
    decoder = VideoDecoder(DecodeLimits(memory_bytes=64 << 20))

    with pytest.raises(ConfigError) as caught:
        decoder.probe(video)
    decoder.close()

    assert caught.value.exit_code == 78
    assert "decode_memory_gib: 0.0625" in caught.value.where


def test_a_missing_library_is_named_before_any_clip_is_blamed(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('libavcodec.so.62 is missing')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    decoder = VideoDecoder()

    with pytest.raises(ConfigError, match=r"libavcodec\.so\.62 is missing"):
        decoder.probe(video)
    decoder.close()


def test_a_decoder_that_is_killed_as_it_starts_may_start_elsewhere(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    decoder = VideoDecoder()

    with pytest.raises(RetryableError) as caught:
        decoder.probe(video)
    decoder.close()

    assert caught.value.exit_code == 138
