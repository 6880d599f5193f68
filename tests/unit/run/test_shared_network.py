"""`model_parallel_size` in a run: who reads which samples, and what each rank keeps."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from app.config.schema.run import TrainableRun
from app.conversion.export import export_safetensors
from app.distributed.groups import ProcessGroups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import RankGroup
from app.errors import ConfigError
from app.models.dit.parallel import own_part
from app.models.dit.transformer import DiffusionTransformer
from app.run.arguments import parse_args, seed_from
from app.run.attempt.attempt import Attempt
from app.run.build import InitialWeights, build_network
from app.telemetry.logging import LogContext
from app.training.signals import StopFlag
from tests.support.configs import TINY, base, load, load_trainable

SHARED = ("--model-parallel-size", "2")


def ranks(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, str(value))
        monkeypatch.setenv(f"LOCAL_{name}", str(value))


def attempt_of(config: TrainableRun, rank: int, world_size: int) -> Attempt:
    """An attempt of which only the configuration and the ranks are asked."""
    names = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    info = RankInfo.from_environment({name: str(value) for name, value in names.items()})
    groups = ProcessGroups(
        rank=info,
        device=torch.device("cpu"),
        store=dist.HashStore(),
        tensor=RankGroup(rank % 2, 2),
        data=RankGroup(rank // 2, world_size // 2),
    )
    nothing: Any = None
    context = LogContext(rank=0)
    return Attempt(Namespace(), config, groups, nothing, Path("/"), context, StopFlag())


def test_model_parallel_size_makes_ranks_that_share_a_network_share_their_samples() -> None:
    config = load_trainable(
        *TINY, *SHARED, "--batch-size", "3", "--gradient-accumulation-steps", "5"
    )

    attempts = [attempt_of(config, rank, 4) for rank in range(4)]

    assert [a.plan(config.training).samples_per_step for a in attempts] == [30] * 4
    assert [a.groups.copies.rank for a in attempts] == [0, 0, 1, 1]


def test_processes_that_do_not_make_whole_networks_are_refused_before_they_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks(monkeypatch, 0, 3)

    with pytest.raises(ConfigError, match="3 processes cannot share networks by 2 each") as caught:
        parse_args([*TINY, *SHARED])

    assert "start 2 or 4 processes" in caught.value.fix
    ranks(monkeypatch, 3, 4)
    assert parse_args([*TINY, *SHARED]).model_parallel_size == 2


def test_ranks_that_share_a_network_have_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for rank in range(4):
        ranks(monkeypatch, rank, 4)
        args = parse_args([*TINY, *SHARED, "--draws", "sat", "--seed", "10"])
        seed_from(args)
        seeds.append(args.seed)

    assert seeds == [10, 10, 11, 11]


@pytest.mark.parametrize("model", ["tiny", "tiny_lora"])
@pytest.mark.parametrize("from_file", [False, True])
def test_each_rank_keeps_its_part_of_the_same_first_weights(
    tmp_path: Path, model: str, from_file: bool
) -> None:
    section = load(*base(f"tiny/{model}", "tiny/tiny_train")).model
    assert section is not None
    url = None
    if from_file:
        plain = load(*base("tiny/tiny", "tiny/tiny_train")).model
        assert plain is not None
        written = DiffusionTransformer(plain.network.params)
        config = plain.network.params
        url = str(tmp_path / "base.safetensors")
        export_safetensors(Path(url), dict(written.named_parameters()), config)
    weights = InitialWeights(url=url, is_resumed=False, force=False, seed=1, cache_dir=tmp_path)

    def build(group: RankGroup) -> tuple[DiffusionTransformer, int]:
        torch.manual_seed(3)  # of LoRA's A
        network, report = build_network(section, torch.float32, weights, group=group)
        return network, report.trainable_count

    whole, count = build(RankGroup())
    for rank in range(2):
        group = RankGroup(rank, 2)
        shared, shared_count = build(group)
        expected = dict(whole.named_parameters())
        assert shared_count == count  # told of the whole network
        for name, parameter in shared.named_parameters():
            assert parameter.equal(own_part(name, expected[name], group)), name
            assert parameter.requires_grad == expected[name].requires_grad
