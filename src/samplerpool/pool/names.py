"""Pool names: they become file names, socket names and words on a command line."""

from __future__ import annotations

import os
import re
import secrets

from samplerpool.errors import UsageError

DEFAULT_POOL = "default"
MAX_NAME_LENGTH = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


def check_pool_name(name: str) -> str:
    """Return the name if it may be one.

    Raises:
        UsageError: it has other characters than letters, digits, ``.``, ``_``, ``-``, starts with one of the last
            three, or is longer than 40 characters.
    """
    if len(name) > MAX_NAME_LENGTH or not _NAME.match(name):
        raise UsageError(
            f"{name!r} cannot be a pool's name: use letters, digits, '.', '_' and '-', "
            f"starting with a letter or digit, at most {MAX_NAME_LENGTH} characters."
        )
    return name


def private_pool_name() -> str:
    """A new name for a pool that belongs to this process alone."""
    return f"private-{os.getpid()}-{secrets.token_hex(2)}"
