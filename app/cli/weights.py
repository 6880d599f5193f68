"""`cogvx weights put SRC DST`, `cogvx weights check URL`: the weights of a model in a bucket."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from app.cli import output

EXAMPLES = """examples:
  cogvx weights put CogVideoX-5b-sat s3://weights/5b
  cogvx weights put CogVideoX-5b s3://weights/5b-diffusers         # a pipeline folder
  cogvx weights put transformer.zip s3://weights/2b --vae vae.zip --t5 t5-v1_1-xxl
  cogvx weights check s3://weights/5b
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    put = actions.add_parser("put", help="verify the parts of a model and upload them")
    put.add_argument(
        "source",
        metavar="SRC",
        help="folder, zip or file with transformer, VAE and T5: a diffusers pipeline, SAT "
        "folders or 3d-vae.pt; local or s3://",
    )
    put.add_argument("target", metavar="DST", help="folder or s3:// prefix")
    for name, what in (("transformer", "the network"), ("vae", "the VAE"), ("t5", "T5")):
        put.add_argument(f"--{name}", metavar="URL", help=f"{what}, if it is not in SRC")
    put.add_argument(
        "--base",
        nargs="+",
        default=[],
        metavar="YAML",
        help="configuration of the model; needed for sizes that no released model has",
    )
    put.add_argument(
        "--no-verify", action="store_true", help="do not read the uploaded objects back"
    )
    put.add_argument("--overwrite", action="store_true", help="replace weights that differ")
    check = actions.add_parser("check", help="compare uploaded weights with their manifest")
    check.add_argument("url", help="folder or s3:// prefix that `put` wrote")
    for action in (put, check):
        action.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.epilog = EXAMPLES


def run(args: argparse.Namespace) -> int:
    """Upload and print the YAML lines to use, or verify."""
    return _put(args) if args.action == "put" else _check(args)


def _put(args: argparse.Namespace) -> int:
    from app.run.weights.put import PutRequest, put_weights

    given = {name: getattr(args, name) for name in ("transformer", "vae", "t5")}
    request = PutRequest(
        given={name: url for name, url in given.items() if url is not None},
        base=tuple(args.base),
        verify=not args.no_verify,
        overwrite=args.overwrite,
    )
    with tempfile.TemporaryDirectory(prefix="cogvx-weights-") as scratch:
        report = put_weights(args.source, args.target, request, Path(scratch), output.note)
    if args.json:
        output.as_json(
            {
                "url": report.url,
                "parts": report.parts,
                "uploaded": report.uploaded,
                "skipped": report.skipped,
                "yaml": report.yaml,
            }
        )
        return 0
    rows = [
        (name, part.get("layout", "t5"), len(part["files"]), _bytes(part), part["entry"])
        for name, part in report.parts.items()
    ]
    output.note(f"{len(report.uploaded)} files uploaded, {len(report.skipped)} existed")
    for name, layout, files, size, entry in rows:
        output.note(f"  {name:<12} {layout:<10} {files} files  {size} bytes  {report.url}/{entry}")
    output.note(
        "YAML that uses these weights (save it and give it to --base after the model's file):"
    )
    output.line(report.yaml.rstrip())
    return 0


def _check(args: argparse.Namespace) -> int:
    from app.run.weights.put import check_weights

    report = check_weights(args.url, output.note)
    if args.json:
        output.as_json(report)
    else:
        output.line(f"{report['files']} files match the manifest: {report['url']}")
    return 0


def _bytes(part: dict[str, dict[str, dict[str, int]]]) -> int:
    return sum(record["size_bytes"] for record in part["files"].values())
