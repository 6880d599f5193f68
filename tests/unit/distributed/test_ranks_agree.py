"""One environment, one answer: `cogvx doctor`, the launcher and the trainer agree about ranks."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli.main import main
from app.distributed.environment import resolve_layout
from app.distributed.rank import RankInfo
from app.errors import ConfigError
from app.launch.commands import Start, plan_start

MASTER = (
    "MASTER_ADDR=cogvx-master-0 MASTER_PORT=23456 "
    "PET_MASTER_ADDR=cogvx-master-0 PET_MASTER_PORT=23456 "
)
OPERATOR = MASTER + "PET_NNODES=4 PET_NPROC_PER_NODE="
# One environment for each row of the table of docs/kubernetes.md.
TEXTS = {
    "single": "",
    "plain": "RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1",
    "plain, several per node": "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 "
    "MASTER_ADDR=node0 MASTER_PORT=6000",
    "spawner in a pod of the operator": OPERATOR + "8 WORLD_SIZE=32 RANK=13 LOCAL_RANK=5 "
    "PET_NODE_RANK=1",
    "spawner in a pod of an elastic job": "RANK=9 WORLD_SIZE=16 LOCAL_RANK=1 MASTER_ADDR=node0 "
    "PET_NPROC_PER_NODE=8 PET_RDZV_ENDPOINT=cogvx-worker-0:23456 PET_NNODES=2:4",
    "spawner in a standalone pod": "RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 PET_STANDALONE= "
    "PET_NPROC_PER_NODE=4",
    "upstream's script for one GPU": "WORLD_SIZE=1 RANK=0 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1",
    "torchrun": "TORCHELASTIC_RUN_ID=none RANK=11 WORLD_SIZE=16 LOCAL_RANK=3 LOCAL_WORLD_SIZE=8 "
    "GROUP_RANK=1 GROUP_WORLD_SIZE=2 MASTER_ADDR=10.0.0.7 MASTER_PORT=23456",
    "OpenMPI": "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 "
    "OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=4",
    "operator, 1 per pod": OPERATOR + "1 WORLD_SIZE=4 RANK=3 PET_NODE_RANK=3",
    "operator, 8 per pod": OPERATOR + "8 WORLD_SIZE=32 RANK=3 PET_NODE_RANK=3",
    "operator, auto": OPERATOR + "auto WORLD_SIZE=4 RANK=1 PET_NODE_RANK=1",
    "operator, elastic": "PET_NPROC_PER_NODE=8 PET_RDZV_ENDPOINT=cogvx-worker-0:23456 "
    "PET_RDZV_BACKEND=c10d PET_NNODES=2:4",
    "operator, standalone": "PET_STANDALONE= PET_NPROC_PER_NODE=2",
    "Trainer v2": "PET_NNODES=2 PET_NPROC_PER_NODE=4 PET_NODE_RANK=1 PET_MASTER_ADDR=run-node-0",
    "several processes of one node": "PET_NPROC_PER_NODE=2",
}
ROWS: dict[str, dict[str, str]] = {
    name: dict(word.split("=") for word in text.split()) for name, text in TEXTS.items()
}
NAMES = sorted({name for row in ROWS.values() for name in row} | {"GROUP_RANK"})
WORDS = ("", " 2 ", "0", "1", "2", "3", "4", "8", "9", "-1", "many", "2:4", "70000", "host:1")


def changed() -> st.SearchStrategy[dict[str, str]]:
    """A row of the table with up to three variables missing, added or odd."""
    change = st.tuples(st.sampled_from(NAMES), st.sampled_from((None, *WORDS)))
    return st.builds(
        _with_changes, st.sampled_from(sorted(ROWS)), st.lists(change, min_size=1, max_size=3)
    )


def _with_changes(row: str, changes: list[tuple[str, str | None]]) -> dict[str, str]:
    environ = {**ROWS[row], **{name: word for name, word in changes if word is not None}}
    missing = {name for name, word in changes if word is None}
    return {name: word for name, word in environ.items() if name not in missing}


def doctor(environ: Mapping[str, str]) -> tuple[int, dict[str, object] | None]:
    """Exit code and `rank` of `cogvx doctor --json`."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict("os.environ", environ, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        code = main(["doctor", "--json"])
    return code, json.loads(out.getvalue())["rank"]


def trainers(start: Start, table: Mapping[str, object]) -> Iterator[dict[str, str]]:
    """The environments of the first and last trainer that PID 1 starts, by way of torchrun."""
    if "app.distributed.torchrun" not in start.argv:
        yield dict(start.environ)
        return
    flags = dict(
        word[2:].split("=") for word in start.argv if word.startswith("--") and "=" in word
    )
    nproc = int(flags["nproc-per-node"])
    nodes = int(flags.get("nnodes", str(table["nodes"])))
    node = int(flags.get("node-rank", "0"))
    # Without an address torchrun agrees on one by itself: a local one, or the rendezvous.
    free = str(table["master_port"] or 40000)
    for local in {0, nproc - 1}:
        yield {
            **start.environ,
            "TORCHELASTIC_RUN_ID": "none",
            "RANK": str(node * nproc + local),
            "WORLD_SIZE": str(nodes * nproc),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(nproc),
            "GROUP_RANK": str(node),
            "GROUP_WORLD_SIZE": str(nodes),
            "MASTER_ADDR": flags.get("master-addr", str(table["master_addr"])),
            "MASTER_PORT": flags.get("master-port", free),
        }


def check(environ: Mapping[str, str]) -> None:
    code, table = doctor(environ)
    if table is None:
        assert code == 78
        with pytest.raises(ConfigError):
            RankInfo.from_environment(environ)
        return
    layout = resolve_layout(environ)
    start = plan_start(layout, ("train",), environ, grace_s=300)
    assert start.wait_for in (None, (table["master_addr"], table["master_port"]))
    ranks = [RankInfo.from_environment(environ)]
    if table["mode"] == "elastic":
        assert ranks.pop().world_size == 1  # nothing but the rendezvous gives it a rank
    ranks += [RankInfo.from_environment(found) for found in trainers(start, table)]
    own = [environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if all(own) and table["mode"] != "inside":  # torchrun and OpenMPI have variables of their own
        assert all(
            [rank.rank, rank.world_size, rank.local_rank] == [int(word) for word in own]
            for rank in ranks
        )
    for rank in ranks:
        assert rank.world_size == table["world_size"]
        assert rank.local_world_size == table["nproc_per_node"]
        assert table["node_rank"] in (rank.node_rank, None)
        assert table["master_port"] in (rank.master_port, 0)  # 0: any free one
        # One node is reached by its loopback as well as by its name.
        assert rank.master_addr == table["master_addr"] or table["nodes"] == 1


@pytest.mark.parametrize("row", ROWS)
def test_doctor_launcher_and_trainer_agree_on_every_row(row: str) -> None:
    check(ROWS[row])

    assert doctor(ROWS[row])[1] is not None


@pytest.mark.parametrize("row", [row for row in ROWS if "spawner" in row])
def test_a_spawned_process_has_the_place_that_its_spawner_gave_it(row: str) -> None:
    given = {name: int(ROWS[row][name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    start = plan_start(resolve_layout(ROWS[row]), ("train",), ROWS[row], grace_s=300)

    places = [RankInfo.from_environment(environ) for environ in (ROWS[row], start.environ)]

    assert "app.distributed.torchrun" not in start.argv
    for place in places:
        found = {"RANK": place.rank, "WORLD_SIZE": place.world_size, "LOCAL_RANK": place.local_rank}
        assert found == given


@settings(deadline=None, max_examples=150)
@given(environ=changed())
def test_they_agree_on_missing_and_odd_values(environ: dict[str, str]) -> None:
    check(environ)


@pytest.mark.parametrize("row", ["plain", "OpenMPI", "Trainer v2"])
def test_several_processes_without_a_port_meet_where_torchrun_does(row: str) -> None:
    assert resolve_layout(ROWS[row]).master_port == 29500
    assert RankInfo.from_environment(ROWS[row]).master_port == 29500
