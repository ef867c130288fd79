"""What commands show, as lines of styled text. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from samplerpool.chat.answer_stats import AnswerStats
from samplerpool.chat.commands import COMMANDS, CommandSpec
from samplerpool.chat.settings import ShownParam
from samplerpool.chat.styles import Line, shade
from samplerpool.chat.turns import text_of
from samplerpool.client.facts import WorkerFacts
from samplerpool.types import Message, TokenLogprobs

Part = tuple[str, str]


# ---- help, parameters, workers, figures ---------------------------------------------------------------------------


def help_lines(width: int) -> Iterator[Line]:
    """All commands, one a line where the terminal is wide enough for its help."""
    column = max(len(spec.usage) for spec in COMMANDS.values()) + 2
    for spec in COMMANDS.values():
        lines = wrapped(spec.help, max(20, width - column))
        yield [("bold", spec.usage.ljust(column)), ("", lines[0])]
        yield from ([("", " " * column + line)] for line in lines[1:])
    yield []
    yield [
        ("dim", "//text sends /text; Alt-Enter or a backslash at the end begins another line; Ctrl-C stops an answer.")
    ]


def command_lines(spec: CommandSpec) -> Iterator[Line]:
    """How one command is used."""
    yield [("bold", spec.usage)]
    yield [("", spec.help)]


def param_lines(params: Iterable[ShownParam]) -> Iterator[Line]:
    """Parameters in columns: what was set here stands out."""
    for each in params:
        value = "-" if each.value is None else json.dumps(each.value, ensure_ascii=False)
        style = "bold" if each.source == "set here" else "" if each.source else "dim"
        yield [(style, f"{each.name:<22}{value:<12}"), ("dim", f"  {each.source}".rstrip())]


def worker_lines(workers: Sequence[WorkerFacts], only: int | None) -> Iterator[Line]:
    """One worker a line, and its adapters on another.

    Args:
        only: the one that the chat is attached to, if not all.
    """
    for facts in workers:
        here = only is None or only == facts.index
        state = ("good", "ready") if facts.up else ("warn", "coming back") if facts.coming else ("bad", "gone")
        figures = f"{facts.running} running, {facts.queued} queued, {facts.tokens_per_s:g} tokens/s"
        told = f"  {facts.model} ({facts.engine}), context {facts.max_model_len:,}; {figures}" if facts.model else ""
        yield [("bold" if here else "dim", f"{'*' if here else ' '} {facts.index}  "), state, ("", told)]
        if not facts.up and facts.down_reason:
            yield [("dim", f"     {facts.down_reason}")]
        if facts.adapters:
            yield [("dim", f"     adapters: {', '.join(facts.adapters)}")]


def stats_lines(stats: Sequence[AnswerStats], seed: int | None, worker: int | None) -> Iterator[Line]:
    """Sums and means over a chat's answers, then the last one.

    Args:
        seed, worker: of the last answer, where they are known.
    """
    tokens = sum(each.completion_tokens or 0 for each in stats)
    waited = sorted(each.first_token_s for each in stats if each.first_token_s is not None)
    paces = sorted(each.tokens_per_s for each in stats if each.tokens_per_s is not None)
    yield _figure("answers", f"{len(stats)}")
    yield _figure("tokens generated", f"{tokens:,}")
    yield _figure("tokens of prompts", f"{sum(each.prompt_tokens or 0 for each in stats):,}")
    if waited:
        middle, longest = waited[len(waited) // 2], waited[-1]
        yield _figure("time to first token", f"{middle:.3f} s (median), {longest:.3f} s (longest)")
    if paces:
        yield _figure("tokens/s", f"{paces[len(paces) // 2]:.1f} (median), {paces[0]:.1f} (slowest)")
    yield _figure("last answer", stats[-1].line())
    if seed is not None:
        yield _figure("its seed", f"{seed} (/retry {seed} draws the same)")
    if worker is not None:
        yield _figure("its worker", f"{worker}")


def _figure(name: str, value: str) -> Line:
    return [("dim", f"{name:<20}"), ("", value)]


def ending_lines(messages: Sequence[Message]) -> Iterator[Line]:
    """How a conversation ends: its last two messages, to remember where it was."""
    for message in messages[-2:]:
        calls = [f"(calls {block['value']})" for block in message["content"] if block["type"] == "tool_call"]
        first, *more = "\n".join(filter(None, [text_of(message), *calls])).split("\n")
        yield [("dim", f"{message['role'].capitalize()}: {first}")]
        yield from ([("dim", line)] for line in more)


# ---- tokens -------------------------------------------------------------------------------------------------------


def token_lines(token_ids: Sequence[int], pieces: Sequence[str], width: int) -> Iterator[Line]:
    """Tokens one after the other, each with its id, as many to a line as fit."""
    items: list[list[Part]] = [
        [("code", quoted(piece)), ("dim", f" {token_id}")] for token_id, piece in zip(token_ids, pieces, strict=True)
    ]
    yield from flowing(items, width)


def text_lines(text: str) -> Iterator[Line]:
    """A text as it stands."""
    yield from ([("", line)] for line in text.split("\n"))


def colour_lines(pieces: Sequence[str], logprobs: Sequence[TokenLogprobs]) -> Iterator[Line]:
    """An answer's text, each token in the shade of its probability, and what the shades mean."""
    line: list[Part] = []
    for piece, entry in zip(pieces, logprobs, strict=False):
        first, *more = piece.split("\n")
        style = shade(probability(entry.logprob))
        line.append((style, first))
        for part in more:
            yield line
            line = [(style, part)]
    yield line
    yield [("dim", "probability: "), *((f"p{tenth}", f"{tenth / 10:.1f} ") for tenth in range(10))]


def alternative_lines(
    pieces: Sequence[str], logprobs: Sequence[TokenLogprobs], named: Mapping[int, str]
) -> Iterator[Line]:
    """One token a line: its probability, and the most probable ones in its place.

    Args:
        named: what the token ids stand for.
    """
    column = min(24, max((cells(quoted(piece)) for piece in pieces), default=0)) + 2
    for piece, entry in zip(pieces, logprobs, strict=False):
        own = probability(entry.logprob)
        shown = quoted(piece)
        line: list[Part] = [(shade(own), f"{_percent(own)}  {shown}{' ' * max(2, column - cells(shown))}")]
        for token_id, logprob in entry.top:
            style = "dim" if token_id != entry.token_id else "bold"
            line.append((style, f"{_percent(probability(logprob))} {quoted(named[token_id])}  "))
        yield line


def probability(logprob: float) -> float:
    """From a natural logarithm."""
    return math.exp(min(0.0, logprob))


def _percent(value: float) -> str:
    return f"{100 * value:5.1f}%"


def quoted(piece: str) -> str:
    """A token's text in quotes, line ends and the like escaped."""
    return json.dumps(piece, ensure_ascii=False)


def context_line(prompt_tokens: int, answer_tokens: int, limit: int) -> Line:
    """How full the context is.

    Args:
        limit: most tokens of prompt and answer together; 0 where it is not known.
    """
    used = prompt_tokens + answer_tokens
    share = f" of {limit:,} ({100 * used / limit:.0f} %)" if limit else ""
    return [("dim", f"prompt {prompt_tokens:,} tokens, answer {answer_tokens:,}; context {used:,}{share}")]


# ---- layout -------------------------------------------------------------------------------------------------------


def flowing(items: Iterable[Sequence[Part]], width: int) -> Iterator[Line]:
    """Items in lines of at most ``width`` cells, two spaces between them; one that is wider has its own line."""
    line: list[Part] = []
    used = 0
    for item in items:
        size = sum(cells(text) for _, text in item)
        if line and used + 2 + size > width:
            yield line
            line, used = [], 0
        if line:
            line.append(("", "  "))
            used += 2
        line += item
        used += size
    if line:
        yield line


def wrapped(text: str, width: int) -> list[str]:
    """A sentence in lines of at most ``width`` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def cells(text: str) -> int:
    """How many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(text)
