"""A pool that others reach over the network: whom it lets in, what they may do, and what a stranger gets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner

from samplerpool import SyncSampler
from samplerpool.cli.main import main
from samplerpool.client.connection import PoolConnection
from samplerpool.client.supervisor import ask_supervisor
from samplerpool.errors import AccessDenied, SamplerPoolError, StartFailed, TransportError
from samplerpool.pool.remote import stop_pool
from samplerpool.wire.codec import encode
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.keys import ClientKeys, KeyPair, own_pair
from samplerpool.wire.messages import AddKey, ListKeys, Ping, Restart, RevokeKey, Scale, Stop
from tests.process.pools import DEADLINE_S, ask, launch, wait_until

ENDLESS = "[[tokens:1000000]][[pace:0.01]]"


@pytest.fixture
def pool() -> Iterator[ConnectionFile]:
    """Its owner's connection file, of a pool that listens on a port."""
    launched = launch(pool="far", listen="tcp://127.0.0.1:*")
    yield launched.connection
    launched.stop(0.0)


def carried_away(connection: ConnectionFile, keys: ClientKeys | None = None) -> ConnectionFile:
    """The file as it is on another machine, where its process numbers mean nothing."""
    return replace(connection, host="elsewhere", keys=keys or connection.keys)


def let_in(pool: ConnectionFile, name: str) -> ConnectionFile:
    """A new client's file."""
    assert pool.keys is not None
    pair = KeyPair.new()
    ask_supervisor(pool, AddKey(1, name, pair.public), DEADLINE_S)
    return carried_away(pool.for_client(ClientKeys(pool.keys.server, pair.public, pair.secret)))


def written(connection: ConnectionFile, folder: Path, name: str) -> Path:
    path = folder / f"{name}.json"
    connection.write(path)
    return path


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


# ---- who is let in ------------------------------------------------------------------------------------------------


def test_known_keys_come_in_and_a_revoked_one_is_out_at_once(pool: ConnectionFile, tmp_path: Path) -> None:
    owner = written(carried_away(pool), tmp_path, "owner")
    alice = written(let_in(pool, "alice"), tmp_path, "alice")
    with SyncSampler.connect(owner) as first, SyncSampler.connect(alice) as second:
        assert "".join(second.generate("[[say:over the wire]]")) == "over the wire"
        rows = second.batch_infer([{"prompt": f"[[say:{number}]]"} for number in range(20)])
        assert [row["generation"]["text"] for row in rows] == [str(number) for number in range(20)]
        undisturbed, running = (
            first.generate(ENDLESS, max_new_tokens=10**6),
            second.generate(ENDLESS, max_new_tokens=10**6),
        )
        assert next(undisturbed)
        assert next(running)
        ask_supervisor(pool, RevokeKey(1, "alice"), DEADLINE_S)
        with pytest.raises(AccessDenied, match="revoked"):
            for _ in running:
                pass
        with pytest.raises(AccessDenied, match="revoked"):  # the connection that it has is of no use any more
            next(second.generate("[[say:no]]"))
        with pytest.raises(AccessDenied, match="revoked"):
            second.batch_infer([{"prompt": "[[say:no]]"}])
        with pytest.raises(AccessDenied, match="does not know this key"):  # and a new one is not to be had
            SyncSampler.connect(alice)
        assert next(undisturbed)
        undisturbed.close()


def test_a_revoked_key_ends_a_batch_and_an_idle_connection(pool: ConnectionFile, tmp_path: Path) -> None:
    alice = written(let_in(pool, "alice"), tmp_path, "alice")
    with SyncSampler.connect(alice) as busy, SyncSampler.connect(alice) as idle:
        failure: list[Exception] = []

        def batch() -> None:
            try:
                busy.batch_infer([{"prompt": ENDLESS}] * 3, max_new_tokens=10**6)
            except SamplerPoolError as error:
                failure.append(error)

        thread = threading.Thread(target=batch)
        thread.start()
        wait_until(lambda: busy.connection.describe(0)["running"] == 3, "the batch is running")
        ask_supervisor(pool, RevokeKey(1, "alice"), DEADLINE_S)
        thread.join(DEADLINE_S)
        assert [type(error) for error in failure] == [AccessDenied]
        with pytest.raises(AccessDenied):
            next(idle.generate("[[say:no]]"))


def test_strangers_are_told_at_once_what_is_wrong(pool: ConnectionFile) -> None:
    assert pool.keys is not None
    stranger = KeyPair.new()
    keys = ClientKeys(pool.keys.server, stranger.public, stranger.secret)
    with pytest.raises(AccessDenied, match="does not know this key") as refused:
        PoolConnection.attach(carried_away(pool, keys))
    assert refused.value.data["public_key"] == stranger.public
    at_a_worker = replace(pool, endpoint=pool.workers[0].endpoint)
    with pytest.raises(AccessDenied, match="does not know this key"):
        ask_supervisor(replace(at_a_worker, keys=keys), Ping(1), DEADLINE_S)
    with pytest.raises(SamplerPoolError, match="A worker does not take Stop"):  # and the owner comes in there
        ask_supervisor(at_a_worker, Stop(1, 0.0), DEADLINE_S)
    another_pool = replace(pool.keys, server=KeyPair.new().public)
    with pytest.raises(TransportError, match="is not the pool 'far' of this connection file"):
        PoolConnection.attach(carried_away(pool, another_pool))
    with pytest.raises(TransportError, match="has no keys"):
        PoolConnection.attach(replace(carried_away(pool), keys=None))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(TransportError, match=f"Nothing listens at {nobody}"):
            PoolConnection.attach(replace(carried_away(pool), endpoint=nobody))


# Which of them, is a race: the client finds the mechanisms different, or finds that the server has found that first.
_HANDSHAKE_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


def test_who_has_no_keys_gets_a_greeting_and_nothing_else(pool: ConnectionFile) -> None:
    for endpoint in (pool.endpoint, pool.workers[0].endpoint):
        _shake_hands_without_encryption(port_of(endpoint))
        with zmq.Context() as context, context.socket(zmq.DEALER) as plain:
            plain.setsockopt(zmq.LINGER, 0)
            with plain.get_monitor_socket(_HANDSHAKE_FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED) as events:
                plain.connect(endpoint)
                plain.send(encode([Ping(1)]))
                assert events.poll(int(DEADLINE_S * 1000))
                assert zmq.utils.monitor.recv_monitor_message(events)["event"] & _HANDSHAKE_FAILED
                assert not plain.poll(0)
                plain.disable_monitor()


def _shake_hands_without_encryption(port: int) -> None:
    ping = encode([Ping(1)])
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        greeting = b""
        while len(greeting) < 10:  # its first part comes to everybody
            greeting += client.recv(64)
        client.sendall(b"\xff\0\0\0\0\0\0\0\0\x7f\3\0NULL".ljust(64, b"\0"))
        with contextlib.suppress(ConnectionResetError):
            client.sendall(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x06DEALER" + bytes([0, len(ping)]) + ping)
            while data := client.recv(4096):
                greeting += data
    assert len(greeting) <= 64  # and after it comes nothing but the end of the connection


# ---- what they may do ---------------------------------------------------------------------------------------------


def test_only_the_owner_s_key_changes_the_pool(pool: ConnectionFile, tmp_path: Path) -> None:
    alice = let_in(pool, "alice")
    for request in (
        Stop(1, 0.0),
        Restart(1, None, 0.0),
        Scale(1, 2, 0.0),
        ListKeys(1),
        AddKey(1, "bob", "k" * 40),
        RevokeKey(1, "alice"),
    ):
        with pytest.raises(AccessDenied, match=r"Only the owner's key.*this is the key 'alice'"):
            ask_supervisor(alice, request, DEADLINE_S)
    with pytest.raises(AccessDenied, match="Only the owner"):
        stop_pool(alice, 0.0)
    with SyncSampler.connect(written(alice, tmp_path, "alice")) as sampler:
        assert "".join(sampler.generate("[[say:still there]]")) == "still there"
    assert stop_pool(carried_away(pool), 0.0) == "stopped"  # its owner may, from anywhere
    wait_until(lambda: not pool.supervisor.alive(), "the pool has ended")


def test_a_request_brings_in_no_code(pool: ConnectionFile, tmp_path: Path) -> None:
    with SyncSampler.connect(written(let_in(pool, "alice"), tmp_path, "alice")) as sampler:
        for name in ("trust_remote_code", "model_name_or_path", "engine"):
            with pytest.raises(SamplerPoolError, match=name):
                next(sampler.generate("x", **{name: True}))
            call = ask(sampler.connection, "x", **{name: True})  # as a client of another making would send it
            assert call.error is not None
            assert name in call.error.message


# ---- where it listens ---------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartFailed, match=f"{address} cannot be listened on: Address already in use"):
            launch(listen=address)


# ---- the command line ---------------------------------------------------------------------------------------------


def keys_command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["keys", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def samplerpool(*arguments: str, code: int = 0, output: Path | None = None) -> str:
    """As typed, with ``> output``."""
    with open(output or os.devnull, "w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "samplerpool", *arguments],
            stdout=file if output else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
        )
    assert done.returncode == code, done.stderr
    return done.stderr if output or code else str(done.stdout)


def test_keys_as_they_are_typed(pool: ConnectionFile, tmp_path: Path) -> None:
    alice = tmp_path / "alice.json"
    assert "until: samplerpool keys revoke alice far" in samplerpool("keys", "add", "alice", output=alice)
    assert stat.S_IMODE(alice.stat().st_mode) == 0o600
    assert samplerpool("chat", "--connect", str(alice), "--once", "[[say:hello]]").strip() == "hello"
    bob = tmp_path / "bob.json"
    bob.write_text(keys_command("add", "bob", "far", "--public-key", own_pair().public).partition("\nPool")[0])
    assert ConnectionFile.read(bob).keys == ClientKeys(pool.keys.server if pool.keys else "", own_pair().public)
    with SyncSampler.connect(bob) as sampler:
        assert "".join(sampler.generate("[[say:mine]]")) == "mine"
    assert keys_command("mine").strip() == own_pair().public
    assert [line.split()[1] for line in keys_command("list").splitlines()] == ["owner", "alice", "bob"]
    assert "does not know 'alice' any more" in keys_command("revoke", "alice")
    assert "does not know this key" in samplerpool("status", "--json", "--connect", str(alice), code=1)
    assert "does not know this key" in samplerpool("chat", "--connect", str(alice), "--once", "x", code=1)
    assert "Only the owner's key" in keys_command("list", "--connect", str(bob), code=1)


def test_keys_that_cannot_be(pool: ConnectionFile) -> None:
    assert "cannot be a key's name" in keys_command("add", "a b", "--public-key", "x", code=2)
    assert "is not a public key" in keys_command("add", "alice", "--public-key", "x", code=2)
    assert "a key named 'owner' already" in keys_command("add", "owner", "--public-key", own_pair().public, code=2)
    assert "no key named 'carol'" in keys_command("revoke", "carol", code=2)
    assert "owner's key cannot be revoked" in keys_command("revoke", "owner", code=2)
    assert "no pool 'other'" in keys_command("list", "other", code=2)
    assert "Give either" in keys_command("list", "far", "--connect", "x.json", code=2)
    assert "There is no connection file x.json" in keys_command("list", "--connect", "x.json", code=2)
    near = launch(pool="near")
    try:
        assert "has no keys. Launch it with --listen" in keys_command(
            "add", "alice", "near", "--public-key", own_pair().public, code=2
        )
        with pytest.raises(TransportError, match="takes clients of its own machine alone"):
            PoolConnection.attach(replace(near.connection, host="elsewhere", endpoint="ipc:///nowhere.sock"))
    finally:
        near.stop(0.0)
