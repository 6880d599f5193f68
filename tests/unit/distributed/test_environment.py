"""The table of the resolver, row by row, and the contradictions it refuses.

The operator's variables are typed here from kubeflow/training-operator v1.9 (examples A to J of
docs/kubernetes.md), not produced by our own rehearsal of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from app.distributed.environment import resolve_layout
from app.distributed.layout import RankLayout
from app.errors import ConfigError


def resolve(gpus: int = 0, **environ: str) -> RankLayout:
    return resolve_layout(environ, lambda _: gpus)


def operator(rank: int, world: str, nproc: str) -> dict[str, str]:
    """One Master and three Workers of the job `cogvx`."""
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_PORT": "23456",
        "PET_MASTER_PORT": "23456",
        "MASTER_ADDR": "cogvx-master-0",
        "PET_MASTER_ADDR": "cogvx-master-0",
        "WORLD_SIZE": world,
        "RANK": str(rank),
        "PET_NODE_RANK": str(rank),
        "PET_NPROC_PER_NODE": nproc,
        "PET_NNODES": "4",
    }


ELASTIC = {
    "PYTHONUNBUFFERED": "1",
    "PET_NPROC_PER_NODE": "8",
    "PET_RDZV_ENDPOINT": "cogvx-worker-0:23456",
    "PET_RDZV_BACKEND": "c10d",
    "PET_NNODES": "2:4",
}


def facts(layout: RankLayout) -> tuple[object, ...]:
    return (
        layout.mode,
        layout.node_rank,
        layout.nodes,
        layout.nproc_per_node,
        layout.world_size,
        layout.master_addr,
        layout.master_port,
    )


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_master_with_workers_is_static_and_rank_is_a_node_rank(rank: int) -> None:
    layout = resolve(**operator(rank, "32", "8"))

    assert facts(layout) == ("static", rank, 4, 8, 32, "cogvx-master-0", 23456)
    assert layout.sources == {
        "node_rank": "PET_NODE_RANK",
        "nodes": "PET_NNODES",
        "nproc_per_node": "PET_NPROC_PER_NODE",
        "world_size": "WORLD_SIZE",
        "master_addr": "PET_MASTER_ADDR",
        "master_port": "PET_MASTER_PORT",
    }


@pytest.mark.parametrize("word", ["auto", "gpu"])
def test_b_and_c_a_word_for_processes_means_the_gpus_of_the_container(word: str) -> None:
    layout = resolve(gpus=8, **operator(2, "4", word))

    assert facts(layout) == ("static", 2, 4, 8, 32, "cogvx-master-0", 23456)
    assert layout.sources["world_size"] == "PET_NNODES * PET_NPROC_PER_NODE"


def test_b_auto_without_a_gpu_is_one_process_and_not_the_cpus_of_the_host() -> None:
    layout = resolve(gpus=0, **operator(0, "4", "auto"))

    assert facts(layout) == ("static", 0, 4, 1, 4, "cogvx-master-0", 23456)


def test_c_gpu_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="no GPU"):
        resolve(gpus=0, **operator(0, "4", "gpu"))


def test_d_cpu_is_one_process() -> None:
    assert facts(resolve(gpus=8, **operator(3, "4", "cpu"))) == (
        ("static", 3, 4, 1, 4, "cogvx-master-0", 23456)
    )


def test_e_one_process_per_pod_is_plain() -> None:
    layout = resolve(**operator(3, "4", "1"))

    assert facts(layout) == ("plain", 3, 4, 1, 4, "cogvx-master-0", 23456)
    assert layout.sources["node_rank"] == "RANK"
    assert layout.sources["world_size"] == "WORLD_SIZE"


def test_f_an_endpoint_is_elastic_and_the_rendezvous_gives_the_rank() -> None:
    layout = resolve(**ELASTIC)

    assert facts(layout) == ("elastic", None, 4, 8, 32, "cogvx-worker-0", 23456)
    assert layout.sources["node_rank"] == "rendezvous"


def test_g_elastic_with_a_master_is_refused() -> None:
    with pytest.raises(ConfigError, match="counts one node too few"):
        resolve(**(operator(0, "32", "8") | ELASTIC | {"PET_NNODES": "3:3"}))


def test_h_the_deprecated_field_is_elastic_too() -> None:
    layout = resolve(**(ELASTIC | {"PET_NNODES": "4:4"}))

    assert facts(layout)[:5] == ("elastic", None, 4, 8, 32)


def test_i_workers_without_master_or_elastic_policy_are_refused() -> None:
    with pytest.raises(ConfigError, match="worker-only job without elasticPolicy") as caught:
        resolve(PYTHONUNBUFFERED="1", PET_NPROC_PER_NODE="8", PET_NNODES="4")

    assert caught.value.exit_code == 78


def test_i_holds_for_one_process_per_pod_as_well() -> None:
    with pytest.raises(ConfigError, match="worker-only job without elasticPolicy"):
        resolve(PYTHONUNBUFFERED="1", PET_NPROC_PER_NODE="1", PET_NNODES="4")


def test_j_an_empty_standalone_is_one_node() -> None:
    layout = resolve(**(ELASTIC | {"PET_STANDALONE": "", "PET_NNODES": "1:1"}))

    assert facts(layout) == ("elastic", 0, 1, 8, 8, "127.0.0.1", 0)
    assert layout.standalone is True


@pytest.mark.parametrize("nproc", ["1", "8"])
def test_trainer_v2_gives_only_pet_variables_and_is_static(nproc: str) -> None:
    layout = resolve(
        PET_NNODES="2",
        PET_NPROC_PER_NODE=nproc,
        PET_NODE_RANK="1",
        PET_MASTER_ADDR="run-node-0-0.run",
        PET_MASTER_PORT="29500",
    )

    assert facts(layout) == (
        *("static", 1, 2, int(nproc), 2 * int(nproc)),
        *("run-node-0-0.run", 29500),
    )


def test_inside_torchrun_its_variables_are_trusted() -> None:
    layout = resolve(
        **(operator(1, "99", "8") | TORCHRUN_CHILD),
    )

    assert facts(layout) == ("inside", 1, 2, 8, 16, "10.0.0.7", 23456)
    assert layout.sources["nodes"] == "GROUP_WORLD_SIZE"


TORCHRUN_CHILD = {
    "TORCHELASTIC_RUN_ID": "none",
    "LOCAL_RANK": "3",
    "RANK": "11",
    "WORLD_SIZE": "16",
    "LOCAL_WORLD_SIZE": "8",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "23456",
}


def test_openmpi_on_one_node_without_an_address_gets_the_loopback() -> None:
    layout = resolve(
        OMPI_COMM_WORLD_LOCAL_RANK="1",
        OMPI_COMM_WORLD_RANK="1",
        OMPI_COMM_WORLD_SIZE="2",
        OMPI_COMM_WORLD_LOCAL_SIZE="2",
    )

    assert facts(layout) == ("inside", 0, 1, 2, 2, "127.0.0.1", 29500)


def test_openmpi_on_several_nodes_without_an_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing says where the master is"):
        resolve(
            OMPI_COMM_WORLD_LOCAL_RANK="1",
            OMPI_COMM_WORLD_RANK="3",
            OMPI_COMM_WORLD_SIZE="4",
            OMPI_COMM_WORLD_LOCAL_SIZE="2",
        )


def test_nothing_at_all_is_one_process() -> None:
    layout = resolve()

    assert facts(layout) == ("single", 0, 1, 1, 1, "127.0.0.1", 0)
    assert set(layout.sources.values()) == {"default"}


def test_the_variables_of_upstreams_one_gpu_script_are_one_process() -> None:
    layout = resolve(WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")

    assert facts(layout)[:5] == ("single", 0, 1, 1, 1)


def test_a_launcher_that_sets_ranks_of_processes_is_plain() -> None:
    layout = resolve(
        RANK="5",
        WORLD_SIZE="8",
        LOCAL_RANK="1",
        LOCAL_WORLD_SIZE="4",
        MASTER_ADDR="node0",
        MASTER_PORT="6000",
    )

    assert facts(layout) == ("plain", 1, 2, 4, 8, "node0", 6000)


SPAWNED = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0"}


@pytest.mark.parametrize(
    ("pod", "nodes", "nproc"),
    [
        ({"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4"}, 2, 4),
        ({"PET_NNODES": "2", "PET_NPROC_PER_NODE": "auto"}, 2, 4),
        ({"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1"}, 2, 4),  # one spawner per pod
        ({"PET_NNODES": "1:2", "PET_NPROC_PER_NODE": "4"}, 2, 4),
        ({"PET_NPROC_PER_NODE": "4"}, 2, 4),
        ({"PET_NPROC_PER_NODE": "16"}, 1, 8),  # half of the pod's GPUs
        ({"PET_NNODES": "3", "PET_NPROC_PER_NODE": "4", "LOCAL_WORLD_SIZE": "2"}, 4, 2),
    ],
)
def test_the_processes_of_a_spawner_in_a_pod_are_counted_by_what_all_pods_share(
    pod: dict[str, str], nodes: int, nproc: int
) -> None:
    layout = resolve(**SPAWNED, **pod)

    assert facts(layout)[2:6] == (nodes, nproc, 8, "node0")
    assert (layout.mode, layout.rank, layout.local_rank) == ("plain", 5, 1)


def test_several_processes_on_one_node_need_no_address() -> None:
    assert facts(resolve(PET_NPROC_PER_NODE="8"))[:6] == ("static", 0, 1, 8, 8, "127.0.0.1")


CONTRADICTIONS: dict[str, tuple[Mapping[str, str], str]] = {
    "rank beyond world": (operator(4, "4", "1"), "RANK is 4 of WORLD_SIZE 4"),
    "node rank beyond nodes": (operator(7, "32", "8"), "node rank 7 of 4 nodes"),
    "world is not nodes times processes": (operator(1, "16", "8"), "WORLD_SIZE is 16"),
    "two node ranks": (operator(1, "16", "8") | {"PET_NODE_RANK": "0"}, "this node is 0 and 1"),
    "rank of nothing": ({"RANK": "1"}, "WORLD_SIZE is not set"),
    "world without rank": (
        {"WORLD_SIZE": "2", "MASTER_ADDR": "a"},
        "nothing says which one this is",
    ),
    "two nodes without address": (
        {"WORLD_SIZE": "2", "RANK": "0"},
        "nothing says where the master is",
    ),
    "not a number": (operator(0, "many", "1"), "not a whole number"),
    "negative": (operator(0, "-4", "1"), "not a whole number"),
    "processes not a number": (operator(0, "4", "eight"), "PET_NPROC_PER_NODE is 'eight'"),
    "a range without rendezvous": (operator(0, "32", "8") | {"PET_NNODES": "2:4"}, "is the range"),
    "local rank beyond local world": (TORCHRUN_CHILD | {"LOCAL_RANK": "8"}, "LOCAL_RANK is 8"),
    "world not cut by nodes": (
        {"WORLD_SIZE": "5", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a"},
        "cannot be cut",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_a_configuration_error_before_anything_starts(case: str) -> None:
    environ, message = CONTRADICTIONS[case]

    with pytest.raises(ConfigError) as caught:
        resolve_layout(environ, lambda _: 0)

    assert message in caught.value.what
    assert caught.value.exit_code == 78
    assert caught.value.fix
