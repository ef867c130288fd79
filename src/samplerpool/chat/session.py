"""A chat with the workers behind a ``SyncSampler``, on this process's terminal or pipes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from samplerpool.chat.console import open_console, plain_console
from samplerpool.chat.repl import Repl
from samplerpool.chat.transcript import Transcript
from samplerpool.config.folders import state_folder
from samplerpool.config.sampling import sampling_params
from samplerpool.errors import InvalidParameter
from samplerpool.samplers.sync_sampler import SyncSampler


def converse(
    sampler: SyncSampler, params: Mapping[str, Any], *, system: str | None = None, once: str | None = None
) -> int:
    """Chat until the user leaves, or the input ends.

    Args:
        params: sampling parameters of every turn.
        system: the system prompt.
        once: answer just this, on standard output, instead.

    Returns:
        The exit code: 0; 1 if the worker is gone for good, or a question of ``once`` or of piped input failed; 130 if
        one of those was interrupted.
    """
    console = open_console(state_folder()) if once is None else plain_console(None, sys.stdout, sys.stderr)
    repl = Repl(sampler, console, Transcript(system), params, lambda: why_gone(sampler))
    return repl.run() if once is None else repl.once(once)


def chat_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling parameters, checked for a chat.

    Raises:
        InvalidParameter: one does not exist, is out of range, or asks for several answers.
    """
    given = sampling_params(params).given()
    if given.get("num_return_sequences", 1) > 1:
        raise InvalidParameter(
            f"A chat shows one answer a turn, not {given['num_return_sequences']}; leave num_return_sequences out."
        )
    return given


def why_gone(sampler: SyncSampler) -> str | None:
    """Why no worker can answer any more, or None while one can, or will."""
    workers = sampler.connection.workers()
    if any(worker.up or worker.coming for worker in workers):
        return None
    return "no worker is left. " + " ".join(worker.down_reason for worker in workers)
