"""Resolve the environment that a pod, torchrun, OpenMPI or nobody gave this process.

The PyTorchJob operator puts a *node* rank into RANK and counts *processes* in WORLD_SIZE, torchrun
and OpenMPI mean processes in both, and Kubeflow Trainer v2 gives neither. The first row of
`resolve_layout` that fits decides; docs/kubernetes.md prints the same table. The only reader of
these variables: the launcher, `cogvx doctor` and the trainer all use it. No torch here, since PID 1
has none.

Source: kubeflow/training-operator v1.9 (pkg/controller.v1/pytorch/envvar.go, elastic.go),
kubeflow/trainer (torch plugin), torch/distributed/run.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.distributed.devices import count_gpus
from app.distributed.layout import ANY_PORT, LOOPBACK, Mode, RankLayout, Reading, layout_of
from app.distributed.variables import Sourced, Variables, default, derived
from app.errors import ConfigError

DEFAULT_PORT = 29500  # torchrun's own default, and the port of Trainer v2
C10D_PORT = 29400  # torchrun's default for an elastic endpoint without a port
MOST_GUESSED = 8  # upstream's guess of LOCAL_WORLD_SIZE: at most eight processes on a node

CountGpus = Callable[[Mapping[str, str]], int]


def resolve_layout(environ: Mapping[str, str], gpus: CountGpus = count_gpus) -> RankLayout:
    """Read the environment, by the first row that fits.

    Raises:
        ConfigError: the variables contradict each other, or name no master for several nodes.
    """
    env = Variables(environ)
    _refuse_rank_beyond_world(env)
    if env.has("LOCAL_RANK") and env.has("TORCHELASTIC_RUN_ID"):
        reading = _process(env, "inside", TORCHRUN)
    elif env.has(OPENMPI.local_rank):
        reading = _inside_openmpi(env)
    elif all(env.has(name) for name in (SPAWNED.rank, SPAWNED.world, SPAWNED.local_rank)):
        # Only what starts the processes themselves knows all three: the pod's PET_* variables,
        # which say what to start, have been followed already.
        reading = _process(env, "plain", SPAWNED)
    elif "PET_STANDALONE" in environ:
        reading = _standalone(env, gpus)
    elif env.has("PET_RDZV_ENDPOINT"):
        reading = _elastic(env, gpus)
    elif _is_static(env):
        reading = _static(env, gpus)
    else:
        reading = _process(env, "plain", PLAIN)
    layout = layout_of(reading)
    _refuse_contradictions(env, layout)
    return layout


def contradiction(what: str, where: str, fix: str = "") -> ConfigError:
    """Two variables that cannot both be true; refused here, since it would hang later."""
    return ConfigError(
        what,
        where=f"environment: {where}",
        fix=fix or "correct the one that is wrong, or unset both to run as one process",
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """The variables in which a launcher gives each process its own place; "" is not given."""

    rank: str
    world: str
    local_rank: str
    local_world: str
    node_rank: str = ""
    nodes: str = ""


PLAIN = _Names("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "", "PET_NNODES")
SPAWNED = _Names("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
TORCHRUN = _Names(
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"
)
OPENMPI = _Names(
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
)


def _inside_openmpi(env: Variables) -> Reading:
    for name in (OPENMPI.rank, OPENMPI.world):
        if not env.has(name):
            raise contradiction(
                f"{OPENMPI.local_rank} is set but {name} is not",
                f"{OPENMPI.local_rank} without {name}",
                f"start every process with mpirun, or unset {OPENMPI.local_rank}",
            )
    return _process(env, "inside", OPENMPI)


def _process(env: Variables, mode: Mode, names: _Names) -> Reading:
    """A process that has a rank of its own, or that is alone."""
    world = env.count(names.world) or default(1)
    rank = env.integer(names.rank)
    if rank is None and world.value > 1:
        raise contradiction(
            f"{world.value} processes, and nothing says which one this is",
            f"{names.world} is set, {names.rank} is not",
            f"set {names.rank} to 0 ... {world.value - 1}, one value for each process",
        )
    if mode == "plain" and rank is None:
        rank = env.integer("PET_NODE_RANK")
    rank = rank or default(0)
    if rank.value >= world.value:
        raise contradiction(
            f"{rank.source} is {rank.value} of {names.world} {world.value}: ranks are "
            f"0 ... {world.value - 1}",
            f"{rank.source}={rank.value} {names.world}={world.value}",
        )
    local = _processes_per_node(env, mode, names, world)
    local_rank = env.integer(names.local_rank) or default(rank.value % local.value)
    if local_rank.value >= local.value:
        raise contradiction(
            f"{names.local_rank} is {local_rank.value} of {names.local_world} {local.value}: "
            f"local ranks are 0 ... {local.value - 1}",
            f"{names.local_rank}={local_rank.value}",
            f"set {names.local_world} to the number of processes on this node",
        )
    host, port = _address(env, default(ANY_PORT if world.value == 1 else DEFAULT_PORT))
    given = env.has(names.rank) or env.has(names.world)
    if mode == "plain" and (not given or (world.value == 1 and not host.value)):
        mode = "single"
    node_rank = rank if local.value == 1 else derived(rank.value // local.value, rank, local)
    nodes = derived(-(-world.value // local.value), world, local)
    return Reading(
        mode=mode,
        node_rank=env.integer(names.node_rank) or node_rank,
        nodes=env.fixed_nodes(names.nodes) if env.has(names.nodes) else nodes,
        nproc=local,
        host=host,
        port=port,
        world=world,
        rank=rank.value,
        local_rank=local_rank.value,
    )


def _processes_per_node(
    env: Variables, mode: Mode, names: _Names, world: Sourced[int]
) -> Sourced[int]:
    local = env.count(names.local_world)
    if local is None and names is PLAIN:
        local = env.count("PET_NPROC_PER_NODE")
    elif local is None and names is SPAWNED:
        local = _share_of_pod(env, world)
    if local is None:
        return default(min(world.value, MOST_GUESSED) if env.has(names.local_rank) else 1)
    # mpirun and an elastic torchrun may place unlike numbers on unlike nodes.
    if local.value > world.value or (mode == "plain" and world.value % local.value):
        raise contradiction(
            f"{world.value} processes cannot be cut into nodes of {local.value}",
            f"{world.source} and {local.source}",
        )
    return local


def _share_of_pod(env: Variables, world: Sourced[int]) -> Sourced[int] | None:
    """Processes of one pod, where a spawner does not say it; only from what all pods share."""
    least, most = env.node_range("PET_NNODES")
    is_given = env.has("PET_NNODES") and least.value == most.value
    if is_given and world.value % most.value == 0:
        return derived(world.value // most.value, world, most)
    word = env.environ.get("PET_NPROC_PER_NODE", "").strip()
    if word.isdecimal() and int(word) > 0 and world.value % int(word) == 0:
        return Sourced(int(word), "PET_NPROC_PER_NODE")
    return None


def _standalone(env: Variables, gpus: CountGpus) -> Reading:
    # The operator writes the empty string for elasticPolicy.standalone, and torchrun dies of
    # int(''). The launcher unsets the variable and passes the flag, which means one node.
    source = "PET_STANDALONE"
    return Reading(
        mode="elastic",
        node_rank=Sourced(0, source),
        nodes=Sourced(1, source),
        nproc=_nproc(env, gpus),
        host=Sourced(LOOPBACK, source),
        port=Sourced(ANY_PORT, source),
        standalone=True,
    )


def _elastic(env: Variables, gpus: CountGpus) -> Reading:
    if env.has("PET_MASTER_ADDR"):
        raise contradiction(
            "an elastic job with a Master counts one node too few, and one pod waits forever",
            "both PET_RDZV_ENDPOINT and PET_MASTER_ADDR are set",
            "remove the Master from pytorchReplicaSpecs, or remove elasticPolicy",
        )
    host, port = _endpoint(env.text("PET_RDZV_ENDPOINT"))
    return Reading(
        mode="elastic",
        node_rank=None,
        nodes=env.node_range("PET_NNODES")[1],
        nproc=_nproc(env, gpus),
        host=host,
        port=port,
    )


def _is_static(env: Variables) -> bool:
    if env.has("PET_NPROC_PER_NODE") and env.text("PET_NPROC_PER_NODE").value != "1":
        return True
    if not env.has("PET_NNODES"):
        return False
    if env.has("PET_MASTER_ADDR") or env.has("MASTER_ADDR"):
        return not env.has("RANK")  # Trainer v2 gives PET_* only
    return env.node_range("PET_NNODES")[1].value > 1


def _static(env: Variables, gpus: CountGpus) -> Reading:
    nproc = _nproc(env, gpus)
    nodes = _static_nodes(env, nproc)
    host, port = _address(env, default(DEFAULT_PORT), pet_first=True)
    if not host.value and nodes.value > 1:
        raise ConfigError(
            f"{nodes.value} nodes and no rendezvous information: a worker-only job without "
            "elasticPolicy",
            where="environment: PET_NNODES without PET_MASTER_ADDR, MASTER_ADDR or "
            "PET_RDZV_ENDPOINT",
            fix="give the PyTorchJob a Master with replicas: 1, or an elasticPolicy",
        )
    if not host.value:
        port = default(ANY_PORT)  # one node, nobody else needs to know
    node_rank, rank = env.integer("PET_NODE_RANK"), env.integer("RANK")
    if node_rank and rank and node_rank.value != rank.value:
        raise contradiction(
            f"this node is {node_rank.value} and {rank.value}",
            f"PET_NODE_RANK={node_rank.value} RANK={rank.value}",
            "unset RANK: processes are started here, and get their own",
        )
    node_rank = node_rank or rank
    if node_rank is None and nodes.value > 1:
        raise contradiction(
            f"{nodes.value} nodes, and nothing says which one this is",
            "neither PET_NODE_RANK nor RANK is set",
            f"set PET_NODE_RANK to 0 ... {nodes.value - 1}, one value for each node",
        )
    world = env.integer("WORLD_SIZE")
    agrees = world is not None and world.value == nodes.value * nproc.value
    return Reading(
        mode="static",
        node_rank=node_rank or default(0),
        nodes=nodes,
        nproc=nproc,
        host=host,
        port=port,
        world=world if agrees else None,
    )


def _static_nodes(env: Variables, nproc: Sourced[int]) -> Sourced[int]:
    if env.has("PET_NNODES"):
        return env.fixed_nodes("PET_NNODES")
    world = env.count("WORLD_SIZE")
    if world is None or not env.has("MASTER_ADDR"):
        return default(1)
    return derived(max(1, world.value // nproc.value), world, nproc)


def _nproc(env: Variables, gpus: CountGpus) -> Sourced[int]:
    name = "PET_NPROC_PER_NODE"
    word = env.text(name).value if env.has(name) else ""
    if word == "cpu":
        # torchrun would start one process per CPU of the *host*: 96 of them on a large node.
        return Sourced(1, name)
    if word not in ("auto", "gpu"):
        return env.count(name) or default(1)
    found = gpus(env.environ)
    if word == "gpu" and found == 0:
        raise contradiction(
            "nprocPerNode is 'gpu', and this container has no GPU",
            f"{name}=gpu, and no device file /dev/nvidia*",
            "request GPUs in the pod's resources, or write nprocPerNode as a number in quotes",
        )
    return Sourced(max(1, found), name)


def _endpoint(endpoint: Sourced[str]) -> tuple[Sourced[str], Sourced[int]]:
    host, colon, port = endpoint.value.rpartition(":")
    if not colon:
        return endpoint, default(C10D_PORT)
    if not port.isdigit():
        raise contradiction(
            f"the port in '{endpoint.value}' is not a number",
            endpoint.source,
            "write it as host:port",
        )
    return Sourced(host.strip("[]"), endpoint.source), Sourced(int(port), endpoint.source)


def _address(
    env: Variables, default_port: Sourced[int], *, pet_first: bool = False
) -> tuple[Sourced[str], Sourced[int]]:
    hosts, ports = ["MASTER_ADDR", "PET_MASTER_ADDR"], ["MASTER_PORT", "PET_MASTER_PORT"]
    if pet_first:
        hosts.reverse()
        ports.reverse()
    host = next((env.text(name) for name in hosts if env.has(name)), default(""))
    port = next((found for name in ports if (found := env.port(name))), default_port)
    return host, port


def _refuse_rank_beyond_world(env: Variables) -> None:
    rank, world = env.integer("RANK"), env.count("WORLD_SIZE")
    if rank is None:
        return
    if world is not None and rank.value >= world.value:
        raise contradiction(
            f"RANK is {rank.value} of WORLD_SIZE {world.value}: ranks are 0 ... {world.value - 1}",
            f"RANK={rank.value} WORLD_SIZE={world.value}",
        )
    if world is None and rank.value > 0 and not env.has("PET_NNODES"):
        raise contradiction(
            f"RANK is {rank.value}, and WORLD_SIZE is not set",
            "RANK",
            "set WORLD_SIZE to the number of processes, or unset RANK",
        )


def _refuse_contradictions(env: Variables, layout: RankLayout) -> None:
    sources, nodes, nproc = layout.sources, layout.nodes, layout.nproc_per_node
    if layout.node_rank is not None and layout.node_rank >= nodes:
        raise contradiction(
            f"node rank {layout.node_rank} of {nodes} nodes: node ranks are 0 ... {nodes - 1}",
            f"{sources['node_rank']} and {sources['nodes']}",
        )
    if not layout.master_addr:
        raise contradiction(
            f"{nodes} nodes, and nothing says where the master is",
            "MASTER_ADDR is not set",
            "set MASTER_ADDR to the host of rank 0; on one node set LOCAL_WORLD_SIZE to "
            f"{layout.world_size}, or start with torchrun",
        )
    # Elsewhere the number of nodes follows from WORLD_SIZE.
    given = layout.mode == "static" or (layout.mode == "plain" and sources["nodes"] == "PET_NNODES")
    world = env.count("WORLD_SIZE") if given else None
    # The operator counts nodes, not processes, when nprocPerNode is not a number.
    allowed = {nodes * nproc, nodes} if layout.mode == "static" else {nodes * nproc}
    if world is not None and world.value not in allowed:
        raise contradiction(
            f"WORLD_SIZE is {world.value}, but {nodes} nodes of {nproc} processes are "
            f"{nodes * nproc}",
            f"WORLD_SIZE, {sources['nodes']} and {sources['nproc_per_node']}",
        )
