"""A dataset of your own: each image in a folder becomes a clip, a slow zoom.

Run it from the folder that contains `examples`:

```sh
PYTHONPATH=. cogvx train --register stills=examples.still_images:StillImages \
    --base configs/cogvideox_2b_lora.yaml configs/sft.yaml examples/still_images.yaml \
    --load s3://weights/2b/transformer --train-data ./images --valid-data ./images
```

The class needs `create_dataset_function`, `__len__` and `__getitem__`; it imports nothing from
cogvx. Images are binary PPM files, because reading those needs no library: use any format you like.
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
    """`<folder>/*.ppm` with a caption in `<name>.txt` next to each image.

    Args:
        folder: an entry of `train_data` or `valid_data`.
        video_size: rows and columns of the clips, in pixels.
        max_num_frames: 4k + 1 frames of each clip.
        fps: given to the model.
        zoom: how much larger the image is at the end.
    """

    def __init__(
        self, folder: str, video_size: list[int], max_num_frames: int, fps: float, zoom: float = 1.2
    ) -> None:
        self.size = tuple(video_size)
        self.num_frames, self.fps, self.zoom = max_num_frames, fps, zoom
        self.images = sorted(Path(folder).glob("*.ppm"))  # sorted: every node needs one order
        if not self.images:
            raise FileNotFoundError(f"no *.ppm in {folder}")

    @classmethod
    def create_dataset_function(cls, path: str, args: Namespace, **params: Any) -> StillImages:
        """Called once per entry of `train_data` with `data.params` of the configuration.

        These hold the keys of every file given to `--base`, so keys unknown here are dropped.
        """
        known = ("video_size", "max_num_frames", "fps", "zoom")
        return cls(path, **{name: params[name] for name in known if name in params})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample. The same index must give the same sample, or a run cannot resume."""
        path = self.images[index]
        image = read_ppm(path)
        last = max(self.num_frames - 1, 1)
        frames = [self.zoomed(image, number / last) for number in range(self.num_frames)]
        return {
            "mp4": torch.stack(frames),  # (T, 3, H, W) uint8
            "txt": path.with_suffix(".txt").read_text().strip(),
            "num_frames": self.num_frames,
            "fps": self.fps,
            "key": path.name,
        }

    def fingerprint(self) -> str:
        """Changes when the data changes, so that a resumed run notices."""
        names = [f"{path.name} {path.stat().st_size}" for path in self.images]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()

    def zoomed(self, image: torch.Tensor, progress: float) -> torch.Tensor:
        """(3, h, w) uint8 to (3, H, W) uint8: the centre of the image, larger over time."""
        share = 1.0 / (1.0 + (self.zoom - 1.0) * progress)
        rows, columns = (max(2, round(side * share)) for side in image.shape[1:])
        top, left = (image.shape[1] - rows) // 2, (image.shape[2] - columns) // 2
        middle = image[None, :, top : top + rows, left : left + columns].float()
        scaled = F.interpolate(middle, size=self.size, mode="bilinear", antialias=True)
        return scaled[0].round().clamp(0, 255).to(torch.uint8)


def read_ppm(path: Path) -> torch.Tensor:
    """A binary PPM file (P6, 8 bit) as (3, rows, columns) uint8."""
    data = path.read_bytes()
    head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if head is None:
        raise ValueError(f"{path} is not an 8-bit binary PPM file")
    columns, rows = int(head[1]), int(head[2])
    values = torch.frombuffer(bytearray(data[head.end() :]), dtype=torch.uint8)
    return values.reshape(rows, columns, 3).permute(2, 0, 1).contiguous()
