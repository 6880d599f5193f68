"""`cogvx storage ls URL`: the objects under a folder or s3:// prefix."""

from __future__ import annotations

import argparse

from app.cli import output

REACH_S = 20.0  # a user is waiting at the terminal
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("action", choices=("ls",), help="ls: list every object")
    parser.add_argument("url", help="folder or s3://bucket/prefix")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.epilog = "examples:\n  cogvx storage ls s3://runs/disney"


def run(args: argparse.Namespace) -> int:
    """List keys and sizes."""
    # Imported here: the S3 client takes a second to import.
    from app.storage.opening import open_storage

    storage = open_storage(args.url)
    storage.check_reachable(REACH_S)
    entries = storage.list()
    if not entries:
        output.note(f"no objects under {args.url}")
    if args.json:
        output.as_json([{"key": entry.key, "size_bytes": entry.size_bytes} for entry in entries])
        return 0
    for entry in entries:
        output.line(f"{size_text(entry.size_bytes):>10}  {entry.key}")
    return 0


def size_text(size_bytes: int) -> str:
    """A size in words, e.g. 1.5 MiB."""
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 else f"{size:.1f} {UNITS[unit]}"
