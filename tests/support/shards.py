"""Tar shards of every shape, made by hand, for tests of what reads them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

Member = tuple[str, bytes]


def tar_bytes(members: Iterable[Member | tarfile.TarInfo], pax: bool = False) -> bytes:
    """An uncompressed tar file with these members, in this order."""
    buffer = io.BytesIO()
    kind = tarfile.PAX_FORMAT if pax else tarfile.USTAR_FORMAT
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def write_shard(path: Path, members: Iterable[Member | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return path


def samples(names: Iterable[str], video: bytes = b"v" * 700) -> list[Member]:
    """`<name>.mp4` and `<name>.txt` with the caption `about <name>`."""
    members: list[Member] = []
    for name in names:
        members += [(f"{name}.mp4", video), (f"{name}.txt", f"about {name}".encode())]
    return members
