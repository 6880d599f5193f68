"""Weights that rank 0 reads and the others receive."""

from __future__ import annotations

import json
from pathlib import Path

from app.conversion.export import export_diffusers
from app.distributed.rank_group import RankGroup
from app.models.dit.parallel import own_part
from app.models.dit.transformer import DiffusionTransformer
from tests.distributed.rank_processes import outputs, run_processes
from tests.distributed.weights_peer import digest, shared_config

PEER = "tests/distributed/weights_peer.py"


def test_every_rank_gets_the_tensors_of_the_file_in_the_dtype_of_the_run(tmp_path: Path) -> None:
    config = shared_config()
    network = DiffusionTransformer(config)
    export_diffusers(tmp_path / "model", dict(network.named_parameters()), config)

    ended = run_processes(
        [PEER, str(tmp_path / "model"), "bfloat16"], ranks=[0, 1, 2], world_size=3
    )

    reports = [json.loads(text) for text in outputs(ended)]
    expected = {name: digest(p.bfloat16()) for name, p in network.named_parameters()}
    assert [report["asked"] for report in reports] == [[0, 0, 0], [], []]
    for rank, report in enumerate(reports):
        assert report["own"] == expected
        assert report["part"] == {
            name: digest(own_part(name, p.bfloat16(), RankGroup(rank, 3)))
            for name, p in network.named_parameters()
        }
        assert report["kind"] == "diffusers"
        assert report["where"] == str(tmp_path / "model")
        assert report["digests"] == expected
        assert report["shapes"] == {n: list(p.shape) for n, p in network.named_parameters()}
        assert report["names"] == reports[0]["names"]


def test_weights_that_are_not_there_are_the_same_error_on_every_rank(tmp_path: Path) -> None:
    ended = run_processes([PEER, str(tmp_path / "nothing"), "float32"], ranks=[0, 1], world_size=2)

    assert [process.code for process in ended] == [66, 66]
    assert all("there are no such weights" in process.err for process in ended)
    assert all(str(tmp_path / "nothing") in process.err for process in ended)
