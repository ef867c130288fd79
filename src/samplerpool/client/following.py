"""Where a client hears what becomes of its pool: from the connection file, or from the supervisor's socket."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import zmq

from samplerpool.client.admission import Admission
from samplerpool.config.folders import runtime_folders
from samplerpool.errors import AccessDenied, SamplerPoolError
from samplerpool.wire.codec import decode_replies, encode
from samplerpool.wire.endpoint import ConnectionFile, Ending, ProcessId, WorkerEntry, connection_path
from samplerpool.wire.messages import Describe, Description, Failed
from samplerpool.wire.sockets import open_dealer

log = logging.getLogger(__name__)

FILE_INTERVAL_S, FILE_URGENT_S = 1.0, 0.02
ASK_INTERVAL_S, ASK_URGENT_S = 2.0, 0.5
MAX_UNANSWERED = 15
"""Questions of our own to a supervisor that may go unanswered before its pool counts as ended."""


class Source(Protocol):
    """Tells the latest of a pool. Used by one thread."""

    @property
    def pool(self) -> ConnectionFile:
        """The latest that was heard."""

    @property
    def interval_s(self) -> float:
        """Between two looks, as long as nothing is amiss."""

    @property
    def urgent_s(self) -> float:
        """And while its word on something is awaited."""

    @property
    def socket(self) -> zmq.Socket[bytes] | None:
        """Where there is one, ``receive`` is to be called when something has come."""

    @property
    def denied(self) -> AccessDenied | None:
        """The pool does not know our key (any more), and nothing more will be heard of it."""

    def look(self) -> ConnectionFile | None:
        """Ask for news, and return the latest; None means that the pool has ended."""

    def receive(self) -> bool:
        """Take what has come; whether anything has."""

    def close(self) -> None:
        """Let go of what it holds."""


@dataclass
class FixedWorkers:
    """A pool of which nothing more is heard."""

    pool: ConnectionFile
    interval_s: float = 3600.0
    urgent_s: float = 3600.0
    socket: None = None
    denied: None = None

    def look(self) -> ConnectionFile:
        """What was known at the beginning."""
        return self.pool

    def receive(self) -> bool:
        """Nothing comes."""
        return False

    def close(self) -> None:
        """Nothing is held."""


class FileSource:
    """The connection file of a pool on this machine, which its supervisor replaces at every change.

    Args:
        pool: what it said when it was read last.
    """

    interval_s, urgent_s = FILE_INTERVAL_S, FILE_URGENT_S
    socket = denied = None

    def __init__(self, path: Path, pool: ConnectionFile) -> None:
        self._path = path
        self.pool = pool
        self._mark: tuple[int, int, int] | None = None

    def look(self) -> ConnectionFile | None:
        """The file, read again if it has been replaced."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        if mark != self._mark:
            try:
                pool = ConnectionFile.read(self._path)
            except SamplerPoolError as error:
                log.warning("the pool's state cannot be read: %s", error.message)
            else:
                if pool.supervisor != self.pool.supervisor:
                    return None  # another pool of that name
                self.pool, self._mark = pool, mark
        return self.pool if self.pool.supervisor.alive() else None

    def receive(self) -> bool:
        """Nothing comes by itself."""
        return False

    def close(self) -> None:
        """Nothing is held."""


class SupervisorSource:
    """The supervisor of a pool whose connection file cannot be followed: on another machine, or a copy."""

    interval_s, urgent_s = ASK_INTERVAL_S, ASK_URGENT_S

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], pool: ConnectionFile) -> None:
        self.pool = pool
        self._last_id = 0
        self._unanswered = 0
        self.denied: AccessDenied | None = None
        self.socket: zmq.Socket[bytes] = open_dealer(context, pool.endpoint, pool.keys)
        self._admission = Admission(self.socket, pool, pool.endpoint) if pool.keys is not None else None
        self.socket.setsockopt(zmq.SNDHWM, MAX_UNANSWERED)
        self.socket.setsockopt(zmq.LINGER, 0)

    def look(self) -> ConnectionFile | None:
        """Its latest answer; and ask again."""
        if self._admission is not None and isinstance(refused := self._admission.look(), AccessDenied):
            self.denied = refused
        self._last_id += 1
        self._unanswered += 1
        with contextlib.suppress(zmq.Again):
            self.socket.send(encode([Describe(self._last_id)]), zmq.DONTWAIT)
        return self.pool if self._unanswered <= MAX_UNANSWERED else None

    def receive(self) -> bool:
        """Take the answers that have come; whether any has."""
        came = False
        with contextlib.suppress(zmq.Again):
            while True:
                replies = decode_replies(self.socket.recv(zmq.DONTWAIT))
                came = True
                for reply in replies:
                    if isinstance(reply, Description):
                        self._unanswered = 0
                        self.pool = described(self.pool, reply.info)
                    elif isinstance(reply, Failed) and reply.error == AccessDenied.__name__:
                        self.denied = AccessDenied(reply.message)
        return came

    def close(self) -> None:
        """Close the socket."""
        if self._admission is not None:
            self._admission.close()
        self.socket.close()


def source_for(context: zmq.Context[zmq.Socket[bytes]], pool: ConnectionFile) -> Source:
    """How to follow a pool."""
    if pool.local and (path := file_of(pool)) is not None:
        return FileSource(path, pool)
    return SupervisorSource(context, pool)


def file_of(pool: ConnectionFile) -> Path | None:
    """The file that the supervisor of this pool writes, if it is within reach: what was read may be a copy."""
    folders = list(runtime_folders())
    if pool.endpoint.startswith("ipc://"):
        folders.insert(0, Path(pool.endpoint.removeprefix("ipc://")).parent)
    for folder in folders:
        path = connection_path(folder, pool.pool)
        with contextlib.suppress(SamplerPoolError):
            if ConnectionFile.read(path).supervisor == pool.supervisor:
                return path
    return None


def described(pool: ConnectionFile, info: Mapping[str, Any]) -> ConnectionFile:
    """A pool with what its supervisor's description says; one that makes no sense changes nothing."""
    try:
        workers = tuple(_entry(worker) for worker in info["workers"])
        endings = tuple(Ending(**_known(Ending, ending)) for ending in info["endings"])
        return replace(pool, workers=workers, endings=endings, state=str(info["state"]))
    except (TypeError, KeyError, AttributeError) as error:
        log.warning("the supervisor's description makes no sense: %s: %s", type(error).__name__, error)
        return pool


def _entry(worker: Mapping[str, Any]) -> WorkerEntry:
    process = ProcessId(**_known(ProcessId, worker["process"]))
    return WorkerEntry(**{**_known(WorkerEntry, worker), "process": process})


def _known(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that we know: a newer release may send more."""
    return {each.name: values[each.name] for each in fields(kind) if each.name in values}
