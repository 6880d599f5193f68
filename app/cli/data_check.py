"""`cogvx data check`: what a dataset holds and everything that is wrong with it."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.cli import output
from app.cli.numbers import integer, number
from app.config.dataset_defaults import DEFAULT_BUCKETS, DEFAULT_FPS, MOST_TOKENS, TXT_KEY
from app.config.load import load_config
from app.config.schema.data import parse_bucket
from app.errors import DataError
from app.registry import TARGETS

if TYPE_CHECKING:
    from app.run.dataset.check import CheckResult

EXAMPLES = """examples:
  cogvx data check ./disney
  cogvx data check s3://bucket/shards --json > report.json
  cogvx data check './shards/x-{000..012}.tar' --t5 ./t5-v1_1-xxl --png dataset.png
  cogvx data check ./disney --base configs/cogvideox_2b_lora.yaml configs/sft.yaml
  cogvx data check ./disney --bucket 49x480x720 --bucket 17x480x720 --fps 8

The exit code is 0 for a dataset without a fault and 65 for one with faults.
"""
MOST_WORKERS, LARGEST_WORKERS = 16, 256  # by default, and as an option
LOWEST_FPS, HIGHEST_FPS = 0.01, 1000.0
NOTE_EVERY_S = 10.0  # a line of progress when there is no terminal
PROBLEMS_SHOWN = 200


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "source",
        help="folder with videos/ and labels/, or shards by prefix or glob; local or s3://",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="write an image with histograms and sample frames"
    )
    parser.add_argument(
        "--t5", metavar="DIR", help="count caption tokens with this tokenizer (default: estimate)"
    )
    parser.add_argument(
        "--max-tokens",
        type=integer(1),
        default=MOST_TOKENS,
        metavar="N",
        help="longest allowed caption in tokens (default: %(default)s)",
    )
    _configure_clips(parser)
    parser.add_argument(
        "--base",
        nargs="+",
        metavar="FILE",
        help="take clip sizes, captions and limits from the configuration of a run",
    )
    parser.add_argument(
        "--workers",
        type=integer(1, LARGEST_WORKERS),
        default=min(os.cpu_count() or 1, MOST_WORKERS),
        metavar="N",
        help="number of decoder processes (default: %(default)s)",
    )


def _configure_clips(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the clips to train on."""
    parser.add_argument(
        "--bucket",
        action="append",
        metavar="TxHxW",
        help="clip size that the data should fill, may be repeated; clips shorter than all of "
        "them are faults (default: nine sizes, shorter clips are not faults)",
    )
    parser.add_argument(
        "--fps",
        type=number(LOWEST_FPS, HIGHEST_FPS),
        default=DEFAULT_FPS,
        help="frame rate of the clips (default: %(default)s)",
    )
    parser.add_argument(
        "--skip",
        type=integer(0),
        metavar="N",
        help="frames that training skips at both ends of a video (default: those of the dataset's "
        "class, 3 in a folder and 0 in shards; buckets are then filled without skipping)",
    )
    parser.add_argument(
        "--txt-key", default=TXT_KEY, help="key of the captions in shards (default: %(default)s)"
    )
    parser.add_argument(
        "--missing-captions",
        choices=("error", "empty"),
        default="error",
        help="error: a clip without a caption is a fault (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Check; return the exit code."""
    from app.run.dataset.check import CheckRequest, as_configured, check_data

    request = CheckRequest(
        url=args.source,
        t5=args.t5,
        most_tokens=args.max_tokens,
        txt_key=args.txt_key,
        may_lack_captions=args.missing_captions == "empty",
        buckets=[parse_bucket(text) for text in args.bucket] if args.bucket else DEFAULT_BUCKETS,
        must_fill=bool(args.bucket),
        fps=args.fps,
        skip_frames=args.skip,
        workers=args.workers,
        png=args.png,
    )
    if args.base:
        request = as_configured(request, load_config(["--base", *args.base], TARGETS))
    noted = time.monotonic()
    with output.progress("checking", total=0) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal noted
            bar.update(bar.task_ids[0], completed=done, total=total)
            if bar.disable and time.monotonic() - noted > NOTE_EVERY_S:
                noted = time.monotonic()
                output.note(f"checked {done} of {total} samples")

        result = check_data(request, progress)
    if args.json:
        output.as_json(result.as_json(args.source))
    else:
        show(args.source, result)
    if args.png is not None:
        output.note(f"image: {args.png}")
    return DataError.exit_code if result.census.problems else 0


def show(url: str, result: CheckResult) -> None:
    """The report as tables."""
    report = result.as_json(url)
    estimated = " (estimated)" if result.tokens_are_estimated else ""
    names = {
        "samples": "samples",
        "usable": "usable",
        "shards": "shards",
        "bytes": "bytes of video",
        "seconds": "length, s",
        "frames": "frames",
        "fps": "frames per second",
        "sizes": "rows x columns",
        "codecs": "codecs",
        "traits": "of them",
        "caption_tokens": f"caption tokens{estimated}",
    }
    rows = [[title, _cell(report[name])] for name, title in names.items()]
    output.table(f"{url} ({result.census.kind})", ["what", "value"], rows)
    filled = [[name, count] for name, count in result.buckets.items()]
    output.table("clips that fill a bucket", ["frames x rows x columns", "clips"], filled)
    if result.census.left_out:
        output.note(f"warning: {result.census.left_out}")
    problems = result.census.problems
    if not problems:
        output.line("no fault found")
        return
    shown = [[p.source, p.key, p.reason, p.detail] for p in problems[:PROBLEMS_SHOWN]]
    output.table(f"{len(problems)} faults", ["source", "key", "reason", "detail"], shown)
    if len(problems) > PROBLEMS_SHOWN:
        output.line(f"... and {len(problems) - PROBLEMS_SHOWN} more (--json has all)")


def _cell(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {number}" for name, number in value.items() if name != "estimated")
