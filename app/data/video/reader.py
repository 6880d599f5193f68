"""Frames of a video held in memory, in the order in which they are shown. The door to libav.

A frame is known by its place in display order. Its number comes from the packets of the file
(presentation times, sorted) where a packet is a frame, and from decoding the file once where it
is not (MPEG-4 with packed frames, AVI and program streams, files whose packets and frames turn
out to disagree). Decoding begins at the first packet, or at a later one after which nothing
refers back: an IDR frame (H.264, HEVC), a key frame (VP8, VP9, AV1, Motion JPEG, ProRes), and
only if every packet before it is shown before it and every packet after it, after it. Frames that
come out are compared with what the packets announced, one by one.

Colours and orientation are those of ffmpeg's own decode: its filters do both.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import av.filter
import av.logging
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData

from app.data.video.orientation import AT_AN_ANGLE, is_turned, upright

# Names of libavcodec; what is not here is refused by name.
CODECS = (
    *("av1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "prores", "vp8", "vp9"),
)
# Of these one packet is one frame, in the containers that keep presentation times.
ONE_PACKET_A_FRAME = ("av1", "h264", "hevc", "mjpeg", "prores", "vp8", "vp9")
WITHOUT_TIMES = ("avi", "mpeg")
# No other file or address: the demuxers get neither references nor protocols.
CLOSED = {"enable_drefs": "0", "use_absolute_path": "0", "protocol_whitelist": "none"}
LibraryError = av.FFmpegError  # whatever libav raises
_side_data_of: Any = SideDataContainer  # its stub forgets the argument
PROGRESSIVE = 1  # libavcodec's field orders: what is above has fields
PQ, HLG = 16, 18  # transfer characteristics, ISO/IEC 23091-2


class UnreadableError(Exception):
    """The file cannot be read; `reason` as in BadClipError."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class FactsChangedError(Exception):
    """Packets and frames disagree: what `Reader.facts` said before does not hold."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file holds.

    Attributes:
        codec: libavcodec's name.
        rows, columns: of a coded frame, before it is turned.
        packets: coded frames, hidden ones among them.
        fps: mean of the file.
        times: (frames,) float64 seconds at which each frame begins, the first at 0, ascending.
        traits: what a user may want to know: hdr_pq, hdr_hlg, interlaced, non_square.
    """

    codec: str
    rows: int
    columns: int
    packets: int
    fps: float
    times: np.ndarray
    traits: tuple[str, ...]


def quiet(*, errors: bool) -> None:
    """Have libav write its errors to standard error, or nothing at all."""
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.ERROR if errors else av.logging.PANIC)


class Reader:
    """One open file.

    Args:
        blob: the whole file.
        container: libavformat's name of its format.
        track: id of the track to read; None reads the one that a player shows.

    Raises:
        UnreadableError: no video track, a codec that is not read, or a damaged file.
    """

    def __init__(self, blob: bytes, container: str, track: int | None) -> None:
        opened: Any = av.open(
            io.BytesIO(blob), format=container, options=CLOSED, metadata_errors="replace"
        )
        self._file = opened
        self._stream = self._video_stream(track)
        self._codec = self._stream.codec_context
        if self._codec_name not in CODECS:
            raise UnreadableError(
                "unsupported_codec", f"its codec is {self._codec_name}, not one of {_listed()}"
            )
        self._codec.thread_type = "NONE"
        self._codec.thread_count = 1
        self._packets = [packet for packet in self._file.demux(self._stream) if packet.size]
        if not self._packets:
            raise UnreadableError("damaged", "its video track has no frame")
        self._used = False  # the decoder has packets in it
        self._order: np.ndarray | None = None  # presentation times in display order, or counted
        self._converter = Converter()
        pts = [packet.pts for packet in self._packets if not packet.is_discard]
        is_plain = (
            container not in WITHOUT_TIMES
            and self._codec_name in ONE_PACKET_A_FRAME
            and None not in pts
            and len(set(pts)) == len(pts) > 0
        )
        if is_plain:
            self._order = np.sort(np.asarray(pts, dtype=np.int64))
            self._entries = self._safe_entries()
        self.facts = self._facts()

    @property
    def _codec_name(self) -> str:
        """libavcodec's name of the codec, whatever library decodes it."""
        return str(self._codec.codec.canonical_name)

    def frames(self, chosen: Sequence[int], *, from_start: bool = False) -> Iterator[np.ndarray]:
        """The frames with these numbers, which ascend.

        Each is (rows, columns, 3) uint8, valid until the next one is taken.

        Raises:
            FactsChangedError: read `facts` again, and choose again.
            UnreadableError: the file ends early, or a frame cannot be shown.
        """
        wanted = set(chosen)
        number, start = (0, 0) if from_start else self._entry(chosen[0])
        for frame in self._decoded(start):
            if self._order is not None and (
                number >= len(self._order) or frame.pts != self._order[number]
            ):
                self._disagree()
            if number in wanted:
                yield self._converter.rgb(frame)
            number += 1
            if number > chosen[-1]:
                return
        if self._order is not None:
            self._disagree()
        raise UnreadableError("truncated", f"it ends before frame {number}")

    def _video_stream(self, track: int | None) -> Any:
        video = [stream for stream in self._file.streams.video if track in (None, stream.id)]
        if not video:
            raise UnreadableError("no_video_track", "the decoder finds no video track")
        if track is not None:
            return video[0]
        return self._file.streams.best("video")

    def _facts(self) -> Facts:
        if self._order is not None:
            times = self._order * float(self._stream.time_base)
        else:
            times = self._counted_times()
        rate = self._stream.average_rate
        fps = float(rate) if rate else 0.0
        if fps <= 0 and len(times) > 1 and times[-1] > times[0]:
            fps = float((len(times) - 1) / (times[-1] - times[0]))
        return Facts(
            codec=self._codec_name,
            rows=self._codec.height,
            columns=self._codec.width,
            packets=len(self._packets),
            fps=fps,
            times=times - times[0] if len(times) else times,
            traits=self._traits(),
        )

    def _traits(self) -> tuple[str, ...]:
        shape = self._stream.sample_aspect_ratio or Fraction(1)
        found = {
            "hdr_pq": int(self._codec.color_trc or 0) == PQ,
            "hdr_hlg": int(self._codec.color_trc or 0) == HLG,
            "interlaced": int(self._codec.field_order) > PROGRESSIVE,
            "non_square": shape not in (0, 1),
        }
        return tuple(name for name, holds in found.items() if holds)

    def _disagree(self) -> None:
        """Decode the whole file to learn its frames."""
        self._order = None
        self.facts = self._facts()
        raise FactsChangedError

    def _counted_times(self) -> np.ndarray:
        """(frames,) seconds, from the frames that the file gives when it is decoded."""
        pts = [frame.pts for frame in self._decoded(0)]
        base = float(self._stream.time_base)
        known = [value for value in pts if value is not None]
        if known and len(set(known)) == len(pts):
            return np.sort(np.asarray(known, dtype=np.int64)) * base
        rate = self._stream.average_rate or self._stream.base_rate or Fraction(25)
        return np.arange(len(pts)) / float(rate)

    def _entry(self, first: int) -> tuple[int, int]:
        """(number of the first frame that comes out, packet to begin with)."""
        if self._order is None:
            return 0, 0
        return max((entry for entry in self._entries if entry[0] <= first), default=(0, 0))

    def _safe_entries(self) -> list[tuple[int, int]]:
        """(frame, packet) of every place where decoding may begin."""
        assert self._order is not None
        pts = np.asarray([packet.pts for packet in self._packets], dtype=np.int64)
        before = np.maximum.accumulate(pts)  # latest time up to each packet
        after = np.minimum.accumulate(pts[::-1])[::-1]  # earliest time from each packet on
        entries = []
        for which in range(1, len(pts)):
            is_closed = before[which - 1] < pts[which] == after[which]
            if is_closed and not self._packets[which].is_discard and self._is_entry(which):
                entries.append((int(np.searchsorted(self._order, pts[which])), which))
        return entries

    def _is_entry(self, which: int) -> bool:
        """Whether no later frame refers to one before this packet."""
        packet = self._packets[which]
        if not packet.is_keyframe:
            return False
        if self._codec_name in ("h264", "hevc"):
            extra = bytes(self._codec.extradata or b"")
            return begins_anew(bytes(packet), self._codec_name, extra)
        if self._codec_name == "vp9":
            return is_vp9_key_frame(bytes(packet)[0])
        if self._codec_name == "vp8":
            return bytes(packet)[0] & 1 == 0
        return True

    def _decoded(self, start: int) -> Iterator[Any]:
        """Every frame from a packet on."""
        if self._used:
            self._codec.flush_buffers()
        self._used = True
        for packet in self._packets[start:]:
            yield from self._codec.decode(packet)
        yield from self._codec.decode(None)


class Converter:
    """Decoded frames to upright RGB, by the filters that ffmpeg's command line uses."""

    def __init__(self) -> None:
        self._made_for: tuple[object, ...] | None = None
        self._graph: Any = None

    def rgb(self, frame: Any) -> np.ndarray:
        """(rows, columns, 3) uint8, a view of memory that the next frame may take.

        Raises:
            UnreadableError: the frame is to be shown at an angle.
        """
        # Not `frame.side_data`, which frame and container keep alive in a circle: at 4K the frames
        # that wait for the garbage collector take gigabytes.
        matrix = _side_data_of(frame).get(SideData.DISPLAYMATRIX)
        turns = () if matrix is None else _turns(np.frombuffer(bytes(matrix), dtype="<i4"))
        size = f"{frame.width}x{frame.height}"
        colours = f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        made_for = (size, frame.format.name, colours, turns)
        if made_for != self._made_for:
            source = f"video_size={size}:pix_fmt={frame.format.name}:time_base=1/1000:{colours}"
            self._graph = _graph(source, turns)
            self._made_for = made_for
        self._graph.push(frame)
        image = self._graph.pull()
        plane = image.planes[0]
        shape = (image.height, image.width, 3)
        return np.ndarray(shape, np.uint8, buffer=plane, strides=(plane.line_size, 3, 1))


def _turns(matrix: np.ndarray) -> tuple[str, ...]:
    """Steps for the (9,) entries a b _ c d _ _ _ _ of a display matrix."""
    steps = upright(*(float(matrix[place]) for place in (0, 1, 3, 4)))
    if steps is None:
        raise UnreadableError("unsupported_orientation", AT_AN_ANGLE)
    return steps


def _graph(source: str, turns: Sequence[str]) -> Any:
    graph = av.filter.Graph()
    graph.threads = 1
    steps = [
        graph.add("buffer", source),
        *(graph.add("transpose", f"dir={t}") if is_turned((t,)) else graph.add(t) for t in turns),
        graph.add("scale"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ]
    for step, following in pairwise(steps):
        step.link_to(following)
    graph.configure()
    return graph


def begins_anew(packet: bytes, codec: str, extradata: bytes) -> bool:
    """Whether the first picture of a packet in length-prefixed units is an IDR picture.

    Sources: ITU-T H.264 table 7-1 (type 5), H.265 table 7-1 (types 19, 20); the length of a unit's
    length is in the decoder configuration record, ISO/IEC 14496-15.
    """
    is_hevc = codec == "hevc"
    place_of_length = 21 if is_hevc else 4
    if len(extradata) <= place_of_length or extradata[0] != 1:
        return False  # start codes: no container that keeps times writes them
    length_bytes = (extradata[place_of_length] & 3) + 1
    place = 0
    while place + length_bytes < len(packet):
        length = int.from_bytes(packet[place : place + length_bytes], "big")
        head = packet[place + length_bytes]
        kind = head >> 1 & 0x3F if is_hevc else head & 0x1F
        if (kind < 32) if is_hevc else (1 <= kind <= 5):
            return kind in (19, 20) if is_hevc else kind == 5
        place += length_bytes + length
    return False


def is_vp9_key_frame(first: int) -> bool:
    """Whether a VP9 frame that begins with this byte is a key frame (VP9 specification, 6.2)."""
    bits = [first >> place & 1 for place in range(7, -1, -1)]
    profile = bits[2] + 2 * bits[3]
    at = 5 if profile == 3 else 4
    shows_existing, is_inter = bits[at], bits[at + 1]
    return not shows_existing and not is_inter


def _listed() -> str:
    return ", ".join(CODECS)
