"""What arguments change, where a part of the run shows it alone."""

from __future__ import annotations

import json
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from app.config.schema.run import RunConfig
from app.config.schema.training import TrainingConfig
from app.data.loader import Loader
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.diffusion.denoiser import Denoiser
from app.distributed.groups import ProcessGroups
from app.distributed.rank import RankInfo
from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from app.run.arguments import leave_distributed, parse_args, start_distributed
from app.run.attempt.attempt import Attempt
from app.run.build import build_sampler
from app.telemetry.logging import LogContext
from app.training.deepspeed_section import deepspeed_section
from app.training.lr_schedule import LrSchedule
from app.training.optimizer import make_optimizer, parameter_groups
from app.training.signals import StopFlag
from app.training.step import Randomness
from tests.support.clip_files import encode, number_of
from tests.support.configs import TINY, layer, load
from tests.support.numbered_clips import NumberedClips

WAIT_S = 20.0
CURVE = ("--warmup", "0", "--train-iters", "10", "--lr", "1.0")


def training(*words: str) -> TrainingConfig:
    config = load(*TINY, *words).training
    assert config is not None
    return config


def rates(*words: str, steps: Sequence[int] = range(10)) -> list[float]:
    schedule = LrSchedule.from_config(training(*CURVE, *words))
    return [schedule.lr(step) for step in steps]


# optimizer


def test_lr_is_the_first_rate_and_lr_decay_style_its_shape() -> None:
    assert rates()[:2] == pytest.approx([1.0, 0.9])
    assert rates("--lr", "0.5")[:2] == pytest.approx([0.5, 0.45])
    assert rates("--lr-decay-style", "constant") == [1.0] * 10


def test_lr_decay_iters_is_the_length_of_the_decay() -> None:
    assert rates("--lr-decay-iters", "20")[:2] == pytest.approx([1.0, 0.95])


def test_lr_decay_ratio_is_where_the_cosine_ends() -> None:
    words = ("--lr-decay-style", "cosine", "--lr-decay-ratio")

    assert rates(*words, "0.25", steps=[10]) == pytest.approx([0.25])
    assert rates(*words, "0.5", steps=[10]) == pytest.approx([0.5])


def test_warmup_is_a_rise() -> None:
    assert rates("--warmup", "0.4")[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_lr_curve_is_upstreams_and_mode_decides_its_first_steps() -> None:
    assert rates("--mode", "finetune")[:2] == pytest.approx([1.0, 0.9])
    assert rates("--lr-curve", "sat", "--mode", "finetune")[:2] == pytest.approx([0.05, 0.05])
    assert rates("--lr-curve", "sat", "--mode", "pretrain")[:2] == pytest.approx([0.9, 0.8])


def test_weight_decay_is_that_of_the_optimizer() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    config = training("--weight-decay", "0.125").optimizer

    optimizer = make_optimizer(parameter_groups(network), config, fused=False)

    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0.0]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_zero_stage_is_the_one_that_deepspeed_gets(stage: int) -> None:
    section = deepspeed_section(training("--zero-stage", str(stage)), world_size=1, on_cpu=False)

    assert section["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_fp16_and_bf16_are_what_deepspeed_gets(precision: str) -> None:
    section = deepspeed_section(training(f"--{precision}"), world_size=1, on_cpu=False)

    on = {name for name in ("fp16", "bf16") if section[name]["enabled"]}
    assert on == {precision}


def test_deepspeed_config_file_reaches_deepspeed(tmp_path: Path) -> None:
    path = tmp_path / "more.json"
    path.write_text(json.dumps({"wall_clock_breakdown": True, "gradient_clipping": 0.5}))

    config = training("--deepspeed_config", str(path))

    section = deepspeed_section(config, world_size=1, on_cpu=True)
    assert section["wall_clock_breakdown"] is True
    assert section["gradient_clipping"] == 0.5


def test_base_names_layers_of_which_the_last_wins(tmp_path: Path) -> None:
    above = layer(tmp_path, {"args": {"seed": 7}})

    config = load(*TINY, above).training

    assert config is not None
    assert config.seed == 7
    assert training().seed == 1234


@pytest.mark.parametrize(
    ("words", "shows"), [((), False), (("--flag-types", "sat"), True), (("--compat", "sat"), True)]
)
def test_flag_types_are_honest_or_upstreams(words: tuple[str, ...], shows: bool) -> None:
    assert training("--log-image", "False", *words).evaluation.log_videos is shows


@pytest.mark.parametrize(("who", "recomputes"), [("args", False), ("model", True)])
def test_activation_checkpointing_says_who_decides(who: str, recomputes: bool) -> None:
    words = ("--activation-checkpointing", who, "--checkpoint-activations", "false")

    model = load(*TINY, *words).model

    assert model is not None
    assert model.network.params.checkpoint_activations is recomputes


@pytest.mark.parametrize(("skipped", "calls"), [(0, 4), (1, 3), (2, 2)])
def test_checkpoint_skip_layers_are_not_recomputed(skipped: int, calls: int) -> None:
    words = ("--checkpoint-activations", "--checkpoint-skip-layers", str(skipped))
    model = load(*TINY, *words).model
    assert model is not None
    config = model.network.params
    network, seen = DiffusionTransformer(config), []
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(1))
    text = torch.randn(1, config.position.text_length, config.text_hidden_size)

    latents = torch.randn(1, 3, 4, 4, 8, requires_grad=True)
    network(latents, torch.tensor([5]), Conditioning(text=text)).sum().backward()

    assert len(seen) == calls  # two blocks, a recomputed one runs again in the backward pass


def test_sdedit_reaches_the_sampler() -> None:
    models = [load(*TINY, *words).model for words in ((), ("--sdedit",))]

    samplers = [build_sampler(m.sampler, Denoiser(m.denoiser)) for m in models if m is not None]

    assert [sampler.config.sdedit for sampler in samplers] == [False, True]


# randomness


def randomness(*words: str) -> Randomness:
    config = load(*TINY, *words)
    assert config.training is not None
    training = config.training
    return attempt_of(config).randomness(training, training.micro_batch * training.accumulation)


def attempt_of(config: RunConfig) -> Attempt:
    """An attempt of which only the configuration and the rank are asked."""
    rank = RankInfo.from_environment({})
    groups = ProcessGroups(rank=rank, device=torch.device("cpu"), store=dist.HashStore())
    nothing: Any = None
    context = LogContext(rank=0)
    return Attempt(Namespace(), config, groups, nothing, Path("/"), context, StopFlag())


def test_draws_are_keyed_by_position_or_upstreams_stream() -> None:
    def twice(chosen: Randomness) -> list[float]:
        torch.manual_seed(0)
        return [float(chosen.draws([3]).normal("noise", 1)) for _ in range(2)]

    keyed, stream = twice(randomness()), twice(randomness("--draws", "sat"))

    torch.manual_seed(0)
    assert stream == [float(torch.randn(1)), float(torch.randn(1))]
    assert keyed[0] == keyed[1]


def test_seed_keys_the_draws() -> None:
    one, other = randomness("--seed", "1"), randomness("--seed", "2")

    assert float(one.draws([3]).normal("noise", 1)) != float(other.draws([3]).normal("noise", 1))


def test_strata_divide_the_timesteps_of_a_batch_or_are_upstreams_of_a_rank() -> None:
    ours = randomness("--batch-size", "2", "--gradient-accumulation-steps", "2").strata

    places = [ours([position]) for position in range(4)]

    lows = sorted(int(place.bounds(1000, 1)[0]) for place in places if place is not None)
    assert len(lows) == 4
    assert all(250 * i <= low < 250 * (i + 1) for i, low in enumerate(lows))
    assert randomness("--strata", "sat").strata([0]) is None  # upstream: none below nine ranks


def test_image_dropout_is_decided_per_sample_or_micro_batch() -> None:
    assert randomness().shared_image_dropout is False
    assert randomness("--image-dropout", "micro_batch").shared_image_dropout is True


# data


@contextmanager
def loader_of(create: Callable[[str, Namespace], object] | None, *words: str) -> Iterator[Loader]:
    config = load(*TINY, *words)
    assert config.data is not None
    assert config.training is not None
    request = LoaderRequest(
        paths=config.data.train,
        share=Share(0, 1, 1),
        seed=config.training.seed,
        compat=config.compat,
        weights=config.data.train_weights,
        create=create,
    )
    with open_loader(config.data, request) as loader:
        yield loader


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("words", "reads"),
    [
        (("--num-workers", "0"), 1),
        (("--num-workers", "1", "--prefetch-factor", "5"), 5),
        (("--num-workers", "2", "--prefetch-factor", "5"), 10),
    ],
)
def test_prefetch_factor_is_how_far_each_of_num_workers_reads_ahead(
    words: tuple[str, ...], reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(NumberedClips, "reads", seen)

    with loader_of(lambda path, args: NumberedClips(path, 30), *words) as loader:
        batches = loader.batches()
        next(batches)
        until(lambda: len(seen) >= reads)
        batches.close()

    assert len(seen) == reads


def test_num_workers_read_at_the_same_time() -> None:
    both = threading.Barrier(2)

    class Pair(NumberedClips):
        def __getitem__(self, index: int) -> dict[str, Any]:
            both.wait(WAIT_S)  # breaks unless a second reader comes
            return {"txt": "", "mp4": torch.zeros(1), "key": str(index)}

    words = ("--num-workers", "2", "--prefetch-factor", "1")
    with loader_of(lambda path, args: Pair(path, 30), *words) as loader:
        batches = loader.batches()

        keys = next(batches)["keys"] + next(batches)["keys"]

        both.abort()
        batches.close()

    assert len(set(keys)) == 2


def test_train_data_weights_are_how_often_a_sample_of_each_comes() -> None:
    def create(path: str, args: Namespace) -> NumberedClips:
        return NumberedClips(path, {"a": 10, "b": 10}[path])

    words = ("--train-data", "a", "b", "--num-workers", "0", "--train-data-weights")
    shares = []
    for weights in (("1", "1"), ("3", "1")):
        with loader_of(create, *words, *weights) as loader:
            indices = [loader.order.index(position) for position in range(1000)]
        shares.append(sum(index < 10 for index in indices))

    assert shares == [500, 750]


def test_frame_rule_is_by_time_or_upstreams(tmp_path: Path) -> None:
    encode(tmp_path / "videos/a.mp4", frames=30, size=(32, 64), fps=12)
    label = tmp_path / "labels/a.txt"
    label.parent.mkdir()
    label.write_text("gray")
    params = "{video_size: [32, 64], fps: 8, max_num_frames: 9, skip_frms_num: 0}"
    data = ("data.target=data_video.SFTDataset", "data.params=null", f"data.params={params}")
    words = ("--train-data", str(tmp_path), "--num-workers", "0", *data)

    found = []
    for rule in ("exact", "sat"):
        with loader_of(None, "--frame-rule", rule, *words) as loader:
            clip = next(loader.batches())["mp4"][0]
        found.append([number_of(frame.numpy()) for frame in clip])

    # 8 frames a second out of 12: those on the screen, or all of them in a row.
    assert found == [[12 * i // 8 for i in range(9)], list(range(9))]


# processes


def test_distributed_backend_is_the_one_that_is_joined_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str | None] = []

    @contextmanager
    def join(
        rank: RankInfo, *, device: torch.device, backend: str | None
    ) -> Iterator[SimpleNamespace]:
        asked.append(backend)
        yield SimpleNamespace(rank=rank)

    monkeypatch.setattr("app.distributed.groups.process_groups", join)
    for backend in ("gloo", "nccl"):
        args = parse_args([*TINY, "--distributed-backend", backend])
        start_distributed(args)
        assert args.groups.rank.world_size == 1
    leave_distributed()

    assert asked == ["gloo", "nccl"]
