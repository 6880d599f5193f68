"""One process of a gang that loads a network's weights together: `weights_peer.py PATH DTYPE`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from app.conversion.shared_weights import open_for_all
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.errors import CogvxError


def main() -> int:
    rank = RankInfo.from_environment(os.environ)
    asked: list[int] = []

    def locate() -> Path:
        asked.append(rank.rank)
        return Path(sys.argv[1])

    try:
        with (
            process_groups(rank, device=torch.device("cpu"), join_s=60),
            open_for_all(locate, getattr(torch, sys.argv[2])) as file,
        ):
            shapes = {name: list(t.shape) for name, t in file.our_outline().items()}
            digests = {
                name: hashlib.sha256(t.contiguous().view(torch.uint8).numpy()).hexdigest()
                for name, t in file.our_tensors()
            }
    except CogvxError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    report = {"asked": asked, "kind": file.kind, "where": file.where, "shapes": shapes}
    print(json.dumps(report | {"names": list(file.names), "digests": digests}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
