"""Where a pool's sockets are: files in its folder, or ports that other machines can reach."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from samplerpool.errors import InvalidParameter, UsageError
from samplerpool.wire.addresses import ipc_endpoint

_LISTEN = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[^:/\[\]]+):(\d+|\*)/?\Z")
MAX_PORT = 65535
NODE = "{node}"
"""In an address: the machine that a worker is put on, which is not known beforehand."""


@dataclass(frozen=True)
class Network:
    """Where a pool listens for other machines.

    Args:
        host: the address to bind to, in numbers; an IPv6 one in brackets.
        advertised: the host that clients are told.
        port: of the supervisor; the workers have the next ones. 0: any.
    """

    host: str
    advertised: str
    port: int

    def endpoint(self, place: int) -> str:
        """Where to bind: place 0 is the supervisor's, 1 worker 0's, and so on.

        Raises:
            UsageError: there are not so many ports.
        """
        if not self.port:
            return f"tcp://{self.host}:*"
        if self.port + place > MAX_PORT:
            raise UsageError(f"Worker {place - 1} would listen on port {self.port + place}; the last is {MAX_PORT}.")
        return f"tcp://{self.host}:{self.port + place}"

    def told(self, bound: str) -> str:
        """What clients are told of a socket that was bound there."""
        return f"tcp://{self.advertised}:{bound.rpartition(':')[2]}"


def network(listen: str | None, advertise: str | None, workers: int = 1) -> Network | None:
    """What ``--listen`` and ``--advertise`` mean; None without them.

    Args:
        workers: how many there will be.

    Raises:
        InvalidParameter: not of the form ``tcp://HOST:PORT``, a host that is unknown, no name for others to use.
        UsageError: there are not so many ports.
    """
    if listen is None:
        if advertise is not None:
            raise InvalidParameter("--advertise is the name of what --listen opens; give --listen tcp://HOST:PORT too.")
        return None
    match = _LISTEN.match(listen)
    port = 0 if match is None or match[2] == "*" else int(match[2])
    if match is None or port > MAX_PORT:
        raise InvalidParameter(
            f"--listen must be of the form tcp://HOST:PORT, for instance tcp://0.0.0.0:5600, not {listen!r}; "
            "PORT may be * for any."
        )
    address = _address(match[1])
    if ipaddress.ip_address(address.strip("[]")).is_unspecified and advertise is None:
        raise InvalidParameter(
            f"{listen} listens on every address of this machine; say with --advertise HOST by which name or address "
            "clients reach it."
        )
    found = Network(address, _bracketed(match[1] if advertise is None else advertise), port)
    found.endpoint(workers)
    return found


def any_port(address: str) -> str:
    """What ``--listen`` says for any port of this address."""
    return f"tcp://{_bracketed(address)}:*"


def _address(host: str) -> str:
    """ZeroMQ binds to numbers alone."""
    if host == "*":
        return "0.0.0.0"
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidParameter(f"--listen: the host {host!r} is not known here: {error.strerror}.") from error
    return _bracketed(str(found[0][4][0]))


def _bracketed(host: str) -> str:
    if host.startswith("[") or ":" not in host:
        if re.search(r"[\s/]", host) or not host:
            raise InvalidParameter(f"--advertise must be a host name or address, not {host!r}.")
        return host
    try:
        return f"[{ipaddress.IPv6Address(host.partition('%')[0])}]"
    except ValueError as error:
        raise InvalidParameter(f"--advertise must be a host name or address without a port, not {host!r}.") from error


@dataclass(frozen=True)
class Addresses:
    """Where the sockets of one pool are bound; a socket file's name is never used twice.

    Args:
        pool, folder: its name and runtime folder.
        network: where it listens for other machines, if it does.
        on_nodes: its workers run on machines of a cluster, each with an address of its own.
    """

    pool: str
    folder: Path
    network: Network | None
    on_nodes: bool = False

    def supervisor(self, incarnation: str) -> str:
        """Its control socket."""
        return self._at(f"s-{incarnation}", 0)

    def worker(self, index: int, incarnation: str) -> str:
        """A worker's socket."""
        if self.on_nodes and self.network is not None:
            return replace(self.network, host=NODE).endpoint(1 + index)
        return self._at(f"w{index}-{incarnation}", 1 + index)

    def _at(self, name: str, place: int) -> str:
        if self.network is not None:
            return self.network.endpoint(place)
        return ipc_endpoint(self.folder, f"{self.pool}-{name}")

    def told(self, bound: str) -> str:
        """What clients are told of the supervisor's socket, which was bound there."""
        return bound if self.network is None or not bound else self.network.told(bound)

    def told_of_worker(self, bound: str) -> str:
        """The same of a worker's."""
        return bound if self.on_nodes else self.told(bound)
