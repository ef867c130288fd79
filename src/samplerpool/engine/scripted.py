"""An engine without a model: it says what the prompt tells it to, at a given pace, and misbehaves on demand.

For tests, load tests and benchmarks of everything above an engine. Tokens are UTF-8 bytes, so that characters are
split over tokens as with real vocabularies; 256 ends the sequence. The last message of the user, or of a tool, may hold
directives:

=====================  =================================================================================
``[[tokens:N]]``       answer with N tokens of filler text
``[[random:N]]``       answer with N letters drawn by the request's seed
``[[say:TEXT]]``       answer with TEXT
``[[pace:SECONDS]]``   at least so long between two tokens of this request
``[[fail]]``           this request fails with an ``EngineError``; also ``[[fail:N]]``, after N tokens
``[[raise:N]]``        the step raises after N tokens (default 0), which fails all its requests
``[[crash:N]]``        the process ends without a word after N tokens
``[[hang:N]]``         the step never returns after N tokens
=====================  =================================================================================

Anything else is echoed. Log-probabilities are made up: token id i has -(i + 1) / 100.

Options of the engine: ``step_s`` (duration of a step), ``load_s`` (time to become ready),
``tokens`` (length of every answer without a directive), ``fail_at_start`` (never becomes ready).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from samplerpool.config.arguments import EngineConfig
from samplerpool.config.sampling import BASE_ADAPTER, PARAMS
from samplerpool.engine.base import (
    INTERACTIVE,
    EngineRequest,
    EngineStats,
    RequestId,
    StepOutput,
    check_prompt,
    check_supported,
)
from samplerpool.errors import EngineError, InvalidParameter, RenderError, StartFailed
from samplerpool.rendering.parsing import DEFAULT_TAGS, inside_reasoning, parse_message
from samplerpool.types import MEDIA_TYPES, Message, TokenLogprobs

END_OF_SEQUENCE = 256
DEFAULT_MODEL_LEN = 32768
CRASH_EXIT_CODE = 70
MAX_STEP_WAIT_S = 0.02
UNSUPPORTED = frozenset(
    {
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "no_repeat_ngram_size",
        "logit_bias",
        "bad_words",
        "min_new_tokens",
    }
)
"""Parameters that would change what the script says."""
_TURN = re.compile(r"(?:^|\n)<(?:user|tool)>")
_ANSWER_TURN = "\n<assistant>"
_THINK_TAG = DEFAULT_TAGS.think[0]
_FILLER = b"The quick brown fox jumps over the lazy dog. "
_DIRECTIVE = re.compile(r"\[\[(\w+)(?::(.*?))?\]\]", re.DOTALL)
_OPTIONS = {"step_s": 0.0, "load_s": 0.0, "tokens": 0, "fail_at_start": False}


class ByteCodec:
    """Bytes as tokens."""

    eos_token_ids = frozenset({END_OF_SEQUENCE})

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode("utf-8", "replace"))

    encode_prompt = encode

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of these bytes; the end of the sequence shows as ``<eos>`` where special tokens are asked for."""
        try:
            return bytes(token_ids).decode("utf-8", "replace")
        except ValueError:  # the end of the sequence is no byte
            end = b"" if skip_special_tokens else b"<eos>"
            data = b"".join(end if t == END_OF_SEQUENCE else bytes((t,)) for t in token_ids)
            return data.decode("utf-8", "replace")

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """A character or ``<0xE2>`` for each byte."""
        shown = {token_id: f"<0x{token_id:02X}>" if token_id >= 0x80 else chr(token_id) for token_id in set(token_ids)}
        return [{**shown, END_OF_SEQUENCE: "<eos>"}[token_id] for token_id in token_ids]


class ScriptedRenderer:
    """Messages as lines of ``<role>text``; the engine reads its directives from the last ``<user>``.

    With the template option ``enable_thinking`` the prompt ends with the opening tag of reasoning.
    """

    def __init__(self) -> None:
        self.codec = ByteCodec()

    def prompt_ids(self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Bytes of the prompt."""
        if not messages:
            raise RenderError("There is no message to answer.")
        thinking = _THINK_TAG if options.get("enable_thinking") is True else ""
        return tuple(f"{''.join(map(self._line, messages))}<assistant>{thinking}".encode("utf-8", "replace"))

    def _line(self, message: Message) -> str:
        for block in message["content"]:
            if block["type"] in MEDIA_TYPES:
                raise RenderError(f"The scripted engine takes text only, not a block of type {block['type']!r}.")
        return f"<{message['role']}>" + "".join(block["value"] for block in message["content"]) + "\n"

    def escaped(
        self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any]
    ) -> list[tuple[str, str]]:
        """Nothing: no text is a special token here."""
        return []

    needs_special_tokens = False
    media_kinds: frozenset[str] = frozenset()
    answer_tags: Mapping[str, Sequence[str]] = {"think": DEFAULT_TAGS.think, "tool_call": DEFAULT_TAGS.tool_call}
    hidden_tags: Sequence[str] = ()

    def prefill_ids(self, text: str) -> tuple[int, ...]:
        """Its bytes."""
        return tuple(text.encode("utf-8", "replace"))

    def reasoning_open(self, prompt_ids: Sequence[int], prefill: str) -> bool:
        """Whether the opening tag stands there last."""
        is_open = tuple(prompt_ids[-len(_THINK_TAG) :]) == tuple(_THINK_TAG.encode())
        return inside_reasoning(prefill, DEFAULT_TAGS.think, is_open=is_open)

    def media_prompt(
        self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any], prefill: str
    ) -> NoReturn:
        """Refused, as in ``prompt_ids``."""
        raise RenderError("The scripted engine takes text only.")

    def parse_message(self, text: str, prompt_ids: Sequence[int] = ()) -> Message:
        """Its reasoning, text and tool calls, by the usual tags."""
        return parse_message(text, reasoning_is_open=self.reasoning_open(prompt_ids, ""))


@dataclass
class _Script:
    """What one prompt asks for. ``misdeeds``: name to the number of tokens after which it happens."""

    answer: bytes
    pace_s: float = 0.0
    misdeeds: dict[str, int] = field(default_factory=dict)


def read_script(prompt: str, seed: int, default_tokens: int = 0) -> _Script:
    """The script in a rendered prompt. Pure.

    Raises:
        InvalidParameter: a directive that does not exist, or with a value that it cannot take.
    """
    said = _TURN.split(prompt)[-1].partition(_ANSWER_TURN)[0].rstrip("\n")
    if "[[" not in said:
        return _Script(_filler(default_tokens) if default_tokens else said.strip().encode("utf-8", "replace") or b"...")
    script = _Script(answer=_DIRECTIVE.sub("", said).strip().encode("utf-8", "replace") or b"...")
    if default_tokens:
        script.answer = _filler(default_tokens)
    for name, value in _DIRECTIVE.findall(said):
        try:
            _apply(script, name, value, seed)
        except ValueError as error:
            raise InvalidParameter(f"The scripted engine cannot follow [[{name}:{value}]]: {error}.") from error
    return script


def _apply(script: _Script, name: str, value: str, seed: int) -> None:
    if name == "tokens":
        script.answer = _filler(int(value))
    elif name == "random":
        script.answer = _letters(seed, int(value))
    elif name == "say":
        script.answer = value.encode("utf-8", "replace")
    elif name == "pace":
        script.pace_s = float(value)
    elif name in ("fail", "raise", "crash", "hang"):
        script.misdeeds[name] = int(value or 0)
    else:
        raise ValueError("there is no such directive")


def _filler(count: int) -> bytes:
    return (_FILLER * (count // len(_FILLER) + 1))[:count]


def _letters(seed: int, count: int) -> bytes:
    blocks = (hashlib.blake2b(f"{seed}/{i}".encode()).digest() for i in range(count // 64 + 1))
    return bytes(97 + byte % 26 for byte in b"".join(blocks)[:count])


class _Running:
    """A request with its place in the batch."""

    __slots__ = ("limit", "next_at", "pace_s", "position", "request", "script", "tokens")

    def __init__(self, request: EngineRequest, script: _Script, max_model_len: int) -> None:
        self.request = request
        self.script = script
        self.tokens: list[int] = [*script.answer, END_OF_SEQUENCE]
        self.position = len(request.generated_ids)
        self.pace_s = script.pace_s
        self.next_at = 0.0
        self.limit = min(request.params.max_new_tokens or 0, max_model_len - len(request.prompt_ids))

    def token_at(self, position: int) -> int:
        """The token at a position; filler goes on behind the script's end where the end is ignored."""
        tokens = self.tokens
        token = tokens[position] if position < len(tokens) else END_OF_SEQUENCE
        if token == END_OF_SEQUENCE and self.request.params.ignore_eos:
            return _FILLER[position % len(_FILLER)]
        return token


class ScriptedEngine:
    """See the module's docstring.

    Raises:
        InvalidParameter: an option that does not exist.
        StartFailed: with ``fail_at_start``.
    """

    name = "scripted"
    vocab_size = END_OF_SEQUENCE + 1
    supported = frozenset(PARAMS) - UNSUPPORTED
    takes_media = False
    adapters: tuple[str, ...] = ()
    adapter = BASE_ADAPTER

    def __init__(self, config: EngineConfig) -> None:
        unknown = sorted(set(config.options) - set(_OPTIONS))
        if unknown:
            raise InvalidParameter(
                f"The scripted engine has no option {', '.join(unknown)}; it has {', '.join(_OPTIONS)}."
            )
        options = {**_OPTIONS, **config.options}
        for name, default in _OPTIONS.items():
            value = options[name]
            if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, int | float):
                kind = "true or false" if isinstance(default, bool) else "a number"
                raise InvalidParameter(f"The scripted engine's option {name} must be {kind}, not {value!r}.")
        if options["fail_at_start"]:
            raise StartFailed("The scripted engine was told to fail at the start (option fail_at_start).")
        time.sleep(float(options["load_s"]))
        self.max_model_len = config.max_model_len or DEFAULT_MODEL_LEN
        self.max_batch = config.max_batch
        self._step_s = float(options["step_s"])
        self._default_tokens = int(options["tokens"])
        self._running: dict[RequestId, _Running] = {}
        self._asking: dict[RequestId, int] = {}
        self._queues: tuple[dict[RequestId, EngineRequest], dict[RequestId, EngineRequest]] = ({}, {})
        self.steps = 0

    def check(self, request: EngineRequest) -> None:
        """Refuse what cannot be done."""
        check_supported(self, request.params)
        check_prompt(self, request)
        self._script(request)

    def _script(self, request: EngineRequest) -> _Script:
        try:
            prompt = bytes(request.prompt_ids).decode("utf-8", "replace")
        except ValueError:  # ends of sequences are no bytes
            prompt = bytes([t for t in request.prompt_ids if t < 256]).decode("utf-8", "replace")
        return read_script(prompt, request.params.seed or 0, self._default_tokens)

    def add(self, request: EngineRequest) -> None:
        """Queue a request; interactive ones are admitted first."""
        self._queues[request.priority != INTERACTIVE][request.request_id] = request
        if request.params.logprobs is not None:
            self._asking[request.request_id] = request.params.logprobs

    def _admit(self) -> None:
        for queue in self._queues:
            while queue and (len(self._running) < self.max_batch or (queue is self._queues[0] and self._put_back())):
                request = queue.pop(next(iter(queue)))
                self._running[request.request_id] = _Running(request, self._script(request), self.max_model_len)

    def _put_back(self) -> bool:
        """Make room for an interactive request, as the engines with models do: the youngest batch row goes back into
        its queue, and goes on later where it was."""
        batch = [running for running in self._running.values() if running.request.priority != INTERACTIVE]
        if not batch:
            return False
        running = self._running.pop(batch[-1].request.request_id)
        generated = tuple(running.token_at(position) for position in range(running.position))
        waiting = list(self._queues[1].items())
        self._queues[1].clear()
        self._queues[1][running.request.request_id] = replace(running.request, generated_ids=generated)
        self._queues[1].update(waiting)
        return True

    def step(self) -> list[StepOutput]:
        """One token for each running request whose pace allows it."""
        self._admit()
        if self._step_s:
            time.sleep(self._step_s)
        now = time.monotonic()
        outputs: list[StepOutput] = []
        for running in list(self._running.values()):
            if running.script.misdeeds and (failure := self._misbehave(running)):
                outputs.append(failure)
            elif not running.pace_s or now >= running.next_at:
                running.next_at = now + running.pace_s
                outputs.append(self._advance(running))
        if not outputs and self._running:
            wait_s = min(r.next_at for r in self._running.values()) - now
            time.sleep(min(max(wait_s, 0.0), MAX_STEP_WAIT_S))
        if self._asking:
            self._add_logprobs(outputs)
        self.steps += 1
        return outputs

    def _add_logprobs(self, outputs: Sequence[StepOutput]) -> None:
        for output in outputs:
            count = self._asking.get(output.request_id)
            if count is None:
                continue
            top = [(token_id, -(token_id + 1) / 100) for token_id in range(count)]
            output.logprobs = [TokenLogprobs(token_id, -(token_id + 1) / 100, top) for token_id in output.token_ids]
            if output.finish_reason is not None:
                del self._asking[output.request_id]

    def _advance(self, running: _Running) -> StepOutput:
        request = running.request
        if running.position >= running.limit:  # a continuation with nothing left to do
            del self._running[request.request_id]
            return StepOutput(request.request_id, (), "length")
        token = running.token_at(running.position)
        running.position += 1
        if token == END_OF_SEQUENCE or token in (request.params.stop_token_ids or ()):
            del self._running[request.request_id]
            return StepOutput(request.request_id, (token,), "stop")
        if running.position >= running.limit:
            del self._running[request.request_id]
            return StepOutput(request.request_id, (token,), "length")
        return StepOutput(request.request_id, (token,))

    def _misbehave(self, running: _Running) -> StepOutput | None:
        due = {name for name, after in running.script.misdeeds.items() if running.position >= after}
        if "crash" in due:
            os._exit(CRASH_EXIT_CODE)
        while "hang" in due:
            time.sleep(3600)
        if "raise" in due:
            raise RuntimeError("The scripted engine was told to raise.")
        if "fail" in due:
            del self._running[running.request.request_id]
            error = EngineError("The scripted engine was told to fail this request.")
            return StepOutput(running.request.request_id, (), "error", error)
        return None

    def abort(self, request_id: RequestId) -> None:
        """Forget a request."""
        for table in (self._running, self._asking, *self._queues):
            table.pop(request_id, None)

    def has_work(self) -> bool:
        """Whether any request is running or queued."""
        return bool(self._running or self._queues[0] or self._queues[1])

    def stats(self) -> EngineStats:
        """Numbers of running and queued requests."""
        return EngineStats(len(self._running), len(self._queues[0]) + len(self._queues[1]))

    def close(self) -> None:
        """Drop everything."""
        for table in (self._running, self._asking, *self._queues):
            table.clear()
