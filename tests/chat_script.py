"""A chat in which nothing but the model and the terminal is made up: lines in, what is shown and remembered out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from samplerpool.chat.console import Console
from samplerpool.chat.repl import Repl
from samplerpool.chat.styles import Palette
from samplerpool.chat.transcript import Transcript
from samplerpool.chat.turns import text_of
from samplerpool.client.facts import WorkerFacts
from samplerpool.client.response import Call
from samplerpool.errors import PoolNotFound
from samplerpool.types import Message, RenderedPrompt, TokenLogprobs
from samplerpool.wire.messages import TokenPrompt

Piece = str | BaseException
PLAIN = Palette()
STYLED = Palette(attributes=True)


class Script:
    """A sampler that plays given answers, one character a token; an exception among the pieces is raised there.

    ``reason`` is the finish reason of all; ``parsed`` the message that the worker made of each, ``setback`` what
    is told before each; ``retold`` what the answer that goes on is from then on, if that is another text; ``calls`` are
    the arguments of each ``generate``.
    """

    def __init__(self, *answers: Sequence[Piece], name: str = "model", workers: int = 2) -> None:
        self.answers = list(answers)
        self.prompts: list[list[Message]] = []
        self.calls: list[dict[str, Any]] = []
        self.gone_on: list[tuple[object, int]] = []
        self.closed = 0
        self.ended = False
        self.reason = "stop"
        self.parsed: Message | None = None
        self.reasoning_open = False
        self.setback = ""
        self.retold: str | None = None
        self.last: Call | None = None
        self.facts = [
            WorkerFacts(index, up=True, answered=True, model=name, engine="made up", max_model_len=100)
            for index in range(workers)
        ]

    def generate(self, messages: list[Message], tools: str | None = None, **options: Any) -> Generator[str, None, None]:
        self.prompts.append(messages)
        self.calls.append({"tools": tools, **options})
        return self._stream(Call(TokenPrompt([1, 2, 3])), options)

    def go_on(self, answer: Any, more_tokens: int, **changes: Any) -> Generator[str, None, None]:
        self.gone_on.append((answer, more_tokens))
        self.calls.append(changes)
        call = Call(TokenPrompt([1, 2, 3]))
        call.token_ids, call.texts = list(answer.token_ids), [answer.text if self.retold is None else self.retold]
        return self._stream(call, changes)

    def _stream(self, call: Call, options: dict[str, Any]) -> Generator[str, None, None]:
        self.last = call
        call.prompt_ids, call.prompt_tokens, call.seed = [1, 2, 3], 3, options.get("seed") or 77
        call.worker = options.get("worker", 0)
        call.reasoning_open = self.reasoning_open
        if self.setback:
            options["on_wait"](self.setback)
        asked = options.get("logprobs")
        call.logprobs = [] if asked is not None else None
        try:
            for piece in self.answers.pop(0):
                if isinstance(piece, BaseException):
                    raise piece
                call.token_ids += map(ord, piece)
                if call.logprobs is not None:
                    call.logprobs += [TokenLogprobs(ord(c), -0.1, [(ord("z"), -3.0)] * asked) for c in piece]
                call.texts.append(piece)
                yield piece
            call.finish_reason, call.message = self.reason, self.parsed
        finally:
            self.closed += 1

    def render(
        self,
        messages: list[Message],
        tools: str | None = None,
        *,
        prefill: str = "",
        template_options: Mapping[str, Any] | None = None,
    ) -> RenderedPrompt:
        turns = "".join(f"<{message['role']}>{text_of(message)}\n" for message in messages)
        text = turns + (tools or "") + "".join(template_options or ()) + prefill
        return RenderedPrompt([ord(c) for c in text], list(text))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [chr(token_id) for token_id in token_ids]

    def workers(self) -> list[WorkerFacts]:
        return self.facts

    def close(self) -> None:
        self.ended = True


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Session:
    """One run of the loop, over lines typed or piped. Further options are those of ``Repl``."""

    def __init__(
        self,
        sampler: Script,
        lines: Sequence[str | BaseException],
        *,
        typed: bool = True,
        gone: Callable[[], str | None] = lambda: None,
        screen: io.StringIO | None = None,
        pools: dict[str, Script] | None = None,
        chosen: int | None = None,
        palette: Palette = PLAIN,
        **options: Any,
    ) -> None:
        self.screen = screen or (Screen() if typed else io.StringIO())
        self.errors = io.StringIO()
        console = _Console(_reader(iter(lines)), self.screen, self.errors, interactive=typed, palette=palette)
        console.chosen = chosen
        self.transcript = Transcript("S")
        connect = _connector(pools or {})
        self.code = Repl(sampler, console, self.transcript, {"top_k": 3}, gone, connect=connect, **options).run()

    @property
    def turns(self) -> list[tuple[str, str]]:
        return [(each["role"], text_of(each)) for each in self.transcript.messages[1:]]

    @property
    def said(self) -> list[str]:
        """Notices and errors."""
        return self.errors.getvalue().splitlines()

    @property
    def shown(self) -> str:
        """Answers, and what commands show, without styles and the line that tells how an answer went."""
        return re.sub(r"(?m)^.* tokens · .*\n", "", re.sub(r"\x1b\[[\d;]*m", "", self.screen.getvalue()))


class _Console(Console):
    """Chooses by itself what a user would choose."""

    chosen: int | None = None

    def choose(self, title: str, options: Sequence[str]) -> int | None:
        return self.chosen


def _connector(pools: dict[str, Script]) -> Callable[[str], Script]:
    def connect(name: str) -> Script:
        if name not in pools:
            raise PoolNotFound(f"There is no pool {name!r}.")
        return pools[name]

    return connect


def _reader(lines: Iterator[str | BaseException]) -> Callable[[str], str]:
    def read(default: str) -> str:
        line = next(lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    return read
