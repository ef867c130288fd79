"""What a supervisor is started with; travels as one JSON document."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samplerpool.config.arguments import ModelArguments, PoolArguments, SampleArguments
from samplerpool.config.settings import restored
from samplerpool.pool.addresses import Network
from samplerpool.pool.cluster import ClusterPlan
from samplerpool.pool.devices import WorkerPlan
from samplerpool.wire.endpoint import ProcessId


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """A pool, decided in all its parts before anything is started.

    Args:
        pool: its name.
        plan: one entry a worker.
        network: where it listens for other machines; None: it does not.
        cluster: where its workers run if it is not this machine.
        devices: CUDA devices that the pool may use, as entries of ``CUDA_VISIBLE_DEVICES``; empty means the CPU.
        folder: runtime folder for its sockets and connection file.
        log_folder: one file a worker and one for the supervisor.
        keep_logs: even if all went well; the logs of nameless pools would pile up.
        detached: goes on when the terminal closes.
        owner: process whose end stops the pool, for a private one.
        owner_fd: descriptor whose end of file means that the launching process is gone: this stops a private pool,
            and any pool that has not become ready yet; -1 means none.
        report_fd: descriptor for one JSON line per event of the launch; -1 means none.
    """

    pool: str
    model_args: ModelArguments
    sample_args: SampleArguments
    pool_args: PoolArguments
    plan: tuple[WorkerPlan, ...]
    folder: Path
    log_folder: Path
    network: Network | None = None
    cluster: ClusterPlan | None = None
    devices: tuple[str, ...] = ()
    keep_logs: bool = True
    detached: bool = False
    owner: ProcessId | None = None
    owner_fd: int = -1
    report_fd: int = -1

    @property
    def private(self) -> bool:
        """Whether the pool belongs to one process and ends with it."""
        return self.owner is not None

    def to_json(self) -> str:
        """The document for ``from_json``."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> PoolSettings:
        """What ``to_json`` described."""
        data: dict[str, Any] = json.loads(text)
        owner, listening, cluster = data["owner"], data["network"], data["cluster"]
        return cls(
            **{
                **data,
                "model_args": ModelArguments(**data["model_args"]),
                "sample_args": SampleArguments(**data["sample_args"]),
                "pool_args": restored(PoolArguments, data["pool_args"]),
                "plan": tuple(WorkerPlan(**_tuples(entry)) for entry in data["plan"]),
                "network": Network(**listening) if listening else None,
                "cluster": ClusterPlan(**cluster) if cluster else None,
                "devices": tuple(data["devices"]),
                "folder": Path(data["folder"]),
                "log_folder": Path(data["log_folder"]),
                "owner": ProcessId(**owner) if owner else None,
            }
        )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
