"""How a process becomes part of a Ray cluster."""

from __future__ import annotations

import logging
import socket

from samplerpool.errors import UsageError

CONNECT_TIMEOUT_S = 5.0
AUTO = "auto"


def join(address: str) -> None:
    """Connect this process to a cluster that runs; it never starts one.

    Args:
        address: ``HOST:PORT`` of its head, or ``auto``: the one that this machine belongs to.

    Raises:
        UsageError: there is none, or this machine does not belong to it.
    """
    if address != AUTO:
        _check_listens(address)
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except Exception as error:
        raise UsageError(_why_not(address, error)) from error


def _check_listens(address: str) -> None:
    """Ray itself would try for a long time."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise UsageError(
            f"--cluster must be auto, or HOST:PORT of the cluster's head like 10.0.0.1:6379, not {address!r}."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"No Ray cluster answers at {address}: {reason}. `ray status` on its head tells the address."
        ) from error


def _why_not(address: str, error: Exception) -> str:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if address == AUTO and isinstance(error, ConnectionError):
        return (
            "This machine belongs to no Ray cluster. Start one with `ray start --head`, join one with "
            f"`ray start --address HOST:PORT`, or name it with --cluster HOST:PORT. (Ray says: {said})"
        )
    return (
        f"This process cannot join the Ray cluster ({address}): {said} The launching machine must belong to the "
        "cluster (`ray start --address HOST:PORT`), with the same releases of Ray and Python. If the cluster asks for "
        "Ray's token (`ray get-auth-token`), set RAY_AUTH_MODE=token: Ray sends it to no address that was named."
    )
