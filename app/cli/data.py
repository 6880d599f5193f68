"""`cogvx data`: datasets on their way to training."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from app.cli import data_check, data_quarantine, output
from app.cli.numbers import number
from app.data.pack import DEFAULT_SHARD_MIB, PackRules, pack

SMALLEST_SHARD_MIB, LARGEST_SHARD_MIB = 2**-10, 2.0**20
EXAMPLES = """examples:
  cogvx data pack ./disney --out s3://bucket/disney
  cogvx data pack ./disney --out ./shards --shard-mib 64 --json
  cogvx data check ./disney --png disney.png
  cogvx data quarantine s3://runs/disney
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    checking = actions.add_parser(
        "check",
        help="scan a dataset and report every fault",
        description="Read, decode and describe every sample of a dataset; report every fault.",
        epilog=data_check.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    data_check.configure(checking)
    listing = actions.add_parser(
        "quarantine",
        help="list the samples that a run could not use",
        description="List the samples that a run could not use, merged over its starts and ranks.",
        epilog=data_quarantine.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    data_quarantine.configure(listing)
    packing = actions.add_parser(
        "pack",
        help="write a folder of videos/ and labels/ as tar shards with a manifest",
        description="Write a folder of videos/ and labels/ as tar shards with a manifest.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    packing.add_argument("folder", help="videos and captions, a path or s3:// prefix")
    packing.add_argument("--out", required=True, metavar="URL", help="a folder or s3:// prefix")
    packing.add_argument(
        "--shard-mib",
        type=number(SMALLEST_SHARD_MIB, LARGEST_SHARD_MIB),
        default=DEFAULT_SHARD_MIB,
        metavar="N",
        help="largest shard, in MiB (default: %(default)s)",
    )
    packing.add_argument(
        "--name", default="clips", help="first part of the shards' names (default: %(default)s)"
    )
    packing.add_argument(
        "--missing-captions",
        choices=("error", "empty"),
        default="error",
        help="what to do with videos without a caption (default: %(default)s)",
    )
    packing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the dataset that lies at URL; it is gone even if packing fails",
    )
    packing.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Pack, check or list; return the exit code."""
    if args.action == "check":
        return data_check.run(args)
    if args.action == "quarantine":
        return data_quarantine.run(args)
    rules = PackRules(
        name=args.name,
        shard_bytes=int(args.shard_mib * 2**20),
        missing_captions=args.missing_captions,
        overwrite=args.overwrite,
    )
    with output.progress("packing", total=0) as bar:
        report = pack(
            args.folder,
            args.out,
            rules,
            lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    if args.json:
        output.as_json(asdict(report))
    else:
        output.line(
            f"{report.samples} clips in {report.shards} shards, "
            f"{report.bytes / 2**20:.1f} MiB: {report.manifest}"
        )
    return 0
