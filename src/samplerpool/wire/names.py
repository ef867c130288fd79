"""A pool's name, held by a lock for as long as its holder lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from samplerpool.config.folders import shared_runtime_folder
from samplerpool.errors import PoolNameTaken
from samplerpool.wire.files import private_folder


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
