"""A Ray cluster as a pool's launch sees it: what there is, and which worker needs what of it. Never imports ray."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from samplerpool.config.arguments import PoolArguments
from samplerpool.config.wording import plural
from samplerpool.errors import InvalidParameter, SamplerPoolError, StartFailed, UsageError
from samplerpool.pool.devices import WorkerPlan, check_split, check_workers

LOOK_TIMEOUT_S = 60.0
MOST_NODES_TOLD = 8
STRICT = ("strict_pack", "strict_spread")


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, as Ray knows it.

    Args:
        address: its host name or IP address.
        cpus, gpus: that it gives to Ray, whether they are in use or not.
    """

    address: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """What a look at a cluster has found.

    Args:
        address: of its head, ``HOST:PORT``.
        here: this machine's own address, as the others reach it.
        nodes: those that are alive.
    """

    address: str
    here: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class ClusterPlan:
    """Where a pool's workers are to run.

    Args:
        address: of the cluster's head.
        placement: ``spread``, ``pack``, ``strict_spread`` or ``strict_pack``.
        workers: places that are reserved together.
        cpus, gpus: what each worker has to itself.
        devices: over how many devices, or on CPUs processes, it lays its model.
        timeout_s: how long to wait for room.
        max_restarts: how often Ray may begin a place again elsewhere.
    """

    address: str
    placement: str
    workers: int
    cpus: int
    gpus: int
    timeout_s: float
    max_restarts: int
    devices: int = 1


# ---- pure ---------------------------------------------------------------------------------------------------------


def plan_cluster(args: PoolArguments, cluster: Cluster) -> ClusterPlan:
    """How many workers, and what each needs.

    Raises:
        UsageError: the cluster has no room for them, however idle it is.
        InvalidParameter: devices by number, which are Ray's to choose.
    """
    check_workers(args.workers)
    if args.devices not in ("auto", "cpu"):
        raise InvalidParameter(
            f"--devices {args.devices} names devices of one machine; with --cluster Ray chooses: use auto or cpu."
        )
    on_gpus = args.devices == "auto" and args.engine != "scripted" and any(node.gpus >= 1 for node in cluster.nodes)
    check_split(args, on_cpu=not on_gpus)
    gpus = args.devices_per_worker if on_gpus else 0
    workers = _automatic(cluster, gpus) if args.workers == "auto" else int(args.workers)
    cpus = args.cpus_per_worker or (1 if gpus or args.engine == "scripted" else _share(args, cluster, workers))
    room = capacity(cluster.nodes, cpus, gpus, args.placement)
    if workers > room:
        raise UsageError(
            f"{wanted_text(workers, cpus, gpus, args.placement)} were asked for, and the Ray cluster at "
            f"{cluster.address} has room for {room}: {nodes_text(cluster.nodes)}. Ask for fewer --workers or "
            "--cpus-per-worker, choose another --placement, or add machines with: "
            f"ray start --address {cluster.address}"
        )
    return ClusterPlan(
        address=cluster.address,
        placement=args.placement,
        workers=workers,
        cpus=cpus,
        gpus=gpus,
        timeout_s=args.placement_timeout_s,
        max_restarts=args.max_restarts,
        devices=args.devices_per_worker,
    )


def _automatic(cluster: Cluster, gpus: int) -> int:
    """As many as there are GPUs for, or else one per machine."""
    return max(1, sum(int(node.gpus // gpus) if gpus else node.cpus >= 1 for node in cluster.nodes))


def _share(args: PoolArguments, cluster: Cluster, workers: int) -> int:
    """CPUs for each worker that computes on them: as many as all of them can have."""
    for cpus in range(int(max((node.cpus for node in cluster.nodes), default=1)), 1, -1):
        if capacity(cluster.nodes, cpus, 0, args.placement) >= workers:
            return cpus
    return 1


def capacity(nodes: Sequence[Node], cpus: int, gpus: int, placement: str) -> int:
    """How many workers the machines could hold if nothing else ran there."""
    rooms = [min(int(node.cpus // cpus), int(node.gpus // gpus) if gpus else math.inf) for node in nodes]
    if placement == "strict_spread":
        return sum(room >= 1 for room in rooms)
    return int(max(rooms, default=0) if placement == "strict_pack" else sum(rooms))


def wanted_text(workers: int, cpus: int, gpus: int, placement: str) -> str:
    """What is asked of a cluster."""
    how = {"strict_pack": ", all on one machine,", "strict_spread": ", each on another machine,"}.get(placement, "")
    each = plural(cpus, "CPU") + (f" and {plural(gpus, 'GPU')}" if gpus else "")
    return f"{plural(workers, 'worker')} with {each} each{how}"


def nodes_text(nodes: Sequence[Node]) -> str:
    """What there is."""
    texts = [
        f"{node.address} with {plural(int(node.cpus), 'CPU')}"
        + (f" and {plural(int(node.gpus), 'GPU')}" if node.gpus else "")
        for node in nodes[:MOST_NODES_TOLD]
    ]
    more = [f"{len(nodes) - MOST_NODES_TOLD} more"] if len(nodes) > MOST_NODES_TOLD else []
    return "; ".join([*texts, *more]) or "no machine"


def worker_plans(plan: ClusterPlan, workers: int) -> list[WorkerPlan]:
    """One entry a worker.

    Raises:
        UsageError: more than were reserved, where a later one could not be placed by the same rule.
    """
    check_workers(workers)
    if workers > plan.workers and plan.placement in STRICT:
        raise UsageError(
            f"The pool was placed with --placement {plan.placement} for {plural(plan.workers, 'worker')}, and "
            "further ones could not keep to that. Launch it anew with more --workers."
        )
    device = "cuda" if plan.gpus else "cpu"
    each = WorkerPlan(
        device=device,
        torch_device=device,
        visible=None if plan.gpus else "",  # Ray says which
        threads=0 if plan.gpus else max(1, plan.cpus // plan.devices),
        devices=plan.devices,
    )
    return [each] * workers


def path_for_all(model: str | None) -> str | None:
    """A model's name as each machine of a cluster understands it: they have this folder's paths, but not this folder
    as their current one. Whether it is there they say themselves."""
    return os.path.abspath(model) if model is not None and os.path.exists(model) else model


# ---- looking ------------------------------------------------------------------------------------------------------


def check_cluster_arguments(args: PoolArguments) -> None:
    """Refuse options that mean nothing, and a Ray that is not there, before anything is started.

    Raises:
        UsageError
    """
    if args.cluster is None:
        if args.cpus_per_worker is not None:
            raise InvalidParameter("--cpus-per-worker is for workers on a Ray cluster; give --cluster too.")
        return
    if args.cluster.startswith("ray://"):
        raise InvalidParameter(
            f"--cluster {args.cluster} is an address of Ray Client, which cannot do this. Launch the pool on one of "
            "the cluster's machines, with --cluster auto."
        )
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "--cluster needs the package ray, which is not installed. Install it with: pip install 'samplerpool[ray]'"
        )


def look_at_cluster(address: str, on_progress: Callable[[str], None] | None = None) -> Cluster:
    """Ask a Ray cluster what it has, in a child process, so that this one stays free of ray.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto``: the one that this machine belongs to.

    Raises:
        UsageError: there is none.
        StartFailed: it does not answer.
    """
    if on_progress is not None:
        on_progress(f"looking at the Ray cluster ({address})")
    command = [sys.executable, "-P", "-m", "samplerpool.ray.look", address]
    try:
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=LOOK_TIMEOUT_S)
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        text = f"The Ray cluster ({address}) did not answer within {LOOK_TIMEOUT_S:g} s. Look at it with: ray status"
        raise StartFailed(text) from error
    except (OSError, ValueError, IndexError) as error:
        last = " ".join(done.stderr.strip().splitlines()[-1:]) if "done" in locals() else str(error)
        raise StartFailed(f"The Ray cluster ({address}) cannot be looked at: {last}.") from error
    if "error" in found:
        raise SamplerPoolError.from_wire(*found["error"])
    return Cluster(found["address"], found["here"], tuple(Node(**node) for node in found["nodes"]))
