"""Addresses: private folders, socket paths, and the connection file by which a pool is found."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from samplerpool.config.folders import runtime_folders, shared_runtime_folder
from samplerpool.errors import PoolNameTaken, PoolNotFound, TransportError, UsageError

FORMAT = 1
MAX_SOCKET_PATH = 103
"""Bytes; ``sockaddr_un`` holds 108 on Linux and 104 elsewhere, a zero byte included."""


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


# ---- folders and socket paths -------------------------------------------------------------------------------------


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can enter, and check one that exists.

    Raises:
        UsageError: it belongs to somebody else, is a link, or is open to others.
    """
    hint = "set SAMPLERPOOL_RUNTIME_DIR to a folder of your own"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(folder)
    except OSError as error:
        raise UsageError(f"The runtime folder {folder} cannot be made: {error.strerror}; {hint}.") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UsageError(f"The runtime folder {folder} is not a folder of yours (owner uid {status.st_uid}); {hint}.")
    if status.st_mode & 0o077:
        raise UsageError(
            f"The runtime folder {folder} is open to others (mode {stat.S_IMODE(status.st_mode):o}); "
            f"run chmod 700 {folder}, or {hint}."
        )
    return folder


def _is_private(folder: Path) -> bool:
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077


def new_incarnation() -> str:
    """A name for one start of one process."""
    return secrets.token_hex(6)


def ipc_endpoint(folder: Path, name: str) -> str:
    """The ``ipc://`` address of a socket file in a private folder.

    Raises:
        UsageError: the path is too long for the system.
    """
    path = str(folder / f"{name}.sock")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise UsageError(
            f"The socket path {path} has {len(os.fsencode(path))} bytes; the system takes {MAX_SOCKET_PATH}. "
            "Set SAMPLERPOOL_RUNTIME_DIR to a shorter folder, or give the pool a shorter name."
        )
    return f"ipc://{path}"


def remove_socket(endpoint: str) -> None:
    """Remove an ``ipc://`` address's file, if it is there."""
    if endpoint.startswith("ipc://"):
        with contextlib.suppress(OSError):
            os.unlink(endpoint.removeprefix("ipc://"))


# ---- the connection file ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerEntry:
    """A worker as the connection file tells of it.

    ``state``: starting, loading, ready, stopping, restarting (its process is gone, the next one comes), died, failed
    (it died too often and stays away).
    """

    index: int
    endpoint: str
    incarnation: str
    device: str
    state: str
    process: ProcessId
    log: str = ""
    detail: str = ""


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

    ``endings`` are the latest ends of worker processes, oldest first.
    """

    pool: str
    model: str
    engine: str
    state: str
    supervisor: ProcessId
    endpoint: str
    workers: tuple[WorkerEntry, ...] = ()
    endings: tuple[Ending, ...] = ()
    log_folder: str = ""
    created: float = 0.0
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=boot_id)
    format: int = FORMAT

    @property
    def local(self) -> bool:
        """Whether it speaks of this machine and this boot, so that its process ids mean something here."""
        return self.host == socket.gethostname() and self.boot == boot_id()

    def with_workers(self, workers: tuple[WorkerEntry, ...], state: str) -> ConnectionFile:
        """A copy with the workers' present state."""
        return replace(self, workers=workers, state=state)

    def write(self, path: Path) -> None:
        """Replace the file atomically; nobody but the owner may read it."""
        write_private(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> ConnectionFile:
        """Read and check a connection file.

        Raises:
            PoolNotFound: there is none.
            TransportError: it is not one, or belongs to somebody else.
        """
        try:
            with open(path, encoding="utf-8") as file:
                owner = os.fstat(file.fileno()).st_uid
                if owner not in (os.getuid(), 0):
                    raise TransportError(f"The connection file {path} belongs to uid {owner}; it is not trusted.")
                data = json.load(file)
            return _connection_from(data)
        except FileNotFoundError as error:
            raise PoolNotFound(f"There is no connection file {path}; is the pool running?") from error
        except OSError as error:
            raise TransportError(f"The connection file {path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise TransportError(f"{path} is not a connection file of this release: {error}.") from error


def _connection_from(data: Any) -> ConnectionFile:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"it does not say format {FORMAT}")
    workers = tuple(WorkerEntry(**{**w, "process": ProcessId(**w["process"])}) for w in data["workers"])
    endings = tuple(Ending(**ending) for ending in data["endings"])
    supervisor = ProcessId(**data["supervisor"])
    return ConnectionFile(**{**data, "workers": workers, "endings": endings, "supervisor": supervisor})


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 so that readers see the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


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
        if not _is_private(folder):
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


def remove_leftovers(path: Path, connection: ConnectionFile) -> None:
    """Remove a dead pool's connection file, sockets and lock file."""
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
        raise PoolNotFound(f"There is no pool {name!r} ({running}). Start it with: samplerpool launch --pool {name}")
    if not pools:
        raise PoolNotFound("No pool is running. Start one with: samplerpool launch --detach, or give --model.")
    if len(pools) > 1:
        raise PoolNotFound(f"{len(pools)} pools are running: {', '.join(names)}. Say which one with --pool NAME.")
    return pools[0]


@contextlib.contextmanager
def name_lock(pool: str) -> Iterator[None]:
    """Hold a pool's name: a lock that the system drops when its holder ends, however it ends.

    Raises:
        PoolNameTaken
    """
    path = private_folder(shared_runtime_folder()) / f"{pool}.lock"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            raise PoolNameTaken(
                f"A pool named {pool!r} is already running. Use another name (--pool), or: samplerpool stop {pool}"
            ) from error
        if _still_at(path, handle):
            break
        os.close(handle)  # its last holder removed it between open and lock
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _still_at(path: Path, handle: int) -> bool:
    try:
        return os.stat(path).st_ino == os.fstat(handle).st_ino
    except OSError:
        return False
