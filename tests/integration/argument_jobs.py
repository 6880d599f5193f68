"""Short trainings that differ in one argument each, all in one process; a program of its own.

    python -m tests.integration.argument_jobs FOLDER

makes tiny weights in FOLDER, runs every job of the table below as `cogvx train` would, and writes
FOLDER/results.json. What the jobs leave in FOLDER is the proof; test_arguments_in_a_run.py looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from app.config.schema.encoders import T5Config
from app.config.schema.model import DiTConfig, ModelConfig
from app.conversion.export import export_safetensors
from app.errors import CogvxError
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.t5 import TinyT5, write_tiny_t5
from app.models.vae.autoencoder import VideoAutoencoder
from app.run.arguments import get_args, leave_distributed
from app.run.train import training_main
from app.telemetry.timing import PartTimes
from app.training.engine import prepare_process
from app.training.forward import forward_step
from app.training.step import DiffusionModel
from tests.support.configs import load, path_of
from tests.support.numbered_clips import REGISTRATION, NumberedClips

STEPS = 4
SAT = ("--draws", "sat", "--sample-order", "sat")
EXIT_AT_2 = ("--exit-interval", "2")
LORA = (
    "model.network_config.params.modules.lora_config.target=sat.model.finetune.lora2.LoraMixin",
    "model.network_config.params.modules.lora_config.params.r=4",
    "model.not_trainable_prefixes=[all]",
)
LEARNED = "model.network_config.params.modules.pos_embed_config.params.learnable_pos_embed=true"


@dataclass(frozen=True)
class Job:
    """One start of a run.

    Attributes:
        name: of the job, and of the run unless its words say otherwise.
        words: what it adds to the common command line.
        after: a job whose folder is copied first, so that this one continues it, as if it had
            been killed before it could say that it is finished.
    """

    name: str
    words: tuple[str, ...] = ()
    after: str | None = None


def only(steps: int) -> tuple[str, str]:
    return ("--train-iters", str(steps))


VALIDATED = ("--eval-interval", "1", *only(1))
SUMMARIES = (
    *("--summary-dir", "{folder}/summaries", "--save-args"),
    *("--wandb", "--wandb-project-name", "a-project"),
)
JOBS = (
    Job("plain", ("--experiment-name", "Plain, RUN", "args.run_id=null")),
    Job("other-seed", ("--seed", "5", *only(1))),
    Job("from-scratch", ("args.load=null", *only(1))),
    Job("batches", ("--batch-size", "2", "--gradient-accumulation-steps", "2", *only(2))),
    Job(
        "epochs",
        ("--epochs", "2", "args.train_iters=null", "--batch-size", "3", "data.params.count=6"),
    ),
    Job("bf16", ("--bf16", *only(1))),
    Job("debug", ("--debug", *only(1))),
    Job("exit", EXIT_AT_2),
    Job("exit-again", (*EXIT_AT_2, "--mode", "finetune"), after="exit"),
    Job("keep", ("--save-interval", "1", "--keep-checkpoints", "2", "--log-interval", "3")),
    Job("no-save-rng", ("--no-save-rng", *only(1))),
    Job("validated", ("--eval-interval", "2", "--eval-iters", "1", "--eval-batch-size", "2")),
    Job("validated-again", ("--eval-interval", "2", "--eval-iters", "1"), after="validated"),
    Job("two-rows", (*VALIDATED, "--eval-batch-size", "2", "--grid-num-rows", "2")),
    Job("three-samples", (*VALIDATED, "--eval-iters", "3", "--log-image", "false")),
    Job("strict", (*VALIDATED, "--eval-iters", "1", "--strict-eval", "--log-image", "false")),
    Job("latents", (*VALIDATED, "--only-log-video-latents")),
    Job("not-forced", (LEARNED, *only(1))),
    Job("forced", (LEARNED, "--force-train", *only(1))),
    Job("lora", (*LORA, *only(2))),
    Job("lora-from", (*LORA, "--lora-from", "{folder}/runs/lora", "--lr", "0", *only(1))),
    Job("summaries", (*SUMMARIES, "--profiling", "1", *only(2))),
    Job("sat-whole", SAT),
    # After one step: the samples of this order are 6, 5, 6, 5, so two would hide a new start.
    Job("sat", (*SAT, "--exit-interval", "1")),
    Job("sat-resumed", (*SAT, "--resume-dataloader"), after="sat"),
    Job("sat-no-rng", (*SAT, "--resume-dataloader", "--no-load-rng"), after="sat"),
    Job("sat-from-the-start", SAT, after="sat"),
)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    prepare_process(on_cpu=not torch.cuda.is_available())
    os.environ["WANDB_MODE"] = "offline"
    os.environ["TMPDIR"] = str(folder / "tmp")
    (folder / "logs").mkdir(parents=True)
    (folder / "tmp").mkdir()
    common = write_inputs(folder)
    results = {}
    for job in JOBS:
        if job.after is not None:
            shutil.copytree(folder / "runs" / job.after, folder / "runs" / job.name)
            (folder / "runs" / job.name / "complete.json").unlink(missing_ok=True)
        words = [word.format(folder=folder) for word in job.words]
        shown = folder / "logs" / f"{job.name}.txt"
        with shown.open("w") as log, contextlib.redirect_stderr(log):
            results[job.name] = run([*common, "--run-id", job.name, *words])
    (folder / "results.json").write_text(json.dumps(results))
    leave_distributed()


def run(words: list[str]) -> dict[str, Any]:
    """Train in this process; which samples came in which step, and how it ended."""
    steps: list[dict[str, Any]] = []
    NumberedClips.reads.clear()

    def step(
        batches: Iterator[Mapping[str, Any]],
        model: DiffusionModel,
        args: Namespace,
        times: PartTimes,
    ) -> Any:
        seen: list[Mapping[str, Any]] = []

        def watched() -> Iterator[Mapping[str, Any]]:
            seen.append(next(batches))
            yield seen[0]

        loss, numbers = forward_step(watched(), model, args, times)
        facts = {"positions": seen[0]["positions"], "samples": seen[0]["keys"]}
        dtype = next(iter(model.network.parameters())).dtype
        steps.append({"step": args.iteration, "dtype": str(dtype), **facts})
        return loss, numbers

    code, error = 0, ""
    try:
        code = training_main(get_args(words), DiffusionModel, step)
    except CogvxError as problem:
        code, error = problem.exit_code, str(problem)
    return {"code": code, "error": error, "steps": steps, "reads": list(NumberedClips.reads)}


def write_inputs(folder: Path) -> list[str]:
    """Random weights and a recipe; the command line that all jobs share."""
    model = load("--base", path_of("tiny/tiny")).model
    assert model is not None
    torch.manual_seed(0)
    text = write_text_encoder(folder / "t5", model.conditioner.text, model.network.params)
    vae, weights = folder / "3d-vae.pt", folder / "model.safetensors"
    torch.save({"state_dict": VideoAutoencoder(model.first_stage.params).state_dict()}, vae)
    write_network(weights, model)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    return [
        *("--base", path_of("tiny/tiny"), str(recipe), "--register", REGISTRATION),
        *("--load", str(weights), "--save", str(folder / "runs")),
        *("--train-data", str(folder / "train"), "--valid-data", str(folder / "valid")),
        f"model.conditioner_config.params.emb_models.0.params.model_dir={text}",
        f"model.first_stage_config.params.ckpt_path={vae}",
    ]


RECIPE = {
    "args": {
        "mode": "pretrain",
        "train_iters": STEPS,
        "batch_size": 1,
        "num_workers": 0,
        "log_interval": 1,
        "save_interval": None,
        "split": "1,0,0",
        "warmup": 0,
        "lr": 2e-3,
    },
    "data": {"target": "numbered", "params": {"count": 7}},
    "deepspeed": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": False}},
}


def write_text_encoder(folder: Path, config: T5Config, network: DiTConfig) -> Path:
    captions = [f"clip number {index}" for index in range(30)]
    write_tiny_t5(folder, TinyT5(width=network.text_hidden_size), captions, 0)
    return folder


@torch.no_grad()
def write_network(path: Path, model: ModelConfig) -> None:
    """All weights random: from scratch the gates would be closed and most gradients zero."""
    network = DiffusionTransformer(model.network.params)
    for parameter in network.parameters():
        parameter.normal_(std=0.05)
    export_safetensors(path, network.state_dict(), model.network.params)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
