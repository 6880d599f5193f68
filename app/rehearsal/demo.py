"""The whole job on one machine: clips to a bucket, full fine-tune, SIGKILL, resume, LoRA, export.

No shortcuts: the command lines and environment of the pods come from the rendered chart, the bucket
is a real S3 server, and every other step is a command that a user would type.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

import app
from app.checkpoint.catalog import complete_checkpoints
from app.distributed.devices import count_gpus
from app.distributed.rank import free_port
from app.errors import CogvxError, InputMissingError, RetryableError, UsageError
from app.rehearsal.chart import Release, render
from app.rehearsal.clips import make_clips
from app.rehearsal.embedded_s3 import EmbeddedS3
from app.rehearsal.processes import LocalPods
from app.rehearsal.records import RunRecord, read_run
from app.rehearsal.substitutions import LocalJob, Surroundings, localize
from app.storage.local import LocalStorage

REPOSITORY = Path(app.__file__).parents[1]
CLIP_SIZE = (32, 64)  # rows, columns
TRAIN_CLIPS, VALID_CLIPS = 24, 8
JOB_TIMEOUT_S = 600.0
SAVE_INTERVAL = 10  # of configs/tiny/tiny_train.yaml; a kill needs two checkpoints to be worth it
SECRET = "cogvx-s3"
LORA_LR = 2e-2  # low-rank matrices that start at zero take, and need, a higher rate
LEAST_FALL = 0.10  # of the validation loss in the full fine-tune


class Audience(Protocol):
    """Where the demo reports: the command line, or a test."""

    def step(self, text: str) -> None:
        """A new part of the demo starts."""
        ...

    def detail(self, text: str) -> None:
        """Something worth a line."""
        ...

    def progress(self, what: str, done: int, total: int) -> None:
        """Progress of a long part."""
        ...

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Facts as a table."""
        ...


def fast_precision(environ: Mapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """bf16 where the hardware has it, else fp32: other CPUs convolve 50 times slower in bf16."""
    if count_gpus(environ):
        return "bf16"
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "fp32"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoPlan:
    """Sizes of the demo."""

    out: Path
    steps: int = 60
    lr: float | None = None  # of the full run; None: the configuration's
    lora_steps: int = 40
    precision: str = "fp32"
    program: str = "cogvx"  # as it was called, for the commands that are shown

    def __post_init__(self) -> None:
        if self.steps < 2 * SAVE_INTERVAL:
            raise UsageError(
                f"{self.steps} steps are too few to interrupt the run",
                where="cogvx demo --steps",
                fix=f"give {2 * SAVE_INTERVAL} or more",
            )

    @property
    def kill_after_step(self) -> int:
        """The run is killed after a checkpoint of this step or later."""
        return self.steps // 2 // SAVE_INTERVAL * SAVE_INTERVAL


@dataclass(slots=True)
class Demo:
    """One run of the demo."""

    plan: DemoPlan
    audience: Audience
    _environment: dict[str, str] = field(default_factory=dict)

    def run(self) -> list[str]:
        """Run all parts; return the checks that failed."""
        began = time.monotonic()
        out = self.plan.out
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        with EmbeddedS3(out / "s3") as server:
            for bucket in ("clips", "weights", "runs"):
                server.create_bucket(bucket)
            self._environment = {**os.environ, **server.environment()}
            self._fill_buckets(server)
            full, full_file = self._full(server)
            lora, lora_file = self._lora(server, full_file)
        failures = self._checks(full, lora, [full_file, lora_file])
        self._summary(full, lora, full_file, lora_file)
        self.audience.detail(f"{time.monotonic() - began:.0f} seconds")
        return failures

    # the parts, in order

    def _fill_buckets(self, server: EmbeddedS3) -> None:
        out, tell = self.plan.out, self.audience
        tell.step("making H.264 clips with captions")
        make_clips(out / "clips/train", TRAIN_CLIPS, CLIP_SIZE, 8, 2.0, 1)
        make_clips(out / "clips/valid", VALID_CLIPS, CLIP_SIZE, 8, 2.0, 2)
        tell.detail(f"{TRAIN_CLIPS} to train on, {VALID_CLIPS} to validate: {out / 'clips'}")
        tell.step(f"packing them as tar shards into s3://clips ({server.endpoint})")
        for name in ("train", "valid"):
            words = ["data", "pack", str(out / "clips" / name), "--out", f"s3://clips/{name}"]
            self._command([*words, "--json"])
        tell.step("making a tiny T5, VAE and transformer in upstream's file formats")
        base = [str(path) for path in _layers("tiny.yaml", "tiny_train.yaml")]
        made = out / "s3/weights/tiny"
        words = ["-m", "app.rehearsal.tiny_parts", str(made), "--base", *base, "--seed", "1"]
        self._python(words)

    def _full(self, server: EmbeddedS3) -> tuple[RunRecord, str]:
        tell, steps = self.audience, self.plan.steps
        tell.step("full fine-tune: the rendered PyTorchJob, Master and Worker, ZeRO-2 on 2 ranks")
        layers = ["tiny.yaml", "tiny_train.yaml"]
        job = self._job(server, "full", layers, steps, _TINY_LOAD, lr=self.plan.lr)
        rows = [(row.what, row.in_the_pod, row.here) for row in job.table]
        tell.table("what is replaced on this machine", _SUBSTITUTED, rows)
        with LocalPods(job.processes, self.plan.out / "logs", self._watch("full")) as pods:
            killed = self._wait_for_checkpoint(pods)
            for process in job.processes:
                pods.kill(process.pod)
            tell.step(f"SIGKILL to both pods after the checkpoint of step {killed}; starting again")
            for process in job.processes:
                pods.start(process.pod)
            _expect_success(pods.wait(JOB_TIMEOUT_S), self.plan.out / "logs")
        return self._record("full"), self._export("full")

    def _lora(self, server: EmbeddedS3, base: str) -> tuple[RunRecord, str]:
        self.audience.step("LoRA fine-tune from the result")
        load = base.rsplit("/", 1)[0]
        layers = ["tiny_lora.yaml", "tiny_train.yaml"]
        job = self._job(server, "lora", layers, self.plan.lora_steps, load, lr=LORA_LR)
        with LocalPods(job.processes, self.plan.out / "logs", self._watch("lora")) as pods:
            _expect_success(pods.wait(JOB_TIMEOUT_S), self.plan.out / "logs")
        return self._record("lora"), self._export("lora")

    def _export(self, run: str) -> str:
        self.audience.step(f"exporting s3://runs/{run}")
        answer = json.loads(self._command(["export", f"s3://runs/{run}", "--json"]))
        return str(answer["files"][0])

    # jobs

    def _job(
        self,
        server: EmbeddedS3,
        run: str,
        layers: Sequence[str],
        steps: int,
        load: str,
        lr: float | None = None,
    ) -> LocalJob:
        """Render the chart for one run and turn its pods into local processes."""
        values = {
            "workers": 1,
            "gpusPerPod": 0,
            "nprocPerNode": 1,
            "run": {"id": run, "args": [], "overrides": self._overrides(steps, load, lr)},
            "config": {"layers": [yaml.safe_load(path.read_text()) for path in _layers(*layers)]},
            "s3": {
                "endpointUrl": server.endpoint,
                "region": server.region,
                "existingSecret": SECRET,
            },
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        }
        chart = REPOSITORY / "deploy/helm"
        documents = render(chart, values, Release(f"demo-{run}", "demo"))
        keys = {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
        }
        surroundings = Surroundings(
            root=(self.plan.out / "pods" / run).resolve(),
            master_port=free_port(),
            secrets={SECRET: keys},
            overrides=_TINY_WEIGHTS,
        )
        return localize(documents, surroundings)

    def _overrides(self, steps: int, load: str, lr: float | None) -> list[str]:
        bf16 = str(self.plan.precision == "bf16").lower()
        return [
            f"args.train_iters={steps}",
            f"args.eval_interval={steps // 2}",
            f"args.load={load}",
            "args.save=s3://runs",
            "args.train_data=[s3://clips/train]",
            "args.valid_data=[s3://clips/valid]",
            f"deepspeed.bf16.enabled={bf16}",
            *([] if lr is None else [f"args.lr={lr}"]),
        ]

    def _watch(self, run: str) -> Any:
        """Show the log lines of the trainer as progress."""

        def on_line(pod: str, text: str) -> None:
            if not text.startswith("{"):
                return
            try:
                facts = json.loads(text)
            except ValueError:
                return
            if facts.get("event") == "training":
                what = f"{run}: loss {facts['loss']:.3f}"
                self.audience.progress(what, int(facts["steps_done"]), int(facts["steps"]))
            elif facts.get("event") in ("resumed", "validation", "checkpoint published"):
                shown = {
                    k: facts[k] for k in ("checkpoint", "steps_done", "valid_loss") if k in facts
                }
                words = " ".join(
                    f"{key}={value:.4f}" if isinstance(value, float) else f"{key}={value}"
                    for key, value in shown.items()
                )
                self.audience.detail(f"{run}: {facts['event']} {words}")

        return on_line

    def _wait_for_checkpoint(self, pods: LocalPods) -> int:
        storage = LocalStorage(self.plan.out / "s3/runs/full")
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while time.monotonic() < deadline:
            newest = next((ref for ref, _ in complete_checkpoints(storage)), None)
            if newest is not None and newest.step >= self.plan.kill_after_step:
                time.sleep(1.0)  # in the middle of the following steps
                return newest.step
            if any(code is not None for code in pods.exit_codes().values()):
                break
            time.sleep(0.2)
        raise RetryableError(
            "the job made no checkpoint",
            where=str(self.plan.out / "logs"),
            fix="look at the last lines of each pod's log",
        )

    # commands

    def _command(self, words: Sequence[str]) -> str:
        return self._python(["-m", "app", *words])

    def _python(self, words: Sequence[str]) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            env={**self._environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CogvxError(
                f"a step of the demo ended with {done.returncode}: {done.stderr[-2000:]}",
                where=" ".join(["python", *words]),
                fix="run the command on its own",
            )
        return done.stdout

    # the end

    def _record(self, run: str) -> RunRecord:
        return read_run(LocalStorage(self.plan.out / "s3/runs" / run))

    def _checks(self, full: RunRecord, lora: RunRecord, files: Sequence[str]) -> list[str]:
        failures = []
        if not full.loss_end < (1 - LEAST_FALL) * full.loss_start:
            failures.append(
                f"full fine-tune: validation loss {full.loss_start:.4f} -> {full.loss_end:.4f} "
                f"fell by less than {LEAST_FALL:.0%}"
            )
        if not lora.loss_end < lora.loss_start:
            failures.append(
                f"LoRA: validation loss {lora.loss_start:.4f} -> {lora.loss_end:.4f} did not fall"
            )
        if len(full.attempts) != 2 or full.attempts[1] is None:
            failures.append("the killed run did not resume from a checkpoint")
        for run, record in (("full", full), ("lora", lora)):
            if not record.videos:
                failures.append(f"no sample video in s3://runs/{run}/samples/")
            if not record.is_complete:
                failures.append(f"no complete.json in s3://runs/{run}/")
        failures += [f"missing: {file}" for file in files if not self._local(file).is_file()]
        return failures

    def _summary(self, full: RunRecord, lora: RunRecord, full_file: str, lora_file: str) -> None:
        runs = [
            (
                name,
                f"{record.loss_start:.4f}",
                f"{record.loss_end:.4f}",
                f"{1 - record.loss_end / record.loss_start:.1%}",
                f"{record.samples_per_s:.1f}",
                len(record.attempts),
            )
            for name, record in (("full", full), ("LoRA", lora))
        ]
        headers = ("run", "validation loss at start", "at end", "fell by", "samples/s", "starts")
        self.audience.table("fixed-noise validation loss", headers, runs)
        bucket = self.plan.out / "s3"
        places = [
            ("list the bucket", f"{self.plan.program} storage ls {bucket}"),
            ("a sample video", str(bucket / "runs/full" / full.videos[-1]) if full.videos else "-"),
            ("the fine-tuned model", str(self._local(full_file))),
            ("the LoRA for diffusers and PEFT", str(self._local(lora_file))),
            ("logs of the pods", str(self.plan.out / "logs")),
        ]
        self.audience.table("results", ("what", "where"), places)

    def _local(self, url: str) -> Path:
        return self.plan.out / "s3" / url.removeprefix("s3://")


_SUBSTITUTED = ("what", "in the pod", "here")
_TINY_LOAD = "s3://weights/tiny/transformer"
_TINY_WEIGHTS = (
    "model.conditioner_config.params.emb_models[0].params.model_dir=s3://weights/tiny/t5",
    "model.first_stage_config.params.ckpt_path=s3://weights/tiny/vae/3d-vae.pt",
)


def _layers(*names: str) -> list[Path]:
    paths = [REPOSITORY / "configs/tiny" / name for name in names]
    for path in paths:
        if not path.is_file():
            raise InputMissingError(
                "the demo needs a checkout of the repository",
                where=str(path),
                fix="clone it and run make demo there",
            )
    return paths


def _expect_success(codes: Mapping[str, int], logs: Path) -> None:
    failed = {pod: code for pod, code in codes.items() if code}
    if failed:
        raise CogvxError(
            "pods ended with " + ", ".join(f"{pod}: {code}" for pod, code in failed.items()),
            where=str(logs),
            fix="look at the last lines of each pod's log",
        )
