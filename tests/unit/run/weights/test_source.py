"""What is converted is found in a run, whatever files describe its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.errors import ConfigError
from app.models.vae.autoencoder import VideoAutoencoder
from app.run.attempt.folder import open_run
from app.run.weights.convert import ConvertRequest, convert_weights
from app.run.weights.source import SourceRequest, open_weights_source
from tests.support.configs import base, layer, load_trainable, section
from tests.unit.run.folders import WORLD

pytestmark = pytest.mark.usefixtures("groups")  # the folder of a run is opened by all ranks

PART = VAEPartConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)  # configs/tiny


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run that has begun; its network is recorded, and it has no checkpoint yet."""
    words = ("--save", str(tmp_path / "runs"), "--run-id", "a", "args.load=null")
    config = load_trainable(*base("tiny/tiny", "tiny/tiny_train"), *words)
    assert open_run(config, 0, WORLD) is not None
    return str(tmp_path / "runs/a")


@pytest.fixture
def vae_layer(tmp_path: Path) -> str:
    """A YAML file that says of a model where its VAE is, and nothing of the network."""
    torch.manual_seed(0)
    vae = VideoAutoencoder(VAEConfig(encoder=PART, decoder=PART))
    torch.save({"state_dict": vae.state_dict()}, tmp_path / "3d-vae.pt")
    node = section("tiny/tiny", "model")["first_stage_config"]
    node["params"]["ckpt_path"] = str(tmp_path / "3d-vae.pt")
    return layer(tmp_path, {"model": {"first_stage_config": node}})


def test_a_vae_of_a_run_converts_with_a_base_that_describes_no_network(
    run: str, vae_layer: str, tmp_path: Path
) -> None:
    source = SourceRequest(base=(vae_layer,))
    request = ConvertRequest(to="sat", part="vae", source=source)

    convert_weights(run, str(tmp_path / "out"), request, tmp_path / "cache", lambda _: None)

    (written,) = (tmp_path / "out").iterdir()
    found = torch.load(written, weights_only=True)["state_dict"]
    kept = torch.load(tmp_path / "3d-vae.pt", weights_only=True)["state_dict"]
    assert set(found) == set(kept)
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())


def test_a_network_of_a_run_still_needs_a_base_that_describes_it(
    run: str, vae_layer: str, tmp_path: Path
) -> None:
    source = SourceRequest(base=(vae_layer,))

    with pytest.raises(ConfigError, match="describe no network") as caught:
        open_weights_source(run, "transformer", source, tmp_path)

    assert caught.value.where == vae_layer
