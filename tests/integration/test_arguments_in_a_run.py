"""What arguments change in a run: each looks at what the jobs of argument_jobs.py left behind."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decord
import pytest

from app.checkpoint.catalog import complete_checkpoints
from app.rehearsal.records import read_metrics
from app.storage.local import LocalStorage
from tests.support.configs import ROOT
from tests.support.made_once import made_once
from tests.support.tiny_run import digests_of_newest
from tests.support.warm_python import warm_python

CLIPS = 7  # of the recipe; the job on epochs has 6


@dataclass(frozen=True)
class Jobs:
    """The folder that the program filled, and what it told of each job."""

    folder: Path
    results: dict[str, Any]

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def metrics(self, name: str) -> list[dict[str, float]]:
        return read_metrics(LocalStorage(self.run(name)))

    def losses(self, name: str) -> dict[int, float]:
        """Step -> loss, to the last bit."""
        return {int(r["step"]): r["loss"] for r in self.metrics(name) if "loss" in r}

    def validations(self, name: str) -> list[int]:
        """Steps after which there was one."""
        return [int(r["step"]) for r in self.metrics(name) if "valid_loss" in r]

    def samples(self, name: str) -> list[list[str]]:
        """The training samples of each micro-step."""
        return [step["samples"] for step in self.results[name]["steps"]]

    def validated(self, name: str) -> set[int]:
        """Indexes of the validation clips that were read."""
        place = str(self.folder / "valid")
        return {index for path, index in self.results[name]["reads"] if path == place}

    def checkpoints(self, name: str) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return [ref.step for ref, _ in complete_checkpoints(LocalStorage(self.run(name)))]

    def files(self, name: str, pattern: str) -> list[str]:
        folder = self.run(name)
        return sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The log as it was shown."""
        text = (self.folder / "logs" / f"{name}.txt").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def run_jobs(folder: Path) -> None:
    command = warm_python("-m", "tests.integration.argument_jobs", str(folder))
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder = made_once(tmp_path_factory, "argument-jobs", run_jobs)
    return Jobs(folder, json.loads((folder / "results.json").read_text()))


def test_every_job_ended_as_meant(jobs: Jobs) -> None:
    codes = {name: result["code"] for name, result in jobs.results.items()}

    assert {name for name, code in codes.items() if code} == {"not-forced"}


def test_experiment_name_names_the_run_and_run_id_replaces_it(jobs: Jobs) -> None:
    runs = {path.name for path in (jobs.folder / "runs").iterdir()}

    assert {"plain--run", "debug"} <= runs
    assert "plain" not in runs


def test_save_says_where_the_run_lies(jobs: Jobs) -> None:
    assert (jobs.run("debug") / "complete.json").is_file()


def test_train_data_and_register_give_the_samples(jobs: Jobs) -> None:
    read = {sample for step in jobs.samples("plain") for sample in step}

    assert len(read) == 4
    assert read <= {f"{jobs.folder}/train/{index}" for index in range(CLIPS)}


def test_train_iters_is_the_length(jobs: Jobs) -> None:
    assert len(jobs.losses("plain--run")) == 4
    assert len(jobs.losses("bf16")) == 1


def test_epochs_is_the_length_in_passes_over_the_data(jobs: Jobs) -> None:
    read = [sample for step in jobs.samples("epochs") for sample in step]

    assert sorted(read) == sorted(2 * [f"{jobs.folder}/train/{index}" for index in range(6)])


def test_seed_changes_samples_and_noise(jobs: Jobs) -> None:
    assert jobs.samples("other-seed")[0] != jobs.samples("plain")[0]
    assert jobs.losses("other-seed")[1] != jobs.losses("plain--run")[1]


def test_load_gives_the_first_weights(jobs: Jobs) -> None:
    assert jobs.samples("from-scratch")[0] == jobs.samples("plain")[0]
    assert jobs.losses("from-scratch")[1] != jobs.losses("plain--run")[1]


def test_batch_size_and_gradient_accumulation_steps_cut_the_global_batch(jobs: Jobs) -> None:
    steps = jobs.results["batches"]["steps"]

    assert [(step["step"], step["positions"]) for step in steps] == [
        (0, [0, 1]),
        (0, [2, 3]),
        (1, [4, 5]),
        (1, [6, 7]),
    ]


def test_bf16_is_the_dtype_of_the_network(jobs: Jobs) -> None:
    assert {step["dtype"] for step in jobs.results["plain"]["steps"]} == {"torch.float32"}
    assert {step["dtype"] for step in jobs.results["bf16"]["steps"]} == {"torch.bfloat16"}


def test_debug_shows_which_samples_were_in_a_batch(jobs: Jobs) -> None:
    told = [line for line in jobs.lines("debug") if line["level"] == "debug"]

    assert [line["samples"] for line in told if line["event"] == "batch"] == jobs.samples("debug")
    assert not [line for line in jobs.lines("plain") if line["level"] == "debug"]


def test_log_interval_spaces_the_log_lines(jobs: Jobs) -> None:
    told = [line["steps_done"] for line in jobs.lines("keep") if line["event"] == "training"]

    assert told == [1, 3, 4]  # the first and the last are always told


def test_exit_interval_saves_then_stops_and_the_next_start_goes_on(jobs: Jobs) -> None:
    assert jobs.checkpoints("exit") == [2]
    assert not (jobs.run("exit") / "complete.json").exists()
    assert [step["step"] for step in jobs.results["exit"]["steps"]] == [0, 1]
    assert [step["step"] for step in jobs.results["exit-again"]["steps"]] == [2, 3]
    assert (jobs.run("exit-again") / "complete.json").exists()
    assert jobs.losses("exit-again") == jobs.losses("plain--run")


def test_mode_finetune_does_not_disable_the_resume(jobs: Jobs) -> None:
    # The first start was mode pretrain, and both count from 0 and not from the loaded weights.
    assert [step["step"] for step in jobs.results["plain"]["steps"]] == [0, 1, 2, 3]
    assert [step["step"] for step in jobs.results["exit-again"]["steps"]] == [2, 3]


def test_save_interval_and_keep_checkpoints_leave_the_newest(jobs: Jobs) -> None:
    assert jobs.checkpoints("plain--run") == [4]
    assert jobs.checkpoints("keep") == [4, 3]
    events = [line for line in jobs.lines("keep") if line["event"] == "checkpoint published"]
    assert len(events) == 4


def test_no_save_rng_leaves_the_generators_out(jobs: Jobs) -> None:
    assert len(jobs.files("plain--run", "checkpoints/*/rng-*.json")) == 1
    assert jobs.files("no-save-rng", "checkpoints/*/rng-*.json") == []
    assert len(jobs.files("no-save-rng", "checkpoints/*/manifest.json")) == 1


def test_no_load_rng_starts_the_generators_anew(jobs: Jobs) -> None:
    whole, resumed = jobs.losses("sat-whole"), jobs.losses("sat-resumed")

    assert resumed == whole  # draws of the global generators went on
    assert jobs.samples("sat-no-rng") == jobs.samples("sat-resumed")
    assert jobs.losses("sat-no-rng")[3] != whole[3]


def test_resume_dataloader_goes_on_in_the_data_of_upstreams_order(jobs: Jobs) -> None:
    whole = jobs.samples("sat-whole")

    assert whole[1:] != whole[:3]
    assert jobs.samples("sat-resumed") == whole[1:]
    assert jobs.samples("sat-from-the-start") == whole[:3]


def test_sample_order_is_upstreams(jobs: Jobs) -> None:
    drawn = [int(sample[0].rsplit("/", 1)[1]) for sample in jobs.samples("sat-whole")]

    assert drawn == [6, 5, 6, 5]  # recorded from upstream with seven samples
    assert jobs.samples("plain") != jobs.samples("sat-whole")


def test_eval_arguments_and_valid_data_decide_what_is_validated(
    jobs: Jobs,
) -> None:
    assert jobs.validations("plain--run") == []
    assert jobs.validations("validated") == [0, 2, 4]
    assert jobs.validated("validated") == {0, 1}  # eval_iters 1, eval_batch_size 2
    assert jobs.validated("three-samples") == {0, 1, 2}  # eval_iters 3, eval_batch_size 1


def test_a_start_that_finds_all_steps_done_validates_and_finishes(jobs: Jobs) -> None:
    assert jobs.results["validated-again"]["steps"] == []
    assert jobs.validations("validated-again") == [0, 2, 4, 4]
    assert (jobs.run("validated-again") / "complete.json").exists()


def test_strict_eval_counts_the_whole_set(jobs: Jobs) -> None:
    assert jobs.validated("strict") == set(range(CLIPS))


def test_log_image_false_leaves_the_videos_out(jobs: Jobs) -> None:
    assert jobs.validations("three-samples") == [0, 1]
    assert jobs.files("three-samples", "samples/**/*") == []
    assert jobs.files("validated", "samples/*/p*.mp4") == [
        f"samples/step-{step:010}/p{prompt:03}-model.mp4" for step in (2, 4) for prompt in (0, 1)
    ]


def test_only_log_video_latents_leaves_the_decoding_out(jobs: Jobs) -> None:
    assert jobs.files("latents", "samples/**/*.mp4") == []
    assert jobs.files("latents", "samples/*/*.safetensors") == [
        "samples/step-0000000001/p000-model.safetensors"
    ]


@pytest.mark.parametrize(("job", "size"), [("validated", (32, 128)), ("two-rows", (64, 64))])
def test_grid_num_rows_is_the_shape_of_the_grid(
    job: str, size: tuple[int, int], jobs: Jobs
) -> None:
    grid = jobs.files(job, "samples/*/grid-*.mp4")[-1]

    frame = decord.VideoReader(str(jobs.run(job) / grid))[0]

    assert frame.shape == (*size, 3)


def test_force_train_starts_although_a_table_is_missing(jobs: Jobs) -> None:
    refused = jobs.results["not-forced"]

    assert refused["code"] == 65
    assert "position.table" in refused["error"]
    warnings = [line for line in jobs.lines("forced") if line["level"] == "warning"]
    assert [line["names"] for line in warnings if "names" in line] == [["position.table"]]
    assert len(jobs.losses("forced")) == 1


def test_summary_dir_takes_what_tensorboard_and_wandb_write(jobs: Jobs) -> None:
    summaries = jobs.folder / "summaries"

    assert list((summaries / "runs/summaries").glob("events.out.tfevents.*"))
    assert list((summaries / "wandb").rglob("run-*.wandb"))
    assert not list((jobs.folder / "tmp").rglob("*.wandb"))


def test_wandb_and_wandb_project_name_make_a_run_of_the_project(jobs: Jobs) -> None:
    (record,) = (jobs.folder / "summaries/wandb").rglob("run-*.wandb")

    assert b"a-project" in record.read_bytes()


def test_lora_from_gives_the_first_pairs_of_a_new_run(jobs: Jobs) -> None:
    trained, begun = (
        digests_of_newest(LocalStorage(jobs.run(name))) for name in ("lora", "lora-from")
    )

    # The learning rate of the second one is zero.
    pairs = {name: digest for name, digest in trained.items() if name.startswith("master ")}
    assert len(pairs) == 16
    assert {name: begun[name] for name in pairs} == pairs


def test_save_args_writes_every_argument(jobs: Jobs) -> None:
    path = jobs.folder / "summaries/runs/summaries.txt"
    values = dict(line.split(": ", 1) for line in path.read_text().splitlines())

    assert values["train_iters"] == "2"
    assert values["wandb_project_name"] == "a-project"
    assert not list((jobs.folder / "tmp").rglob("plain*.txt"))


def test_profiling_traces_the_steps_from_the_given_one_on(jobs: Jobs) -> None:
    trace = json.loads((jobs.folder / "summaries/trace-from-step-1.json").read_text())

    assert len(trace["traceEvents"]) > 100
