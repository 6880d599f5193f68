"""`cogvx sample`: videos from prompts.

Started by torchrun, by `cogvx launch` or on its own, it samples in this process; on a machine with
several GPUs (or with `--nproc-per-node`) it starts one process per GPU and waits for them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.cli import output
from app.cli.train import all_ranks, started_by_us
from app.config.command_line import add_arguments, own_parser, read_command_line
from app.config.load import config_of
from app.config.runnable import samplable_run
from app.config.schema.run import RunConfig
from app.registry import TARGETS

EXAMPLES = """examples:
  cogvx sample --base configs/cogvideox_5b.yaml configs/inference.yaml \\
    --load CogVideoX-5b-sat/transformer --prompt "A red tram climbs a steep street" \\
    --size 480x720 --num-frames 49 --out samples
  cogvx sample --run s3://runs/disney --weights ema --input-type txt --input-file prompts.txt
  cogvx sample --base configs/cogvideox_5b_i2v.yaml configs/inference.yaml \\
    --load s3://weights/5b-i2v/transformer --prompt "The boat leaves" --image boat.png \\
    --size 480x720 --num-frames 49 --out s3://bucket/boat
  echo "a cat" | cogvx sample --base configs/cogvideox_2b.yaml configs/inference.yaml \\
    --load s3://weights/2b/transformer --size 480x720 --num-frames 49 --input-type cli
"""
INFERENCE = "args.mode=inference"


def make_sample_parser() -> argparse.ArgumentParser:
    """The options that only this command has."""
    parser = own_parser("cogvx sample")
    own = parser.add_argument_group("this command")
    own.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text of a video; may be repeated"
    )
    own.add_argument(
        "--image", metavar="URL", help="first frame for image-to-video; one per --prompt"
    )
    own.add_argument(
        "--size", metavar="HxW", help="height and width in pixels; replaces sampling_image_size"
    )
    own.add_argument(
        "--num-frames",
        type=int,
        metavar="N",
        help="number of frames, 4k + 1; replaces sampling_num_frames",
    )
    own.add_argument(
        "--out", metavar="URL", help="folder or s3:// prefix for the videos; replaces output_dir"
    )
    own.add_argument("--run", metavar="URL", help="sample from the run at <save>/<run id>")
    own.add_argument("--step", type=int, help="step of the run's checkpoint (default: the newest)")
    own.add_argument(
        "--weights",
        choices=("master", "ema"),
        help="which weights of the run to use (default: master)",
    )
    own.add_argument("--lora", metavar="URL", help="LoRA file to apply, in PEFT or cogvx format")
    own.add_argument("--save-latents", action="store_true", help="also write the latents")
    own.add_argument("--overwrite", action="store_true", help="replace samples that exist")
    own.add_argument("--json", action="store_true", help="print the list of samples as JSON")
    return parser


def full_parser() -> argparse.ArgumentParser:
    """Every option, for the help."""
    parser = make_sample_parser()
    add_arguments(parser)
    return parser


def run_words(words: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        words = _completed(words, Path(scratch))
        line = read_command_line(words, make_sample_parser())
        config = config_of(line, TARGETS)
        samplable_run(config, has_run=line.own["run"] is not None)
        processes = started_by_us(config, os.environ)
        if processes is not None:
            return _in_processes(words, processes, config, line.own, Path(scratch))
        return _in_this_process(words, bool(line.own["json"]))


def _completed(words: Sequence[str], scratch: Path) -> list[str]:
    """The command line with what it implies: mode, output and the model of a run."""
    line = read_command_line(words, make_sample_parser())
    words = list(words)
    if line.own["out"] is not None:
        words.append(f"args.output_dir={line.own['out']}")
    if line.own["run"] is not None and not line.flags.get("base"):
        from app.run.sample.sampling import model_file_of_run

        words += ["--base", str(model_file_of_run(line.own["run"], scratch))]
    return [*words, INFERENCE]


def _in_processes(
    words: Sequence[str],
    variables: Mapping[str, str],
    config: RunConfig,
    own: Mapping[str, object],
    scratch: Path,
) -> int:
    """One process per GPU; standard input is read here, for all of them."""
    words = list(words)
    if config.arguments["input_type"] == "cli" and not own["prompt"]:
        path = scratch / "prompts.txt"
        path.write_text(sys.stdin.read(), encoding="utf-8")
        words += ["args.input_type=txt", f"args.input_file={path}"]
    return all_ranks("sample", words, variables)


def _in_this_process(words: Sequence[str], as_json: bool) -> int:
    from app.run.sample.sampling import sample_words

    with output.progress("sampling", total=0) as bar:

        def watch(done: int, total: int, what: str) -> None:
            bar.update(bar.task_ids[0], completed=done, total=total, description=what)

        found = sample_words(words, make_sample_parser(), sys.stdin, watch)
    if not found:
        return 0  # rank 0 reports
    if as_json:
        output.as_json(found)
        return 0
    for record in found["samples"]:
        for file in record["files"]:
            output.line(f"{found['url']}/{file}")
    for name in found["files"]:
        output.line(f"{found['url']}/{name}")
    output.note(f"{found['made']} samples written, {found['skipped']} existed")
    return 0
