"""`cogvx export RUN_URL`: a run's weights for diffusers and PEFT."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from app.cli import output

KINDS = ("auto", "lora", "safetensors", "diffusers")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("run", help="folder of the run: <save>/<run id>, local or s3://")
    parser.add_argument(
        "--out", metavar="URL", help="folder or s3:// prefix (default: export/step-N/ in the run)"
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default="auto",
        help="lora: a folder for diffusers, PEFT and ComfyUI; safetensors: the "
        "whole network in cogvx format, for --load; diffusers: a folder for "
        "CogVideoXTransformer3DModel; auto (default): lora if the run trained one, else "
        "safetensors",
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument(
        "--weights", choices=("master", "ema"), default="master", help="default: %(default)s"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="default: %(default)s"
    )
    parser.add_argument(
        "--fold-scale",
        action=argparse.BooleanOptionalAction,
        help="multiply B of the LoRA by alpha / r, so that tools that ignore alpha are right too "
        "(default); --no-fold-scale: B as it was trained, for diffusers and PEFT alone",
    )
    parser.add_argument("--json", action="store_true", help="print the list of files as JSON")
    parser.epilog = (
        "examples:\n  cogvx export s3://runs/disney --out ./disney-lora\n"
        "  cogvx export runs/full --kind diffusers --dtype bf16 --out ./transformer"
    )


def run(args: argparse.Namespace) -> int:
    """Export; print the files that were written."""
    from app.run.weights.export import ExportRequest, export_run

    request = ExportRequest(args.kind, args.step, args.weights, args.dtype, args.fold_scale)
    with tempfile.TemporaryDirectory() as cache:
        files = export_run(args.run, request, args.out, Path(cache))
    if args.json:
        output.as_json({"files": files})
    else:
        for file in files:
            output.line(file)
    return 0
