"""The worker's request table, by its actions."""

from __future__ import annotations

from typing import Any

from samplerpool.config.arguments import ClientLimits
from samplerpool.engine.loop import Admitted, Prepared, RequestOutput
from samplerpool.errors import EngineError, PromptTooLong
from samplerpool.types import Message, PromptCount, RenderedPrompt, TokenLogprobs
from samplerpool.wire.messages import (
    Abort,
    Accepted,
    Completed,
    Count,
    Counted,
    Describe,
    Failed,
    Finished,
    Generate,
    Malformed,
    Ping,
    Pong,
    Render,
    Rendered,
    Stop,
    TokenPrompt,
    Tokens,
)
from samplerpool.worker.session import AbortRun, Report, Send, Session, Submit

A, B = b"client-a", b"client-b"


def request(request_id: int = 1, **changes: Any) -> Generate:
    return Generate(
        **{"request_id": request_id, "incarnation": "i1", "prompt": TokenPrompt([1]), "params": {}, **changes}
    )


def session(**limits: Any) -> Session:
    return Session("i1", ClientLimits(**limits))


def errors(actions: list[Any]) -> list[str]:
    return [r.error for a in actions if isinstance(a, Send) for r in a.replies if isinstance(r, Failed)]


def test_a_streamed_request_from_start_to_end() -> None:
    table = session()
    assert table.received(A, [request()], 0.0) == [Submit((1, 1), request())]
    assert table.produced([Admitted((1, 1), (9, 8), 42)]) == [Send(A, [Accepted(1, (9, 8), 42)])]
    assert table.produced([RequestOutput((1, 1), 0, [5], "a")]) == [Send(A, [Tokens(1, 0, [5], "a")])]
    last = RequestOutput((1, 1), 1, [6], "b", "stop", None, 2)
    assert table.produced([last]) == [Send(A, [Tokens(1, 1, [6], "b"), Finished(1, "stop", 2, 2, None)])]
    assert table.live == 0
    assert table.produced([last]) == []


def test_without_streaming_one_frame_comes_at_the_end() -> None:
    table = session()
    table.received(A, [request(stream=False)], 0.0)
    assert table.produced([Admitted((1, 1), (9, 8), 42)]) == []
    assert table.produced([RequestOutput((1, 1), 0, [5], "a"), RequestOutput((1, 1), 1, [6], "b")]) == []
    assert table.produced([RequestOutput((1, 1), 2, [7], "c", "length", None, 3)]) == [
        Send(A, [Completed(1, "length", 2, 3, 42, "abc")])
    ]


def test_a_prompt_that_is_only_counted_is_a_request_like_any_other_and_ends_once() -> None:
    table = session(max_queue=2)
    counts = [Count(number, "i1", TokenPrompt([1]), {}) for number in (1, 2, 3)]
    *taken, refused = table.received(A, counts, 0.0)
    assert taken == [Submit((1, 1), counts[0]), Submit((1, 2), counts[1])]
    assert errors([refused]) == ["QueueFull"]
    found = PromptCount(7, 128, 2048, [("<eos>", "message 1 (user)")])
    too_long = RequestOutput((1, 2), 0, (), "", "error", PromptTooLong("too long"))
    (sent,) = table.produced([Prepared((1, 1), found), too_long])
    assert sent.replies[0] == Counted(1, found)
    assert errors([sent]) == ["PromptTooLong"]
    assert (table.produced([Prepared((1, 1), found)]), table.live) == ([], 0)
    assert errors(table.received(A, [Count(4, "i0", TokenPrompt([1]), {})], 0.0)) == ["WrongIncarnation"]


def test_a_prompt_that_is_only_shown_ends_with_its_tokens() -> None:
    table = session(max_queue=1)
    asked = Render(1, "i1", TokenPrompt([1]))
    taken, refused = table.received(A, [asked, Render(2, "i1", TokenPrompt([1]))], 0.0)
    assert taken == Submit((1, 1), asked)
    assert errors([refused]) == ["QueueFull"]
    shown = RenderedPrompt((1,), ["a"])
    assert table.produced([Prepared((1, 1), shown)]) == [Send(A, [Rendered(1, shown)])]
    assert (table.produced([Prepared((1, 1), shown)]), table.live) == ([], 0)


def test_an_answer_that_begins_inside_its_reasoning_is_accepted_as_such() -> None:
    table = session()
    table.received(A, [request()], 0.0)
    assert table.produced([Admitted((1, 1), (9, 8), 42, True)]) == [Send(A, [Accepted(1, (9, 8), 42, True)])]


def test_without_streaming_the_text_that_a_continuation_held_back_comes_without_tokens() -> None:
    table = session()
    table.received(A, [request(stream=False)], 0.0)
    assert table.produced([RequestOutput((1, 1), 4, (), "held", "length", None, 4)]) == [
        Send(A, [Completed(1, "length", 0, 4, 0, "held")])
    ]


def test_without_streaming_a_message_that_is_but_the_text_is_not_sent_twice() -> None:
    table = session()
    table.received(A, [request(number, stream=False) for number in (1, 2, 3)], 0.0)
    plain: Message = {"role": "assistant", "content": [{"type": "text", "value": "a"}]}
    marked: Message = {**plain, "parse_error": "not JSON"}
    called: Message = {"role": "assistant", "content": [{"type": "tool_call", "value": "a"}]}
    ends = [
        RequestOutput((1, number), 0, [5], "a", "stop", None, 1, message)
        for number, message in enumerate((plain, marked, called), 1)
    ]
    assert table.produced(ends) == [
        Send(A, [Completed(n, "stop", 0, 1, 0, "a", message) for n, message in ((1, None), (2, marked), (3, called))])
    ]


def test_logprobs_travel_with_their_tokens() -> None:
    table = session()
    table.received(A, [request(1), request(2, stream=False)], 0.0)
    one, two = TokenLogprobs(5, -0.5, [(5, -0.5)]), TokenLogprobs(6, -0.25, [])
    assert table.produced(
        [RequestOutput((1, 1), 0, [5], "a", logprobs=[one]), RequestOutput((1, 2), 0, [5], "a", logprobs=[one])]
    ) == [Send(A, [Tokens(1, 0, [5], "a", [one])])]
    assert table.produced([RequestOutput((1, 2), 1, [6], "b", "length", None, 2, logprobs=[two])]) == [
        Send(A, [Completed(2, "length", 0, 2, 0, "ab", None, [one, two])])
    ]


def test_an_abort_ends_a_request_once() -> None:
    table = session()
    table.received(A, [request()], 0.0)
    actions = table.received(A, [Abort(1)], 0.0)
    assert actions[0] == AbortRun((1, 1))
    assert errors(actions) == ["Aborted"]
    assert table.received(A, [Abort(1), Abort(77)], 0.0) == []
    assert table.produced([RequestOutput((1, 1), 0, [5], "a", "stop", None, 1)]) == []


def test_clients_do_not_see_each_other() -> None:
    table = session()
    table.received(A, [request()], 0.0)
    assert table.received(B, [Abort(1)], 0.0) == []
    assert table.received(B, [request()], 0.0) == [Submit((2, 1), request())]
    assert table.received(B, [Ping(3)], 0.0, steps=5) == [Send(B, [Pong(3, "i1", 5, [1])])]


def test_refusals() -> None:
    table = session(max_queue_per_client=1)
    assert errors(table.received(A, [request(incarnation="old")], 0.0)) == ["WrongIncarnation"]
    assert errors(table.received(A, [request(2), request(3), request(2)], 0.0)) == ["QueueFull", "ProtocolError"]
    table.draining = True
    assert errors(table.received(A, [request(4)], 0.0)) == ["WorkerDraining"]


def test_a_malformed_frame_costs_its_sender_that_frame_alone() -> None:
    table = session()
    table.received(A, [request(1)], 0.0)
    (action,) = table.received(A, [Malformed(1, "bad")], 0.0)
    assert isinstance(action, Send)
    (reply,) = action.replies
    assert isinstance(reply, Failed)
    assert reply.request_id == 0
    assert table.live == 1
    assert errors(table.received(A, [Malformed(2, "bad"), request(3)], 0.0)) == ["ProtocolError"]
    assert table.live == 2


def test_a_refused_frame_with_the_id_of_a_live_request_does_not_end_that_one() -> None:
    table = session()
    table.received(A, [request(1)], 0.0)
    actions = table.received(A, [request(1), request(1, incarnation="old"), Stop(1, 0.0)], 0.0)
    replies = [reply for action in actions if isinstance(action, Send) for reply in action.replies]
    assert [reply.request_id for reply in replies if isinstance(reply, Failed)] == [0, 0, 0]
    assert table.live == 1


def test_an_error_of_the_engine_is_terminal() -> None:
    table = session()
    table.received(A, [request()], 0.0)
    (action,) = table.produced([RequestOutput((1, 1), 0, (), "", "error", EngineError("broke", token=3))])
    assert action == Send(A, [Failed(1, "EngineError", "broke", {"token": 3, "request": "1.1"})])


def test_errors_of_requests_that_were_taken_tell_how_the_log_names_them() -> None:
    table = Session("i1", worker="w3")
    table.received(A, [request(4), request(5)], 0.0)
    [_, aborted] = table.received(A, [Abort(4)], 0.0)
    [broken] = table.produced([RequestOutput((1, 5), 0, (), "", "error", EngineError("broke"))])
    told = [action.replies[0].data for action in (aborted, broken) if isinstance(action, Send)]  # type: ignore[union-attr]
    assert told == [{"request": "w3.1.4"}, {"request": "w3.1.5"}]


def test_a_lease_is_renewed_by_anything_and_lapses_in_silence() -> None:
    table = session(lease_s=60)
    table.received(A, [request()], 0.0)
    table.received(B, [request()], 0.0)
    table.received(B, [Ping(1)], 50.0)
    actions = table.tick(61.0)
    assert actions[0] == AbortRun((1, 1))
    assert errors(actions) == ["LeaseExpired"]
    assert table.clients == 1
    assert table.tick(100.0) == []


def test_a_vanished_client_takes_its_requests_along() -> None:
    table = session()
    table.received(A, [request(1), request(2)], 0.0)
    assert table.unreachable(A) == [AbortRun((1, 1)), AbortRun((1, 2))]
    assert table.unreachable(A) == []
    assert table.live == table.clients == 0


def test_describe_is_reported_and_stop_fails_what_is_left() -> None:
    table = session()
    assert table.received(A, [Describe(4), request(5)], 0.0)[0] == Report(A, 4)
    assert errors(table.stop("The worker is stopping.")) == ["WorkerDraining"]
    assert errors(table.received(A, [request(6)], 0.0)) == ["WorkerDraining"]


# ---- limits ---------------------------------------------------------------------------------------------------------


def refusals(actions: list[Any]) -> list[tuple[str, Any]]:
    """Error class, and the limit that it names, of each refused request."""
    failed = [r for a in actions if isinstance(a, Send) for r in a.replies if isinstance(r, Failed)]
    return [(reply.error, reply.data.get("limited")) for reply in failed]


def test_the_queue_is_bounded_for_each_client_and_for_all() -> None:
    table = session(max_queue=3, max_queue_per_client=2)
    actions = table.received(A, [request(1), request(2), request(3)], 0.0)
    assert refusals(actions) == [("QueueFull", "max_queue_per_client")]
    assert refusals(table.received(B, [request(1), request(2)], 0.0)) == [("QueueFull", "max_queue")]
    table.received(A, [Abort(1)], 0.0)
    assert refusals(table.received(B, [request(3)], 0.0)) == []
    assert (table.live, table.refused) == (3, 2)


def test_the_bytes_of_the_queue_are_bounded_and_given_back_however_a_request_ends() -> None:
    table = session(max_queue_bytes=100, max_queue_bytes_per_client=60)
    actions = table.received(A, [request(1, size_bytes=40), request(2, size_bytes=30), request(3, size_bytes=20)], 0.0)
    assert refusals(actions) == [("QueueFull", "max_queue_bytes_per_client")]
    actions = table.received(B, [request(1, size_bytes=41), request(2, size_bytes=40)], 0.0)
    assert refusals(actions) == [("QueueFull", "max_queue_bytes")]
    assert table.queued_bytes == 100
    table.produced([RequestOutput((1, 1), 0, [5], "a", "stop", None, 1)])
    table.received(A, [Abort(3)], 0.0)
    assert table.queued_bytes == 40
    table.unreachable(B)
    assert (table.queued_bytes, table.live) == (0, 0)


def test_a_request_that_no_queue_could_hold_is_not_worth_a_retry() -> None:
    assert refusals(session(max_request_bytes=50).received(A, [request(1, size_bytes=51)], 0.0)) == [
        ("PromptTooLong", None)
    ]
    table = session(max_queue_bytes=100, max_queue_bytes_per_client=60)
    (action,) = table.received(A, [request(1, size_bytes=61)], 0.0)
    assert isinstance(action, Send)
    (reply,) = action.replies
    assert isinstance(reply, Failed)
    assert (reply.error, reply.data) == ("PromptTooLong", {"bytes": 61, "limit": 60})


def test_a_refusal_says_what_is_held_and_what_the_limit_is() -> None:
    table = session(max_queue_per_client=1)
    (_, action) = table.received(A, [request(1), request(2)], 0.0)
    assert isinstance(action, Send)
    (reply,) = action.replies
    assert isinstance(reply, Failed)
    assert "1 unfinished requests; the limit is 1 (--max-queue-per-client)" in reply.message
    assert reply.data == {"limited": "max_queue_per_client", "held": 1, "limit": 1}


def test_idle_clients_make_room_for_new_ones_and_busy_ones_do_not() -> None:
    table = session(max_clients=2)
    table.received(A, [request(1)], 0.0)
    table.received(B, [Ping(1)], 1.0)
    assert refusals(table.received(b"client-c", [request(1)], 2.0)) == []
    assert table.clients == 2
    assert refusals(table.received(b"client-d", [request(1)], 3.0)) == [("QueueFull", "max_clients")]
    assert refusals(table.received(b"client-e", [request(1)], 4.0)) == [("QueueFull", "max_clients")]
    assert (table.clients, table.live) == (3, 2)
    table.produced([RequestOutput((1, 1), 0, [5], "a", "stop", None, 1)])
    assert refusals(table.received(b"client-f", [request(1)], 5.0)) == []


def test_idle_clients_are_forgotten_after_their_lease() -> None:
    table = session(lease_s=60)
    for number in range(100):
        table.received(b"client-%d" % number, [Ping(1)], number / 100)
    assert table.clients == 100
    assert table.tick(60.5) == []
    assert table.clients == 50
    assert table.tick(61.5) == []
    assert table.clients == 0


def test_a_client_that_does_not_read_is_told_once_for_each_request_that_lost_something() -> None:
    table = session(max_unread_bytes=1000)
    table.received(A, [request(2), request(3)], 0.0)
    table.received(B, [request(1)], 0.0)
    actions = table.overflowed(A, [1, 2], 1234)
    assert errors(actions) == ["ClientTooSlow"] * 3
    told = [r.request_id for a in actions if isinstance(a, Send) for r in a.replies if isinstance(r, Failed)]
    assert sorted(told) == [1, 2, 3]
    assert [action for action in actions if isinstance(action, AbortRun)] == [AbortRun((1, 2)), AbortRun((1, 3))]
    assert table.live == 1
    assert errors(table.overflowed(b"unknown", [7], 1234)) == ["ClientTooSlow"]


def test_entries_without_an_id_are_answered_once_a_message() -> None:
    table = session()
    bad = [Malformed(0, "bad")] * 1000
    assert errors(table.received(A, [*bad, Malformed(5, "bad"), *bad], 0.0)) == ["ProtocolError"] * 2
    assert table.malformed == 2001


def test_a_revoked_key_ends_its_requests_and_no_others() -> None:
    table = session()
    table.received(A, [request(1), request(2)], 0.0, key="ka")
    table.received(B, [request(1)], 0.0, key="kb")
    actions = table.revoke(lambda key: key != "ka")
    assert [a for a in actions if isinstance(a, AbortRun)] == [AbortRun((1, 1)), AbortRun((1, 2))]
    assert errors(actions) == ["AccessDenied", "AccessDenied"]
    assert (table.live, table.remembers(A), table.remembers(B)) == (1, False, True)
    assert table.revoke(lambda key: key != "ka") == []
    assert table.revoke(lambda key: True) == []


def test_without_keys_nobody_is_revoked() -> None:
    table = session()
    table.received(A, [request()], 0.0)
    assert table.revoke(lambda key: False) == []


def test_what_a_revoked_client_still_sends_is_not_looked_at() -> None:
    table = session()
    table.received(A, [request(1)], 0.0, key="ka")
    actions = table.denied(A)
    assert actions[0] == AbortRun((1, 1))
    told = [reply for a in actions if isinstance(a, Send) for reply in a.replies if isinstance(reply, Failed)]
    assert [(reply.request_id, reply.error) for reply in told] == [(1, "AccessDenied"), (0, "AccessDenied")]
    assert (table.live, table.clients) == (0, 0)
    assert errors(table.denied(A)) == ["AccessDenied"]
