"""`cogvx data quarantine RUN_URL`: the samples that a run could not use."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from app.cli import output

if TYPE_CHECKING:
    from app.run.dataset.bad_samples import Listed

EXAMPLES = """examples:
  cogvx data quarantine s3://runs/disney
  cogvx data quarantine runs/disney --json > bad.json

The exit code is 0 whether there are bad samples or not, and 66 if there is no run.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", help="folder of the run: <save>/<run id>, local or s3://")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list and its counts by reason and source."""
    from app.run.dataset.bad_samples import list_quarantine

    listed = list_quarantine(args.run)
    reasons = Counter(one.reason for one in listed)
    sources = Counter((one.source, one.reason) for one in listed)
    if args.json:
        output.as_json(
            {
                "run": args.run,
                "samples": len(listed),
                "reasons": dict(sorted(reasons.items())),
                "sources": [
                    {"source": source, "reason": reason, "samples": count}
                    for (source, reason), count in sorted(sources.items())
                ],
                "quarantined": [asdict(one) for one in listed],
            }
        )
        return 0
    if not listed:
        output.line("no sample is in quarantine")
        return 0
    _tables(listed, sources)
    return 0


def _tables(listed: Sequence[Listed], sources: Counter[tuple[str, str]]) -> None:
    output.table(
        "samples in quarantine",
        ("sample", "reason", "detail", "step", "starts"),
        [
            (
                ":".join(part for part in (one.shard, one.key) if part),
                one.reason,
                one.detail,
                one.step,
                ", ".join(map(str, one.attempts)),
            )
            for one in listed
        ],
    )
    output.table(
        f"{len(listed)} samples by source and reason",
        ("source", "reason", "samples"),
        [(source, reason, count) for (source, reason), count in sorted(sources.items())],
    )
