"""CPU seconds and memory of 49 frames at the model's size: this product beside bare loops.

Each row is one clip and one choice of frames, decoded in a fresh process by each contender and
resized to 480x720 by the same function:

    cogvx         app.data.video.clip.read_clip; its decoder process counts
    PyAV          a loop over container.decode with ffmpeg's scale filter, from the first frame on
    decord next   VideoReader.next() from the first frame on
    decord batch  VideoReader.get_batch(numbers), which seeks (and is wrong in many files)

    python benchmarks/video_decoders.py                  # 480p and 1080p, about 4 minutes
    python benchmarks/video_decoders.py --seconds 3      # shorter clips
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from multiprocessing.queues import SimpleQueue
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import imageio_ffmpeg
import numpy as np
import torch

from app.data.video.transforms import frame_to_model_size

FRAMES, FPS = 49, 30
MODEL_SIZE = (480, 720)
NOISE = "testsrc2=s={size}:r=30,noise=alls=8:allf=t"
CODECS = {
    "h264": ("mp4", "-c:v libx264 -preset veryfast -crf 23 -bf 3 -g 250 -pix_fmt yuv420p"),
    "hevc": ("mp4", "-c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p"),
    "vp9": ("webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 3M -pix_fmt yuv420p"),
    "av1": ("mp4", "-c:v libaom-av1 -usage realtime -cpu-used 10 -b:v 3M -pix_fmt yuv420p"),
    "mpeg4": ("mp4", "-c:v mpeg4 -q:v 5 -bf 2 -pix_fmt yuv420p"),
    "mjpeg": ("avi", "-c:v mjpeg -q:v 5 -pix_fmt yuvj420p"),
}
Contender = Callable[[bytes, Sequence[int], int], None]


def cogvx(blob: bytes, chosen: Sequence[int], repeats: int) -> None:
    from app.data.video.clip import ClipShape, read_clip
    from app.data.video.decoder import DecoderOfThread
    from app.data.video.frames import FrameRequest, Selection

    decoders = DecoderOfThread()
    shape = ClipShape(FrameRequest(len(chosen), 8.0), *MODEL_SIZE)
    for _ in range(repeats):
        read_clip(blob, shape, lambda facts: Selection(tuple(chosen), len(chosen)), decoders)
    decoders.close()


def repeated(loop: Callable[[bytes, Sequence[int]], None]) -> Contender:
    def repeat(blob: bytes, chosen: Sequence[int], repeats: int) -> None:
        for _ in range(repeats):
            loop(blob, chosen)

    return repeat


def pyav(blob: bytes, chosen: Sequence[int]) -> None:
    import av
    import av.filter

    container = av.open(io.BytesIO(blob))
    stream = container.streams.best("video")
    stream.thread_type = "NONE"
    graph = av.filter.Graph()
    graph.threads = 1
    steps = [
        graph.add_buffer(template=stream),
        graph.add("scale"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for step, following in pairwise(steps):
        step.link_to(following)
    graph.configure()
    wanted, clip = set(chosen), Clip()
    for number, frame in enumerate(container.decode(stream)):
        if number in wanted:
            graph.push(frame)
            clip.add(graph.pull().to_ndarray())
        if number == chosen[-1]:
            return


def decord_next(blob: bytes, chosen: Sequence[int]) -> None:
    import decord

    reader = decord.VideoReader(io.BytesIO(blob), num_threads=1)
    wanted, clip = set(chosen), Clip()
    for number in range(chosen[-1] + 1):
        frame = reader.next()
        if number in wanted:
            clip.add(frame.asnumpy())


def decord_batch(blob: bytes, chosen: Sequence[int]) -> None:
    import decord

    reader = decord.VideoReader(io.BytesIO(blob), num_threads=1)
    clip = Clip()
    for frame in reader.get_batch(list(chosen)).asnumpy():
        clip.add(frame)


class Clip:
    """What every contender fills: the frames at the model's size, one tensor."""

    def __init__(self) -> None:
        self._clip = torch.empty((FRAMES, 3, *MODEL_SIZE), dtype=torch.uint8)
        self._filled = 0

    def add(self, frame: np.ndarray) -> None:
        self._clip[self._filled] = frame_to_model_size(frame, MODEL_SIZE)
        self._filled += 1


CONTENDERS: dict[str, Contender] = {
    "cogvx": cogvx,
    "PyAV": repeated(pyav),
    "decord next": repeated(decord_next),
    "decord batch": repeated(decord_batch),
}


def measured(name: str, path: Path, chosen: Sequence[int], answers: SimpleQueue) -> None:
    """CPU seconds a clip (this process and its children) and peak MiB of both."""
    import app.data.video.clip  # noqa: F401 (imports are no part of what is measured)

    torch.set_num_threads(1)
    blob = path.read_bytes()
    spent = []
    for repeats in (1, 3):  # the difference is two clips, without the start of a decoder process
        before = _cpu_s()
        CONTENDERS[name](blob, chosen, repeats)
        spent.append(_cpu_s() - before)
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in WHO]
    answers.put(((spent[1] - spent[0]) / 2, max(peaks) if name != "cogvx" else sum(peaks)))


WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in WHO]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def made(folder: Path, codec: str, size: str, seconds: float) -> Path:
    suffix, words = CODECS[codec]
    path = folder / f"{codec}_{size}.{suffix}"
    source = ["-f", "lavfi", "-i", NOISE.format(size=size), "-t", str(seconds)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, *words.split(), str(path)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="length of the clips")
    parser.add_argument("--codecs", nargs="*", default=list(CODECS), choices=list(CODECS))
    parser.add_argument("--sizes", nargs="*", default=["720x480", "1920x1080"])
    options = parser.parse_args()
    total = int(options.seconds * FPS)
    choices = {
        "first": list(range(3, 3 + FRAMES)),
        "middle": list(range(total // 2, total // 2 + FRAMES)),
        "spread": np.linspace(3, total - 4, FRAMES).astype(int).tolist(),
    }
    context = multiprocessing.get_context("spawn")
    titles = [f"{name}, CPU s (MiB)" for name in CONTENDERS]
    print("| " + " | ".join(["clip", "frames", *titles, "ratio"]) + " |")
    print("|---|---|" + "---|" * (len(CONTENDERS) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for codec in options.codecs:
                path = made(Path(folder), codec, size, options.seconds)
                for choice, chosen in choices.items():
                    row(context, f"{codec} {size}", path, choice, chosen)


def row(context, label: str, path: Path, choice: str, chosen: Sequence[int]) -> None:  # type: ignore[no-untyped-def]
    cells, best = [], {}
    for name in CONTENDERS:
        answers = context.SimpleQueue()
        process = context.Process(target=measured, args=(name, path, chosen, answers))
        process.start()
        process.join(120)
        if process.exitcode == 0:
            cpu_s, peak_mib = answers.get()
            best[name] = cpu_s
            cells.append(f"{cpu_s:.2f} ({peak_mib:.0f})")
        else:
            process.kill()
            cells.append("cannot")
    peers = [value for name, value in best.items() if name != "cogvx"]
    ratio = best["cogvx"] / min(peers)
    print(f"| {label} | {choice} | " + " | ".join(cells) + f" | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"\n{time.monotonic() - started:.0f} s")
