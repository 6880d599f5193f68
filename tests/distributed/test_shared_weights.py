"""Weights that rank 0 reads and the others receive."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from app.conversion.export import export_diffusers
from app.models.dit.transformer import DiffusionTransformer
from tests.distributed.gang import outputs, run_gang
from tests.support.networks import tiny

PEER = "tests/distributed/weights_peer.py"


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy()).hexdigest()


def test_every_rank_gets_the_tensors_of_the_file_in_the_dtype_of_the_run(tmp_path: Path) -> None:
    config = tiny("5b")
    network = DiffusionTransformer(config)
    export_diffusers(tmp_path / "model", dict(network.named_parameters()), config)

    ended = run_gang([PEER, str(tmp_path / "model"), "bfloat16"], ranks=[0, 1, 2], world_size=3)

    reports = [json.loads(text) for text in outputs(ended)]
    expected = {name: digest(p.bfloat16()) for name, p in network.named_parameters()}
    assert [report["asked"] for report in reports] == [[0], [], []]
    for report in reports:
        assert report["kind"] == "diffusers"
        assert report["where"] == str(tmp_path / "model")
        assert report["digests"] == expected
        assert report["shapes"] == {n: list(p.shape) for n, p in network.named_parameters()}
        assert report["names"] == reports[0]["names"]


def test_weights_that_are_not_there_are_the_same_error_on_every_rank(tmp_path: Path) -> None:
    ended = run_gang([PEER, str(tmp_path / "nothing"), "float32"], ranks=[0, 1], world_size=2)

    assert [process.code for process in ended] == [66, 66]
    assert all("there are no such weights" in process.err for process in ended)
    assert all(str(tmp_path / "nothing") in process.err for process in ended)
