"""`cogvx demo`: the whole job on this machine, with a tiny model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from app.cli import output


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        help="folder for all output (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=60, help="steps of the full fine-tune (default: %(default)s)"
    )
    parser.add_argument(
        "--lr", type=float, help="its learning rate (default: from the configuration)"
    )
    parser.add_argument(
        "--lora-steps", type=int, default=40, help="steps of the LoRA run (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=("bf16", "fp32"),
        help="of training (default: bf16 if a GPU or the CPU supports it, else fp32)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if every check passes, else 1."""
    from app.rehearsal.demo import Demo, DemoPlan, fast_precision

    plan = DemoPlan(
        out=args.out,
        steps=args.steps,
        lr=args.lr,
        lora_steps=args.lora_steps,
        precision=args.precision or fast_precision(os.environ),
        program=sys.argv[0] if sys.argv[0].endswith("cogvx") else "cogvx",
    )
    failures = Demo(plan, Terminal()).run()
    for failure in failures:
        output.note(f"error: {failure}")
    output.line("the demo failed" if failures else "all checks passed")
    return 1 if failures else 0


class Terminal:
    """Shows the progress of the demo."""

    def __init__(self) -> None:
        self._number = 0

    def step(self, text: str) -> None:
        self._number += 1
        output.line(f"[{self._number}] {text}")

    def detail(self, text: str) -> None:
        output.line(f"    {text}")

    def progress(self, what: str, done: int, total: int) -> None:
        width = 30
        filled = width * done // max(1, total)
        bar = f"[{'#' * filled}{'.' * (width - filled)}] {done}/{total}"
        output.line(f"    {bar}  {what}")

    def table(self, title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        output.table(title, headers, rows)
