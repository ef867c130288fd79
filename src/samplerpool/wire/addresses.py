"""Names for sockets."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from samplerpool.errors import UsageError

MAX_SOCKET_PATH = 103
"""Bytes; ``sockaddr_un`` holds 108 on Linux and 104 elsewhere, a zero byte included."""


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
