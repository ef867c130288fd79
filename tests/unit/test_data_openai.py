"""OpenAI batch files: requests in, results out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samplerpool.batch.events import Answered, Assign, Emit, InputEnded, RequestFailed, RowsRead, WorkerUp
from samplerpool.batch.formats import OutputFormat
from samplerpool.batch.manifest import Manifest
from samplerpool.batch.state import BatchState
from samplerpool.data.answers import Answer, RowResult, output_row, row_seed
from samplerpool.data.collection import DataCollection
from samplerpool.data.json_text import to_json
from samplerpool.data.openai_requests import CHAT, COMPLETION, is_request
from samplerpool.data.openai_results import AnsweredBy, result_lines
from samplerpool.data.per_row import request_params, with_checked_params
from samplerpool.data.rows import Row, row_from
from samplerpool.errors import EngineError, InvalidParameter, PromptTooLong, UnsupportedParameter, WorkerDied
from samplerpool.types import TokenLogprobs

ASK = [{"role": "user", "content": "2+2?"}]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
RUN = AnsweredBy("small", "fp_1", 1700000000, 7)


def line(body: dict[str, Any], url: str = CHAT, custom_id: str = "a", **more: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "gpt-4o-mini", **body}, **more}


def made(columns: dict[str, Any]) -> Row:
    return row_from(columns, 0, "in.jsonl, line 1")


@pytest.mark.parametrize(
    ("body", "params"),
    [
        ({}, {}),
        ({"max_tokens": 5, "user": "me", "stop": None}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 5, "seed": 3, "stop": "x"}, {"max_new_tokens": 5, "seed": 3, "stop": ["x"]}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9, "do_sample": True}),
        ({"temperature": 0}, {"temperature": 0.0, "do_sample": False}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": False, "stream": False, "response_format": {"type": "text"}}, {}),
        ({"n": 2, "logit_bias": {"5": -1}}, {"num_return_sequences": 2, "logit_bias": {"5": -1.0}}),
        ({"min_p": 0.1, "min_tokens": 2, "top_k": 4}, {"min_p": 0.1, "min_new_tokens": 2, "top_k": 4}),
    ],
)
def test_a_request_brings_its_own_parameters(body: dict[str, Any], params: dict[str, Any]) -> None:
    row = made(line({"messages": ASK, **body}))
    assert row.error is None
    assert row.params == params
    assert row.messages == [{"role": "user", "content": [{"type": "text", "value": "2+2?"}]}]


def test_tools_and_their_choice() -> None:
    assert made(line({"messages": ASK, "tools": TOOLS, "tool_choice": "auto"})).tools == json.dumps(TOOLS)
    assert made(line({"messages": ASK, "tools": TOOLS, "tool_choice": "none"})).tools is None


@pytest.mark.parametrize("prompt", ["2+2?", ["2+2?"]])
def test_a_completion_s_prompt_is_one_user_turn(prompt: Any) -> None:
    row = made(line({"prompt": prompt, "logprobs": 2}, COMPLETION))
    assert row.messages[0]["content"][0]["value"] == "2+2?"
    assert row.params == {"logprobs": 2}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            line({"messages": ASK, "reasoning_effort": "low", "verbosity": 1}),
            "body.reasoning_effort, body.verbosity",
        ),
        (line({"messages": ASK, "stream": True}), "body.stream = true cannot be honoured, only false."),
        (line({"messages": ASK, "tool_choice": "required"}), 'only "auto" or "none"'),
        (line({"messages": ASK, "response_format": {"type": "json_object"}}), "body.response_format = "),
        (line({"messages": ASK, "temperature": 500}), "body: temperature must be at least 0"),
        (line({"messages": ASK, "temperature": "hot"}), "body: temperature must be a number"),
        (line({"messages": ASK, "max_tokens": 5, "max_completion_tokens": 6}), "another name of max_new_tokens differ"),
        (line({"messages": ASK, "top_logprobs": 5}), "needs body.logprobs"),
        (line({"messages": ASK, "logprobs": 5}), "must be true or false, not 5"),
        (line({"prompt": "x"}), "needs messages"),
        (line({"messages": ASK}, COMPLETION), "needs prompt, one text"),
        (line({"prompt": ["x", "y"]}, COMPLETION), "needs prompt, one text"),
        (line({"prompt": "x", "echo": True}, COMPLETION), "body.echo = true"),
        (line({"input": "x"}, "/v1/embeddings"), "url must be /v1/chat/completions or /v1/completions"),
        (line({"messages": []}), "no messages"),
        (line({"messages": ASK}, method="GET"), "method must be POST"),
    ],
)
def test_what_cannot_be_honoured_is_the_row_s_error(columns: dict[str, Any], words: str) -> None:
    row = made(columns)
    assert row.error is not None
    assert words in row.error.message
    assert row.error.message.startswith("in.jsonl, line 1: ")
    assert row.columns == columns


def test_which_rows_are_requests(tmp_path: Path) -> None:
    assert is_request(line({}))
    assert is_request({**line({}), "body": "{}"})
    assert not is_request({"url": "https://x", "body": "a text"})
    assert not is_request({"body": {}, "prompt": "x"})
    assert not is_request({**line({}), "messages": ASK})  # an answered one
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(line({"messages": ASK})) + "\n")
    notes: list[str] = []
    with DataCollection.open(path, note=notes.append) as data:
        assert [row.params for row in data.rows()] == [{}]
    (note,) = notes
    assert note.startswith(
        f"{path}: converter openai_batch, chosen by the columns custom_id, method, url, body; the pool's"
    )


def test_a_column_that_is_called_like_them_is_none() -> None:
    assert made({"prompt": "x", "_sampling": {"temperature": 5}}).params is None
    by_function = row_from({"q": "x"}, 0, "row", lambda c: {"messages": c["q"], "_sampling": {"max_tokens": 3}})
    assert by_function.params == {"max_new_tokens": 3}
    wrong = row_from({"q": "x"}, 0, "row", lambda c: {"messages": c["q"], "_sampling": {"hot": 3}})
    assert "Unknown sampling parameter 'hot'" in str(wrong.error)


# ---- with the run's -------------------------------------------------------------------------------------------------


def test_the_row_s_parameters_go_over_the_run_s() -> None:
    run = {"temperature": 0.3, "max_new_tokens": 9}
    assert request_params(run, made({"prompt": "x"}), 0, 5) == {**run, "seed": 5}
    row = made(line({"messages": ASK, "max_tokens": 2, "seed": 8, "n": 2}))
    assert request_params(run, row, 0, 5) == {"temperature": 0.3, "max_new_tokens": 2, "seed": 8}
    assert request_params(run, row, 1, 5)["seed"] == row_seed(8, 0, 1)


def test_rows_that_do_not_go_with_the_run() -> None:
    bodies: list[dict[str, Any]] = [{"n": 2}, {}, {"n": 1}, {"max_tokens": 3}]
    rows = [made(line({"messages": ASK, **body})) for body in bodies]
    found = list(with_checked_params(rows, {"min_new_tokens": 4}, 1))
    assert [row.error is None for row in found] == [False, True, True, False]
    assert "run it with --n 2" in str(found[0].error)
    assert "min_new_tokens must be at most max_new_tokens" in str(found[3].error)


def test_a_parameter_of_one_row_that_the_engine_refuses_stops_nobody_else() -> None:
    own, other = made(line({"messages": ASK, "min_p": 0.1})), row_from({"prompt": "x"}, 1, "row")
    for parameter, outcome in (("min_p", "complete"), ("top_k", "failed")):
        state = BatchState(7)
        actions = state.handle(WorkerUp(0, 4), RowsRead([own, other]), InputEnded())
        (assigned,) = [action for action in actions if isinstance(action, Assign)]
        refused = UnsupportedParameter("no", parameter=parameter)
        answer = Answer("x", "stop", 1, 1, 1, None)
        actions = state.handle(RequestFailed(0, assigned.jobs[0], refused), Answered(0, assigned.jobs[1], answer))
        assert [type(action).__name__ for action in actions] == ["Emit", "Emit", "Finish"]
        assert actions[-1].outcome == outcome  # type: ignore[union-attr]
        first = actions[0]
        assert isinstance(first, Emit)
        assert first.result.transient == (outcome == "failed")


# ---- results --------------------------------------------------------------------------------------------------------


def answered(row: Row, text: str = "4", sample: int = 0, **more: Any) -> RowResult:
    return RowResult(row, sample, 5, Answer(text, "stop", 3, 2, 5, more.get("message"), more.get("logprobs")))


def results(*found: RowResult, samples: int = 1) -> list[dict[str, Any]]:
    lines = [to_json(output_row(result, samples)) for result in found]
    return [json.loads(text) for text in result_lines(lines, RUN)]


def test_an_answer_in_openai_s_form() -> None:
    (found,) = results(answered(made(line({"messages": ASK}))))
    identity = found["id"].removeprefix("batch_req_")
    assert found == {
        "id": f"batch_req_{identity}",
        "custom_id": "a",
        "response": {
            "status_code": 200,
            "request_id": found["response"]["request_id"],
            "body": {
                "id": f"chatcmpl-{identity}",
                "object": "chat.completion",
                "created": 1700000000,
                "model": "small",
                "system_fingerprint": "fp_1",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "4", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            },
        },
        "error": None,
    }
    assert results(answered(made(line({"messages": ASK})))) == [found]  # the same ids each time


def test_reasoning_tool_calls_and_logprobs() -> None:
    call = {"type": "tool_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Köln"}})}
    message = {"role": "assistant", "content": [{"type": "reasoning", "value": "Hm."}, call, call]}
    logprobs = [TokenLogprobs(5, -0.5, [(5, -0.5), (7, -1.5)])]
    (found,) = results(answered(made(line({"messages": ASK})), message=message, logprobs=logprobs))
    (choice,) = found["response"]["body"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "Hm."
    calls = choice["message"]["tool_calls"]
    assert [each["function"] for each in calls] == [{"name": "weather", "arguments": '{"city": "Köln"}'}] * 2
    assert len({each["id"] for each in calls}) == 2
    top = [
        {"token": "token_id:5", "logprob": -0.5, "bytes": None},
        {"token": "token_id:7", "logprob": -1.5, "bytes": None},
    ]
    assert choice["logprobs"]["content"] == [{**top[0], "top_logprobs": top}]


def test_a_completion_and_several_samples() -> None:
    row = made(line({"prompt": "x"}, COMPLETION))
    (found,) = results(answered(row, "u", 0), answered(row, "v", 1), samples=2)
    body = found["response"]["body"]
    assert body["object"] == "text_completion"
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "u"), (1, "v")]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_errors_in_openai_s_form() -> None:
    row = made(line({"messages": ASK}))
    bad = made(line({"messages": ASK, "stream": True}))
    errors = [PromptTooLong("too long"), InvalidParameter("no"), EngineError("broke"), WorkerDied("gone: twice")]
    rows = [bad, *(Row(index, row.columns, row.messages) for index in range(1, 5))]
    found = results(*(RowResult(r, 0, 5, error=e) for r, e in zip(rows, [bad.error, *errors], strict=True)))
    assert [line["error"] for line in found] == [None] * 4 + [{"code": "WorkerDied", "message": "gone: twice"}]
    assert [line["response"] and line["response"]["status_code"] for line in found] == [400, 400, 400, 500, None]
    assert found[1]["response"]["body"]["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }
    assert "body.stream = true" in found[0]["response"]["body"]["error"]["message"]


def test_rows_that_were_no_requests_have_ids_as_well(tmp_path: Path) -> None:
    rows = [Row(3), made({"prompt": "x", "custom_id": 5})]
    found = results(RowResult(rows[0], 0, None, error=PromptTooLong("x")), answered(rows[1]))
    assert [line["custom_id"] for line in found] == ["row-3", "row-0"]
    assert OutputFormat.of(tmp_path / "out.jsonl.gz", "openai").name == "openai.gz"
    assert OutputFormat.of(tmp_path / "out.jsonl", "openai").most_bytes(100, 1) > 1000
    manifest = Manifest("in", 1, None, None, None, {}, {"name": "m"}, "1", 7, created=5)
    assert manifest.changes(Manifest("in", 1, None, None, None, {}, {"name": "m"}, "1", 7, created=6)) == []
