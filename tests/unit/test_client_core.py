"""The client's pure parts: one response's life, signs of life, the choice of a worker."""

from __future__ import annotations

import pytest

from samplerpool.client import routing
from samplerpool.client.liveness import MAX_UNANSWERED, PING_INTERVAL_S, Liveness
from samplerpool.client.response import Call
from samplerpool.client.routing import Affinity, WorkerView, choose
from samplerpool.errors import Aborted, PromptTooLong, ProtocolError
from samplerpool.types import Message, PromptCount, RenderedPrompt, TokenLogprobs
from samplerpool.wire.messages import Accepted, Completed, Counted, Failed, Finished, Rendered, TokenPrompt, Tokens


def call() -> Call:
    return Call(TokenPrompt([1, 2]), {"max_new_tokens": 7})


def test_a_response_fills_up_and_ends() -> None:
    c = call()
    for frame in (Accepted(1, [1, 2], 5), Tokens(1, 0, [3], "a"), Tokens(1, 1, [4, 5], "bc")):
        c.feed(frame)
    assert (c.text, c.token_ids, c.seed, c.delta, c.done) == ("abc", [3, 4, 5], 5, "bc", False)
    c.feed(Finished(1, "stop", 2, 3))
    assert (c.done, c.error, c.finish_reason, c.delta) == (True, None, "stop", "")


def test_an_answer_that_is_not_streamed_comes_as_a_whole() -> None:
    c = call()
    entry, message = TokenLogprobs(3, -0.5, []), Message(role="assistant", content=[])
    c.feed(Completed(1, "length", 2, 3, 5, "abc", message, [entry]))
    assert (c.done, c.error, c.text, c.seed, c.message, c.logprobs) == (True, None, "abc", 5, message, [entry])
    assert (c.finish_reason, c.prompt_tokens, c.completion_tokens) == ("length", 2, 3)


def test_a_count_comes_where_it_was_asked_for_and_nothing_else_does() -> None:
    found = PromptCount(7, 128, 2048)
    c = Call(TokenPrompt([1, 2]), stream=False, purpose="count")
    c.feed(Counted(1, found))
    assert (c.done, c.error, c.count, c.prompt_tokens) == (True, None, found, 7)
    for asked, frame in (
        (True, Completed(1, "stop", 2, 1, 0, "a")),
        (True, Accepted(1, [1], 0)),
        (False, Counted(1, found)),
    ):
        with pytest.raises(ProtocolError):
            Call(TokenPrompt([1, 2]), stream=False, purpose="count" if asked else "answer").feed(frame)
    shown = RenderedPrompt([1, 2], ["a", "b"])
    for purpose in ("answer", "count"):
        with pytest.raises(ProtocolError):
            Call(TokenPrompt([1, 2]), stream=False, purpose=purpose).feed(Rendered(1, shown))
    c = Call(TokenPrompt([1, 2]), stream=False, purpose="render")
    c.feed(Rendered(1, shown))
    assert (c.done, c.error, c.rendered, c.prompt_tokens) == (True, None, shown, 2)
    refused = Call(TokenPrompt([1, 2]), stream=False, purpose="count")
    refused.feed(Failed(1, "PromptTooLong", "too long", {}))
    assert isinstance(refused.error, PromptTooLong)


@pytest.mark.parametrize(
    "frames",
    [
        [Tokens(1, 1, [3], "a")],
        [Tokens(1, 0, [3], "a"), Tokens(1, 0, [3], "a")],
        [Tokens(1, 0, [3], "a"), Tokens(1, 2, [3], "a")],
        [Accepted(1, [], 0), Accepted(1, [], 0)],
        [Tokens(1, 0, [3], "a"), Finished(1, "stop", 2, 2)],
        [Accepted(1, [], 0), Completed(1, "stop", 2, 2, 0, "a")],
    ],
)
def test_gaps_repeats_and_disorder_are_errors(frames: list[Tokens]) -> None:
    c = call()
    for frame in frames[:-1]:
        c.feed(frame)
    with pytest.raises(ProtocolError):
        c.feed(frames[-1])


def test_logprobs_gather_beside_the_tokens() -> None:
    c = call()
    c.feed(Tokens(1, 0, [3], "a"))
    assert c.logprobs is None
    entries = [TokenLogprobs(4, -0.5, []), TokenLogprobs(5, -0.25, [(5, -0.25)])]
    c.feed(Tokens(1, 1, [4], "b", entries[:1]))
    c.feed(Tokens(1, 2, [5], "c", entries[1:]))
    assert c.logprobs == entries


def test_a_continuation_counts_from_what_was_there() -> None:
    c = Call(TokenPrompt([1], [7, 8], 2))
    c.feed(Tokens(1, 2, [9], "c"))
    c.feed(Finished(1, "stop", 1, 3))
    assert c.token_ids == [9]


def test_a_failure_arrives_as_its_own_class_and_the_first_end_wins() -> None:
    c = call()
    c.feed(Failed(1, "PromptTooLong", "too long", {"limit": 5}))
    c.fail(Aborted("late"))
    assert isinstance(c.error, PromptTooLong)
    assert c.error.data == {"limit": 5}


def test_pings_go_out_at_intervals_while_there_is_something_to_wait_for() -> None:
    signs = Liveness()
    assert signs.due(0.0, busy=False) is None
    assert signs.due(100.0, busy=True) == 1
    assert signs.due(100.0 + PING_INTERVAL_S / 2, busy=True) is None
    assert signs.due(100.0 + PING_INTERVAL_S, busy=True) == 2


def test_a_worker_is_given_up_after_unanswered_probes_however_long_they_took() -> None:
    signs = Liveness()
    for n in range(MAX_UNANSWERED):
        signs.due(n * 1000.0, busy=True)
    assert not signs.unresponsive
    signs.due(1e9, busy=True)
    assert signs.unresponsive
    signs.heard()
    assert not signs.unresponsive


def test_a_request_that_the_worker_does_not_know_is_lost_unless_it_is_younger_than_the_ping() -> None:
    signs = Liveness()
    signs.due(100.0, busy=True)
    calls = [(1, 50.0), (2, 60.0), (3, 100.5)]
    assert signs.lost(1, live=[2], calls=calls) == [1]
    assert signs.lost(1, live=[], calls=calls) == []


def test_the_least_loaded_worker_is_chosen() -> None:
    views = [WorkerView(0, True, 1, 500), WorkerView(1, True, 3, 90), WorkerView(2, False, 0, 0)]
    assert choose(views) == 1
    assert choose(views, preferred=0) == 0
    assert choose(views, preferred=2) == 1
    assert choose([views[2]]) is None


def turns(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": [{"type": "text", "value": t}]} for n, t in enumerate(texts)]  # type: ignore[typeddict-item]


def test_a_conversation_goes_back_to_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    affinity = Affinity()
    affinity.remember(turns("a"), 3)
    assert affinity.preferred(turns("a")) is None
    assert affinity.preferred(turns("a", "whatever", "b")) == 3
    assert affinity.preferred(turns("x", "whatever", "b")) is None
    monkeypatch.setattr(routing, "MAX_REMEMBERED", 1)
    affinity.remember(turns("c"), 1)
    assert affinity.preferred(turns("a", "whatever", "b")) is None
