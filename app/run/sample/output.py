"""What `cogvx sample` writes: a folder per prompt, a record per sample, one contact sheet.

<out>/<number>_<prompt>/<k>/000000.mp4        video; latent.safetensors if requested
                           /sample.json       written last: the sample is complete
<out>/samples.json, contact_sheet.png         of the last call: all samples, and those that it made
"""

from __future__ import annotations

import base64
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
from app.storage.objects import Storage, read_if_present, stat_if_present

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
        """Key of its random numbers, independent of the other samples."""
        return (self.prompt.number << 20) | self.k


@dataclass(slots=True)
class Output:
    """The folder or prefix that samples go to."""

    storage: Storage
    fps: int

    def is_done(self, item: Item, settings: Mapping[str, Any], wanted: Sequence[str]) -> bool:
        """Whether this sample exists with the wanted files.

        Raises:
            ConfigError: a sample of other settings is in its place.
        """
        data = read_if_present(self.storage, item.folder + RECORD)
        if data is None:
            return False
        try:
            found = json.loads(data)
        except ValueError:
            found = {}
        others = [name for name, value in settings.items() if found.get(name) != value]
        if others:
            verb = "differs" if len(others) == 1 else "differ"
            raise ConfigError(
                f"another sample is there: its {', '.join(others)} {verb}",
                where=f"{self.storage.url}/{item.folder}",
                fix="give another --out, or --overwrite",
            )
        names = [item.folder + name for name in wanted]
        entries = [stat_if_present(self.storage, name) for name in names]
        return set(names) <= set(found["files"]) and all(e and e.size_bytes for e in entries)

    def write(
        self, item: Item, video: Tensor | None, latents: Tensor | None, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write one sample; returns its record.

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
        """The list of all samples and a contact sheet of the new ones; returns their keys."""
        self.storage.write_small(SAMPLES, _json({**run, "samples": list(records)}))
        if not strips:
            return [SAMPLES]
        self.storage.write_small(SHEET, png(contact_sheet(strips)))
        return [SAMPLES, SHEET]

    def record(self, item: Item) -> dict[str, Any]:
        """What `write` recorded of a sample that is done."""
        return dict(json.loads(self.storage.read_small(item.folder + RECORD)))


def packed_strip(video: Tensor) -> tuple[list[int], str]:
    """A strip of the video's frames in JSON, for rank 0: shape and base64."""
    small = strip(video.cpu())
    return list(small.shape), base64.b64encode(small.numpy().tobytes()).decode()


def unpacked_strip(packed: Sequence[Any]) -> Tensor:
    """(3, H, W) uint8 of `packed_strip`."""
    shape, text = packed
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8).reshape(shape)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
