"""Keys of CURVE, ZeroMQ's encryption: pairs, who is known to a pool, and a user's own pair.

Keys are written in Z85 (ZeroMQ RFC 32): 40 characters for 32 bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from samplerpool.config.folders import state_folder
from samplerpool.errors import PoolNotFound, SamplerPoolError, TransportError, UsageError
from samplerpool.wire.files import check_secret, read_trusted, write_private

OWNER = "owner"
"""The name of the key that the pool was launched with: the only one that may change the pool."""

_KEY = re.compile(r"[0-9a-zA-Z.:+=^!/*?&<>()\[\]{}@%$#-]{40}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_KEY_FILE = "key file"


@dataclass(frozen=True)
class KeyPair:
    """A public key and the secret one that belongs to it."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """A pair that nobody else has."""
        import zmq  # here, so that what only reads files need not load it

        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass(frozen=True)
class ClientKeys:
    """What lets a client in.

    Args:
        server: the pool's public key, by which the client knows it.
        public: the client's own, by which the pool knows it.
        secret: what belongs to that; empty where it is in the user's own key file.
    """

    server: str
    public: str
    secret: str = field(default="", repr=False)

    def complete(self) -> ClientKeys:
        """The same with the secret key, wherever that is.

        Raises:
            TransportError: it is neither here nor in the user's key file.
        """
        if self.secret:
            return self
        own = read_own_pair()
        if own is None or own.public != self.public:
            raise TransportError(
                f"The connection file is for the public key {self.public}, and its secret key is not in "
                f"{own_key_path()}. Use it where `samplerpool keys mine` prints that key."
            )
        return replace(self, secret=own.secret)


def checked_public_key(text: str) -> str:
    """The text, if it is a public key.

    Raises:
        UsageError
    """
    if not _KEY.match(text):
        raise UsageError(f"{text[:60]!r} is not a public key: 40 characters, as `samplerpool keys mine` prints them.")
    return text


def checked_key_name(name: str) -> str:
    """The text, if a client's key may have it as its name.

    Raises:
        UsageError
    """
    if not _NAME.match(name):
        raise UsageError(
            f"{name[:80]!r} cannot be a key's name: use letters, digits, '.', '_', '@' and '-', starting with a letter "
            "or digit, at most 64 characters."
        )
    return name


# ---- a user's own pair --------------------------------------------------------------------------------------------


def own_key_path() -> Path:
    """Where a user's own pair is kept."""
    return state_folder() / "client.key"


def read_own_pair() -> KeyPair | None:
    """The user's own pair, if it was made.

    Raises:
        TransportError: the file may have been read or changed by others, or is damaged.
    """
    path = own_key_path()
    try:
        text, mode = read_trusted(path, _KEY_FILE)
    except PoolNotFound:
        return None
    check_secret(path, _KEY_FILE, mode)
    try:
        data = json.loads(text)
        return KeyPair(checked_public_key(data["public"]), checked_public_key(data["secret"]))
    except (ValueError, KeyError, TypeError, SamplerPoolError) as error:
        raise TransportError(f"The {_KEY_FILE} {path} is damaged; remove it to have a new pair made.") from error


def own_pair() -> KeyPair:
    """The user's own pair, made at the first use.

    Raises:
        UsageError: it cannot be kept.
        TransportError: as for ``read_own_pair``.
    """
    pair = read_own_pair()
    if pair is None:
        pair, path = KeyPair.new(), own_key_path()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, json.dumps(asdict(pair)) + "\n")
        except OSError as error:
            raise UsageError(f"The {_KEY_FILE} {path} cannot be written: {error.strerror}.") from error
    return pair


# ---- who is known -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lock:
    """What a pool's socket is locked with.

    Args:
        secret: the pool's secret key.
        ring: who is let in.
    """

    secret: str = field(repr=False)
    ring: KeyRing


class KeyRing:
    """The public keys that a pool knows: a file that its supervisor replaces and its workers look at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark: tuple[int, int, int] | None = None
        self._names: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Look at the file; whether it has changed. One that is gone or damaged knows nobody."""
        try:
            status = os.stat(self._path)
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            mark = None
        if mark == self._mark:
            return False
        self._mark, self._names = mark, _names_in(self._path)
        return True

    def name_of(self, public: str) -> str | None:
        """Whose key it is, as of the last look; None for a stranger's."""
        return self._names.get(public)

    @property
    def names(self) -> Mapping[str, str]:
        """Public key to name."""
        return self._names

    def write(self, names: Mapping[str, str]) -> None:
        """Replace the file.

        Raises:
            OSError: and it is as it was.
        """
        write_private(self._path, ring_text(names))
        self.refresh()


def ring_text(names: Mapping[str, str]) -> str:
    """What a file of known keys says: public key to name."""
    return json.dumps(dict(names), indent=1)


def _names_in(path: Path) -> dict[str, str]:
    try:
        data = json.loads(read_trusted(path, "file of known keys")[0])
    except (SamplerPoolError, ValueError):
        return {}
    return {str(public): str(name) for public, name in data.items()} if isinstance(data, dict) else {}
