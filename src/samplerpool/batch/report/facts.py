"""What a report counts of an output row, and what it shows of one. Pure. Nothing is expected of a row: it may be
another program's, and whatever is in it may be of any type."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samplerpool.data.json_text import to_json
from samplerpool.types import MEDIA_TYPES

NOT_TOLD = "not told"
BLOCK_CHARACTERS, TAIL_CHARACTERS, ROW_CHARACTERS = 10_000, 2_000, 40_000
"""Of a block, of these from its end, and of a row: what is beyond is left out of the page, which says so."""
COLUMN_CHARACTERS, MEDIA_CHARACTERS, EXCERPT_CHARACTERS, WORD_CHARACTERS = 1_000, 100, 160, 40
LEAST_CHARACTERS, MOST_PARTS = 200, 50
"""Of a block that is shown; of turns, of blocks in a turn, and of columns."""
_TOLD = {
    "parse_error": "Not understood",
    "finish_reason": "Ended by",
    "prompt_tokens": "Prompt tokens",
    "completion_tokens": "Completion tokens",
    "seed": "Seed",
}
_OWN_COLUMNS = frozenset(("messages", "generation", "reference"))


@dataclass(frozen=True, slots=True)
class Facts:
    """What is counted of an answer.

    Args:
        answered: whether there is an answer, be it empty; an error row has none.
        error: kind and sentence.
        prompt_tokens, completion_tokens: None where they are not told.
        text: the answer, as the model wrote it.
        blocks: the types of its blocks that are not blank.
    """

    answered: bool
    finish_reason: str
    error: tuple[str, str] | None
    prompt_tokens: int | None
    completion_tokens: int | None
    text: str
    blocks: frozenset[str]
    parse_error: bool

    @property
    def empty(self) -> bool:
        """Whether there is an answer with nothing in it for its reader: no text, no tool call."""
        return self.answered and not self.blocks & {"text", "tool_call"}

    @property
    def tags(self) -> list[str]:
        """What is peculiar about it."""
        if self.error is not None:
            return ["error"]
        found = {
            "empty": self.empty,
            "not understood": self.parse_error,
            "cut off": self.finish_reason == "length",
            "tool call": "tool_call" in self.blocks,
            "reasoning": "reasoning" in self.blocks,
        }
        return [tag for tag, holds in found.items() if holds]


def facts(columns: Mapping[str, Any]) -> Facts:
    """Of an output row."""
    generation = _mapping(columns.get("generation"))
    error = _error(generation.get("error"))
    turn = None if error else _answer_turn(columns)
    blocks = () if turn is None else tuple(_blocks(turn))
    text = generation.get("text")
    if not isinstance(text, str):
        text = "".join(value for kind, value in blocks if kind == "text")
    if turn is None and text.strip():  # of a row without messages, or another program's
        blocks = (("text", text),)
    return Facts(
        answered=error is None and (turn is not None or "text" in generation),
        finish_reason=_word(generation.get("finish_reason")),
        error=error,
        prompt_tokens=None if error else _count(generation.get("prompt_tokens")),
        completion_tokens=None if error else _count(generation.get("completion_tokens")),
        text=text,
        blocks=frozenset(kind for kind, value in blocks if value.strip()),
        parse_error=bool(generation.get("parse_error")),
    )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _word(value: object) -> str:
    return value[:WORD_CHARACTERS] if isinstance(value, str) and value else NOT_TOLD


def _error(value: object) -> tuple[str, str] | None:
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else _json(value)
    kind, colon, sentence = text.partition(": ")
    return (kind, sentence) if colon and kind.isidentifier() and len(kind) <= WORD_CHARACTERS else ("Error", text)


def _answer_turn(columns: Mapping[str, Any]) -> Mapping[str, Any] | None:
    messages = columns.get("messages")
    last = messages[-1] if isinstance(messages, Sequence) and not isinstance(messages, str) and messages else None
    return last if isinstance(last, Mapping) and last.get("role") == "assistant" else None


def _blocks(turn: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Type and value of a turn's blocks; a turn may be a plain text, too."""
    content = turn.get("content")
    if isinstance(content, str):
        yield "text", content
    for block in content if isinstance(content, list) else ():
        kind, value = _mapping(block).get("type"), _mapping(block).get("value")
        if isinstance(kind, str) and isinstance(value, str):
            yield kind, value
        else:
            yield "other", _json(block)


def _json(value: object) -> str:
    return to_json(value).decode(errors="replace")


# ---- to be read -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a turn.

    Args:
        kind: its type; of a ``tool_call`` that is understood, ``name`` is the function and ``text`` its arguments.
        left_out: characters that ``text`` does not show, which are missing before its ``tail``.
    """

    kind: str
    text: str
    tail: str = ""
    left_out: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the conversation. ``title``: of whom it is, or what."""

    role: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Reading:
    """A row as the page shows it.

    Args:
        name: ``row 17, sample 1``.
        anchor: by which it is linked to.
        tags: why it was chosen, and what is peculiar about it.
        question, answer: the beginning of the last turn before the answer, and of the answer or its error.
        facts: names and values of what is told of it.
        left_out: turns and columns that are not shown.
    """

    name: str
    anchor: str
    tags: Sequence[str]
    question: str
    answer: str
    error: str | None
    turns: Sequence[Turn]
    facts: Sequence[tuple[str, str]]
    columns: Sequence[tuple[str, str]]
    left_out: int


def reading(columns: Mapping[str, Any], place: int, tags: Sequence[str]) -> Reading:
    """An output row to be read.

    Args:
        place: its number in the output, for rows that do not tell theirs.
        tags: why it is shown, if it is peculiar among the others.
    """
    generation, counted = _mapping(columns.get("generation")), facts(columns)
    index, sample = _count(generation.get("index")), _count(generation.get("sample"))
    name = f"row {place if index is None else index}" + ("" if sample is None else f", sample {sample}")
    error = None if counted.error is None else ": ".join(counted.error)[:BLOCK_CHARACTERS]
    messages = columns.get("messages")
    messages = [_mapping(turn) for turn in messages] if isinstance(messages, list) else []
    before = messages[:-1] if error is None and _answer_turn(columns) is not None else messages
    asked = next((value for turn in reversed(before) for kind, value in _blocks(turn) if kind == "text"), "")
    if not asked and isinstance(columns.get("prompt"), str):
        asked = columns["prompt"]
    turns: list[tuple[Mapping[str, Any], str]] = [(turn, "") for turn in before]
    raw_answer = {"role": "assistant", "content": counted.text}
    if len(messages) > len(before):
        turns.append((messages[-1], "answer"))
    elif not messages and counted.text and error is None:
        turns.append((raw_answer, "answer"))
    if isinstance(columns.get("reference"), Mapping):
        turns.append((columns["reference"], "reference, which the input had"))
    if generation.get("parse_error"):
        turns.append((raw_answer, "the answer as the model wrote it"))
    own = _OWN_COLUMNS | {"prompt"} if messages else _OWN_COLUMNS - {"messages"}
    others = [(key, value) for key, value in columns.items() if key not in own]
    shown, left_out = _turns(turns)
    return Reading(
        name=name,
        anchor=f"row-{place}",
        tags=list(dict.fromkeys((*counted.tags, *tags))),
        question=_excerpt(asked),
        answer=_excerpt(error or _told_text(counted)),
        error=error,
        turns=shown,
        facts=[
            (title, str(generation[key])[:COLUMN_CHARACTERS])
            for key, title in _TOLD.items()
            if isinstance(generation.get(key), str | int)
        ],
        columns=[
            (key[:WORD_CHARACTERS], _cut_short(value if isinstance(value, str) else _json(value), COLUMN_CHARACTERS))
            for key, value in others[:MOST_PARTS]
        ],
        left_out=left_out + len(others[MOST_PARTS:]),
    )


def _turns(turns: Sequence[tuple[Mapping[str, Any], str]]) -> tuple[list[Turn], int]:
    """Turns in their order, those with a title, which matter most, at the cost of the others; how many are left out."""
    found: dict[int, Turn] = {}
    room = ROW_CHARACTERS
    for number in sorted(range(len(turns)), key=lambda number: not turns[number][1]):
        if room > 0 and len(found) < MOST_PARTS:
            found[number], used = _turn(*turns[number], room)
            room -= used
    return [turn for _, turn in sorted(found.items())], len(turns) - len(found)


def _told_text(counted: Facts) -> str:
    if counted.blocks and not counted.empty:
        return counted.text
    return "(empty)" if counted.answered else "(no answer)"


def _turn(turn: Mapping[str, Any], title: str, room: int) -> tuple[Turn, int]:
    """The turn, and how many characters of it are shown."""
    role = _word(turn.get("role"))
    blocks: list[Block] = []
    used = 0
    values = [(kind, value) for kind, value in _blocks(turn) if value.strip()]
    for kind, value in values:
        if used >= room or len(blocks) >= MOST_PARTS:
            blocks.append(Block("left out", f"{len(values) - len(blocks):,} more blocks"))
            break
        block = _block(kind, value, min(BLOCK_CHARACTERS, max(LEAST_CHARACTERS, room - used)))
        used += len(block.text) + len(block.tail)
        blocks.append(block)
    return Turn(role, f"{role}, {title}" if title else role, blocks), used


def _block(kind: str, value: str, most: int) -> Block:
    if kind in MEDIA_TYPES:
        return Block(kind, _cut_short(value, MEDIA_CHARACTERS))
    name = None
    if kind == "tool_call":
        name, value = _call(value)
    if len(value) <= most:
        return Block(kind, value, name=name)
    tail = min(TAIL_CHARACTERS, most // 4)
    return Block(kind, value[: most - tail], value[-tail:], len(value) - most, name)


def _call(value: str) -> tuple[str | None, str]:
    """The function and its arguments, laid out; what is no call stays as it is."""
    try:
        call = json.loads(value)
        return str(call["name"])[:WORD_CHARACTERS], json.dumps(call["arguments"], indent=1, ensure_ascii=False)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, value


def _excerpt(text: str) -> str:
    return _cut_short(" ".join(text[: 4 * EXCERPT_CHARACTERS].split()), EXCERPT_CHARACTERS)


def _cut_short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"
