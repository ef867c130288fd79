"""Where a pool listens, and what clients are told of it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from samplerpool.errors import InvalidParameter, UsageError
from samplerpool.pool.addresses import Addresses, Network, network


def test_without_listen_sockets_are_files_of_the_incarnation() -> None:
    addresses = Addresses("p", Path("/run/x"), network(None, None))
    assert addresses.supervisor("abc") == "ipc:///run/x/p-s-abc.sock"
    assert addresses.worker(3, "abc") == "ipc:///run/x/p-w3-abc.sock"
    assert addresses.told("ipc:///run/x/p-w3-abc.sock") == "ipc:///run/x/p-w3-abc.sock"


def test_ports_follow_one_another() -> None:
    addresses = Addresses("p", Path("/run/x"), network("tcp://127.0.0.1:5600", None, 2))
    assert addresses.supervisor("abc") == "tcp://127.0.0.1:5600"
    assert [addresses.worker(index, "abc") for index in (0, 1)] == ["tcp://127.0.0.1:5601", "tcp://127.0.0.1:5602"]
    assert addresses.told("tcp://127.0.0.1:5601") == "tcp://127.0.0.1:5601"
    assert addresses.told("") == ""  # not bound yet


@pytest.mark.parametrize("port", ["*", "0"])
def test_any_port(port: str) -> None:
    found = network(f"tcp://127.0.0.1:{port}", None, 2)
    assert found == Network("127.0.0.1", "127.0.0.1", 0)
    assert found.endpoint(0) == found.endpoint(7) == "tcp://127.0.0.1:*"
    assert found.told("tcp://127.0.0.1:43210") == "tcp://127.0.0.1:43210"


def test_clients_are_told_the_name_that_is_advertised() -> None:
    found = network("tcp://0.0.0.0:5600", "gpu.example.org")
    assert found is not None
    assert found.endpoint(1) == "tcp://0.0.0.0:5601"
    assert found.told("tcp://0.0.0.0:5601") == "tcp://gpu.example.org:5601"
    assert network("tcp://*:5600", "gpu") == Network("0.0.0.0", "gpu", 5600)


def test_names_are_bound_by_number_and_told_as_names() -> None:
    found = network("tcp://localhost:5600", None)
    assert found is not None
    assert found.host in ("127.0.0.1", "[::1]")
    assert found.told(f"tcp://{found.host}:5600") == "tcp://localhost:5600"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_addresses_of_version_6_stand_in_brackets() -> None:
    assert network("tcp://[::1]:5600", None) == Network("[::1]", "[::1]", 5600)
    assert network("tcp://[::]:5600", "fe80::7") == Network("[::]", "[fe80::7]", 5600)


@pytest.mark.parametrize(
    "listen",
    ["", "5600", "127.0.0.1:5600", "tcp://127.0.0.1", "tcp://:5600", "tcp://::1:5600", "tcp://h:65536", "ipc:///x",
     "tcp://h:x", "tcp://a/b:1", "udp://h:1", "tcp://h:1\n"],
)  # fmt: skip
def test_what_is_no_address(listen: str) -> None:
    with pytest.raises(InvalidParameter, match="--listen must be of the form tcp://HOST:PORT"):
        network(listen, None)


def test_every_address_needs_a_name_for_clients() -> None:
    for listen in ("tcp://0.0.0.0:5600", "tcp://*:5600", "tcp://[::]:5600"):
        with pytest.raises(InvalidParameter, match="--advertise HOST"):
            network(listen, None)
    for advertise in ("", "a b", "tcp://gpu", "gpu:5600", "a/b"):
        with pytest.raises(InvalidParameter, match="--advertise must be a host name or address"):
            network("tcp://0.0.0.0:5600", advertise)
    with pytest.raises(InvalidParameter, match="give --listen"):
        network(None, "gpu")


def test_the_last_port() -> None:
    assert network("tcp://127.0.0.1:65533", None, 2) is not None
    with pytest.raises(UsageError, match="Worker 2 would listen on port 65536"):
        network("tcp://127.0.0.1:65533", None, 3)
