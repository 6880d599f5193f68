"""The decoder process: `python -m app.data.video.worker`. Video files in, frames out.

Decoders crash, hang and eat memory on hostile or cut files, so decoding happens here, in a
process with tight limits and nothing worth stealing. It imports libav and numpy only (0.4 s; with
torch it would be 4 s per restart). One request at a time over stdin and stdout; frames go through
shared memory of two slots, so that one is decoded while the last one is resized:

    open: b"O" + uint64 size + the whole file     -> b"F" + uint32 size + JSON facts, then float64
          + uint32 size + JSON {container, track}     begin time of each frame
    read: b"R" + uint64 count + int64 frames      -> b"P" + uint32 rows, columns, slot for each:
                                                      (3, rows, columns) uint8 is in that slot,
                                                      until the answer b"A"
                                                  -> or b"F" and new facts: choose again
    instead of any of these, when the file is bad -> b"E" + uint32 size + JSON {reason, detail}

Once after the start it says b"!" . All numbers are little-endian. End of input ends the process.
Its arguments are the parent's process id, bytes of memory, the descriptor of the slots, and words:
`strict` decodes from the first frame on and refuses a video whose decoder reports damage, which is
otherwise concealed; `upstream` adds what upstream's decoder says of the file's length and rate.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import re
import resource
import signal
import struct
import sys
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

    from app.data.video.reader import Reader

CPU_S_PER_REQUEST = 600  # against endless loops; the parent's deadline is the real one
OPEN_FILES = 32
CANNOT_START = "cannot_start"  # reason of a problem before the first request
SLOTS = 2
SLOT_BYTES = 4096 * 2304 * 3  # the largest frame that is read
PR_SET_PDEATHSIG = 1
# What decoders report of damaged frames, and not what they report of videos that begin between
# key frames (missing references), which are in order.
DAMAGE = re.compile(
    r"error while decoding|error splitting|error parsing|invalid nal|invalid data|corrupt|"
    r"concealing|overread|out of range|ended prematurely|unavailable for requested|"
    r"invalid level prefix",
    re.IGNORECASE,
)
CLONE_NEWUSER_AND_NEWNET = 0x10000000 | 0x40000000


def confine(parent: int, memory_bytes: int) -> None:
    """Limit this process, and let it die with its parent."""
    libc = ctypes.CDLL(None, use_errno=True)
    # No network, where the kernel lets us; playlists and the like never get here anyway.
    libc.unshare(CLONE_NEWUSER_AND_NEWNET)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # Ctrl-C on a terminal reaches the whole group; the trainer still needs clips to end its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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


class Slots:
    """The shared memory that frames are put into; the other side frees a slot by b"A"."""

    def __init__(self, descriptor: int, requests: BinaryIO, answers: BinaryIO) -> None:
        self._memory = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
        self._requests = requests
        self._answers = answers
        self._put = self._freed = 0

    def put(self, frame: np.ndarray) -> None:
        """Hand a (rows, columns, 3) uint8 frame over; waits for a free slot.

        Raises:
            UnreadableError: it is larger than a slot.
        """
        import numpy as np

        from app.data.video.reader import UnreadableError

        rows, columns, _ = frame.shape
        if frame.size > SLOT_BYTES:  # the stream is not what the tables say
            raise UnreadableError("too_large", f"its frames are {columns}x{rows} pixels")
        while self._put - self._freed >= SLOTS:
            self._free_one()
        slot = self._put % SLOTS
        shared = np.ndarray((3, rows, columns), np.uint8, self._memory, slot * SLOT_BYTES)
        # Colours are brought apart here: the trainer would need longer for it.
        np.copyto(shared, frame.transpose(2, 0, 1))
        self._put += 1
        self._answers.write(b"P" + struct.pack("<III", rows, columns, slot))
        self._answers.flush()

    def wait(self) -> None:
        """Wait until every frame was taken."""
        while self._freed < self._put:
            self._free_one()

    def _free_one(self) -> None:
        if self._requests.read(1) != b"A":
            sys.exit(0)  # the parent is gone
        self._freed += 1


def serve(
    requests: BinaryIO,
    answers: BinaryIO,
    slots: Slots,
    reports: Reports | None = None,
    *,
    upstream: bool = False,
) -> None:
    """Answer requests until the input ends; `reports`: be strict."""
    from app.data.video import reader as videos

    videos.quiet(errors=reports is not None)
    answers.write(b"!")
    answers.flush()
    reader: videos.Reader | None = None
    while kind := requests.read(1):
        (count,) = struct.unpack("<Q", requests.read(8))
        allow_cpu()
        try:
            if kind == b"O":
                reader = None  # free the last file before the next one is read
                blob = requests.read(count)
                (size,) = struct.unpack("<I", requests.read(4))
                asked = json.loads(requests.read(size))
                reader = videos.Reader(blob, asked["container"], asked["track"])
                send_facts(reader, answers, blob if upstream else None)
            else:
                assert reader is not None
                send_frames(reader, requests.read(8 * count), answers, slots, reports)
        except MemoryError as problem:
            send_problem(answers, "out_of_memory", str(problem))
        except videos.UnreadableError as problem:
            send_problem(answers, problem.reason, problem.detail)
        except (videos.LibraryError, ValueError, RuntimeError, EOFError) as problem:
            send_problem(answers, "undecodable", str(problem).split(": '<")[0])
        # Whoever answers with a problem has frames that were not taken yet.
        slots.wait()
        answers.flush()


def send_facts(reader: Reader, answers: BinaryIO, upstream_blob: bytes | None = None) -> None:
    """Say what the open file is; with its bytes, also what upstream's decoder says of it."""
    import numpy as np

    facts = reader.facts
    fields: dict[str, object] = {
        "codec": facts.codec,
        "rows": facts.rows,
        "columns": facts.columns,
        "frames": len(facts.times),
        "packets": facts.packets,
        "fps": facts.fps,
        "traits": facts.traits,
    }
    if upstream_blob is not None:
        from app.data.video.upstream_facts import upstream_facts

        fields["upstream"] = upstream_facts(upstream_blob)
    text = json.dumps(fields).encode()
    answers.write(b"F" + struct.pack("<I", len(text)) + text)
    answers.write(np.ascontiguousarray(facts.times, dtype="<f8").tobytes())


def send_frames(
    reader: Reader,
    numbers: bytes,
    answers: BinaryIO,
    slots: Slots,
    reports: Reports | None = None,
) -> None:
    """Decode the frames with the given ascending numbers, one at a time.

    Raises:
        UnreadableError: with `reports`, the decoder reports damage.
    """
    import numpy as np

    from app.data.video.reader import FactsChangedError, UnreadableError

    chosen = np.frombuffer(numbers, dtype="<i8").tolist()
    if reports is not None:
        reports.damage()  # of the last video
    left = len(chosen)
    try:
        for frame in reader.frames(chosen, from_start=reports is not None):
            left -= 1
            # The last frame is held back until it is clear that all of them are sound.
            if reports is not None and left == 0 and (damage := reports.damage()) is not None:
                raise UnreadableError("undecodable", f"the decoder reports damage: {damage}")
            slots.put(frame)
    except FactsChangedError:
        slots.wait()
        send_facts(reader, answers)


def send_problem(answers: BinaryIO, reason: str, detail: str) -> None:
    text = json.dumps({"reason": reason, "detail": detail.strip()[:500]}).encode()
    answers.write(b"E" + struct.pack("<I", len(text)) + text)
    answers.flush()


def main() -> int:
    """Serve on standard input and output."""
    parent, memory_bytes, descriptor = map(int, sys.argv[1:4])
    confine(parent, memory_bytes)
    # Libraries that print must not write into the answers.
    answers = os.fdopen(os.dup(1), "wb", buffering=1 << 20)
    os.dup2(2, 1)
    reports = Reports() if "strict" in sys.argv[4:] else None
    slots = Slots(descriptor, sys.stdin.buffer, answers)
    try:
        import app.data.video.reader  # noqa: F401 (so that what is missing is said now)
    except (ImportError, MemoryError, OSError) as problem:
        send_problem(answers, CANNOT_START, str(problem) or type(problem).__name__)
        return 1
    with contextlib.suppress(BrokenPipeError, struct.error):
        serve(sys.stdin.buffer, answers, slots, reports, upstream="upstream" in sys.argv[4:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
