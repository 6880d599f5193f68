"""Frames of a video file, from a decoder that runs in its own process.

The file is checked first (`containers.py`, `mp4.py`), then handed to a `worker.py`. A decoder that
crashes, hangs or runs out of memory costs that process: it is killed, the file is tried once more
in a fresh one, and a second failure is an error of the file. One that cannot start is an error of
the environment, never of a file. Frames come one at a time through shared memory, so what is held
here is one frame, however large the clip is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import select
import signal
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
from app.data.video.containers import HEAD_BYTES, MOV, check_length, container_of
from app.data.video.mp4 import VideoHeader, check_file_bytes, check_limits, read_header
from app.data.video.worker import SLOT_BYTES, SLOTS
from app.errors import ConfigError, RetryableError

log = logging.getLogger(__name__)

START_DEADLINE_S = 120.0  # importing takes 0.4 s; a node under load takes much longer
DEADLINE_FACTOR = 10.0  # times what clips of that many pixels took so far
LONGEST_FACTOR = 12.0  # times the base deadline: no clip gets more, however large it says it is
FIRST_S_PER_PIXEL = 16e-9  # measured: 49 frames over 144 of 720x480, one core
SLOWEST_BYTES_PER_S = 20e6  # from us to the decoder
CLIPS_PER_PROCESS = 2000  # decoders grow slowly; a new one costs 0.4 s
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

    `reported` frames are what the file lists (`frame_rule: sat`: what upstream's decoder counts),
    `frames` what can be seen: an edit list hides some. `times` (frames,) are seconds, beginning of
    each frame that can be seen, from 0. `traits` are words such as `interlaced`.
    """

    header: VideoHeader
    reported: int
    fps: float  # mean of the file
    times: np.ndarray
    traits: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        return len(self.times)


Choose = Callable[[VideoFacts], Sequence[int]]  # ascending numbers, without repeats
# (place in the chosen list, (rows, columns, 3) uint8 that is valid during the call only)
Take = Callable[[int, np.ndarray], None]


class DecoderLostError(Exception):
    """The decoder process ended, hung or ran out of memory; the file may or may not be at fault."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class VideoDecoder:
    """One decoder process, used by one thread; started when first needed.

    `strict` decodes from the first frame on and refuses videos whose decoder reports damage; it
    is slower where few frames are chosen. `upstream` reports length and frame rate as upstream's
    decoder does.
    """

    def __init__(
        self, limits: DecodeLimits | None = None, *, strict: bool = False, upstream: bool = False
    ) -> None:
        self._limits = limits or DecodeLimits()
        words = {"strict": strict, "upstream": upstream}
        self._words = tuple(word for word, applies in words.items() if applies)
        self._process: _Process | None = None
        self._closed = False
        self._busy = threading.Lock()
        self._clips = 0
        self._pace: deque[float] = deque(maxlen=101)  # seconds per pixel of the last clips

    def decode(self, blob: bytes, choose: Choose, take: Take) -> VideoFacts:
        """Decode the frames that `choose` names and give each to `take`.

        After a lost decoder everything is done again from the start, so `take` may see a place
        twice; so may `choose`, also where the file turns out to hold other frames than it lists.

        Raises:
            BadClipError: the file cannot be used; its reason says why.
            ConfigError: no decoder can start on this machine.
            RetryableError: none started here; another machine may do better.
        """
        check_file_bytes(len(blob))
        container = container_of(blob[:HEAD_BYTES])
        check_length(blob, container)
        header = read_header(blob) if container == MOV else None
        with self._busy:
            for attempt in (1, 2):
                try:
                    return self._attempt(blob, container, header, choose, take)
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

    def _attempt(
        self,
        blob: bytes,
        container: str,
        header: VideoHeader | None,
        choose: Choose,
        take: Take,
    ) -> VideoFacts:
        process = self._ready()
        base_s = self._limits.deadline_s
        opening_s = base_s + len(blob) / SLOWEST_BYTES_PER_S
        try:
            process.send_file(blob, container, header, time.monotonic() + opening_s)
            # Where a packet is not a frame, opening a file decodes all of it.
            is_listed = header is not None and header.codec != "mp4v"
            counting_s = base_s * (1.0 if is_listed else LONGEST_FACTOR)
            facts = process.facts(header, time.monotonic() + counting_s)
            chosen = list(choose(facts))
            while chosen:
                # Every frame up to the last one may have to be decoded, however few are chosen.
                pixels = facts.header.rows * facts.header.columns * (chosen[-1] + 1)
                pace = statistics.median(self._pace) if self._pace else FIRST_S_PER_PIXEL
                reading_s = min(base_s + DEADLINE_FACTOR * pace * pixels, LONGEST_FACTOR * base_s)
                started = time.monotonic()
                if process.read(chosen, take, started + reading_s):
                    self._pace.append((time.monotonic() - started) / pixels)
                    break
                facts = process.facts(header, started + LONGEST_FACTOR * base_s)
                chosen = list(choose(facts))
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
            self._process = _Process(self._limits.memory_bytes, self._words)
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

    def __init__(
        self, limits: DecodeLimits | None = None, *, strict: bool = False, upstream: bool = False
    ) -> None:
        self._limits = limits
        self._strict = strict
        self._upstream = upstream
        self._local = threading.local()
        self._all: list[VideoDecoder] = []
        self._lock = threading.Lock()

    def get(self) -> VideoDecoder:
        decoder: VideoDecoder | None = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = VideoDecoder(self._limits, strict=self._strict, upstream=self._upstream)
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
    """The child process, its two pipes with deadlines on every byte, and its frames."""

    def __init__(self, memory_bytes: int, words: Sequence[str]) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        # The child finds what this process finds, wherever it was installed.
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parents[3]), *(part for part in sys.path if part)]
        )
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._memory_bytes = memory_bytes
        slots = os.memfd_create("cogvx-frames", os.MFD_CLOEXEC)
        try:
            os.ftruncate(slots, SLOTS * SLOT_BYTES)  # pages come when they are used
            self._slots = mmap.mmap(slots, SLOTS * SLOT_BYTES)
            arguments = (str(os.getpid()), str(memory_bytes), str(slots), *words)
            self._child = subprocess.Popen(
                [sys.executable, "-m", "app.data.video.worker", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
                pass_fds=(slots,),
            )
        finally:
            os.close(slots)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self.is_answering = False  # frames are on their way
        self._facts_follow = False  # `read` met them in place of frames
        self._to = self._child.stdin.fileno()
        self._from = self._child.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        try:
            self._start()
        except BaseException:
            self.end()
            self.close_pipes()
            raise

    def _start(self) -> None:
        """Wait for the child's first word.

        Raises:
            ConfigError, RetryableError: it cannot start, or did not start here.
        """
        try:
            self._expect(b"!", time.monotonic() + START_DEADLINE_S)
        except BadClipError as problem:  # the child says what is missing
            raise self._cannot_start(problem.detail) from problem
        except DecoderLostError as lost:
            if lost.reason == "decoder_timeout":
                raise RetryableError(
                    f"the video decoder did not start within {START_DEADLINE_S:.0f} s",
                    where="this node",
                    fix="look for a node that is overloaded, or a slow disk",
                ) from lost
            code = self._child.poll()
            if code == -signal.SIGKILL:
                raise RetryableError(
                    "the video decoder was killed while it started",
                    where="this node",
                    fix="give the pod more memory: the kernel kills processes when it is full",
                ) from lost
            raise self._cannot_start(lost.detail) from lost

    def _cannot_start(self, detail: str) -> ConfigError:
        gib = self._memory_bytes / (1 << 30)
        return ConfigError(
            f"the video decoder cannot start: {detail}",
            where=f"data.decode_memory_gib: {gib:.3g}",
            fix="raise data.decode_memory_gib (3 is enough for 4K), or, where a library is "
            "missing, install cogvx with the extra 'train'",
        )

    def send_file(
        self, blob: bytes, container: str, header: VideoHeader | None, deadline: float
    ) -> None:
        """Have a file opened; `facts` gives the answer."""
        asked = {"container": container, "track": None if header is None else header.track}
        text = json.dumps(asked).encode()
        self._send(b"O" + struct.pack("<Q", len(blob)), deadline)
        self._send(blob, deadline)
        self._send(struct.pack("<I", len(text)) + text, deadline)
        self.is_answering = True

    def facts(self, header: VideoHeader | None, deadline: float) -> VideoFacts:
        """What the open file holds: after `send_file`, or when `read` says so."""
        if not self._facts_follow:
            self._expect(b"F", deadline)
        self._facts_follow = False
        (size,) = struct.unpack("<I", self._receive(4, deadline))
        found = json.loads(self._receive(size, deadline))
        times = np.frombuffer(self._receive(8 * found["frames"], deadline), dtype="<f8")
        self.is_answering = False
        fps = float(found["fps"])
        if header is None:
            duration_s = float(times[-1]) + (1 / fps if fps > 0 else 0) if len(times) else 0.0
            header = VideoHeader(found["codec"], found["rows"], found["columns"], duration_s, None)
            check_limits(header, found["packets"])
        elif found["packets"] < (header.samples or 0) and not header.has_edits:
            raise BadClipError(
                "truncated", f"{found['packets']} of {header.samples} frames can be decoded"
            )
        reported, reported_fps = found.get("upstream") or (found["packets"], fps)
        return VideoFacts(header, reported, reported_fps, times, tuple(found["traits"]))

    def read(self, frames: Sequence[int], take: Take, deadline: float) -> bool:
        """Give each frame to `take`; False: the file holds other frames, ask `facts` again."""
        numbers = np.asarray(frames, dtype="<i8")
        self.is_answering = True
        self._send(b"R" + struct.pack("<Q", len(numbers)) + numbers.tobytes(), deadline)
        for place in range(len(numbers)):
            if self._expect(b"PF", deadline) == b"F":
                self._facts_follow = True
                return False
            rows, columns, slot = struct.unpack("<III", self._receive(12, deadline))
            if slot >= SLOTS or rows * columns * 3 > SLOT_BYTES:
                raise DecoderLostError("decoder_crash", f"the decoder named slot {slot}")
            planes = np.ndarray((3, rows, columns), np.uint8, self._slots, slot * SLOT_BYTES)
            take(place, planes.transpose(1, 2, 0))
            self._send(b"A", deadline)
        self.is_answering = False
        return True

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

    def _expect(self, kinds: bytes, deadline: float) -> bytes:
        """Read the kind of the next answer, one of `kinds`; turn a problem into its error."""
        got = self._receive(1, deadline)
        if got in kinds:
            return got
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
