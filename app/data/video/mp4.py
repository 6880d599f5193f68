"""What an mp4 or mov file says about itself, read without a codec: no decoder gets wrong tables.

ISO base media files (ISO/IEC 14496-12) and QuickTime files are nested boxes: 32-bit size,
four-letter kind, content.
A decoder that gets a file whose tables point outside of it returns wrong frames, aborts or
crashes its process; this walk finds those files first. It allocates nothing in proportion to
numbers in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.data.bad_clip import BadClipError
from app.data.video.containers import FIRST_BOXES
from app.data.video.orientation import AT_AN_ANGLE, is_turned, upright

# Units of one frame on average, at most: a crafted file of tiny units must not cost minutes.
MOST_UNITS_PER_FRAME = 512


def check_units(data: bytes, starts: np.ndarray, sizes: np.ndarray, length_bytes: int) -> None:
    """Walk over the units of every frame.

    Args:
        data: the whole file.
        starts: (frames,) int64 position of each frame, in [0, len(data)].
        sizes: (frames,) int64 its bytes; no frame ends behind the file.
        length_bytes: of a unit's length, 1 to 4.

    Raises:
        BadClipError: reason damaged; names the first such frame.
    """
    units_left = MOST_UNITS_PER_FRAME * len(sizes)
    damaged = 0
    first: int | None = None
    for number, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        place, stop = start, start + size
        while place < stop:
            units_left -= 1
            head = place + length_bytes
            length = int.from_bytes(data[place:head], "big")
            if length == 0 or head + length > stop or units_left < 0:
                damaged += 1
                first = number if first is None else first
                break
            place = head + length
        if units_left < 0:
            break
    if first is not None:
        raise BadClipError(
            "damaged", f"the data of {damaged} of {len(sizes)} frames is garbled, first {first}"
        )


SMALLEST_FILE_BYTES, LARGEST_FILE_BYTES = 1 << 10, 512 << 20
SMALLEST_SIDE_PX, LARGEST_SIDE_PX, LARGEST_FRAME_PX = 16, 4096, 4096 * 2304
MOST_SCALED, MOST_STRETCHED = 2, 16  # a side as shown to the same side as coded
LONGEST_S, MOST_FRAMES = 600.0, 20_000
# Sample entries. MPEG-4 part 2, MPEG-2 and Motion JPEG may all be `mp4v`.
CODECS = (
    *("avc1", "avc3", "hvc1", "hev1", "dvh1", "dvhe", "av01", "vp08", "vp09", "mp4v", "jpeg"),
    *("mjpa", "apco", "apcs", "apcn", "apch", "ap4h", "ap4x", "m2v1"),
)
MOST_BOXES, MOST_TRACKS = 100_000, 64
# Box in the sample entry -> its byte whose last two bits are the bytes of a unit's length, less 1.
UNIT_LENGTHS = {"avcC": 4, "hvcC": 21}
NO_KIND = "\x00" * 4
FRAMES_OF_A_FILM = 5  # fewer are a cover or a still
SAMPLE_ENTRY_BYTES = 78  # of a video, before the boxes inside it


@dataclass(frozen=True, slots=True)
class VideoHeader:
    """The video track that a player shows, as the file's tables describe it."""

    codec: str
    rows: int
    columns: int
    duration_s: float
    samples: int | None  # coded frames; None in fragmented files, whose tables are elsewhere
    is_turned: bool = False  # shown with rows and columns exchanged (phones held upright)
    track: int | None = None  # its id; None in other containers
    has_edits: bool = False  # an edit list may hide frames


@dataclass(frozen=True, slots=True)
class Box:
    """One box: content is data[start:stop]."""

    kind: str
    start: int
    stop: int


def check_file_bytes(size: int) -> None:
    """Refuse files that are too small to hold a video, or too large.

    Raises:
        BadClipError: reason not_a_video or too_large.
    """
    if not SMALLEST_FILE_BYTES <= size <= LARGEST_FILE_BYTES:
        reason = "too_large" if size > LARGEST_FILE_BYTES else "not_a_video"
        raise BadClipError(reason, f"the file has {size} bytes")


def check_limits(header: VideoHeader, frames: int) -> None:
    """Refuse videos that are larger or longer than any that training uses.

    Raises:
        BadClipError: reason damaged, too_large or too_long.
    """
    sides = f"{header.columns}x{header.rows}"
    if min(header.rows, header.columns) < SMALLEST_SIDE_PX:
        raise BadClipError("damaged", f"its frames are {sides} pixels")
    largest = max(header.rows, header.columns)
    if largest > LARGEST_SIDE_PX or header.rows * header.columns > LARGEST_FRAME_PX:
        raise BadClipError("too_large", f"its frames are {sides} pixels")
    if header.duration_s > LONGEST_S:
        raise BadClipError(
            "too_long", f"it lasts {header.duration_s:.0f} s, more than {LONGEST_S:g}"
        )
    if frames > MOST_FRAMES:
        raise BadClipError("too_long", f"it has {frames} frames, more than {MOST_FRAMES}")


def read_header(data: bytes) -> VideoHeader:
    """Check a whole mp4 or mov file and describe the video track that a player shows.

    Raises:
        BadClipError: with one of the reasons not_a_video, too_large, truncated, damaged,
            no_video_track, unsupported_codec, unsupported_orientation, external_reference,
            too_long.
    """
    check_file_bytes(len(data))
    if data[4:8] not in FIRST_BOXES:
        raise BadClipError("not_a_video", "it does not begin as an mp4 or mov file does")
    try:
        return _Walk(data).header()
    except (struct.error, IndexError, ValueError) as problem:
        raise BadClipError("damaged", f"its tables cannot be read ({problem})") from problem


def read_movie(movie: bytes, file_bytes: int, *, fragmented: bool = False) -> VideoHeader:
    """As `read_header`, from the content of the box `moov` alone.

    Args:
        movie: the box without its head.
        file_bytes: size of the whole file, in which every frame must be.
        fragmented: the frames are in boxes `moof`.
    """
    try:
        walk = _Walk(movie, file_bytes)
        return walk.movie(Box("moov", 0, len(movie)), fragmented)
    except (struct.error, IndexError, ValueError) as problem:
        raise BadClipError("damaged", f"its tables cannot be read ({problem})") from problem


class _Walk:
    """One pass over the boxes of one file; counts them, so that a crafted file ends too.

    `data` is the file, or its movie box of a file of `file_bytes` bytes.
    """

    def __init__(self, data: bytes, file_bytes: int | None = None) -> None:
        self.data = data
        self.file_bytes = len(data) if file_bytes is None else file_bytes
        self.boxes_seen = 0

    def boxes(self, start: int, stop: int) -> Iterator[Box]:
        """The boxes side by side in data[start:stop]."""
        while start + 8 <= stop:
            self.boxes_seen += 1
            if self.boxes_seen > MOST_BOXES:
                raise BadClipError("damaged", f"it has more than {MOST_BOXES} boxes")
            size, kind = struct.unpack_from(">I4s", self.data, start)
            head = 8
            if size == 1:
                (size,) = struct.unpack_from(">Q", self.data, start + 8)
                head = 16
            elif size == 0:
                size = stop - start  # "until the end of the file"
            name = kind.decode("latin-1")
            if size < head:
                raise BadClipError("damaged", f"box '{name}' has size {size}")
            if start + size > stop:
                raise BadClipError(
                    "truncated", f"box '{name}' ends at byte {start + size}, the data at {stop}"
                )
            yield Box(name, start + head, start + size)
            start += size

    def child(self, box: Box, *path: str) -> Box | None:
        """The first box at a path below `box`."""
        for kind in path:
            found = next((b for b in self.boxes(box.start, box.stop) if b.kind == kind), None)
            if found is None:
                return None
            box = found
        return box

    def need(self, box: Box, *path: str) -> Box:
        found = self.child(box, *path)
        if found is None:
            raise BadClipError("damaged", f"box '{'/'.join(path)}' is missing")
        return found

    def header(self) -> VideoHeader:
        top = list(self.boxes(0, len(self.data)))
        if top[-1].stop != len(self.data):
            raise BadClipError("truncated", "bytes are left after the last box")
        movie = next((box for box in top if box.kind == "moov"), None)
        if movie is None:
            raise BadClipError("truncated", "its index ('moov') is missing")
        fragmented = any(box.kind == "moof" for box in top)
        if fragmented and any(box.kind == NO_KIND for box in top):
            # Without tables of all frames a shorter film would be taken for the whole one.
            raise BadClipError("truncated", "there are zeros where its next part should begin")
        found = self.movie(movie, fragmented)
        self.check_frames(movie)
        return found

    def movie(self, movie: Box, fragmented: bool) -> VideoHeader:
        """The shown video track of a movie box."""
        tracks = [box for box in self.boxes(movie.start, movie.stop) if box.kind == "trak"]
        if len(tracks) > MOST_TRACKS:
            raise BadClipError("damaged", f"it has {len(tracks)} tracks")
        for track in tracks:
            self.check_own_data(track)
        return self.track_header(movie, self.shown_track(movie, tracks), fragmented)

    def shown_track(self, movie: Box, tracks: Sequence[Box]) -> Box:
        """The video track that a player picks: an enabled one first, then one that is a film and
        not a still, then the one with the most data."""
        video = [track for track in tracks if self.is_video(track)]
        if not video:
            raise BadClipError("no_video_track", f"none of its {len(tracks)} tracks is video")
        if len(video) == 1:
            return video[0]

        def preference(track: Box) -> tuple[bool, int, int]:
            is_enabled = bool(self.data[self.need(track, "tkhd").start + 3] & 1)
            sizes = self.sample_sizes(self.need(track, "mdia", "minf", "stbl", "stsz"))
            return is_enabled, min(sizes.size, FRAMES_OF_A_FILM), int(sizes.sum())

        return max(video, key=preference)

    def is_video(self, track: Box) -> bool:
        handler = self.child(track, "mdia", "hdlr")
        return handler is not None and self.data[handler.start + 8 : handler.start + 12] == b"vide"

    def check_own_data(self, track: Box) -> None:
        """Refuse tracks whose media is in another file or at an address."""
        references = self.child(track, "mdia", "minf", "dinf", "dref")
        if references is None:
            return
        for entry in self.boxes(references.start + 8, references.stop):
            if not self.data[entry.start + 3] & 1:  # flag: the media is in this file
                raise BadClipError("external_reference", "its media is outside of the file")

    def track_header(self, movie: Box, track: Box, fragmented: bool) -> VideoHeader:
        codec, rows, columns = self.sample_entry(track)
        head = self.need(track, "tkhd")
        id_place = head.start + (20 if self.data[head.start] == 1 else 12)
        header = VideoHeader(
            codec,
            rows,
            columns,
            self.duration_s(track),
            samples=self.check_samples(self.need(track, "mdia", "minf", "stbl")) or None,
            is_turned=self.is_turned(movie, track),
            track=struct.unpack_from(">I", self.data, id_place)[0],
            has_edits=self.child(track, "edts", "elst") is not None,
        )
        check_limits(header, header.samples or 0)
        self.check_stretch(track, rows, columns)
        if header.samples is None and not fragmented:
            raise BadClipError("damaged", "its video track has no frame")
        return header

    def is_turned(self, movie: Box, track: Box) -> bool:
        """Whether the matrices of the track and the film turn the frame by a quarter."""
        shown = np.eye(2)
        for box, from_end in ((self.need(track, "tkhd"), 44), (self.need(movie, "mvhd"), 64)):
            a, b, _, c, d = struct.unpack_from(">iiiii", self.data, box.stop - from_end)
            shown = shown @ np.array([[a, b], [c, d]], dtype=np.float64)
        steps = upright(*shown.flat)
        if steps is None:
            raise BadClipError("unsupported_orientation", AT_AN_ANGLE)
        return is_turned(steps)

    def sample_entry(self, track: Box) -> tuple[str, int, int]:
        """Codec, rows and columns of the first entry of `stsd`."""
        table = self.need(track, "mdia", "minf", "stbl", "stsd")
        entry = next(self.boxes(table.start + 8, table.stop), None)
        if entry is None:
            raise BadClipError("damaged", "its sample description is empty")
        if entry.kind not in CODECS:
            raise BadClipError(
                "unsupported_codec", f"its codec is '{entry.kind}', not one of {', '.join(CODECS)}"
            )
        columns, rows = struct.unpack_from(">HH", self.data, entry.start + 24)
        return entry.kind, rows, columns

    def check_stretch(self, track: Box, rows: int, columns: int) -> None:
        """Refuse tables that show a frame at a size that has nothing to do with its own."""
        header = self.need(track, "tkhd")
        shown_columns, shown_rows = struct.unpack_from(">II", self.data, header.stop - 8)
        stretches = [
            max(shown / coded, coded / shown)
            for coded, shown in ((columns, shown_columns / 65536), (rows, shown_rows / 65536))
            if shown
        ]
        # Pixels need not be square: a film may be stretched far, but along one side only.
        if stretches and (min(stretches) > MOST_SCALED or max(stretches) > MOST_STRETCHED):
            shown_sides = f"{shown_columns >> 16}x{shown_rows >> 16}"
            sides = f"{columns}x{rows}"
            raise BadClipError("damaged", f"frames of {sides} are shown at {shown_sides} pixels")

    def duration_s(self, track: Box) -> float:
        box = self.need(track, "mdia", "mdhd")
        if self.data[box.start] == 1:
            timescale, duration = struct.unpack_from(">IQ", self.data, box.start + 20)
        else:
            timescale, duration = struct.unpack_from(">II", self.data, box.start + 12)
        if timescale == 0:
            raise BadClipError("damaged", "its time scale is 0")
        return float(duration / timescale)

    def check_frames(self, movie: Box) -> None:
        """Look into the coded frames of the shown video track, where they are made of units."""
        tracks = [box for box in self.boxes(movie.start, movie.stop) if box.kind == "trak"]
        track = self.shown_track(movie, tracks)
        table = self.need(track, "mdia", "minf", "stbl")
        description = self.need(table, "stsd")
        entry = next(self.boxes(description.start + 8, description.stop))
        for box in self.boxes(entry.start + SAMPLE_ENTRY_BYTES, entry.stop):
            if box.kind in UNIT_LENGTHS:
                length_bytes = (self.data[box.start + UNIT_LENGTHS[box.kind]] & 3) + 1
                check_units(self.data, *self.sample_spans(table), length_bytes)
                return

    def sample_spans(self, table: Box) -> tuple[np.ndarray, np.ndarray]:
        """(samples,) int64 position and (samples,) int64 size of each coded frame."""
        sizes = self.sample_sizes(self.need(table, "stsz"))
        if sizes.size == 0:
            return sizes, sizes
        offsets = self.chunk_offsets(table)
        per_chunk = self.samples_per_chunk(self.need(table, "stsc"), offsets.size)
        before = np.cumsum(sizes) - sizes  # bytes of all frames before each one
        first = np.repeat(np.cumsum(per_chunk) - per_chunk, per_chunk)
        return np.repeat(offsets, per_chunk) + before - before[first], sizes

    def check_samples(self, table: Box) -> int:
        """Number of coded frames, after checking that each is inside the file."""
        sizes = self.sample_sizes(self.need(table, "stsz"))
        if sizes.size == 0:
            return 0
        offsets = self.chunk_offsets(table)
        per_chunk = self.samples_per_chunk(self.need(table, "stsc"), offsets.size)
        if int(per_chunk.sum()) != sizes.size:
            raise BadClipError(
                "damaged", f"{sizes.size} frames are listed and {int(per_chunk.sum())} placed"
            )
        ends = np.cumsum(sizes)
        last = np.cumsum(per_chunk)
        first = last - per_chunk
        lengths = ends[last[last > first] - 1] - (ends - sizes)[first[last > first]]
        chunk_ends = offsets[last > first] + lengths
        if int(chunk_ends.max()) > self.file_bytes:
            missing = int(np.count_nonzero(chunk_ends > self.file_bytes))
            raise BadClipError(
                "truncated", f"{missing} of {offsets.size} pieces are behind the end of the file"
            )
        return int(sizes.size)

    def sample_sizes(self, box: Box) -> np.ndarray:
        """(samples,) int64 bytes of each frame."""
        fixed, count = struct.unpack_from(">II", self.data, box.start + 4)
        if count > MOST_FRAMES:
            raise BadClipError("too_long", f"it claims {count} frames, more than {MOST_FRAMES}")
        if fixed:
            return np.full(count, fixed, dtype=np.int64)
        return self.numbers(box, box.start + 12, count, ">u4")

    def chunk_offsets(self, table: Box) -> np.ndarray:
        """(chunks,) int64 file position of each run of frames."""
        box, kind = self.child(table, "stco"), ">u4"
        if box is None:
            box, kind = self.need(table, "co64"), ">u8"
        (count,) = struct.unpack_from(">I", self.data, box.start + 4)
        return self.numbers(box, box.start + 8, count, kind)

    def samples_per_chunk(self, box: Box, chunks: int) -> np.ndarray:
        """(chunks,) int64 frames of each run; the file stores (first chunk, frames) pairs."""
        (count,) = struct.unpack_from(">I", self.data, box.start + 4)
        runs = self.numbers(box, box.start + 8, 3 * count, ">u4").reshape(-1, 3)
        firsts = np.append(runs[:, 0] - 1, chunks)
        if count == 0 or firsts[0] != 0 or np.diff(firsts).min() < 0:
            raise BadClipError("damaged", "its table of pieces is not in order")
        return np.repeat(runs[:, 1], np.diff(firsts))

    def numbers(self, box: Box, start: int, count: int, kind: str) -> np.ndarray:
        if start + count * np.dtype(kind).itemsize > box.stop:
            raise BadClipError("damaged", f"table '{box.kind}' claims {count} entries")
        values = np.frombuffer(self.data, dtype=kind, count=count, offset=start)
        if values.size and int(values.max()) >= 1 << 62:
            raise BadClipError("damaged", f"table '{box.kind}' holds numbers beyond any file")
        return values.astype(np.int64)
