"""Where things live on this machine. The one place that reads the environment for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs

RUNTIME_VARIABLE = "SAMPLERPOOL_RUNTIME_DIR"
CACHE_VARIABLE = "SAMPLERPOOL_CACHE_DIR"
LOG_VARIABLE = "SAMPLERPOOL_LOG_DIR"
STATE_VARIABLE = "SAMPLERPOOL_STATE_DIR"


def shared_runtime_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The runtime folder that outlives a login session; pool names are locked in it."""
    if override := environ.get(RUNTIME_VARIABLE):
        return Path(override)
    return Path(f"/tmp/samplerpool-{os.getuid()}")


def runtime_folder(*, detached: bool, environ: Mapping[str, str] = os.environ) -> Path:
    """Where a new pool's sockets and connection file go.

    Args:
        detached: such a pool avoids ``XDG_RUNTIME_DIR``, which vanishes at logout.
    """
    folders = runtime_folders(environ)
    return folders[0] if detached else folders[-1]


def runtime_folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """All folders in which a pool of this user may be found, without repeats."""
    folders = [shared_runtime_folder(environ)]
    if not environ.get(RUNTIME_VARIABLE) and (session := environ.get("XDG_RUNTIME_DIR")):
        folders.append(Path(session) / "samplerpool")
    return folders


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Converted models."""
    return Path(environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("samplerpool"))


def log_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """One folder a pool, one file a worker and one for the supervisor."""
    return Path(environ.get(LOG_VARIABLE) or platformdirs.user_log_path("samplerpool"))


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The chat's history of lines, and its conversations."""
    return Path(environ.get(STATE_VARIABLE) or platformdirs.user_state_path("samplerpool"))
