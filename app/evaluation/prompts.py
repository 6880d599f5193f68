"""Prompts to sample from, as lines of text, and folder names made of them.

For image-to-video a line is `prompt@@path of the image`. A prompt keeps the number of its line,
counted from 0 with blank lines included: adding a line at the end changes no other video.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.errors import DataError

IMAGE_MARK = "@@"
MOST_CHARACTERS = 120  # of a folder's name, as upstream
MOST_BYTES = 255  # of one name, the limit of common file systems


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        number: of its line.
        text: what the video shows.
        image: path or URL of the first frame; None for text-to-video.
    """

    number: int
    text: str
    image: str | None = None


def read_prompts(lines: Iterable[str], where: str, *, with_images: bool) -> Iterator[Prompt]:
    """The prompts of lines, blank ones passed over; lazily, since lines may be typed.

    Args:
        lines: with or without their ends.
        where: the file, or what else they came from, for errors.
        with_images: image-to-video: every line names an image.

    Raises:
        DataError: a line without an image where each must have one, or without a prompt.
    """
    for number, line in enumerate(lines):
        text = line.strip().removeprefix("\ufeff")
        if not text:
            continue
        image = None
        if with_images:
            text, mark, image = (part.strip() for part in text.rpartition(IMAGE_MARK))
            if not mark or not image:
                raise DataError(
                    "this line names no image, and the model is an image-to-video model",
                    where=f"{where}, line {number + 1}",
                    fix=f"write: prompt{IMAGE_MARK}path of the image",
                )
        elif IMAGE_MARK in text:
            raise DataError(
                f"this line names an image ({IMAGE_MARK}), and the model makes videos from text",
                where=f"{where}, line {number + 1}",
                fix="leave the image out, or use the files of an image-to-video model",
            )
        yield Prompt(number, text, image)


def folder_name(prompt: Prompt) -> str:
    """A name for the prompt's folder: its number and its first words, safe on any storage.

    At most 120 characters and 255 bytes; letters of any language stay, spaces become `_`, and
    what has a meaning in paths, URLs or shells is left out.
    """
    words = "_".join(prompt.text.split())
    kept = "".join(character for character in words if _is_plain(character))
    name = f"{prompt.number}_{kept}"[:MOST_CHARACTERS]
    # The cut may go through a letter of several bytes, which then falls away.
    name = name.encode()[:MOST_BYTES].decode(errors="ignore")
    return name.rstrip("._-") if kept else str(prompt.number)


def _is_plain(character: str) -> bool:
    return character in "._-" or unicodedata.category(character)[0] in "LMN"
