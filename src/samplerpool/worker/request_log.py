"""One line in the log for a request that has ended, in ``key=value`` form. Never any text of a prompt or an answer."""

from __future__ import annotations

import json
import logging

from samplerpool.worker.clients import request_label
from samplerpool.worker.figures import COUNTED, UNREACHABLE, Ended

log = logging.getLogger("samplerpool.request")

NO_ERRORS = frozenset({"stop", "length", "Aborted", "WorkerDraining", COUNTED, UNREACHABLE})
MAX_ERROR_CHARS = 300


class RequestLog:
    """Writes the lines.

    Args:
        which: ``errors``, ``all`` or ``none``.
        worker: its name.
    """

    def __init__(self, which: str, worker: str) -> None:
        self._which = which
        self._worker = worker

    def on_ended(self, ended: Ended) -> None:
        """Write a line about a request, if it is to have one."""
        failed = ended.outcome not in NO_ERRORS
        if self._which == "all" or (failed and self._which == "errors"):
            log.log(logging.WARNING if failed else logging.INFO, "%s", request_line(ended, self._worker))


def request_line(ended: Ended, worker: str) -> str:
    """All that is known of a request's life. Times that do not exist are left out."""
    times = {"prepared_ms": ended.prepared_s, "first_token_ms": ended.first_token_s, "total_ms": ended.total_s}
    fields = [
        f"request={request_label(worker, ended.request_id)}",
        f"outcome={ended.outcome}",
        f"prompt_tokens={ended.prompt_tokens}",
        f"completion_tokens={ended.completion_tokens}",
        *(f"{name}={1000 * seconds:.1f}" for name, seconds in times.items() if seconds is not None),
    ]
    if ended.error:
        fields.append(f"error={json.dumps(ended.error[:MAX_ERROR_CHARS], ensure_ascii=False)}")
    return " ".join(fields)
