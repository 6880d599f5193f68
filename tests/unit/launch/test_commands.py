"""What is started in each mode of the table."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from app.distributed.environment import resolve_layout
from app.launch.commands import Start, plan_start

TRAIN = ("train", "--base", "a.yaml")
ALONE = (sys.executable, "-m", "app", *TRAIN)


def start(environ: Mapping[str, str], command: tuple[str, ...] = TRAIN) -> Start:
    return plan_start(resolve_layout(environ, lambda _: 0), command, environ, grace_s=300)


def pod(rank: int, nodes: int, nproc: int) -> dict[str, str]:
    return {
        "MASTER_ADDR": "job-master-0",
        "PET_MASTER_ADDR": "job-master-0",
        "MASTER_PORT": "23456",
        "PET_MASTER_PORT": "23456",
        "RANK": str(rank),
        "PET_NODE_RANK": str(rank),
        "WORLD_SIZE": str(nodes * nproc),
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(nproc),
    }


def test_a_single_process_is_the_trainer_itself_with_its_environment_unchanged() -> None:
    plan = start({"HOME": "/scratch"})

    assert plan.argv == ALONE
    assert plan.environ == {"HOME": "/scratch"}
    assert plan.wait_for is None


def test_inside_torchrun_nothing_is_added() -> None:
    environ = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}

    assert start(environ).argv == ALONE
    assert start(environ).environ == environ


def test_one_process_per_pod_starts_no_torchrun_and_keeps_rank_and_world() -> None:
    plan = start(pod(rank=1, nodes=2, nproc=1))

    assert plan.argv == ALONE
    assert {key: plan.environ[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
    }
    assert plan.environ["MASTER_ADDR"] == "job-master-0"
    assert (plan.wait_for, plan.wait_for_port) == (("job-master-0", 23456), False)


def test_several_processes_per_pod_start_torchrun_with_explicit_flags() -> None:
    plan = start(pod(rank=3, nodes=4, nproc=8))

    assert plan.argv == (
        *(sys.executable, "-m", "app.distributed.torchrun"),
        *("--nnodes=4", "--node-rank=3", "--master-addr=job-master-0", "--master-port=23456"),
        *("--max-restarts=0", "--nproc-per-node=8", "-m", "app", *TRAIN),
    )
    assert (plan.wait_for, plan.wait_for_port) == (("job-master-0", 23456), True)
    assert plan.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "270"


def test_only_node_ranks_above_zero_wait() -> None:
    assert start(pod(rank=0, nodes=4, nproc=8)).wait_for is None
    assert start(pod(rank=0, nodes=2, nproc=1)).wait_for is None


def test_a_lone_pod_needs_no_dns_of_its_own_name() -> None:
    assert "--master-addr=127.0.0.1" in start(pod(rank=0, nodes=1, nproc=8)).argv
    assert start(pod(rank=0, nodes=1, nproc=1)).environ["MASTER_ADDR"] == "127.0.0.1"


def test_elastic_leaves_the_rendezvous_to_the_operators_variables() -> None:
    environ = {"PET_RDZV_ENDPOINT": "w-0:23456", "PET_NNODES": "2:4", "PET_NPROC_PER_NODE": "8"}

    plan = start(environ)

    assert plan.argv[3:] == ("--nproc-per-node=8", "-m", "app", *TRAIN)
    assert plan.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert plan.wait_for is None


def test_the_empty_standalone_variable_becomes_the_flag() -> None:
    plan = start({"PET_STANDALONE": "", "PET_NNODES": "1:1", "PET_NPROC_PER_NODE": "2"})

    assert plan.argv[3:5] == ("--standalone", "--nnodes=1")
    assert "PET_STANDALONE" not in plan.environ


def test_this_machine_needs_no_fixed_port() -> None:
    plan = start({"PET_NPROC_PER_NODE": "2"})

    assert plan.argv[3:6] == ("--standalone", "--nnodes=1", "--nproc-per-node=2")


def test_a_command_that_trains_nothing_is_one_process_anywhere() -> None:
    plan = start(pod(rank=3, nodes=4, nproc=8), ("doctor", "--json"))

    assert plan.argv == (sys.executable, "-m", "app", "doctor", "--json")
    assert plan.wait_for is None


def test_a_guessed_number_of_processes_does_not_move_a_named_master() -> None:
    """Two nodes with one process each, by a spawner that does not set LOCAL_WORLD_SIZE."""
    environ = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "node0"}

    assert start(environ).environ["MASTER_ADDR"] == "node0"


def test_a_known_number_of_processes_on_one_node_meets_at_the_loopback() -> None:
    environ = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node0"}

    plan = start({**environ, "LOCAL_WORLD_SIZE": "2"})

    assert plan.environ["MASTER_ADDR"] == "127.0.0.1"
