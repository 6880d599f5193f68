"""`cogvx convert SRC DST`: weights from one layout to another."""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli import output
from app.errors import UsageError

if TYPE_CHECKING:
    from app.run.weights.convert import ConvertReport, ConvertRequest

GIB = 2**30

EXAMPLES = """examples:
  cogvx convert CogVideoX-5b ./5b-sat --to sat --layout v1 --verify
  cogvx convert ckpts/my-run ./my-run-diffusers --to diffusers --base configs/cogvideox_2b.yaml
  cogvx convert s3://runs/disney ./disney-lora --to lora --fold-scale
  cogvx convert 5b-sat/transformer s3://models/5b --to diffusers --part pipeline \\
      --vae 5b-sat/vae/3d-vae.pt --t5 t5-v1_1-xxl --dtype bf16
  cogvx convert 5b-sat/vae/3d-vae.pt ./vae --to diffusers --part vae \\
      --base configs/cogvideox_5b.yaml
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="what to read, local or s3://: a SAT checkpoint (folder or file, tensor-parallel "
        "shards, training checkpoint, LoRA), a diffusers transformer or pipeline, a cogvx file, "
        "a PEFT LoRA, or a run (<save>/<run id>, or one of its checkpoints)",
    )
    parser.add_argument(
        "target",
        metavar="DST",
        help="folder to write, local or s3://; for --to lora and --part vae also a file name "
        "(.safetensors, .pt)",
    )
    parser.add_argument(
        "--to", required=True, choices=("sat", "diffusers", "lora"), help="target layout"
    )
    parser.add_argument(
        "--part",
        choices=("transformer", "pipeline", "vae"),
        default="transformer",
        help="pipeline: transformer, VAE, scheduler, text encoder and tokenizer (default: "
        "%(default)s)",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="default: unchanged")
    _configure_source(parser)
    _configure_target(parser)
    parser.epilog = EXAMPLES


def _configure_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what SRC does not specify")
    group.add_argument(
        "--base",
        nargs="+",
        default=[],
        metavar="YAML",
        help="configuration of its model; needed for sizes that no released model has",
    )
    group.add_argument("--lora-alpha", type=float, help="alpha of its LoRA pairs")
    group.add_argument("--vae", help="3d-vae.pt or a diffusers VAE, for --part pipeline")
    group.add_argument(
        "--t5", help="folder of the text encoder and its tokenizer, for --part pipeline"
    )
    group.add_argument("--step", type=int, help="step of a run's checkpoint (default: the newest)")
    group.add_argument(
        "--weights",
        choices=("master", "ema"),
        default="master",
        help="weights of a run to use (default: %(default)s)",
    )


def _configure_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to write it")
    group.add_argument(
        "--layout",
        choices=("head", "v1"),
        default="head",
        help="shape of the patch weight in SAT: v1 for upstream's 1.0 code, head for its "
        "current code (default: %(default)s)",
    )
    group.add_argument(
        "--shards",
        type=int,
        default=1,
        metavar="N",
        help="number of tensor-parallel shards of a SAT folder",
    )
    group.add_argument(
        "--max-shard-gib",
        type=float,
        default=5.0,
        metavar="GIB",
        help="split larger safetensors into several files with an index (default: %(default)g)",
    )
    group.add_argument(
        "--fold-scale",
        action=argparse.BooleanOptionalAction,
        help="multiply B of LoRA pairs so that alpha = r (default with --to lora: tools that "
        "ignore alpha are right too) or alpha = 1 (--to sat: as stock model files have it)",
    )
    group.add_argument("--scheduler", choices=("dpm", "ddim"), help="scheduler of a pipeline")
    group.add_argument("--overwrite", action="store_true", help="replace existing weights in DST")
    group.add_argument(
        "--verify",
        action="store_true",
        help="read the result back, compare every tensor, and compare one forward pass of both",
    )
    group.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Convert; print what was written and what the comparison found."""
    from app.run.weights.convert import convert_weights

    if args.shards < 1 or not 0 < args.max_shard_gib * GIB < math.inf:
        raise UsageError(
            "--shards and --max-shard-gib must be above zero and finite",
            where="cogvx convert",
            fix="omit them for one SAT file and files of 5 GiB",
        )
    with tempfile.TemporaryDirectory() as cache:
        report = convert_weights(
            args.source, args.target, _convert_request(args), Path(cache), output.note
        )
    if args.json:
        output.as_json(as_dict(report))
    else:
        _show(report)
    return 0


def _convert_request(args: argparse.Namespace) -> ConvertRequest:
    from app.conversion.export import SatForm
    from app.run.weights.convert import ConvertRequest
    from app.run.weights.source import SourceRequest

    return ConvertRequest(
        to=args.to,
        part=args.part,
        form=SatForm(layout=args.layout, shards=args.shards),
        dtype=args.dtype,
        max_shard_bytes=int(args.max_shard_gib * GIB),
        fold_scale=args.fold_scale,
        scheduler=args.scheduler,
        verify=args.verify,
        overwrite=args.overwrite,
        source=SourceRequest(
            base=tuple(args.base),
            alpha=args.lora_alpha,
            step=args.step,
            weights=args.weights,
            vae=args.vae,
            t5=args.t5,
        ),
    )


def as_dict(report: ConvertReport) -> dict[str, object]:
    """The report for JSON."""
    return {
        "network": report.network,
        "files": report.files,
        "verified": {part: verdict.as_dict() for part, verdict in report.verified.items()},
        "notes": report.notes,
    }


def _show(report: ConvertReport) -> None:
    if report.network:
        known = {name: value for name, value in report.network.items() if value is not None}
        output.facts("source", known)
    for note in report.notes:
        output.note(note)
    for file in report.files:
        output.line(file)
    for part, verdict in report.verified.items():
        output.line(
            f"verified {part}: {verdict.tensors} tensors equal {verdict.compared}, max difference "
            f"{verdict.max_difference:g}; {verdict.forward}: max difference "
            f"{verdict.forward_max_difference:g}"
        )
