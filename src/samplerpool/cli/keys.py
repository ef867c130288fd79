"""``samplerpool keys``: which clients on other machines a pool lets in."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import click

from samplerpool.cli.options import chosen_pool, connect_option, pool_argument
from samplerpool.cli.output import note
from samplerpool.errors import UsageError
from samplerpool.wire.endpoint import ConnectionFile
from samplerpool.wire.keys import OWNER, ClientKeys, KeyPair, checked_key_name, checked_public_key, own_pair
from samplerpool.wire.messages import AddKey, ListKeys, RevokeKey


@click.group("keys")
def command() -> None:
    """Let clients on other machines into a pool that was launched with --listen, or no more.

    \b
    samplerpool keys add alice > alice.json       here
    samplerpool chat --connect alice.json         there, with that file

    Keys live as long as their pool. Whoever has the pool's own connection file is its owner, and may change it too.
    """


@command.command("list")
@pool_argument
@connect_option
def list_keys(pool: str | None, connect: Path | None) -> int:
    """Show the keys that POOL, or the one pool that runs, knows."""
    _show(_ask(chosen_pool(pool, connect), ListKeys(1)))
    return 0


@command.command("add")
@click.argument("name")
@pool_argument
@connect_option
@click.option("--public-key", metavar="KEY", help="Of a client that has a pair of its own (samplerpool keys mine).")
def add_key(name: str, pool: str | None, connect: Path | None, public_key: str | None) -> int:
    """Let a client in, and print the connection file for it.

    The file holds a new secret key, unless --public-key tells the client's own: then it holds none, and may be sent
    by any way.
    """
    checked_key_name(name)
    secret = ""
    if public_key is None:
        if sys.stdout.isatty():
            raise UsageError(
                f"What comes holds a secret key; write it to a file: samplerpool keys add {name} > {name}.json"
            )
        pair = KeyPair.new()
        public_key, secret = pair.public, pair.secret
        _make_private(sys.stdout.fileno())
    connection = chosen_pool(pool, connect)
    _ask(connection, AddKey(1, name, checked_public_key(public_key)))
    assert connection.keys is not None  # else the pool had refused
    click.echo(connection.for_client(ClientKeys(connection.keys.server, public_key, secret)).to_json())
    note(f"Pool {connection.pool!r} lets in {name!r}, until: samplerpool keys revoke {name} {connection.pool}")
    return 0


@command.command("revoke")
@click.argument("name")
@pool_argument
@connect_option
def revoke_key(name: str, pool: str | None, connect: Path | None) -> int:
    """Let a client in no more, and end what it runs."""
    connection = chosen_pool(pool, connect)
    _ask(connection, RevokeKey(1, name))
    click.echo(f"Pool {connection.pool!r} does not know {name!r} any more.")
    return 0


@command.command("mine")
def print_own_key() -> int:
    """Print this user's public key, for the owner of a pool elsewhere; the pair is made at the first use."""
    click.echo(own_pair().public)
    return 0


def _ask(connection: ConnectionFile, request: ListKeys | AddKey | RevokeKey) -> list[dict[str, Any]]:
    from samplerpool.client.supervisor import FAR_TIMEOUT_S, ask_supervisor

    keys: list[dict[str, Any]] = ask_supervisor(connection, request, FAR_TIMEOUT_S)["keys"]
    return keys


def _show(keys: list[dict[str, Any]]) -> None:
    for key in sorted(keys, key=lambda key: (key["name"] != OWNER, key["name"])):
        click.echo(f"{key['public_key']}  {key['name']}")


def _make_private(descriptor: int) -> None:
    """What the shell opened with ``>`` may be readable by everybody."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)
