"""A VAE that cuts its work in parts: the same numbers, wherever the parts wait."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.models.vae.autoencoder import VideoAutoencoder
from tests.gpu.place import DEVICE, ON_GPU

PART = VAEPartConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4)
ROWS, COLUMNS = (128, 192) if ON_GPU else (32, 48)


@pytest.fixture
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    config = VAEConfig(encoder=PART, decoder=PART)
    return VideoAutoencoder(config).eval().requires_grad_(False).to(DEVICE)


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_pieces_of_time_change_nothing(
    vae: VideoAutoencoder, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clip = torch.rand(1, 17, 3, ROWS, COLUMNS, device=DEVICE) * 2 - 1
    whole = vae.encode(clip)

    vae.memory = VAEMemoryConfig(encode_frames=4, parking=place)
    cut = vae.encode(clip)

    assert cut.mean.device.type == DEVICE.type
    torch.testing.assert_close(cut.mean, whole.mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(cut.logvar, whole.logvar, rtol=0, atol=1e-4)


def test_tiles_that_wait_on_the_host_are_those_that_stay(vae: VideoAutoencoder) -> None:
    latents = torch.randn(1, 3, 4, ROWS // 8, COLUMNS // 8, device=DEVICE)
    found = []
    for place in ("device", "host"):
        vae.memory = VAEMemoryConfig(tile_size=(24, 32), tile_overlap=8, parking=place)
        found.append(vae.decode(latents))

    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)
