"""What a status line shows of a worker. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samplerpool.client.routing import WorkerView


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """A worker as it says it is.

    Args:
        index: its number in the pool.
        up: whether requests can be sent to it.
        coming: it is not up, but its pool is about to bring it back.
        down_reason: a sentence that says why it is not up.
        answered: it has told of itself just now; if not, the rest is what it told before, if it did.
        model: the model's name for display; empty where it is not known.
        engine: the engine's name.
        max_model_len: most tokens of prompt and answer together; 0 where it is not known.
        running, queued: requests of all clients that have, or wait for, a place in the batch.
        tokens_per_s: over the last few seconds, of all requests.
        adapters: that a request may choose.
        answer_tags: by the kind of block (``think``, ``tool_call``), the opening and closing tag around it in answers.
        hidden_tags: kinds that answers have without such tags in their text.
        defaults: sampling parameters that it was started with, by name.
        steps: of its engine since it started, which move while there is progress.
        incarnation: of the process that tells it.
    """

    index: int
    up: bool = False
    coming: bool = False
    down_reason: str = ""
    answered: bool = False
    model: str = ""
    engine: str = ""
    max_model_len: int = 0
    running: int = 0
    queued: int = 0
    tokens_per_s: float = 0.0
    adapters: Sequence[str] = ()
    answer_tags: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hidden_tags: Sequence[str] = ()
    steps: int = 0
    incarnation: str = ""


def worker_facts(view: WorkerView, told: Mapping[str, Any], *, answered: bool) -> WorkerFacts:
    """Facts of one worker.

    Args:
        told: its ``Description``, the present one or an earlier one, or nothing.
    """
    return WorkerFacts(
        view.index,
        view.up,
        view.coming,
        view.down_reason,
        answered,
        str(told.get("model", "")),
        str(told.get("engine", "")),
        int(told.get("max_model_len", 0)),
        int(told.get("running", 0)),
        int(told.get("queued", 0)),
        float(told.get("tokens_per_s", 0.0)),
        tuple(told.get("adapters", ())),
        {kind: (opening, closing) for kind, (opening, closing) in told.get("answer_tags", {}).items()},
        dict(told.get("defaults", {})),
        tuple(told.get("hidden_tags", ())),
        int(told.get("steps", 0)),
        str(told.get("incarnation", "")),
    )
