"""Getting a file over HTTP, with bounds. For clients that were told to; workers never fetch anything."""

from __future__ import annotations

import http.client
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
"""For a connection, and for each piece that is waited for."""

MAX_TIME_S = 300.0
"""For all of it."""

_PIECE = 2**20


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    """Redirections lead to no other protocol (urllib itself would follow them to FTP)."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise ValueError(f"it redirects to {newurl!r}, which is no http: or https: URL")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, max_bytes: int) -> tuple[bytes, str | None]:
    """What an ``http(s):`` URL leads to, read up to one byte beyond ``max_bytes``.

    Returns:
        The bytes, and their media type if the server says one.

    Raises:
        OSError, ValueError: why not.
    """
    began, pieces, size = time.monotonic(), [], 0
    request = urllib.request.Request(url, headers={"User-Agent": "samplerpool"})
    try:
        with urllib.request.build_opener(_OnlyHttp).open(request, timeout=TIMEOUT_S) as response:
            while size <= max_bytes and (piece := response.read(min(_PIECE, max_bytes + 1 - size))):
                pieces.append(piece)
                size += len(piece)
                if time.monotonic() - began > MAX_TIME_S:
                    raise TimeoutError(f"it took longer than {MAX_TIME_S:.0f} s")
            return b"".join(pieces), response.headers.get_content_type() if response.headers["Content-Type"] else None
    except http.client.HTTPException as error:
        raise ValueError(f"the server's answer is broken ({type(error).__name__} {error})") from error
