"""What a chat sees of the pool around it: for the status line, and for the names that Tab offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from samplerpool.chat.attached import Attached
from samplerpool.chat.completion import CompletionSources
from samplerpool.chat.statusline import StatusFacts
from samplerpool.client.facts import WorkerFacts
from samplerpool.config.wording import plural
from samplerpool.wire.endpoint import running_pools


def status_facts(workers: Sequence[WorkerFacts], only: int | None) -> StatusFacts:
    """What the status line says of the workers.

    Args:
        workers: all of the pool's.
        only: the one that alone is asked, or None.
    """
    meant = [facts for facts in workers if only is None or facts.index == only]
    told = [facts for facts in meant if facts.answered]
    return StatusFacts(
        model=next((facts.model for facts in meant if facts.model), None),
        worker=_who(meant),
        running=sum(facts.running for facts in told) if told else None,
        queued=sum(facts.queued for facts in told) if told else None,
        context_size=min((facts.max_model_len for facts in meant if facts.max_model_len), default=None),
    )


def _who(meant: Sequence[WorkerFacts]) -> str:
    up = sum(facts.up for facts in meant)
    if len(meant) == 1:
        state = "" if up else " (coming back)" if meant[0].coming else " (gone)"
        return f"worker {meant[0].index}{state}"
    return plural(len(meant), "worker") if up == len(meant) else f"{up} of {plural(len(meant), 'worker')}"


def completion_sources(attached: Callable[[], Attached], open_calls: Callable[[], Sequence[str]]) -> CompletionSources:
    """Names as they are when Tab is pressed.

    Args:
        attached: who answers then.
        open_calls: names of tools whose calls are to be answered.
    """

    def workers() -> Sequence[WorkerFacts]:
        return attached().sampler.workers()

    return CompletionSources(
        {
            "worker": lambda: [str(facts.index) for facts in workers()],
            "adapter": lambda: sorted({name for facts in workers() for name in facts.adapters}),
            "pool": lambda: [pool.pool for pool in running_pools()],
            "tool": open_calls,
        }
    )
