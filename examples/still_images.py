"""A dataset of your own: clips made of pictures in a folder, one slow zoom each.

Run it in the folder above `examples`:

```sh
PYTHONPATH=. cogvx train --register stills=examples.still_images:StillImages \
    --base configs/cogvideox_2b_lora.yaml configs/sft.yaml examples/still_images.yaml \
    --load s3://weights/2b/transformer --train-data ./pictures --valid-data ./pictures
```

The class needs `create_dataset_function`, `__len__` and `__getitem__`; nothing of cogvx is
imported. Pictures are binary PPM files, because those need no library: use what you like.
"""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F


class StillImages:
    """`<folder>/*.ppm` with a caption in `<name>.txt` beside each picture.

    Args:
        folder: an entry of `train_data` or `valid_data`.
        video_size: rows and columns of the clips, in pixels.
        max_num_frames: 4k + 1 frames of each clip.
        fps: told to the model.
        zoom: how much larger the picture is at the end.
    """

    def __init__(
        self, folder: str, video_size: list[int], max_num_frames: int, fps: float, zoom: float = 1.2
    ) -> None:
        self.size = tuple(video_size)
        self.num_frames, self.fps, self.zoom = max_num_frames, fps, zoom
        self.pictures = sorted(Path(folder).glob("*.ppm"))  # sorted: every node needs one order
        if not self.pictures:
            raise FileNotFoundError(f"no *.ppm in {folder}")

    @classmethod
    def create_dataset_function(cls, path: str, args: Namespace, **params: Any) -> StillImages:
        """Called once per entry of `train_data` with `data.params` of the configuration.

        They hold the keys of every file given to `--base`: what means nothing here is left out.
        """
        known = ("video_size", "max_num_frames", "fps", "zoom")
        return cls(path, **{name: params[name] for name in known if name in params})

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample. The same index must give the same sample: that is what makes runs resume."""
        path = self.pictures[index]
        picture = read_ppm(path)
        last = max(self.num_frames - 1, 1)
        frames = [self.zoomed(picture, number / last) for number in range(self.num_frames)]
        return {
            "mp4": torch.stack(frames),  # (T, 3, H, W) uint8
            "txt": path.with_suffix(".txt").read_text().strip(),
            "num_frames": self.num_frames,
            "fps": self.fps,
            "key": path.name,
        }

    def fingerprint(self) -> str:
        """Changes when the data changes, so that a resumed run notices."""
        names = [f"{path.name} {path.stat().st_size}" for path in self.pictures]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def zoomed(self, picture: torch.Tensor, progress: float) -> torch.Tensor:
        """(3, h, w) uint8 to (3, H, W) uint8: the middle of the picture, larger as time goes by."""
        share = 1.0 / (1.0 + (self.zoom - 1.0) * progress)
        rows, columns = (max(2, round(side * share)) for side in picture.shape[1:])
        top, left = (picture.shape[1] - rows) // 2, (picture.shape[2] - columns) // 2
        middle = picture[None, :, top : top + rows, left : left + columns].float()
        scaled = F.interpolate(middle, size=self.size, mode="bilinear", antialias=True)
        return scaled[0].round().clamp(0, 255).to(torch.uint8)


def read_ppm(path: Path) -> torch.Tensor:
    """A binary PPM file (P6, 8 bit) as (3, rows, columns) uint8."""
    data = path.read_bytes()
    head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if head is None:
        raise ValueError(f"{path} is no 8-bit binary PPM file")
    columns, rows = int(head[1]), int(head[2])
    values = torch.frombuffer(bytearray(data[head.end() :]), dtype=torch.uint8)
    return values.reshape(rows, columns, 3).permute(2, 0, 1).contiguous()
