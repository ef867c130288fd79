"""The keys of one pool: its own, its owner's, and those of the clients that it lets in."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samplerpool.errors import UsageError
from samplerpool.wire.keys import (
    OWNER,
    ClientKeys,
    KeyPair,
    KeyRing,
    Lock,
    checked_key_name,
    checked_public_key,
    ring_text,
)
from samplerpool.wire.messages import AddKey, ListKeys, RevokeKey

_log = logging.getLogger(__name__)

KeyRequest = ListKeys | AddKey | RevokeKey


class KeyBook:
    """Made at the launch, with new keys; they live as long as the pool.

    Args:
        path: of the file of known keys, which the workers look at.

    ``on_change`` is called with its text when it has changed, for workers on machines that cannot look at it.

    Raises:
        OSError: it cannot be written.
    """

    on_change: Callable[[str], None] | None = None

    def __init__(self, path: Path) -> None:
        server, owner = KeyPair.new(), KeyPair.new()
        self.path = path
        self.ring = KeyRing(path)
        self.lock = Lock(server.secret, self.ring)
        self.owner = ClientKeys(server.public, owner.public, owner.secret)
        self.ring.write({owner.public: OWNER})

    def remove(self) -> None:
        """Let nobody in any more, and remove the file."""
        self.path.unlink(missing_ok=True)

    def text(self) -> str:
        """Of the file of known keys."""
        return ring_text(self.ring.names)

    def carry_out(self, request: KeyRequest) -> dict[str, Any]:
        """Do it, and return who is known then.

        Raises:
            UsageError: a name or key that cannot be, is taken, or is not there.
            OSError: it could not be written down, and nothing has changed.
        """
        names = dict(self.ring.names)
        if isinstance(request, AddKey):
            self.ring.write(with_key(names, request.name, request.public_key))
            _log.info("the key %r is let in: %s", request.name, request.public_key)
        elif isinstance(request, RevokeKey):
            self.ring.write(without_key(names, request.name))
            _log.info("the key %r is let in no more", request.name)
        if self.on_change is not None and not isinstance(request, ListKeys):
            self.on_change(self.text())
        return {"keys": [{"name": name, "public_key": public} for public, name in self.ring.names.items()]}


def with_key(names: dict[str, str], name: str, public: str) -> dict[str, str]:
    """Public keys to names, with one more.

    Raises:
        UsageError
    """
    checked_key_name(name)
    checked_public_key(public)
    if name in names.values():
        raise UsageError(f"There is a key named {name!r} already; revoke it first, or use another name.")
    if public in names:
        raise UsageError(f"This key is known already, as {names[public]!r}.")
    return {**names, public: name}


def without_key(names: dict[str, str], name: str) -> dict[str, str]:
    """The same, with one less.

    Raises:
        UsageError
    """
    if name == OWNER:
        raise UsageError("The owner's key cannot be revoked: nobody could change the pool any more. Stop it instead.")
    if name not in names.values():
        known = ", ".join(sorted(names.values()))
        raise UsageError(f"There is no key named {name!r}; there are: {known}.")
    return {public: other for public, other in names.items() if other != name}
