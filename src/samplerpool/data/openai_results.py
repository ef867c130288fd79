"""Output rows as lines of an OpenAI batch output file. Pure.

A line is ``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``. A request that was at
fault has status 400 and ``{"error": {"message", "type", "param", "code"}}`` as its body, one at which the engine failed
500; where no answer came at all, ``response`` is null and ``error`` has ``code`` and ``message``.
https://platform.openai.com/docs/api-reference/batch/request-output
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from samplerpool.data.json_text import from_json, to_json
from samplerpool.data.openai_requests import COMPLETION
from samplerpool.errors import EngineError, RequestError, SamplerPoolError, UsageError

_CODES = {"PromptTooLong": "context_length_exceeded", "UnsupportedParameter": "unsupported_parameter"}


@dataclass(frozen=True)
class AnsweredBy:
    """What all answers of a run have in common.

    Args:
        model: its name.
        fingerprint: of the model and how it was loaded.
        created: when the run began, in seconds since 1970.
        run_seed: from which the lines' ids are made, so that they are the same each time.
    """

    model: str
    fingerprint: str
    created: int
    run_seed: int


def result_lines(lines: Iterable[bytes], run: AnsweredBy) -> Iterator[bytes]:
    """A line a request, of output rows that are ordered by (row, sample)."""
    rows = (from_json(line) for line in lines)
    for _, samples in groupby(rows, key=lambda row: row["generation"]["index"]):
        yield to_json(_line(list(samples), run)) + b"\n"


def _line(samples: Sequence[Mapping[str, Any]], run: AnsweredBy) -> dict[str, Any]:
    first = samples[0]
    index = first["generation"]["index"]
    name = hashlib.blake2b(f"{run.run_seed}/{index}".encode(), digest_size=24).hexdigest()
    custom_id = first.get("custom_id")
    line: dict[str, Any] = {
        "id": f"batch_req_{name[:24]}",
        "custom_id": custom_id if isinstance(custom_id, str) else f"row-{index}",
        "response": None,
        "error": None,
    }
    answered = [row for row in samples if row["generation"]["error"] is None]
    if answered:
        line["response"] = _response(200, name, _body(answered, name, run))
        return line
    kind, _, message = first["generation"]["error"].partition(": ")
    error = SamplerPoolError.by_name.get(kind, SamplerPoolError)
    if issubclass(error, EngineError):
        line["response"] = _response(500, name, _error(message, "server_error", None))
    elif issubclass(error, RequestError | UsageError):
        line["response"] = _response(400, name, _error(message, "invalid_request_error", _CODES.get(kind)))
    else:
        line["error"] = {"code": kind, "message": message}
    return line


def _response(status: int, name: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": name[24:], "body": body}


def _error(message: str, kind: str, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _body(samples: Sequence[Mapping[str, Any]], name: str, run: AnsweredBy) -> dict[str, Any]:
    chat = samples[0].get("url") != COMPLETION
    prompt = samples[0]["generation"]["prompt_tokens"]
    completion = sum(row["generation"]["completion_tokens"] for row in samples)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{name[:24]}",
        "object": "chat.completion" if chat else "text_completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": run.fingerprint,
        "choices": [(_chat_choice if chat else _text_choice)(row, name) for row in samples],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def _chat_choice(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    generation, content = row["generation"], row["messages"][-1]["content"]
    texts, reasoning, calls = (
        [block["value"] for block in content if block["type"] == kind] for kind in ("text", "reasoning", "tool_call")
    )
    number = generation.get("sample", 0)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    message["refusal"] = None
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = [_call(value, f"call_{name[:20]}_{number}_{n}") for n, value in enumerate(calls)]
    reason = generation["finish_reason"]
    found = generation.get("logprobs")
    return {
        "index": number,
        "message": message,
        "logprobs": None if found is None else {"content": [_logprobs(entry) for entry in found], "refusal": None},
        "finish_reason": "tool_calls" if calls and reason == "stop" else reason,
    }


def _call(value: str, call_id: str) -> dict[str, Any]:
    call = json.loads(value)
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def _text_choice(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    generation = row["generation"]
    found = generation.get("logprobs")
    logprobs = None
    if found is not None:
        logprobs = {
            "tokens": [_token(entry["token_id"]) for entry in found],
            "token_logprobs": [entry["logprob"] for entry in found],
            "top_logprobs": [{_token(token): value for token, value in entry["top"]} for entry in found],
            "text_offset": None,
        }
    return {
        "index": generation.get("sample", 0),
        "text": generation["text"],
        "logprobs": logprobs,
        "finish_reason": generation["finish_reason"],
    }


def _logprobs(entry: Mapping[str, Any]) -> dict[str, Any]:
    top = [{"token": _token(token), "logprob": value, "bytes": None} for token, value in entry["top"]]
    return {"token": _token(entry["token_id"]), "logprob": entry["logprob"], "bytes": None, "top_logprobs": top}


def _token(token_id: int) -> str:
    """Clients know no texts of tokens. This is how vLLM writes ids in their place (``return_tokens_as_token_ids``)."""
    return f"token_id:{token_id}"
