"""`cogvx encode`: clips and captions through the VAE and the text encoder, once, into a cache."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from app.cli import output
from app.config.command_line import add_arguments, own_parser, read_command_line
from app.config.load import config_of
from app.config.runnable import encodable_run
from app.config.schema.run import EncodableRun, RunConfig
from app.distributed.variables import Variables
from app.errors import UsageError
from app.registry import TARGETS

if TYPE_CHECKING:
    from app.run.encode.job import EncodeReport, EncodeRequest

EXAMPLES = """examples:
  cogvx encode --base configs/cogvideox_2b_lora.yaml configs/sft.yaml --out s3://bucket/latents
  cogvx train --base configs/cogvideox_2b_lora.yaml configs/sft.yaml \\
    --load cogvideox-2b-sat/transformer --latent-cache s3://bucket/latents --save s3://bucket/runs

several jobs, one part each (in a Kubernetes Indexed Job the part is JOB_COMPLETION_INDEX):
  cogvx encode --base configs/cogvideox_2b_lora.yaml configs/sft.yaml \\
    --out s3://bucket/latents --part 3 --parts 8
  cogvx encode --base configs/cogvideox_2b_lora.yaml configs/sft.yaml \\
    --out s3://bucket/latents --parts 8

exit codes: 0 done, even if some clips cannot be used (they are listed); 2 wrong flag; 65 no clip
  can be used; 66 data or weights are missing; 77 permission denied; 78 the configuration cannot be
  encoded; 138 the storage does not answer: start again, finished clips are kept
"""
MOST_WORKERS = 64
BAD_SHOWN = 10
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"  # set by Kubernetes in the pods of an Indexed Job


def make_encode_parser() -> argparse.ArgumentParser:
    """The options that only this command has."""
    parser = own_parser("cogvx encode")
    own = parser.add_argument_group("this command")
    own.add_argument(
        "--out", metavar="URL", help="folder or s3:// prefix of the cache (default: latent_cache)"
    )
    own.add_argument(
        "--part",
        type=int,
        metavar="I",
        help=f"encode part I of N, from 0 (default with --parts: ${INDEX_VARIABLE})",
    )
    own.add_argument("--parts", type=int, metavar="N", help="number of parts (default: 1)")
    own.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads that read and decode (default: num_workers, at least 1)",
    )
    own.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def full_parser() -> argparse.ArgumentParser:
    """Every option, for the help."""
    parser = make_encode_parser()
    add_arguments(parser)
    return parser


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What the command's own options say: target, part, number of parts, workers."""

    out: str
    part: int
    parts: int
    workers: int


def run_words(words: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    line = read_command_line(words, make_encode_parser())
    config = encodable_run(config_of(line, TARGETS))
    options = encode_options(line.own, config, os.environ)
    # Imported only now: whatever was wrong so far needed no torch.
    from app.data.latent_cache import EncodePart
    from app.run.arguments import namespace_of
    from app.run.encode.job import EncodeRequest
    from app.telemetry.logging import LogContext, logging_for

    part = EncodePart(options.part, options.parts)
    request = EncodeRequest(out=options.out, part=part, workers=options.workers)
    with logging_for(LogContext(rank=0)):
        args = namespace_of(config, line.own)
        report = _encode(config, request, args)
    if line.own["json"]:
        output.as_json({**asdict(report), "part": options.part, "parts": options.parts})
    else:
        _show(report)
    return 0


def encode_options(
    own: Mapping[str, Any], config: RunConfig, environ: Mapping[str, str]
) -> EncodeOptions:
    """The options of the command line, with their defaults.

    Raises:
        UsageError: there is no such part, or no place to write to.
        ConfigError: the variable of the Indexed Job is not a number.
    """
    out = own["out"] or config.arguments["latent_cache"]
    if not out:
        raise _wrong("--out is missing", "give a folder or an s3:// prefix")
    parts, part = own["parts"], own["part"]
    if parts is None and part is not None:
        raise _wrong("--part is given without --parts", "give the number of parts: --parts N")
    if part is None and parts is not None and parts > 1:
        index = Variables(environ).integer(INDEX_VARIABLE)
        if index is None:
            raise _wrong(
                f"--parts {parts} does not say which part this is",
                f"give --part I, or run it in an Indexed Job (${INDEX_VARIABLE})",
            )
        part = index.value
    parts, part = 1 if parts is None else parts, part or 0
    if parts < 1 or not 0 <= part < parts:
        raise _wrong(
            f"there is no part {part} of {parts}", "parts count from 0: --part 0 .. N-1 --parts N"
        )
    workers = own["workers"]
    if workers is None:
        workers = max(1, int(str(config.arguments["num_workers"])))
    if not 1 <= workers <= MOST_WORKERS:
        raise _wrong(f"--workers is {workers}", f"use 1 to {MOST_WORKERS}")
    return EncodeOptions(str(out).rstrip("/") or "/", part, parts, workers)


def _wrong(what: str, fix: str) -> UsageError:
    return UsageError(what, where="the command line of cogvx encode", fix=fix)


def _encode(config: EncodableRun, request: EncodeRequest, args: argparse.Namespace) -> EncodeReport:
    from app.run.encode.job import encode

    with output.progress("encoding", total=0) as bar:

        def watch(done: int, total: int, computed: int) -> None:
            shown = f"encoding ({computed} computed)"
            bar.update(bar.task_ids[0], completed=done, total=total, description=shown)

        return encode(config, request, watch, args)


def _show(report: EncodeReport) -> None:
    output.line(
        f"{report.samples} clips: {report.computed} computed, {report.found} existed, "
        f"{len(report.bad)} cannot be used, {report.seconds:.1f} s"
    )
    output.line(f"latent cache: {report.url}")
    if report.bad:
        reasons = Counter(bad["reason"] for bad in report.bad)
        counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        output.note(f"clips that cannot be used: {counted}")
        for bad in report.bad[:BAD_SHOWN]:
            output.note(f"  {bad['key']}: {bad['reason']}: {bad['detail']}")
