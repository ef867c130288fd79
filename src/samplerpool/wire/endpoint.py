"""The connection file, by which a pool is found, and the finding of pools."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from samplerpool.config.folders import runtime_folders
from samplerpool.errors import PoolNameTaken, PoolNotFound, TransportError, UsageError
from samplerpool.wire.addresses import remove_socket
from samplerpool.wire.files import check_secret, folder_problem, read_trusted, write_private
from samplerpool.wire.keys import ClientKeys
from samplerpool.wire.names import name_lock

FORMAT = 1
_WHAT = "connection file"


# ---- processes and hosts ------------------------------------------------------------------------------------------


def boot_id() -> str:
    """Identity of this machine's present boot; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_start_time(pid: int) -> int | None:
    """Clock ticks after boot at which a process started, or None if there is no such process (or it is a zombie)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])


@dataclass(frozen=True)
class ProcessId:
    """A process, told apart from a later one with the same number by its start time."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this number now (start time 0 if it is gone)."""
        return cls(pid, process_start_time(pid) or 0)

    def alive(self) -> bool:
        """Whether just this process still runs. Only meaningful on its own host."""
        return self.start_time != 0 and process_start_time(self.pid) == self.start_time


# ---- the connection file ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerEntry:
    """A worker as the connection file tells of it.

    ``state``: starting, loading, ready, stopping, restarting (its process is gone, the next one comes), died, failed
    (it died too often and stays away). ``node``: the machine of a cluster that its process runs on, where the
    process's number means something; empty: the pool's own machine.
    """

    index: int
    endpoint: str
    incarnation: str
    device: str
    state: str
    process: ProcessId
    log: str = ""
    detail: str = ""
    node: str = ""


@dataclass(frozen=True)
class Ending:
    """How one worker process ended: what a client that had requests there needs to know.

    Args:
        index, incarnation: which process it was.
        requested: it was told to end (stop, restart, scale). One that hung and was killed for it was not.
        reason: to go on after "it".
    """

    index: int
    incarnation: str
    requested: bool
    reason: str


@dataclass(frozen=True)
class ConnectionFile:
    """All that a client needs to attach. ``state``: starting, running, stopping.

    ``endings`` are the latest ends of worker processes, oldest first. ``keys`` are those that it takes to be let in
    over the network, where the pool listens there.
    """

    pool: str
    model: str
    engine: str
    state: str
    supervisor: ProcessId
    endpoint: str
    workers: tuple[WorkerEntry, ...] = ()
    endings: tuple[Ending, ...] = ()
    keys: ClientKeys | None = None
    log_folder: str = ""
    created: float = 0.0
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=boot_id)
    format: int = FORMAT

    @property
    def local(self) -> bool:
        """Whether it speaks of this machine and this boot, so that its process ids mean something here."""
        return self.host == socket.gethostname() and self.boot == boot_id() != ""

    def for_client(self, keys: ClientKeys) -> ConnectionFile:
        """A copy to be handed over. What it says of processes means something on the pool's own machine alone, and
        there too its reader is to ask the pool, because he may not be the one who could read the pool's own file."""
        return replace(self, keys=keys, boot="", log_folder="")

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1)

    def with_workers(self, workers: tuple[WorkerEntry, ...], state: str) -> ConnectionFile:
        """A copy with the workers' present state."""
        return replace(self, workers=workers, state=state)

    def write(self, path: Path) -> None:
        """Replace the file atomically; nobody but the owner may read it."""
        write_private(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> ConnectionFile:
        """Read and check a connection file.

        Raises:
            PoolNotFound: there is none.
            TransportError: it is not one, belongs to somebody else, or could have been changed or read by others.
        """
        text, mode = read_trusted(path, _WHAT)
        try:
            connection = _connection_from(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TransportError(f"{path} is not a connection file of this release: {error}.") from error
        if connection.keys is not None and connection.keys.secret:
            check_secret(path, _WHAT, mode)
        return connection


def _connection_from(data: Any) -> ConnectionFile:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"it does not say format {FORMAT}")
    workers = tuple(WorkerEntry(**{**w, "process": ProcessId(**w["process"])}) for w in data["workers"])
    endings = tuple(Ending(**ending) for ending in data["endings"])
    supervisor = ProcessId(**data["supervisor"])
    keys = ClientKeys(**data["keys"]) if data["keys"] else None
    parts = {"workers": workers, "endings": endings, "supervisor": supervisor, "keys": keys}
    return ConnectionFile(**{**data, **parts})


# ---- finding pools ------------------------------------------------------------------------------------------------


def connection_path(folder: Path, pool: str) -> Path:
    """Where a pool's connection file is kept."""
    return folder / f"{pool}.json"


def running_pools(*, holding: str | None = None) -> list[ConnectionFile]:
    """This user's pools whose supervisor lives, by name; what dead pools of this boot left behind is removed.

    A pool whose name is locked is not dead: its process numbers may be those of another namespace.

    Args:
        holding: a name that the caller itself has locked.
    """
    found: dict[str, ConnectionFile] = {}
    for folder in runtime_folders():
        if folder_problem(folder):
            continue
        for path in sorted(folder.glob("*.json")):
            with contextlib.suppress(TransportError, PoolNotFound):
                connection = ConnectionFile.read(path)
                if not connection.local:
                    continue
                if connection.supervisor.alive():
                    found[connection.pool] = connection
                    continue
                own = connection.pool == holding
                with (
                    contextlib.suppress(PoolNameTaken),
                    contextlib.nullcontext() if own else name_lock(connection.pool),
                ):
                    _end_orphans(connection)
                    remove_leftovers(path, connection)
    return [found[name] for name in sorted(found)]


def _end_orphans(connection: ConnectionFile) -> None:
    """Workers end by themselves when their supervisor is gone; one that was stopped (SIGSTOP) could not."""
    for worker in connection.workers:
        if worker.process.alive():
            with contextlib.suppress(OSError):
                os.killpg(worker.process.pid, signal.SIGKILL)


def distrusted() -> list[str]:
    """Why pools that might be there were not looked at: a sentence for each folder and file."""
    problems: list[str] = []
    for folder in runtime_folders():
        problem = folder_problem(folder)
        if problem is not None:
            problems.append(problem)
            continue
        for path in sorted(folder.glob("*.json")):
            try:
                ConnectionFile.read(path)
            except TransportError as error:
                problems.append(error.message)
            except PoolNotFound:  # it has just ended
                pass
    return problems


def keys_path(folder: Path, pool: str) -> Path:
    """Where a pool's known keys are kept."""
    return folder / f"{pool}.keys"


def remove_leftovers(path: Path, connection: ConnectionFile) -> None:
    """Remove a dead pool's connection file, sockets, known keys and lock file."""
    with contextlib.suppress(OSError):
        keys_path(path.parent, connection.pool).unlink()
    for endpoint in (connection.endpoint, *(worker.endpoint for worker in connection.workers)):
        remove_socket(endpoint)
    with contextlib.suppress(OSError):
        path.unlink()
    with contextlib.suppress(PoolNameTaken, UsageError), name_lock(connection.pool):
        pass  # letting go of the name removes the file; a successor that holds it keeps it


def find_pool(name: str | None = None) -> ConnectionFile:
    """The running pool of that name; without a name, the only one.

    Raises:
        PoolNotFound: and what to type instead.
    """
    pools = running_pools()
    names = [pool.pool for pool in pools]
    if name is not None:
        for pool in pools:
            if pool.pool == name:
                return pool
        running = f"running: {', '.join(names)}" if names else "none is running"
        raise _not_found(f"There is no pool {name!r} ({running}). Start it with: samplerpool launch --pool {name}")
    if not pools:
        raise _not_found("No pool is running. Start one with: samplerpool launch --detach, or give --model.")
    if len(pools) > 1:
        raise PoolNotFound(f"{len(pools)} pools are running: {', '.join(names)}. Say which one with --pool NAME.")
    return pools[0]


def _not_found(text: str) -> PoolNotFound:
    """What was not looked at may be why."""
    return PoolNotFound(" ".join([text, *(f"Not looked at: {problem}" for problem in distrusted())]))
