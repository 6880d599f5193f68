"""The environment of one process, resolved."""

from __future__ import annotations

import pytest

from app.distributed.rank import RankInfo
from app.errors import ConfigError

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "job",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "master",
    "MASTER_PORT": "29500",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


def test_without_any_variable_it_is_one_process_with_a_free_port() -> None:
    rank = RankInfo.from_environment({})

    assert (rank.rank, rank.world_size, rank.local_rank, rank.node_rank) == (0, 1, 0, 0)
    assert rank.master_addr == "127.0.0.1"
    assert 1024 <= rank.master_port < 65536


def test_torchrun_is_read_as_it_stands() -> None:
    assert RankInfo.from_environment(TORCHRUN) == RankInfo(
        rank=5,
        world_size=8,
        local_rank=1,
        local_world_size=4,
        node_rank=1,
        master_addr="master",
        master_port=29500,
    )


def test_openmpi_on_one_node_needs_no_address() -> None:
    rank = RankInfo.from_environment(OPENMPI)

    assert (rank.rank, rank.world_size, rank.local_rank) == (3, 4, 3)
    assert (rank.master_addr, rank.master_port) == ("127.0.0.1", 29500)


def test_openmpi_beats_plain_variables_as_upstream_copies_them() -> None:
    rank = RankInfo.from_environment({**OPENMPI, "RANK": "0", "WORLD_SIZE": "2"})

    assert (rank.rank, rank.world_size) == (3, 4)


def test_torchrun_started_by_mpirun_beats_openmpi() -> None:
    rank = RankInfo.from_environment({**OPENMPI, **TORCHRUN})

    assert (rank.rank, rank.world_size) == (5, 8)


def test_openmpi_on_two_nodes_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="nothing says where the master is"):
        RankInfo.from_environment({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"} | _local("1"))


def _local(rank: str) -> dict[str, str]:
    return {"OMPI_COMM_WORLD_LOCAL_RANK": rank}


def test_plain_variables_of_one_process_per_node() -> None:
    rank = RankInfo.from_environment(
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "23456"}
    )

    assert (rank.local_rank, rank.local_world_size, rank.node_rank) == (0, 1, 1)
    assert (rank.master_addr, rank.master_port) == ("host", 23456)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK is 2 of WORLD_SIZE 2"),
        ({"RANK": "-1"}, "RANK is '-1', which is not a whole number >= 0"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "nothing says where the master is"),
        ({"RANK": "one"}, "RANK is 'one', which is not a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', which is not a whole number >= 1"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK is 3 of LOCAL_WORLD_SIZE 1"),
        ({"LOCAL_WORLD_SIZE": "4"}, "1 processes cannot be cut into nodes of 4"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "OMPI_COMM_WORLD_RANK is not"),
    ],
)
def test_a_contradiction_is_an_error_before_anything_starts(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RankInfo.from_environment(environment)

    assert caught.value.exit_code == 78
    assert caught.value.where.startswith("environment: ")


def test_the_values_go_back_into_the_same_variables() -> None:
    rank = RankInfo.from_environment(TORCHRUN)

    assert RankInfo.from_environment(rank.variables()) == rank
