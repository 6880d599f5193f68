"""Recorded training runs, step by step, through our loop, step, engine and optimizer."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor

from app.config.schema.training import (
    EvaluationConfig,
    LrScheduleConfig,
    OptimizerConfig,
    TrainingConfig,
)
from app.conversion.sat import sat_names, to_sat
from app.distributed.groups import ProcessGroups, process_groups
from app.distributed.rank import RankInfo
from app.models.trainable import TrainableReport, TrainableRules, select_trainable
from app.telemetry.metrics import Trackers
from app.training.engine import Engine
from app.training.forward import forward_step
from app.training.loop import LoopHooks, LoopPlan, LoopState, LoopTools, run_loop
from app.training.lr_schedule import LrSchedule
from tests.parity.golden import Case, cases, name_of, u01
from tests.parity.recorded_draws import RecordedDraws
from tests.parity.recorded_engine import (
    RecordedParts,
    draws_of,
    model_config_of,
    model_of,
    parts_of,
)

ITEMS = ("13",)
CASES = cases(*ITEMS)
# Upstream keeps this parameter in RoPE models although nothing reads it; ours have none.
UNUSED = "model.diffusion_model.transformer.position_embeddings.weight"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    """One run of ours."""

    parts: RecordedParts
    report: TrainableReport
    engine: Engine
    start: dict[str, Tensor]  # upstream's state dict before the first step
    records: list[dict[str, float]]  # per step
    losses: list[Tensor]  # per micro-batch: of each sample
    latents: list[Tensor]  # per micro-batch
    images: list[Tensor | None]  # per micro-batch

    def state(self) -> dict[str, Tensor]:
        return upstream_state(self.parts)


class Memory:
    """A tracker that keeps everything."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def log(self, step: int, values: Any) -> None:
        self.records.append({"step": step, **values})

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def groups() -> Iterator[ProcessGroups]:
    before = dict(os.environ)
    with process_groups(RankInfo.from_environment({}), device=torch.device("cpu")) as started:
        yield started
    os.environ.clear()
    os.environ.update(before)


def training_of(case: Case, precision: str) -> TrainingConfig:
    spec = case.json["spec"]
    section, args = spec["deepspeed"], spec.get("args", {})
    optimizer = section["optimizer"]["params"]
    return TrainingConfig(
        steps=spec["iters"],
        epochs=None,
        micro_batch=section["train_micro_batch_size_per_gpu"],
        accumulation=section.get("gradient_accumulation_steps", 1),
        seed=spec["seed"],
        mode=spec["mode"],
        precision=precision,
        zero_stage=section["zero_optimization"]["stage"],
        gradient_clipping=section.get("gradient_clipping", 0.0),
        optimizer=OptimizerConfig(
            kind="adamw",
            lr=optimizer["lr"],
            betas=tuple(optimizer["betas"]),
            eps=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
        ),
        lr_schedule=LrScheduleConfig(
            style=args.get("lr_decay_style", "linear"),
            warmup=args.get("warmup", 0.01),
            decay_ratio=args.get("lr_decay_ratio", 0.1),
            decay_steps=args.get("lr_decay_iters"),
            curve="sat",
        ),
        evaluation=EvaluationConfig(batch_size=1),
        deepspeed=section,
    )


def batches_of(case: Case) -> Iterator[dict[str, Any]]:
    """The recorded items, by the data rule of the file."""
    spec, log = case.json["spec"], case.json["log"]
    data = spec["data"]
    is_latent = spec["data_target"].endswith("LatentSet")
    axes = ("z", "T", "h", "w") if is_latent else ("T", None, "H", "W")
    shape = tuple(3 if axis is None else data[axis] for axis in axes)
    numel = shape[0] * shape[1] * shape[2] * shape[3]
    for micro, items in enumerate(log["items"]):
        kind, factor = ("latent", 1.2) if is_latent else ("pixel", 1.0)
        clips = [factor * (2 * u01(f"{kind}/{item}", numel) - 1) for item in items]
        yield {
            "mp4": torch.stack([torch.from_numpy(c).float().reshape(shape) for c in clips]),
            "txt": log["txt"][micro],
            # The position of a sample tells our recorded draws which micro-batch asks.
            "positions": [micro * len(items) + i for i in range(len(items))],
        }


def train(case: Case, groups: ProcessGroups, precision: str) -> Trained:
    config, training = model_config_of(case), training_of(case, precision)
    parts = parts_of(case)
    start = {name: value.clone() for name, value in upstream_state(parts).items()}
    rules = TrainableRules(config.not_trainable_prefixes, config.lora_train)
    report = select_trainable(list(parts.network.named_parameters()), rules, sat_names)
    order = case.json["log"]["draw_order"]

    def draws(positions: Sequence[int]) -> RecordedDraws:
        micro = positions[0] // training.micro_batch
        return draws_of(case, order, case.tensors(f"micro{micro}/draw/"), config)

    engine = Engine.start(parts.network, training, groups)
    model = model_of(parts, config, draws, DTYPES[precision])
    model.network = engine.network
    losses, latents, images = watched(model)
    data, memory = batches_of(case), Memory()
    tools = LoopTools(times=model.times, trackers=Trackers([memory]))  # type: ignore[arg-type]
    run_loop(
        engine,
        LoopPlan(
            steps=training.steps,
            accumulation=training.accumulation,
            samples_per_step=training.micro_batch * training.accumulation,
            schedule=LrSchedule.from_config(training),
        ),
        LoopHooks(
            micro_step=lambda step: forward_step(
                data, model, Namespace(iteration=step), tools.times
            )
        ),
        tools,
        LoopState(),
    )
    return Trained(parts, report, engine, start, memory.records, losses, latents, images)


def watched(model: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
    """Lists that fill with what the model's loss is given and answers."""
    losses: list[Tensor] = []
    latents: list[Tensor] = []
    images: list[Tensor | None] = []
    loss = model.loss

    def called(network: Any, clean: Tensor, conditioning: Any, draws: Any, strata: Any) -> Any:
        result = loss(network, clean, conditioning, draws, strata)
        latents.append(clean)
        images.append(conditioning.image)
        losses.append(result.per_sample.detach())
        return result

    model.loss = called
    return losses, latents, images


def upstream_state(parts: RecordedParts) -> dict[str, Tensor]:
    network = parts.network
    return to_sat({n: p.detach() for n, p in network.named_parameters()}, network.config.patch)


@pytest.fixture(scope="module", params=CASES, ids=name_of)
def run(request: pytest.FixtureRequest, groups: ProcessGroups) -> tuple[Case, Trained]:
    case: Case = request.param
    return case, train(case, groups, "fp32")


def test_losses_learning_rates_and_gradient_norms_are_the_recorded_ones(
    run: tuple[Case, Trained],
) -> None:
    case, ours = run
    log = case.json["log"]

    assert [record["step"] for record in ours.records] == list(range(1, len(log["loss"]) + 1))
    for step, record in enumerate(ours.records):
        name = "loss_rel_first_3" if step < 3 else "loss_rel"
        bound = case.tolerance(name)
        assert record["loss"] == pytest.approx(log["loss"][step], rel=bound), step
        assert record["grad_norm"] == pytest.approx(log["grad_norm"][step], rel=bound), step
        assert log["lr"][step] == pytest.approx([record["lr"]] * len(log["lr"][step]), rel=1e-12)


def test_latents_and_losses_of_every_sample_are_the_recorded_ones(
    run: tuple[Case, Trained],
) -> None:
    case, ours = run

    for micro in range(len(ours.losses)):
        recorded = case.tensors(f"micro{micro}/")
        if "latents" in recorded:
            latents = ours.latents[micro]
            torch.testing.assert_close(latents, recorded["latents"], rtol=0, atol=1e-6)
        if "concat" in recorded:
            image = ours.images[micro]
            assert image is not None
            torch.testing.assert_close(image, recorded["concat"], rtol=0, atol=1e-6)
        bound = case.tolerance("loss_rel_first_3" if micro < 3 else "loss_rel")
        torch.testing.assert_close(
            ours.losses[micro], recorded["loss_per_sample"].flatten(), rtol=bound, atol=0
        )


def test_final_weights_and_their_norms_are_the_recorded_ones(run: tuple[Case, Trained]) -> None:
    case, ours = run
    log, state = case.json["log"], ours.state()
    bound = case.tolerance("norm_rel")

    skipped = {UNUSED, *rounding_noise(case, log["final_norms"])}
    for key, norm in log["final_norms"].items():
        if key not in skipped:
            assert float(state[key].double().norm()) == pytest.approx(norm, rel=bound), key
    for key, norm in log["delta_norms"].items():
        if key not in skipped:
            moved = float((state[key].double() - ours.start[key].double()).norm())
            assert moved == pytest.approx(norm, rel=1e-3, abs=1e-12), key
    for key, final in case.tensors("final/").items():
        largest = float((final - ours.start[key]).abs().max())
        torch.testing.assert_close(state[key], final, rtol=0, atol=2e-2 * largest)


def rounding_noise(case: Case, keys: Iterable[str]) -> set[str]:
    """Parameters whose gradient is zero but for rounding, which Adam blows up to whole steps.

    Without RoPE a bias on all keys shifts every score of a query alike: softmax cancels it.
    """
    if model_config_of(case).network.params.position.kind == "rope3d":
        return set()
    return {key for key in keys if fnmatch(key, "*key_layernorm_list.*.bias")}


def test_the_same_parameters_train_in_the_same_groups(run: tuple[Case, Trained]) -> None:
    case, ours = run
    log = case.json["log"]

    trainable = [sat_names(name)[0] for name in ours.report.trainable]
    assert set(trainable) == set(log["trainable"]) - {UNUSED}
    ours_by_group: dict[int, set[str]] = {}
    for name, info in ours.engine.parameters_info().items():
        ours_by_group.setdefault(info.group, set()).add(sat_names(name)[0])
    recorded = [set(group["names"]) - {UNUSED} for group in log["param_groups"]]
    assert [ours_by_group[index] for index in sorted(ours_by_group)] == recorded
    decays = [group["weight_decay"] for group in log["param_groups"]]
    actual = [group["weight_decay"] for group in ours.engine._engine.optimizer.param_groups]
    default = training_of(case, "fp32").optimizer.weight_decay
    assert actual == [default if decay == "default" else decay for decay in decays]


@pytest.mark.parametrize(
    "case", [case for case in CASES if "bf16_zero2_same_seed" in case.json], ids=name_of
)
def test_the_run_in_bf16_stays_within_its_bound(case: Case, groups: ProcessGroups) -> None:
    recorded, bound = case.json["bf16_zero2_same_seed"], case.tolerance("bf16_rel")

    ours = train(case, groups, "bf16")

    losses = [record["loss"] for record in ours.records]
    assert losses == pytest.approx(recorded["loss"], rel=bound)
    norms = [record["grad_norm"] for record in ours.records]
    assert norms == pytest.approx(recorded["grad_norm"], rel=bound)
