"""The places of a pool's workers on a Ray cluster: reserved together, each an actor that Ray puts somewhere."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from samplerpool.errors import StartFailed, WorkerDied
from samplerpool.pool.cluster import ClusterPlan, Node, nodes_text, wanted_text
from samplerpool.ray.host import Host, Report

LOOK_INTERVAL_S = 1
"""Whole seconds between two looks at whether there is room by now."""
CLOSE_TIMEOUT_S = 3.0
"""How long the places together may take to leave their machines in order before they are ended."""


class Places:
    """All places of one pool. Made in a process that belongs to the cluster.

    Args:
        plan: how many places, and what each needs. More may be asked for later.
        pool: its name, which Ray's own tools show.
    """

    def __init__(self, plan: ClusterPlan, pool: str) -> None:
        self._plan = plan
        self._pool = pool
        self._groups: dict[int, asyncio.Task[PlacementGroup]] = {}
        self._hosts: dict[int, Any] = {}

    async def ready(self, index: int) -> None:
        """Wait until a worker's place exists, wherever Ray puts it.

        Raises:
            StartFailed: there is no room, or nothing can run there.
        """
        group, bundle = await self._group(index)
        for fresh in (False, True):
            if fresh or index not in self._hosts:
                self._hosts[index] = self._new_host(index, group, bundle)
            try:
                await self._hosts[index].where.options(max_task_retries=-1).remote()
                return
            except ActorDiedError as error:  # begun again too often, or never begun
                if fresh:
                    raise StartFailed(f"Ray cannot run worker {index}: {said(error)}") from error
            except RayError as error:
                raise StartFailed(f"Ray cannot run worker {index}: {said(error)}") from error

    def _new_host(self, index: int, group: PlacementGroup, bundle: int) -> Any:
        return (
            ray.remote(Host)
            .options(
                name=f"samplerpool-{self._pool}-{index}-{id(group):x}",
                num_cpus=self._plan.cpus,
                num_gpus=self._plan.gpus,
                max_restarts=self._plan.max_restarts,
                max_task_retries=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
            )
            .remote(self._plan.cpus, self._plan.gpus)
        )

    # ---- room -----------------------------------------------------------------------------------------------------

    async def _group(self, index: int) -> tuple[PlacementGroup, int]:
        """What reserves a place: all that were planned are reserved together, later ones each for itself."""
        planned = index < self._plan.workers
        key, size, bundle = (0, self._plan.workers, index) if planned else (index, 1, 0)
        task = self._groups.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._groups[key] = asyncio.create_task(self._reserve(size))
        return await asyncio.shield(task), bundle

    async def _reserve(self, size: int) -> PlacementGroup:
        plan = self._plan
        bundle = {"CPU": plan.cpus, **({"GPU": plan.gpus} if plan.gpus else {})}
        group = placement_group([bundle] * size, strategy=plan.placement.upper())
        deadline = asyncio.get_running_loop().time() + plan.timeout_s
        try:
            while not await asyncio.to_thread(group.wait, LOOK_INTERVAL_S):
                if asyncio.get_running_loop().time() >= deadline:
                    raise StartFailed(await asyncio.to_thread(self._no_room, size))
        except BaseException:
            remove_placement_group(group)
            raise
        return group

    def _no_room(self, size: int) -> str:
        plan, free = self._plan, ray.available_resources()
        nodes = [
            Node(node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in ray.nodes()
            if node["Alive"]
        ]
        return (
            f"{wanted_text(size, plan.cpus, plan.gpus, plan.placement)} were asked for, and the Ray cluster at "
            f"{plan.address} had no room for them within {plan.timeout_s:g} s (--placement-timeout). It has "
            f"{nodes_text(nodes)}; of all that, {free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs are "
            "free now. `ray status` shows who has the rest."
        )

    # ---- what runs there ------------------------------------------------------------------------------------------

    async def run(self, index: int, document: dict[str, Any]) -> AsyncIterator[list[Report]]:
        """Run one process to its end, see ``Host.run``.

        Raises:
            WorkerDied: its place is gone, mostly with the machine.
        """
        stream = (
            self._hosts[index]
            .run.options(num_returns="streaming")
            .remote(
                json.dumps({"config": document["config"], "plan": document["plan"]}),
                document["version"],
                document["keys"],
            )
        )
        try:
            async for reference in stream:
                yield await reference
        except (ActorDiedError, ActorUnavailableError) as error:
            print(f"worker {index}: {error}", file=sys.stderr, flush=True)
            raise WorkerDied("Ray lost its machine, or the machine cannot be reached.") from error
        except RayError as error:
            raise WorkerDied(f"Its place on the cluster failed: {said(error)}") from error

    async def ask(self, index: int, incarnation: str, what: str) -> None:
        """Have a process do something, see ``Host.ask``; in a place that is gone there is none."""
        await self._quietly(self._hosts[index].ask.remote(incarnation, what))

    async def let_in(self, index: int, keys: str) -> None:
        """Tell a place which keys are known from now on."""
        await self._quietly(self._hosts[index].let_in.remote(keys))

    async def _quietly(self, reference: Any) -> None:
        try:
            await reference
        except RayError:
            pass

    def give_up(self, index: int) -> None:
        """End a place that does not answer, and whatever runs in it."""
        ray.kill(self._hosts.pop(index), no_restart=True)

    async def close(self) -> None:
        """Give everything back."""
        leaving = [asyncio.ensure_future(self._quietly(host.leave.remote())) for host in self._hosts.values()]
        if leaving:
            await asyncio.wait(leaving, timeout=CLOSE_TIMEOUT_S)
        for index in list(self._hosts):
            self.give_up(index)
        for task in self._groups.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                remove_placement_group(task.result())
            task.cancel()
        ray.shutdown()


def said(error: RayError) -> str:
    """An error of Ray's in one line; the first line of what it says tells least."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    reason = getattr(error, "cause", None)
    return str(reason) if reason is not None else " ".join(lines)[:600]
