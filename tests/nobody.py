"""Permissions mean nothing to root, which continuous integration is: test them as somebody else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def without_privileges() -> Iterator[None]:
    """The block runs as nobody, if this process is root's."""
    if os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([])
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setgroups(groups)


@contextmanager
def folder_of_mode(mode: int) -> Iterator[Path]:
    """A folder that everybody can reach, unlike pytest's own, with this mode."""
    folder = Path(tempfile.mkdtemp(prefix="spt-", dir="/tmp"))
    folder.chmod(mode)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)
