"""How many ranks may encode a clip together: what the configuration can know."""

from __future__ import annotations

import pytest

from app.config.schema.encoders import VAEConfig
from app.distributed.rank import check_clip_groups
from app.errors import ConfigError, ConfigErrors
from tests.support.configs import TINY, load

VAE = "model.first_stage_config.params"


@pytest.mark.parametrize(("frames", "most"), [(9, 3), (13, 4)])
def test_every_rank_needs_a_latent_frame_of_the_clips(frames: int, most: int) -> None:
    size = (f"data.params.num_frames={frames}",)
    model = load(*TINY, *size, f"{VAE}.cp_size={most}").model
    assert model is not None
    assert isinstance(model.first_stage.params, VAEConfig)
    assert model.first_stage.params.cp_size == most

    with pytest.raises(ConfigErrors) as caught:
        load(*TINY, *size, f"{VAE}.cp_size={most + 1}")

    error = caught.value.errors[0]
    assert error.what == (
        f"{most + 1} ranks cannot share clips of {frames} frames, which have {most} latent frames"
    )
    assert error.where.startswith(f"{VAE}.cp_size")
    assert error.fix == f"use 1 to {most}, or longer clips"


@pytest.mark.parametrize(("world_size", "size", "valid"), [(6, 4, "1, 2, 3, 6"), (1, 2, "1")])
def test_groups_that_do_not_divide_the_processes_are_refused_with_those_that_do(
    world_size: int, size: int, valid: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{world_size} processes cannot") as caught:
        check_clip_groups(world_size, size)

    assert caught.value.fix == f"use cp_size {valid}"


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_divisors_of_the_processes_are_groups(size: int) -> None:
    assert check_clip_groups(6, size) is None  # type: ignore[func-returns-value]
