"""Who is let in, and how many at a time. Pure."""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections.abc import Mapping
from hashlib import sha256

from samplerpool.errors import UsageError
from samplerpool.gateway.problems import Problem, too_busy, unavailable

MIN_KEY_CHARS = 8
_LONGEST_WAIT_S = 30
_REMEMBERED = 0.9
"""How much the duration of earlier answers counts beside that of the latest."""


# ---- keys ---------------------------------------------------------------------------------------------------------


def read_keys(text: str, file: str) -> dict[str, str]:
    """The keys of a file: a name and a key a line, or a key alone; ``#`` begins a comment.

    Returns:
        The names by key.

    Raises:
        UsageError: a line is neither, a key is too short, or there is none.
    """
    keys: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2:
            raise UsageError(f"{file}, line {number}: a line holds a name and a key, or a key alone.")
        if len(words[-1]) < MIN_KEY_CHARS:
            raise UsageError(f"{file}, line {number}: a key has {MIN_KEY_CHARS} characters or more.")
        keys[words[-1]] = words[0] if len(words) == 2 else f"line-{number}"
    if not keys:
        raise UsageError(f"There is no key in {file}.")
    return keys


class Keys:
    """The keys that are known; without any, everyone is let in.

    Args:
        names: by key.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = {sha256(key.encode()).digest(): name for key, name in names.items()}

    def name(self, authorization: str | None) -> str | Problem:
        """Whose key is in an ``Authorization`` header; empty where none is needed.

        Takes the same time for all keys, right or wrong.
        """
        if not self._names:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            text = "You didn't provide an API key: this server needs the header Authorization: Bearer KEY."
            return _unauthorized(text)
        digest = sha256(key.strip().encode("utf-8", "replace")).digest()
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else _unauthorized("Incorrect API key provided.")

    def __bool__(self) -> bool:
        return bool(self._names)


def _unauthorized(text: str) -> Problem:
    return Problem(401, text, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


# ---- where it can be reached --------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, keys: Keys, *, anyone: bool) -> None:
    """Refuse to serve the network without keys, unless that is meant.

    Raises:
        UsageError
    """
    if not is_loopback(host) and not keys and not anyone:
        raise UsageError(
            f"On {host} others can reach this server, and without keys it answers all of them. Give it keys with "
            "--api-key-file FILE or in SAMPLERPOOL_API_KEY, or say --anyone if that is meant."
        )


def check_host(header: str | None) -> Problem | None:
    """Refuse a request that a web page sends through its reader's browser, under a name of its own that leads here: it
    could read the answers. For servers on the loopback that need no key."""
    host = header or ""
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if not host or is_loopback(name):
        return None
    text = f"This server is for this machine alone, and was called {name!r}. Behind a proxy, give it keys or --anyone."
    return Problem(403, text, "wrong_host")


# ---- how many -----------------------------------------------------------------------------------------------------


class Places:
    """Places for answers in progress. Times are seconds.

    Args:
        limit: how many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.closed = False
        self._usual_s = 1.0

    def enter(self, count: int) -> Problem | None:
        """Take places for the answers of a request; or why there are none."""
        if problem := self.refusal(count):
            return problem
        self.taken += count
        return None

    def refusal(self, count: int = 1) -> Problem | None:
        """Why so many answers have no place now, if they have none."""
        if self.closed:
            return unavailable("The server is being stopped and takes no more requests.")
        if self.taken + count > self.limit:
            text = f"All {self.limit} places for answers are taken ({self.taken} in progress, {count} more asked for)."
            return too_busy(f"{text} Try again later.", self.retry_after_s)
        return None

    def leave(self, count: int, seconds: float | None = None) -> None:
        """Give them back, after so long; None if nothing was answered there."""
        self.taken -= count
        if seconds is not None:
            self._usual_s = _REMEMBERED * self._usual_s + (1 - _REMEMBERED) * seconds

    @property
    def retry_after_s(self) -> int:
        """When it may be worth trying again: about when the next answers end."""
        return min(_LONGEST_WAIT_S, max(1, math.ceil(self._usual_s / max(1, self.taken))))
