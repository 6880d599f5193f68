"""Resolve the environment that a pod, torchrun, OpenMPI or nobody gave this process.

The PyTorchJob operator puts a *node* rank into RANK and counts *processes* in WORLD_SIZE, torchrun
and OpenMPI mean processes in both, and Kubeflow Trainer v2 gives neither. The first row of
`resolve_placement` that fits decides; docs/kubernetes.md prints the same table.

Source: kubeflow/training-operator v1.9 (pkg/controller.v1/pytorch/envvar.go, elastic.go),
kubeflow/trainer (torch plugin), torch/distributed/run.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from app.errors import ConfigError
from app.launch.devices import count_gpus
from app.launch.placement import (
    ANY_PORT,
    LOOPBACK,
    RankLayout,
    Reading,
    contradiction,
    derived,
    placed,
)
from app.launch.variables import Found, Variables, default

TORCHRUN_PORT = 29500  # torchrun's own default, and the port of Trainer v2
C10D_PORT = 29400  # torchrun's default for an elastic endpoint without a port
OPENMPI_PORT = 6000  # upstream's default when several processes have no MASTER_PORT

CountGpus = Callable[[Mapping[str, str]], int]


def resolve_placement(environ: Mapping[str, str], gpus: CountGpus = count_gpus) -> RankLayout:
    """Read the environment once, by the first row that fits.

    Raises:
        ConfigError: the variables contradict each other, or name no master for several nodes.
    """
    env = Variables(environ)
    _refuse_rank_beyond_world(env, "RANK", "WORLD_SIZE")
    if env.has("LOCAL_RANK") and env.has("TORCHELASTIC_RUN_ID"):
        reading = _inside_torchrun(env)
    elif env.has("OMPI_COMM_WORLD_LOCAL_RANK"):
        reading = _inside_openmpi(env)
    elif "PET_STANDALONE" in environ:
        reading = _standalone(env, gpus)
    elif env.has("PET_RDZV_ENDPOINT"):
        reading = _elastic(env, gpus)
    elif _is_static(env):
        reading = _static(env, gpus)
    elif env.has("RANK") or env.has("WORLD_SIZE"):
        reading = _plain(env)
    else:
        reading = _single(env)
    placement = placed(reading)
    _refuse_contradictions(env, placement)
    return placement


def _inside_torchrun(env: Variables) -> Reading:
    _refuse_rank_beyond_world(env, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    world = env.count("WORLD_SIZE") or default(1)
    local = env.count("LOCAL_WORLD_SIZE") or default(1)
    rank = env.integer("RANK") or default(0)
    host, port = _address(env, default(TORCHRUN_PORT))
    return Reading(
        mode="inside",
        node_rank=env.integer("GROUP_RANK") or derived(rank.value // local.value, rank, local),
        nodes=env.count("GROUP_WORLD_SIZE") or derived(world.value // local.value, world, local),
        nproc=local,
        host=host,
        port=port,
        world=world,
    )


def _inside_openmpi(env: Variables) -> Reading:
    _refuse_rank_beyond_world(env, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    world = env.count("OMPI_COMM_WORLD_SIZE") or default(1)
    rank = env.integer("OMPI_COMM_WORLD_RANK") or default(0)
    local = env.count("OMPI_COMM_WORLD_LOCAL_SIZE") or world
    host, port = _address(env, default(ANY_PORT if world.value == 1 else OPENMPI_PORT))
    return Reading(
        mode="inside",
        node_rank=derived(rank.value // local.value, rank, local),
        nodes=derived(-(-world.value // local.value), world, local),
        nproc=local,
        host=host,
        port=port,
        world=world,
    )


def _standalone(env: Variables, gpus: CountGpus) -> Reading:
    # The operator writes the empty string for elasticPolicy.standalone, and torchrun dies of
    # int(''). The launcher unsets the variable and passes the flag, which means one node.
    return Reading(
        mode="elastic",
        node_rank=Found(0, "PET_STANDALONE"),
        nodes=Found(1, "PET_STANDALONE"),
        nproc=_nproc(env, gpus),
        host=Found(LOOPBACK, "PET_STANDALONE"),
        port=Found(ANY_PORT, "PET_STANDALONE"),
        standalone=True,
    )


def _elastic(env: Variables, gpus: CountGpus) -> Reading:
    if env.has("PET_MASTER_ADDR"):
        raise contradiction(
            "an elastic job with a Master counts one node too few, and one pod waits for ever",
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
    host, port = _address(env, default(TORCHRUN_PORT), pet_first=True)
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
    node_rank = env.integer("PET_NODE_RANK") or env.integer("RANK")
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


def _static_nodes(env: Variables, nproc: Found[int]) -> Found[int]:
    if env.has("PET_NNODES"):
        return env.fixed_nodes("PET_NNODES")
    world = env.count("WORLD_SIZE")
    if world is None or not env.has("MASTER_ADDR"):
        return default(1)
    return derived(max(1, world.value // nproc.value), world, nproc)


def _plain(env: Variables) -> Reading:
    world = env.count("WORLD_SIZE") or default(1)
    rank = env.integer("RANK")
    if rank is None and world.value > 1:
        raise contradiction(
            f"{world.value} processes, and nothing says which one this is",
            "WORLD_SIZE is set, RANK is not",
            f"set RANK to 0 ... {world.value - 1}, one value for each process",
        )
    rank = rank or default(0)
    local = env.count("LOCAL_WORLD_SIZE") or env.count("PET_NPROC_PER_NODE") or default(1)
    whole, rest = divmod(world.value, local.value)
    if rest:
        raise contradiction(
            f"{world.value} processes cannot be cut into nodes of {local.value}",
            f"{world.source} and {local.source}",
        )
    nodes = derived(whole, world, local)
    if env.has("PET_NNODES"):
        nodes = env.fixed_nodes("PET_NNODES")
    host, port = _address(env, default(TORCHRUN_PORT))
    alone = world.value == 1 and not host.value
    return Reading(
        mode="single" if alone else "plain",
        node_rank=rank if local.value == 1 else derived(rank.value // local.value, rank, local),
        nodes=nodes,
        nproc=local,
        host=host,
        port=default(ANY_PORT) if alone else port,
        world=world,
    )


def _single(env: Variables) -> Reading:
    return Reading(
        mode="single",
        node_rank=env.integer("PET_NODE_RANK") or default(0),
        nodes=env.fixed_nodes("PET_NNODES") if env.has("PET_NNODES") else default(1),
        nproc=env.count("PET_NPROC_PER_NODE") or default(1),
        host=default(LOOPBACK),
        port=default(ANY_PORT),
    )


def _nproc(env: Variables, gpus: CountGpus) -> Found[int]:
    name = "PET_NPROC_PER_NODE"
    if not env.has(name):
        return default(1)
    word = env.text(name).value
    if word == "cpu":
        # torchrun would start one process per CPU of the *host*: 96 of them on a large node.
        return Found(1, name)
    if word not in ("auto", "gpu"):
        return env.positive(name)
    found = gpus(env.environ)
    if word == "gpu" and found == 0:
        raise contradiction(
            "nprocPerNode is 'gpu', and this container has no GPU",
            f"{name}=gpu, and no device file /dev/nvidia*",
            "ask for GPUs in the pod's resources, or write nprocPerNode as a number in quotes",
        )
    return Found(max(1, found), name)


def _endpoint(endpoint: Found[str]) -> tuple[Found[str], Found[int]]:
    host, colon, port = endpoint.value.rpartition(":")
    if not colon:
        return endpoint, default(C10D_PORT)
    if not port.isdigit():
        raise contradiction(
            f"the port in '{endpoint.value}' is not a number",
            endpoint.source,
            "write it as host:port",
        )
    return Found(host.strip("[]"), endpoint.source), Found(int(port), endpoint.source)


def _address(
    env: Variables, default_port: Found[int], *, pet_first: bool = False
) -> tuple[Found[str], Found[int]]:
    hosts, ports = ["MASTER_ADDR", "PET_MASTER_ADDR"], ["MASTER_PORT", "PET_MASTER_PORT"]
    if pet_first:
        hosts.reverse()
        ports.reverse()
    host = next((env.text(name) for name in hosts if env.has(name)), default(""))
    port = next((env.positive(name) for name in ports if env.has(name)), default_port)
    return host, port


def _refuse_rank_beyond_world(env: Variables, rank_name: str, world_name: str) -> None:
    rank, world = env.integer(rank_name), env.count(world_name)
    if rank is None:
        return
    if world is not None and rank.value >= world.value:
        raise contradiction(
            f"{rank_name} is {rank.value} of {world_name} {world.value}: ranks are "
            f"0 ... {world.value - 1}",
            f"{rank_name}={rank.value} {world_name}={world.value}",
        )
    if world is None and rank.value > 0 and not env.has("PET_NNODES"):
        raise contradiction(
            f"{rank_name} is {rank.value}, and {world_name} is not set",
            rank_name,
            f"set {world_name} to the number of processes, or unset {rank_name}",
        )


def _refuse_contradictions(env: Variables, placement: RankLayout) -> None:
    sources = placement.sources
    if placement.node_rank is not None and placement.node_rank >= placement.nodes:
        raise contradiction(
            f"node rank {placement.node_rank} of {placement.nodes} nodes: node ranks are "
            f"0 ... {placement.nodes - 1}",
            f"{sources['node_rank']} and {sources['nodes']}",
        )
    if not placement.master_addr:
        raise contradiction(
            f"{placement.nodes} nodes, and nothing says where the master is",
            "MASTER_ADDR is not set",
            "set MASTER_ADDR to the host of rank 0",
        )
    # The operator counts nodes, not processes, when nprocPerNode is not a number.
    allowed = {placement.nodes * placement.nproc_per_node}
    if placement.mode == "static":
        allowed.add(placement.nodes)
    world = env.count("WORLD_SIZE") if placement.mode in ("static", "plain") else None
    if world is not None and world.value not in allowed:
        raise contradiction(
            f"WORLD_SIZE is {world.value}, but {placement.nodes} nodes of "
            f"{placement.nproc_per_node} processes are "
            f"{placement.nodes * placement.nproc_per_node}",
            f"WORLD_SIZE, {sources['nodes']} and {sources['nproc_per_node']}",
        )
