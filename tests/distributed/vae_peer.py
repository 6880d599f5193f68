"""One of the ranks that share a clip: each case against the same VAE in one process.

    vae_peer.py

prints, by the number of ranks that share, {case: largest deviation}:
first all ranks of the gang, then all but rank 0.
"""

from __future__ import annotations

import json
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import RankGroup
from app.models.vae.autoencoder import VideoAutoencoder
from app.models.vae.gaussian import Gaussian

PART = VAEPartConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4)


def tiny(dtype: torch.dtype = torch.float32) -> VideoAutoencoder:
    torch.manual_seed(0)
    vae = VideoAutoencoder(VAEConfig(encoder=PART, decoder=PART))
    return vae.eval().requires_grad_(False).to(dtype)


def random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(*shape, generator=generator) * 2 - 1


def moments(posterior: Gaussian) -> Tensor:
    return torch.cat([posterior.mean, posterior.logvar], dim=2)


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    return float((found - expected).abs().max())


def encoded(vae: VideoAutoencoder, group: RankGroup, frames: int, batch: int = 1) -> float:
    video = random(batch, frames, 3, 16, 24)
    memory, vae.memory = vae.memory, VAEMemoryConfig(tile_size=vae.memory.tile_size, tile_overlap=8)
    alone = moments(vae.encode(video))
    vae.memory = memory
    vae.share_encoding(group, has_same_clip=True)
    together = moments(vae.encode(video))
    vae.share_encoding(RankGroup())
    return deviation(together, alone)


def in_turn(vae: VideoAutoencoder, group: RankGroup, frames: int) -> float:
    """Every rank has a clip of its own, of its own length."""
    video = random(1, frames + 4 * group.rank, 3, 16, 24) * (1 + group.rank)
    alone = moments(vae.encode(video))
    vae.share_encoding(group)
    together = moments(vae.encode(video))
    vae.share_encoding(RankGroup())
    return deviation(together, alone)


def cases(group: RankGroup) -> dict[str, float]:
    vae, size = tiny(), group.size
    found: dict[str, float] = {}
    for frames in (4 * size - 3, 4 * size + 1, 21):
        found[f"encode {frames}"] = encoded(vae, group, frames)
    found["encode of a batch"] = encoded(vae, group, 13, batch=2)
    vae.memory = VAEMemoryConfig(encode_frames=4)
    found["encode by pieces"] = encoded(vae, group, 33)
    vae.memory = VAEMemoryConfig(tile_size=(16, 16), tile_overlap=8)
    found["encode tiled"] = encoded(vae, group, 13)
    vae.memory = VAEMemoryConfig()
    found["in turn"] = in_turn(vae, group, 13)
    found["in turn, images"] = in_turn(vae, group, 1)
    found["bf16"] = encoded(tiny(torch.bfloat16), group, 13)
    return found


def main() -> int:
    torch.set_num_threads(1)
    rank = RankInfo.from_environment(os.environ)
    with process_groups(rank, device=torch.device("cpu"), join_s=60):
        found = {rank.world_size: cases(RankGroup(rank.rank, rank.world_size))}
        handle = dist.new_group(list(range(1, rank.world_size)))
        if rank.rank:
            fewer = RankGroup(rank.rank - 1, rank.world_size - 1, handle)
            found[fewer.size] = cases(fewer)
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
