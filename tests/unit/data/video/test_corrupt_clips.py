"""Hostile and damaged files: one counted reason each, nothing fetched, nothing left behind."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.data.bad_clip import BadClipError
from app.data.video.decoder import DecodeLimits, VideoDecoder, VideoFacts
from app.data.video.frames import FrameRequest, exact
from tests.support import corrupt_clips
from tests.support.clip_files import encode, number_of, run_ffmpeg
from tests.support.corrupt_clips import BAD, FRAMES, plain
from tests.support.decoding import Workers, frames_of, reason_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corrupt")


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_has_one_reason_and_the_next_one_is_read(
    name: str, decoder: VideoDecoder, folder: Path
) -> None:
    make, reason = BAD[name]

    assert reason_of(decoder, make(folder)) in reason.split("|")
    assert number_of(frames_of(decoder, plain(folder), [7])[0]) == 7


def test_every_cut_of_a_file_is_noticed(decoder: VideoDecoder, folder: Path) -> None:
    for data in (plain(folder), corrupt_clips.faststart(folder)):
        for kept in range(1100, len(data), 97):
            assert reason_of(decoder, data[:kept]) in {"truncated", "damaged"}


# files that are odd and in order


def test_a_single_frame_fills_a_clip(decoder: VideoDecoder, tmp_path: Path) -> None:
    facts = decoder.probe(encode(tmp_path / "one.mp4", 1).read_bytes())

    assert facts.frames == 1
    assert exact(facts.times, FrameRequest(9, 8.0)).frames == (0,) * 9


def test_4k_hevc_with_10_bits_is_decoded(decoder: VideoDecoder, folder: Path) -> None:
    options = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p10le -tag:v hvc1 -x265-params"
    source = corrupt_clips.moving_picture("3840x2160", 0.375)
    blob = corrupt_clips.made(folder, "4k.mp4", f"{source} {options} log-level=none:pools=1")

    taken = frames_of(decoder, blob, [0, 2])

    assert {frame.shape for frame in taken.values()} == {(2160, 3840, 3)}
    assert 40 < taken[1].mean() < 215
    assert np.abs(taken[0].astype(int) - taken[1]).max() > 50  # the picture moves


def test_frames_of_uneven_length_keep_their_times(decoder: VideoDecoder, tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", 20, fps=10.0)
    uneven = tmp_path / "uneven.mp4"
    kept = "select=not(between(n\\,5\\,11))"
    run_ffmpeg(["-i", str(whole), "-vf", kept, "-fps_mode", "vfr", str(uneven)])
    taken: dict[int, np.ndarray] = {}

    def choose(facts: VideoFacts) -> list[int]:
        return sorted(set(exact(facts.times, FrameRequest(9, 5.0)).frames))

    facts = decoder.decode(
        uneven.read_bytes(), choose, lambda place, frame: taken.__setitem__(place, frame.copy())
    )

    assert facts.times[4:6] == pytest.approx([0.4, 1.2], abs=1e-3)
    # At 0.0, 0.2, ... 1.6 s: frame 4 stays on the screen until 1.2 s.
    assert [number_of(taken[i]) for i in range(len(taken))] == [0, 2, 4, 12, 14, 16]


def test_a_film_that_compresses_a_thousandfold_is_decoded_within_bounded_memory(
    decoder: VideoDecoder, folder: Path
) -> None:
    source = corrupt_clips.black("1920x1080", 240)
    blob = corrupt_clips.made(folder, "black.mp4", f"{source} -c:v libx264 -preset ultrafast")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    taken = frames_of(decoder, blob, [0, 120, 239])

    assert 1000 * len(blob) < 1920 * 1080 * 3 * 240
    assert len(taken) == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 << 10


# the decoder process


def test_a_decoder_that_wants_too_much_memory_costs_one_clip(folder: Path) -> None:
    decoder = VideoDecoder(DecodeLimits(memory_bytes=400 << 20))
    assert decoder.probe(plain(folder)).frames == FRAMES

    reason = reason_of(decoder, corrupt_clips.disguised_bomb(folder))
    after = number_of(frames_of(decoder, plain(folder), [3])[0])
    decoder.close()

    # As soon as the decoder, the filter or the library around them gets no memory.
    assert reason in {"out_of_memory", "decoder_crash", "undecodable"}
    assert after == 3


@pytest.mark.parametrize(
    ("signal_number", "reason"),
    [(signal.SIGSEGV, "decoder_crash"), (signal.SIGSTOP, "decoder_timeout")],
)
def test_a_clip_that_kills_or_stops_two_decoders_is_bad(
    signal_number: int, reason: str, folder: Path
) -> None:
    decoder, workers = VideoDecoder(DecodeLimits(deadline_s=0.3)), Workers()
    killed: list[int] = []

    def choose(facts: VideoFacts) -> list[int]:
        killed.append(workers.pid)
        os.kill(killed[-1], signal_number)
        return [0]

    with pytest.raises(BadClipError) as caught:
        decoder.decode(plain(folder), choose, lambda place, frame: None)
    after = number_of(frames_of(decoder, plain(folder), [5])[0])
    decoder.close()

    assert (caught.value.reason, len(set(killed)), after) == (reason, 2, 5)


def test_no_clip_gets_more_than_twelve_times_the_deadline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.data.video.decoder.FIRST_S_PER_PIXEL", 1.0)
    decoder, workers = VideoDecoder(DecodeLimits(deadline_s=0.1)), Workers()
    decoder.probe(plain(folder))
    first = workers.pid

    def choose(facts: VideoFacts) -> list[int]:
        if workers.pid == first:
            os.kill(first, signal.SIGSTOP)
        return [5]

    taken: dict[int, np.ndarray] = {}
    started = time.monotonic()
    decoder.decode(
        plain(folder), choose, lambda place, frame: taken.__setitem__(place, frame.copy())
    )
    took_s = time.monotonic() - started
    decoder.close()

    assert 1.2 <= took_s < 10
    assert number_of(taken[0]) == 5  # by a fresh process


def test_an_error_in_the_reader_does_not_leave_frames_for_the_next_clip(folder: Path) -> None:
    decoder = VideoDecoder()

    def fail(place: int, frame: np.ndarray) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        decoder.decode(plain(folder), lambda facts: [0, 1, 2], fail)
    assert number_of(frames_of(decoder, plain(folder), [9])[0]) == 9
    decoder.close()


# files that name other files and addresses


class Listener:
    """A port that counts who comes."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.visits = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.visits += 1
            client.close()

    def wait_for_visits(self, count: int) -> None:
        deadline = time.monotonic() + 5
        while self.visits < count and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


def test_files_that_point_elsewhere_are_refused_and_nothing_is_asked_for(
    decoder: VideoDecoder, folder: Path, listener: Listener, tmp_path: Path
) -> None:
    other = encode(tmp_path / "other.mp4")
    hostile = {
        "playlist": (corrupt_clips.playlist(listener.url), "not_a_video"),
        "manifest": (corrupt_clips.dash_manifest(listener.url), "not_a_video"),
        "script": (corrupt_clips.concat_script(other), "not_a_video"),
        "media": (corrupt_clips.external_media(folder, listener.url), "external_reference"),
        "reference": (corrupt_clips.reference_movie(folder, listener.url), "no_video_track"),
    }
    before = sorted(path for path in tmp_path.rglob("*"))

    found = {name: reason_of(decoder, blob) for name, (blob, _) in hostile.items()}

    socket.create_connection(("127.0.0.1", int(listener.url.rpartition(":")[2]))).close()
    listener.wait_for_visits(1)
    assert found == {name: reason for name, (_, reason) in hostile.items()}
    assert listener.visits == 1  # our own, which shows that it counts
    assert sorted(path for path in tmp_path.rglob("*")) == before
