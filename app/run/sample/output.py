"""What `cogvx sample` leaves behind: a folder per prompt, a record per sample, one contact sheet.

<out>/<number>_<prompt>/<k>/000000.mp4        video; latent.safetensors where asked for
                           /sample.json       written last: the sample is whole
<out>/samples.json, contact_sheet.png         of the last call: its samples, and those made anew
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.checkpoint.tensor_file import write_tensors
from app.errors import ConfigError
from app.evaluation.contact_sheet import contact_sheet, png, strip
from app.evaluation.prompts import Prompt, folder_name
from app.evaluation.video_file import write_video
from app.storage.objects import ObjectMissingError, Storage

VIDEO, LATENT, TEXT = "000000.mp4", "latent.safetensors", "text.txt"
RECORD, SAMPLES, SHEET = "sample.json", "samples.json", "contact_sheet.png"


@dataclass(frozen=True, slots=True)
class Item:
    """One sample to make: the k-th of a prompt."""

    prompt: Prompt
    k: int

    @property
    def folder(self) -> str:
        return f"{folder_name(self.prompt)}/{self.k}/"

    @property
    def position(self) -> int:
        """Key of its random numbers: the same whatever else is sampled."""
        return (self.prompt.number << 20) | self.k


@dataclass(slots=True)
class Output:
    """The folder or prefix that samples go to."""

    storage: Storage
    fps: int

    def is_done(self, item: Item, settings: Mapping[str, Any], wanted: Sequence[str]) -> bool:
        """Whether this very sample lies there, whole, with the wanted files.

        Raises:
            ConfigError: a sample of other settings lies in its place.
        """
        try:
            found = json.loads(self.storage.read_small(item.folder + RECORD))
        except ObjectMissingError:
            return False
        except ValueError:
            found = {}
        differs = [name for name, value in settings.items() if found.get(name) != value]
        if differs:
            raise ConfigError(
                f"another sample lies there: its {', '.join(differs)} differ",
                where=f"{self.storage.url}/{item.folder}",
                fix="give another --out, or --overwrite",
            )
        names = [item.folder + name for name in wanted]
        return set(names) <= set(found["files"]) and all(self._is_there(name) for name in names)

    def _is_there(self, key: str) -> bool:
        try:
            return self.storage.stat(key).size_bytes > 0
        except ObjectMissingError:
            return False

    def write(
        self, item: Item, video: Tensor | None, latents: Tensor | None, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put one sample there; returns its record.

        Args:
            video: (T, 3, H, W) uint8; None: not decoded.
            latents: (t, C, h, w), not scaled; None: not kept.
        """
        files = []
        with tempfile.TemporaryDirectory() as scratch:
            if video is not None:
                write_video(Path(scratch) / VIDEO, video, self.fps)
                files.append(VIDEO)
            if latents is not None:
                tensors = {"latents": latents.detach().cpu().contiguous()}
                write_tensors(Path(scratch) / LATENT, tensors, {"axes": "t,C,h,w"})
                files.append(LATENT)
            for name in files:
                self.storage.upload(Path(scratch) / name, item.folder + name)
        self.storage.write_small(item.folder + TEXT, item.prompt.text.encode())
        record = {**settings, "files": [item.folder + name for name in files]}
        self.storage.write_small(item.folder + RECORD, _json(record))
        return record

    def write_overview(
        self, run: Mapping[str, Any], records: Sequence[Mapping[str, Any]], strips: Sequence[Tensor]
    ) -> list[str]:
        """The list of all samples and a picture of those that were made now; returns their keys."""
        self.storage.write_small(SAMPLES, _json({**run, "samples": list(records)}))
        if not strips:
            return [SAMPLES]
        self.storage.write_small(SHEET, png(contact_sheet(strips)))
        return [SAMPLES, SHEET]

    def record(self, item: Item) -> dict[str, Any]:
        """What `write` recorded of a sample that is done."""
        return dict(json.loads(self.storage.read_small(item.folder + RECORD)))


def packed_strip(video: Tensor) -> bytes:
    """A strip of the video's frames as bytes, to travel to rank 0."""
    small = strip(video.cpu())
    size = torch.tensor(small.shape, dtype=torch.int64).numpy().tobytes()
    return size + small.numpy().tobytes()


def unpacked_strip(data: bytes) -> Tensor:
    """(3, H, W) uint8 of `packed_strip`."""
    shape = torch.frombuffer(bytearray(data[:24]), dtype=torch.int64).tolist()
    return torch.frombuffer(bytearray(data[24:]), dtype=torch.uint8).reshape(shape)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
