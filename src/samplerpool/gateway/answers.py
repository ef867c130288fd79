"""Whole answers as objects of OpenAI's interface. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samplerpool.data.answers import Answer
from samplerpool.gateway.logprobs import Pieces, chat_logprobs, text_logprobs
from samplerpool.types import Message


@dataclass(frozen=True)
class Heading:
    """What all objects of one response have in common.

    Args:
        name: unique; ids are made of it.
        created: seconds since 1970.
        model: the name by which it was asked for.
    """

    chat: bool
    name: str
    created: int
    model: str

    @property
    def id(self) -> str:
        """Of the response."""
        return f"{'chatcmpl' if self.chat else 'cmpl'}-{self.name}"

    def call_id(self, choice: int, number: int) -> str:
        """Of a tool call."""
        return f"call_{self.name[:20]}_{choice}_{number}"


def response(heading: Heading, answers: Sequence[Answer], prompts: int, pieces: Pieces, echo: Sequence[str]) -> Any:
    """The body of a response that comes as a whole.

    Args:
        answers: to all prompts, the first one's first.
        prompts: how many there are.
        pieces: texts of all tokens in log-probabilities.
        echo: what each answer's text begins with; empty for nothing.
    """
    chat = heading.chat
    choices = [
        _chat_choice(heading, number, answer, pieces)
        if chat
        else _text_choice(number, answer, pieces, echo[number] if echo else "")
        for number, answer in enumerate(answers)
    ]
    return {
        "id": heading.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": heading.created,
        "model": heading.model,
        "system_fingerprint": None,
        "choices": choices,
        "usage": usage(answers, prompts),
    }


def usage(answers: Sequence[Answer], prompts: int) -> dict[str, int]:
    """Tokens in and out; each prompt counts once, however many answers it has."""
    prompt = sum(answer.prompt_tokens for answer in answers[:: len(answers) // prompts])
    completion = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def finish_reason(answer: Answer, calls: Sequence[str]) -> str:
    """Why it ended, in OpenAI's words."""
    return "tool_calls" if calls and answer.finish_reason == "stop" else answer.finish_reason


def values_of(message: Message | None, kind: str) -> list[str]:
    """The values of a message's blocks of one kind."""
    return [] if message is None else [block["value"] for block in message["content"] if block["type"] == kind]


def tool_call(value: str, call_id: str) -> dict[str, Any]:
    """A call, of the JSON as the model wrote it."""
    call = json.loads(value)
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def _chat_choice(heading: Heading, number: int, answer: Answer, pieces: Pieces) -> dict[str, Any]:
    texts, reasoning, calls = (values_of(answer.message, kind) for kind in ("text", "reasoning", "tool_call"))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(texts) if texts or not calls else None,
        "refusal": None,
    }
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = [tool_call(value, heading.call_id(number, n)) for n, value in enumerate(calls)]
    return {
        "index": number,
        "message": message,
        "logprobs": None if answer.logprobs is None else chat_logprobs(answer.logprobs, pieces),
        "finish_reason": finish_reason(answer, calls),
        "seed": answer.seed,
    }


def _text_choice(number: int, answer: Answer, pieces: Pieces, echo: str) -> dict[str, Any]:
    return {
        "index": number,
        "text": echo + answer.text,
        "logprobs": None if answer.logprobs is None else text_logprobs(answer.logprobs, pieces),
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
    }
