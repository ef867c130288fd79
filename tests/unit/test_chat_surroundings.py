"""What the status line and Tab are told of the pool."""

from __future__ import annotations

import pytest

from samplerpool.chat import surroundings
from samplerpool.chat.attached import Attached
from samplerpool.chat.completion import candidates
from samplerpool.chat.statusline import StatusFacts
from samplerpool.chat.surroundings import completion_sources, status_facts
from samplerpool.client.facts import WorkerFacts
from samplerpool.wire.endpoint import ConnectionFile, ProcessId
from tests.chat_script import Script


def facts(index: int, *, up: bool = True, coming: bool = False, running: int = 0) -> WorkerFacts:
    return WorkerFacts(
        index, up=up, coming=coming, answered=up, model="tiny", max_model_len=100 + index, running=running, queued=1
    )


def test_all_workers_together_or_the_one_that_is_asked() -> None:
    both = [facts(0, running=2), facts(1, running=3)]
    assert status_facts(both, None) == StatusFacts("tiny", "2 workers", 5, 2, context_size=100)
    assert status_facts(both, 1) == StatusFacts("tiny", "worker 1", 3, 1, context_size=101)


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ([facts(0), facts(1, up=False, coming=True)], "1 of 2 workers"),
        ([facts(0, up=False, coming=True)], "worker 0 (coming back)"),
        ([facts(0, up=False)], "worker 0 (gone)"),
        ([], "0 workers"),
    ],
)
def test_workers_that_are_not_there_are_not_counted(workers: list[WorkerFacts], said: str) -> None:
    assert status_facts(workers, None).worker == said


def test_queues_of_workers_that_do_not_answer_are_not_made_up() -> None:
    shown = status_facts([facts(0, up=False, coming=True)], None)
    assert (shown.running, shown.queued, shown.model) == (None, None, "tiny")


def test_tab_offers_workers_adapters_pools_and_open_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ConnectionFile("night", "tiny", "dense", "running", ProcessId(1, 0), "ipc:///x")
    monkeypatch.setattr(surroundings, "running_pools", lambda: [pool])
    script = Script(workers=2)
    script.facts = [WorkerFacts(0, adapters=("legal",)), WorkerFacts(1, adapters=("legal", "code"))]
    attached = Attached(script)
    sources = completion_sources(lambda: attached, lambda: ["weather"])

    def offered(typed: str) -> list[str]:
        return [each.text for each in candidates(typed, sources)]

    assert offered("/attach ") == ["night", "0", "1"]
    assert offered("/compare 0 ") == ["0", "1", "code", "legal"]
    assert offered("/set adapter l") == ["legal"]
    assert offered("/tool w") == ["weather"]
