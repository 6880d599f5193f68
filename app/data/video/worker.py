"""The decoder process: `python -m app.data.video.worker`. Video files in, frames out.

Decoders crash, hang and eat memory on hostile or cut files, so decoding happens here, in a
process with tight limits and nothing worth stealing. Imports decord and numpy only (0.7 s; with
torch it would be 4 s per restart). One request at a time over stdin and stdout:

    open: b"O" + uint64 size + the whole file     -> b"F" + uint32 size + JSON facts,
                                                      then float64 begin time of each frame
    read: b"R" + uint64 count + int64 frames      -> b"P" + uint32 rows, uint32 columns, then until
                                                      all came: b"C" + uint32 n + n frames, uint8
                                                      (rows, columns, 3)
    instead of any of these, when the file is bad -> b"E" + uint32 size + JSON {reason, detail}

Once after the start it says b"!" . All numbers are little-endian. End of input ends the process.
Started with the word `strict` after its two numbers, it decodes from the first frame on and
refuses a video whose decoder reports damage, which is otherwise concealed.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

CPU_S_PER_REQUEST = 600  # against endless loops; the parent's deadline is the real one
OPEN_FILES = 32
CHUNK_BYTES = 64 << 20  # frames in memory, besides the decoder's own
PR_SET_PDEATHSIG = 1
# What decoders report of damaged frames, and not what they report of videos that begin between
# key frames (missing references), which are in order.
DAMAGE = re.compile(
    r"error while decoding|error splitting|error parsing|invalid nal|invalid data|corrupt|"
    r"concealing|overread|out of range|unavailable for requested|invalid level prefix",
    re.IGNORECASE,
)
# What decord puts before a message: "[07:40:33] /where/it/was/built/x.cc:292: ".
SOURCE_PLACE = re.compile(r"\[[\d:]+\] \S+:\d+: ")
CLONE_NEWUSER_AND_NEWNET = 0x10000000 | 0x40000000


def confine(parent: int, memory_bytes: int) -> None:
    """Limit this process, and let it die with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    # No network, where the kernel lets us; playlists and the like never get here anyway.
    libc.unshare(CLONE_NEWUSER_AND_NEWNET)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def allow_cpu() -> None:
    """Give the next request its processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + CPU_S_PER_REQUEST
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


class Reports:
    """What the decoder library reports on standard error, read without ever waiting for it."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)  # a full pipe must not stop the decoder: the rest is lost
        os.dup2(write, 2)
        os.close(write)

    def damage(self) -> str | None:
        """The first report of damage since the last call."""
        text = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._read, 1 << 16):
                text += piece
        lines = text.decode(errors="replace").splitlines()
        return next((line for line in lines if DAMAGE.search(line)), None)


def serve(requests: BinaryIO, answers: BinaryIO, reports: Reports | None = None) -> None:
    """Answer requests until the input ends; `reports`: be strict."""
    import decord

    decord.logging.set_level(decord.logging.ERROR if reports else decord.logging.QUIET)
    answers.write(b"!")
    answers.flush()
    reader: Any = None
    while kind := requests.read(1):
        (count,) = struct.unpack("<Q", requests.read(8))
        allow_cpu()
        try:
            if kind == b"O":
                reader = None  # free the last file before the next one is read
                reader = open_video(requests.read(count), answers)
            else:
                send_frames(reader, requests.read(8 * count), answers, reports)
        except MemoryError as problem:
            send_problem(answers, "out_of_memory", str(problem))
        except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as problem:
            send_problem(answers, *explain(problem))
        answers.flush()


def open_video(blob: bytes, answers: BinaryIO) -> Any:
    """Open a file held in memory and say what it is."""
    import decord
    import numpy as np

    reader = decord.VideoReader(io.BytesIO(blob), ctx=decord.cpu(0), num_threads=1)
    count = len(reader)
    times = np.asarray(reader.get_frame_timestamp(range(count)), dtype="<f8")[:, 0]
    facts = json.dumps({"frames": count, "fps": float(reader.get_avg_fps())}).encode()
    answers.write(b"F" + struct.pack("<I", len(facts)) + facts)
    answers.write(np.ascontiguousarray(times).tobytes())
    return reader


def send_frames(
    reader: Any, numbers: bytes, answers: BinaryIO, reports: Reports | None = None
) -> None:
    """Decode the frames with the given ascending numbers, a bounded piece at a time.

    Raises:
        RuntimeError: with `reports`, the decoder reports damage.
    """
    import numpy as np

    chosen = np.frombuffer(numbers, dtype="<i8").tolist()
    begun, left = False, len(chosen)
    if reports is not None:
        reports.damage()  # of the last video
        reader.seek_accurate(0)
    for frames in one_by_one(reader, chosen) if reports is not None else pieces(reader, chosen):
        left -= len(frames)
        # The last frame is held back until it is clear that all of them are sound.
        if reports is not None and left == 0 and (damage := reports.damage()) is not None:
            raise RuntimeError(f"the decoder reports damage: {damage}")
        _, rows, columns, _ = frames.shape
        if not begun:
            answers.write(b"P" + struct.pack("<II", rows, columns))
            begun = True
        answers.write(b"C" + struct.pack("<I", len(frames)))
        answers.write(np.ascontiguousarray(frames).data)


def pieces(reader: Any, chosen: list[int]) -> Iterator[Any]:
    """The chosen frames, (n, rows, columns, 3) uint8 at a time."""
    import decord

    if float(reader.get_frame_timestamp([0])[0, 0]) < 0:
        # An edit list hides frames. The decoder counts without them when it goes forward and
        # with them when it seeks, so it must not seek (get_batch does at each key frame).
        yield from one_by_one(reader, chosen)
        return
    try:
        frames = reader.get_batch(chosen[:1]).asnumpy()
    except decord.DECORDError as problem:
        if "from_size == to_size" not in str(problem):
            raise
        # It takes padded rows for a fourth channel when they are narrow (48 columns, say).
        reader.seek_accurate(0)
        yield from one_by_one(reader, chosen)
        return
    yield frames
    per_read = max(1, CHUNK_BYTES // frames.nbytes)
    for start in range(1, len(chosen), per_read):
        yield reader.get_batch(chosen[start : start + per_read]).asnumpy()


def one_by_one(reader: Any, chosen: list[int]) -> Iterator[Any]:
    """The chosen frames by decoding every frame from the first on, without seeking."""
    is_chosen = set(chosen)
    for number in range(chosen[-1] + 1):
        try:
            frame = reader.next().asnumpy()
        except StopIteration:
            raise RuntimeError(f"it ends before frame {number}") from None
        if number in is_chosen:
            rows, columns, _ = frame.shape
            yield frame.reshape(rows, -1)[:, : 3 * columns].reshape(1, rows, columns, 3)


def send_problem(answers: BinaryIO, reason: str, detail: str) -> None:
    text = json.dumps({"reason": reason, "detail": detail[:500]}).encode()
    answers.write(b"E" + struct.pack("<I", len(text)) + text)


def explain(problem: Exception) -> tuple[str, str]:
    """(reason, detail) of a decoder's error; the detail is its first line without addresses."""
    text = str(problem).strip() or type(problem).__name__
    if "bad_alloc" in text:
        return "out_of_memory", "std::bad_alloc"
    if "cannot find video stream" in text.lower():
        return "unsupported_codec", "the decoder finds no video stream that it knows"
    line = next((part for part in text.splitlines() if part.strip()), text)
    return "undecodable", SOURCE_PLACE.sub("", line).strip()


def main() -> int:
    """Serve on standard input and output; arguments: the parent's process id, bytes of memory."""
    confine(int(sys.argv[1]), int(sys.argv[2]))
    # Libraries that print must not write into the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)
    reports = Reports() if sys.argv[3:] == ["strict"] else None
    with contextlib.suppress(BrokenPipeError, struct.error):
        serve(sys.stdin.buffer, answers, reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
