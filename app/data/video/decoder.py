"""Frames of a video file, from a decoder that runs in its own process.

The file is checked first (`mp4.py`), then handed to a `worker.py`. A decoder that crashes,
hangs or runs out of memory costs that process: it is killed, the file is tried once more in a
fresh one, and a second failure is an error of the file. Frames come through a pipe one at a time,
so the memory here is one frame, however large the clip is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.config.argument import default_of
from app.config.schema.data import DataConfig
from app.data.bad_clip import CLOSED, BadClipError
from app.data.video.mp4 import LARGEST_FRAME_PX, VideoHeader, read_header

log = logging.getLogger(__name__)

START_DEADLINE_S = 120.0  # importing takes 0.8 s; a node under load takes much longer
DEADLINE_FACTOR = 10.0  # times what clips of that many pixels took so far
LONGEST_FACTOR = 12.0  # times the base deadline: no clip gets more, however large it says it is
FIRST_S_PER_PIXEL = 16e-9  # measured: 49 frames over 144 of 720x480, one core
SLOWEST_BYTES_PER_S = 20e6  # from us to the decoder
CLIPS_PER_PROCESS = 2000  # decoders grow slowly; a new one costs 0.8 s
# What the child may see of the environment: no credentials, no proxies.
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one clip may cost.

    Attributes:
        deadline_s: wall time of a small clip; a large one gets what such clips took, ten times,
            but at most twelve times this.
        memory_bytes: address space of a decoder process, its libraries included.
    """

    deadline_s: float = default_of(DataConfig, "decode_deadline_s")
    memory_bytes: int = int(default_of(DataConfig, "decode_memory_gib") * (1 << 30))


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a video file holds.

    `reported` frames are what the decoder counts, `frames` what can be seen: an edit list hides
    the first ones (their times are negative), and the decoder then repeats the last one instead.
    `times` (frames,) are seconds, beginning of each frame that can be seen.
    """

    header: VideoHeader
    reported: int
    fps: float  # mean of the file
    times: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.times)


Choose = Callable[[VideoFacts], Sequence[int]]  # ascending numbers, without repeats
Take = Callable[[int, np.ndarray], None]  # (place in the chosen list, (rows, columns, 3) uint8)


class DecoderLostError(Exception):
    """The decoder process ended, hung or ran out of memory; the file may or may not be at fault."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class VideoDecoder:
    """One decoder process, used by one thread; started when first needed.

    `strict` decodes from the first frame on and refuses videos whose decoder reports damage; it
    is slower where few frames are chosen.
    """

    def __init__(self, limits: DecodeLimits | None = None, *, strict: bool = False) -> None:
        self._limits = limits or DecodeLimits()
        self._strict = strict
        self._process: _Process | None = None
        self._closed = False
        self._busy = threading.Lock()
        self._clips = 0
        self._pace: deque[float] = deque(maxlen=101)  # seconds per pixel of the last clips

    def decode(self, blob: bytes, choose: Choose, take: Take) -> VideoFacts:
        """Decode the frames that `choose` names and give each to `take`.

        After a lost decoder everything is done again from the start, so `take` may see a place
        twice.

        Raises:
            BadClipError: the file cannot be used; its reason says why.
        """
        header = read_header(blob)
        with self._busy:
            for attempt in (1, 2):
                try:
                    return self._attempt(blob, header, choose, take)
                except DecoderLostError as lost:
                    self._stop()
                    if self._closed:
                        raise BadClipError(CLOSED, "the loader was closed") from lost
                    if attempt == 2:
                        raise BadClipError(lost.reason, f"{lost.detail}, twice") from lost
                    facts = {"reason": lost.reason, "detail": lost.detail}
                    log.warning("decoder lost, trying a fresh one", extra=facts)
        raise AssertionError("unreachable")

    def probe(self, blob: bytes) -> VideoFacts:
        """What the file holds, without decoding a frame."""
        return self.decode(blob, lambda facts: (), lambda place, frame: None)

    def close(self) -> None:
        """End the process; may be called from another thread, whose `decode` then fails."""
        self._closed = True
        process = self._process
        if process is not None:
            process.end()
        # The pipes are closed when nobody reads from them any more: a number that is closed
        # under a reader may already belong to another file.
        with self._busy:
            self._stop()

    def _attempt(self, blob: bytes, header: VideoHeader, choose: Choose, take: Take) -> VideoFacts:
        process = self._ready()
        base_s = self._limits.deadline_s
        opening_s = base_s + len(blob) / SLOWEST_BYTES_PER_S
        try:
            facts = process.open(blob, header, time.monotonic() + opening_s)
            chosen = list(choose(facts))
            if chosen:
                # Every frame up to the last one may have to be decoded, however few are chosen.
                pixels = header.rows * header.columns * (chosen[-1] + 1)
                pace = statistics.median(self._pace) if self._pace else FIRST_S_PER_PIXEL
                reading_s = min(base_s + DEADLINE_FACTOR * pace * pixels, LONGEST_FACTOR * base_s)
                started = time.monotonic()
                process.read(chosen, take, started + reading_s)
                self._pace.append((time.monotonic() - started) / pixels)
        finally:
            if process.is_answering:  # nobody reads the rest: the next answer would begin with it
                self._stop()
        self._clips += 1
        return facts

    def _ready(self) -> _Process:
        if self._clips >= CLIPS_PER_PROCESS:
            self._stop()
        if self._process is None and not self._closed:
            self._clips = 0
            self._process = _Process(self._limits.memory_bytes, strict=self._strict)
        if self._process is None or self._closed:
            raise DecoderLostError(CLOSED, "the loader was closed")
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
            process.close_pipes()


class DecoderOfThread:
    """A Decoder per calling thread.

    The kernel ends a decoder with the thread that started it, so each thread has its own.
    """

    def __init__(self, limits: DecodeLimits | None = None, *, strict: bool = False) -> None:
        self._limits = limits
        self._strict = strict
        self._local = threading.local()
        self._all: list[VideoDecoder] = []
        self._lock = threading.Lock()

    def get(self) -> VideoDecoder:
        decoder: VideoDecoder | None = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = VideoDecoder(self._limits, strict=self._strict)
            self._local.decoder = decoder
            with self._lock:
                self._all.append(decoder)
        return decoder

    def close(self) -> None:
        """End every decoder process."""
        with self._lock:
            for decoder in self._all:
                decoder.close()


class _Process:
    """The child process and its two pipes, with deadlines on every byte."""

    def __init__(self, memory_bytes: int, *, strict: bool = False) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        # The child finds what this process finds, wherever it was installed.
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[3]), *(part for part in sys.path if part)]
        )
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-m", "app.data.video.worker"),
                *(str(os.getpid()), str(memory_bytes)),
                *(["strict"] if strict else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self.is_answering = False  # frames are on their way
        self._to = self._child.stdin.fileno()
        self._from = self._child.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        try:
            self._expect(b"!", time.monotonic() + START_DEADLINE_S)
        except BaseException:
            self.end()
            self.close_pipes()
            raise

    def open(self, blob: bytes, header: VideoHeader, deadline: float) -> VideoFacts:
        self._send(b"O" + struct.pack("<Q", len(blob)), deadline)
        self._send(blob, deadline)
        self._expect(b"F", deadline)
        (size,) = struct.unpack("<I", self._receive(4, deadline))
        facts = json.loads(self._receive(size, deadline))
        times = np.frombuffer(self._receive(8 * facts["frames"], deadline), dtype="<f8")
        if header.samples is not None and len(times) < header.samples:
            raise BadClipError(
                "truncated", f"{len(times)} of {header.samples} frames can be decoded"
            )
        hidden = int(np.count_nonzero(times < 0))
        return VideoFacts(header, len(times), float(facts["fps"]), times[hidden:])

    def read(self, frames: Sequence[int], take: Take, deadline: float) -> None:
        numbers = np.asarray(frames, dtype="<i8")
        self.is_answering = True
        self._send(b"R" + struct.pack("<Q", len(numbers)) + numbers.tobytes(), deadline)
        self._expect(b"P", deadline)
        rows, columns = struct.unpack("<II", self._receive(8, deadline))
        if rows * columns > LARGEST_FRAME_PX:  # the stream is not what the tables say
            raise BadClipError("too_large", f"its frames are {columns}x{rows} pixels")
        done = 0
        while done < len(numbers):
            self._expect(b"C", deadline)
            (count,) = struct.unpack("<I", self._receive(4, deadline))
            for place in range(done, done + count):
                frame = np.empty((rows, columns, 3), dtype=np.uint8)
                self._receive_into(memoryview(frame.reshape(-1).data), deadline)
                take(place, frame)
            done += count
        self.is_answering = False

    def end(self) -> None:
        """Kill the child and wait for it."""
        self._child.kill()
        self._child.wait()

    def close_pipes(self) -> None:
        """Called by the thread that uses them, or when no thread does."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _expect(self, kind: bytes, deadline: float) -> None:
        """Read the kind of the next answer; turn a problem into its error."""
        got = self._receive(1, deadline)
        if got == kind:
            return
        if got != b"E":
            raise DecoderLostError("decoder_crash", f"the decoder answered {got!r}")
        (size,) = struct.unpack("<I", self._receive(4, deadline))
        self.is_answering = False
        problem = json.loads(self._receive(size, deadline))
        if problem["reason"] == "out_of_memory":  # may be pressure by others: worth a second try
            raise DecoderLostError("out_of_memory", problem["detail"])
        raise BadClipError(problem["reason"], problem["detail"])

    def _receive(self, size: int, deadline: float) -> bytes:
        buffer = bytearray(size)
        self._receive_into(memoryview(buffer), deadline)
        return bytes(buffer)

    def _receive_into(self, view: memoryview, deadline: float) -> None:
        while view:
            self._wait(self._from, select.POLLIN, deadline)
            try:
                count = os.readv(self._from, [view])
            except BlockingIOError:
                continue
            except OSError as problem:
                raise self._lost() from problem
            if count == 0:
                raise self._lost()
            view = view[count:]

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                continue
            except OSError as problem:
                raise self._lost() from problem

    def _wait(self, descriptor: int, event: int, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        poll = select.poll()
        poll.register(descriptor, event)
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise DecoderLostError("decoder_timeout", "the decoder did not finish in time")

    def _lost(self) -> DecoderLostError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=5)
        code = self._child.returncode
        return DecoderLostError("decoder_crash", f"the decoder ended with code {code}")
