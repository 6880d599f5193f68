"""The error of one sample that cannot be used."""

from __future__ import annotations

from app.errors import DataError

UNNAMED = "a clip"
CLOSED = "closed"  # reason of a read that was given up because the loader ended: nobody's fault
FIX = {
    "unsupported_codec": "re-encode it as H.264 (avc1) in mp4",
    "not_a_video": "only mp4, mov, mkv, webm, avi and mpg files are read: re-encode or remove it",
    "unsupported_orientation": "re-encode it, so that it needs no turning",
    "too_short": "remove it, or ask for fewer frames or a higher fps",
    "too_slow": "use frame_rule: exact, or remove the clip",
    "decoder_timeout": "re-encode it with shorter groups of pictures, or raise "
    "data.decode_deadline_s",
    "out_of_memory": "re-encode it smaller, or raise data.decode_memory_gib",
    "damaged_entry": "delete the file of the latent cache and run `cogvx encode` again",
    "two_captions": "remove one of the two, or make them the same",
    "no_caption": "write its caption, or set data.missing_captions: empty",
    "empty_caption": "write its caption, or set data.missing_captions: empty",
}


class BadClipError(DataError):
    """One sample is unusable; `reason` is a short word to count by.

    The code that finds the fault knows no names; the source that knows them says `named`.
    `sha256` is that of the video file, where its bytes were there.
    """

    def __init__(
        self, reason: str, detail: str, *, where: str = UNNAMED, sha256: str | None = None
    ) -> None:
        super().__init__(
            f"clip cannot be used ({reason}): {detail}",
            where=where,
            fix=FIX.get(reason, "repair the file or remove it from the dataset"),
        )
        self.reason = reason
        self.detail = detail
        self.sha256 = sha256

    def named(self, where: str) -> BadClipError:
        """The same error with the sample's name, if it has none yet."""
        if self.where != UNNAMED:
            return self
        return BadClipError(self.reason, self.detail, where=where, sha256=self.sha256)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.reason, self.detail, self.where, self.sha256))


def _rebuild(reason: str, detail: str, where: str, sha256: str | None) -> BadClipError:
    return BadClipError(reason, detail, where=where, sha256=sha256)
