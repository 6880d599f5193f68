"""One process of a gang that loads a network's weights together: `weights_peer.py PATH DTYPE`.

First the tensors of the file as they come, then a network of its own, then one that all share.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from app.config.schema.model import DiTConfig
from app.conversion.loading import load_network_weights
from app.conversion.shared_weights import open_for_all
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import ALONE, RankGroup
from app.distributed.sharing import split_ranks
from app.errors import CogvxError
from app.models.dit.parallel import split_network
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import tiny


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy()).hexdigest()


def loaded(locate: Callable[[], Path], dtype: torch.dtype, group: RankGroup) -> dict[str, str]:
    """Digests of a network's parameters, or of this rank's parts of them."""
    network = DiffusionTransformer(shared_config(), device="meta", dtype=dtype)
    split_network(network, group)
    load_network_weights(network, locate)
    return {name: digest(parameter) for name, parameter in network.named_parameters()}


def shared_config() -> DiTConfig:
    """Six heads: two and three ranks can share them."""
    wide = {"num_attention_heads": 6, "hidden_size": 96, "inner_hidden_size": 384}
    return replace(tiny("5b"), **wide)


def main() -> int:
    rank = RankInfo.from_environment(os.environ)
    asked: list[int] = []

    def locate() -> Path:
        asked.append(rank.rank)
        return Path(sys.argv[1])

    try:
        with process_groups(rank, device=torch.device("cpu"), join_s=60) as groups:
            dtype = getattr(torch, sys.argv[2])
            with open_for_all(locate, dtype) as file:
                shapes = {name: list(t.shape) for name, t in file.our_outline().items()}
                digests = {name: digest(t) for name, t in file.our_tensors()}
            own = loaded(locate, dtype, ALONE)
            part = loaded(locate, dtype, split_ranks(groups, rank.world_size).tensor)
    except CogvxError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    report = {"asked": asked, "kind": file.kind, "where": file.where, "shapes": shapes}
    report |= {"names": list(file.names), "digests": digests, "own": own, "part": part}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
