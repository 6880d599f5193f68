"""`cogvx data check|pack|index|quarantine`: datasets on their way to training."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from app.cli import data_check, data_quarantine, output
from app.cli.numbers import number
from app.config.dataset_defaults import DEFAULT_SHARD_MIB, MOST_LEFT_OUT, TXT_KEY

SMALLEST_SHARD_MIB, LARGEST_SHARD_MIB = 2**-10, 2.0**20
EXAMPLES = """examples:
  cogvx data check ./disney --png disney.png
  cogvx data pack ./disney --out s3://bucket/disney
  cogvx data pack ./disney --out ./shards --shard-mib 64 --json
  cogvx data index s3://bucket/other-shards
  cogvx data quarantine s3://runs/disney
"""


EXAMPLES_OF_INDEX = """examples:
  cogvx data index s3://bucket/shards
  cogvx data index 's3://bucket/shards/x-{000..999}.tar' --json

Reads the headers of each shard once and writes x-000.index.json beside x-000.tar, and
dataset.manifest.json for all. An interrupted call continues where it was. `cogvx data pack` has
done this already.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text, epilog, add_options in (
        (
            "check",
            "decode every sample of a dataset and report every fault",
            data_check.EXAMPLES,
            data_check.configure,
        ),
        (
            "pack",
            "pack a folder of videos/ and labels/ into tar shards with a manifest",
            EXAMPLES,
            _configure_pack,
        ),
        (
            "index",
            "index shards that other programs made, so that a run starts at once",
            EXAMPLES_OF_INDEX,
            _configure_index,
        ),
        (
            "quarantine",
            "list the samples that a run could not use, over all its starts and ranks",
            data_quarantine.EXAMPLES,
            data_quarantine.configure,
        ),
    ):
        action = actions.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_options(action)


def _configure_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder or s3:// prefix with videos/ and labels/")
    parser.add_argument(
        "--out", required=True, metavar="URL", help="folder or s3:// prefix for the shards"
    )
    parser.add_argument(
        "--shard-mib",
        type=number(SMALLEST_SHARD_MIB, LARGEST_SHARD_MIB),
        default=DEFAULT_SHARD_MIB,
        metavar="N",
        help="largest size of a shard in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--name", default="clips", help="prefix of the shard names (default: %(default)s)"
    )
    parser.add_argument(
        "--missing-captions",
        choices=("error", "empty"),
        default="error",
        help="how to treat videos without a caption (default: %(default)s)",
    )
    parser.add_argument(
        "--max-left-out",
        type=number(0.0, 1.0),
        default=MOST_LEFT_OUT,
        metavar="SHARE",
        help="largest share of the folder's videos that may be left out (other kinds, damaged "
        "ones, names that cannot be used); above it nothing is written and the exit code is 65 "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the dataset at URL; it is deleted even if packing fails",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Check, pack or list; return the exit code."""
    actions = {
        "check": data_check.run,
        "pack": _pack,
        "index": _index,
        "quarantine": data_quarantine.run,
    }
    return actions[args.action](args)


def _configure_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="shards by folder, prefix or glob; local or s3://")
    parser.add_argument(
        "--txt-key",
        default=TXT_KEY,
        help="member of the shards with the caption (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _index(args: argparse.Namespace) -> int:
    from app.data.indexing import index_shards
    from app.storage.node_disk import node_folder

    with output.progress("reading headers", total=0) as bar:
        report = index_shards(
            args.source,
            node_folder("shards"),
            args.txt_key,
            lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    if args.json:
        output.as_json(asdict(report))
    else:
        left_out = f", {report.left_out} samples left out" if report.left_out else ""
        output.line(
            f"{report.samples} samples in {report.shards} shards, {report.scanned} of them read "
            f"now{left_out}: {' '.join(report.manifests)}"
        )
    return 0


def _pack(args: argparse.Namespace) -> int:
    from app.data.pack import PackRules, pack

    rules = PackRules(
        name=args.name,
        shard_bytes=int(args.shard_mib * 2**20),
        missing_captions=args.missing_captions,
        max_left_out=args.max_left_out,
        overwrite=args.overwrite,
    )
    with output.progress("packing", total=0) as bar:
        report = pack(
            args.folder,
            args.out,
            rules,
            lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    if report.left_out:
        output.note(f"warning: {report.left_out_why}")
    if args.json:
        output.as_json(asdict(report))
    else:
        output.line(
            f"{report.samples} clips in {report.shards} shards, "
            f"{report.bytes / 2**20:.1f} MiB: {report.manifest}"
        )
    return 0
