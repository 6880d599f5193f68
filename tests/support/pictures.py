"""Pictures with captions, as the example dataset reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_pictures(folder: Path, count: int, size: tuple[int, int] = (64, 128)) -> Path:
    """`<n>.ppm` and `<n>.txt`: a bright square in the middle of black."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = size
    for number in range(count):
        picture = np.zeros((rows, columns, 3), dtype=np.uint8)
        half = rows // 6
        picture[rows // 2 - half : rows // 2 + half, columns // 2 - half : columns // 2 + half] = (
            255
        )
        head = f"P6\n{columns} {rows}\n255\n".encode()
        (folder / f"{number}.ppm").write_bytes(head + picture.tobytes())
        (folder / f"{number}.txt").write_text(f"picture {number}\n")
    return folder
