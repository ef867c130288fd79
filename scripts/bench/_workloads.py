"""What is sampled: prompts as conversations, other ones in each repeat, so that no system can keep its earlier work.

Within a repeat all systems get the same prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from samplerpool.types import Message, Role

Conversation = list[Message]

MAIN_PROMPTS = 96
DISTINCT_PROMPTS = 32
EIGHT_PROMPTS = 8
ALONE_PROMPTS = 3
LONG_PROMPTS = 8
LONG_PROMPT_TOKENS = 1_500

TASKS = (
    "Write a short story about {}.",
    "Explain {} to a child in a few sentences.",
    "List five facts about {}.",
    "Write a four-line poem about {}.",
    "What are the advantages and disadvantages of {}?",
    "Summarize the history of {} in one paragraph.",
    "Give three tips for someone who is new to {}.",
    "Write a slogan for a company that deals with {}.",
    "Name one {} that everybody knows, or say why there is none.",
    "Compose a formal letter that complains about {}.",
    "Write a Python function whose name and purpose have to do with {}.",
    "Translate into French: I have never thought much about {} before.",
    "Generate a question about {}, and answer it.",
)
TOPICS = (
    "lighthouses", "chess", "the moon", "bread", "glaciers", "bicycles", "honey bees", "jazz", "volcanoes", "tea",
    "railways", "whales", "sleep", "the number zero", "gardens", "clocks", "paper", "democracy", "rain", "markets",
    "robots", "languages", "salt", "mountains", "football", "museums", "vaccines", "maps", "cheese", "stars",
    "shadows", "public libraries", "coral reefs", "origami", "elections", "migratory birds", "compilers", "soap",
)  # fmt: skip


@dataclass(frozen=True)
class Requests:
    """One run's work.

    Args:
        conversations: what to answer.
        prompts: the same as token ids.
        together: all at once; else one after the other.
    """

    conversations: Sequence[Conversation]
    prompts: Sequence[list[int]]
    max_new_tokens: int
    together: bool = True

    def only(self, rows: Sequence[int]) -> Requests:
        """Those at these places."""
        return replace(
            self,
            conversations=[self.conversations[at] for at in rows],
            prompts=[self.prompts[at] for at in rows],
        )


@dataclass(frozen=True)
class Workload:
    """A kind of work.

    Args:
        name: short, for options.
        title: what it is, for people.
        build: from a repeat's number to its conversations.
        count: how many prompts.
        systems: names of the systems that are measured on it unless others are asked for.
        fewer: how many of the prompts a slow system gets, spread evenly over all; the others get all.
    """

    name: str
    title: str
    build: Callable[[int], list[Conversation]]
    count: int
    systems: tuple[str, ...]
    fewer: Mapping[str, int] = field(default_factory=dict)
    max_new_tokens: int = 96
    together: bool = True

    def rows(self, system: str) -> list[int]:
        """Which of the prompts this system gets."""
        return spread(self.count, self.fewer.get(system, self.count))


@dataclass
class Source:
    """Where prompts come from.

    Args:
        texts: of single user turns.
        count_tokens: of a text, as the model's tokenizer cuts it.
    """

    texts: list[str]
    count_tokens: Callable[[str], int]
    name: str = "built-in prompts"
    _lengths: dict[int, int] = field(default_factory=dict)

    def conversations(self, count: int, repeat: int, texts: Sequence[str] | None = None) -> list[Conversation]:
        """``count`` prompts spread evenly over all, others in each repeat."""
        chosen = self.texts if texts is None else texts
        return [[_turn("user", chosen[(at + repeat) % len(chosen)])] for at in spread(len(chosen), count)]

    def distinct(self, count: int, repeat: int) -> list[Conversation]:
        """Prompts that differ from their first words on, by a system turn of their own."""
        return [
            [_turn("system", f"{number * 7919 + repeat} is the number of this session."), *conversation]
            for number, conversation in enumerate(self.conversations(count, repeat), start=1)
        ]

    def long(self, count: int, tokens: int, repeat: int) -> list[Conversation]:
        """Prompts of about this many tokens: several texts, and a task at the end."""
        return [[_turn("user", self._joined(number, tokens, repeat))] for number in range(count)]

    def _joined(self, number: int, tokens: int, repeat: int) -> str:
        at, parts, length = number * len(self.texts) // LONG_PROMPTS + 31 * repeat, [], 0
        while length < tokens - 60:  # the template and the task take about as many
            text = self.texts[at % len(self.texts)]
            length += self._length(at % len(self.texts))
            parts.append(text)
            at += 1
        return (
            f"Collection {number * 101 + repeat}.\n" + "\n".join(parts) + "\n\nWhich of these is the hardest, and why?"
        )

    def _length(self, at: int) -> int:
        if at not in self._lengths:
            self._lengths[at] = self.count_tokens(self.texts[at] + "\n")
        return self._lengths[at]


def spread(total: int, count: int) -> list[int]:
    """``count`` indexes spread evenly over ``total``."""
    return [number * total // count for number in range(min(count, total))]


def _turn(role: Role, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "value": text}]}


def built_in() -> list[str]:
    """Prompts for want of a file: every task on every topic, neighbours differing in both."""
    return [task.format(topic) for topic, task in product(TOPICS, TASKS)]


def alpaca(file: Path) -> list[str]:
    """Prompts of a JSON list of objects with ``instruction`` and ``input``.

    Raises:
        SystemExit: the file does not hold that.
    """
    try:
        rows = json.loads(file.read_text())
        return [row["instruction"] + ("\n" + row["input"] if row.get("input") else "") for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{file}: not a JSON list of rows with an instruction: {error!r}") from None


def workloads(source: Source, main_prompts: int = MAIN_PROMPTS) -> list[Workload]:
    """All five, the main one first."""
    most = ("pool", "pool2", "vllm", "static", "continuous")
    return [
        Workload(
            "main",
            f"{main_prompts} prompts at once",
            lambda repeat: source.conversations(main_prompts, repeat),
            main_prompts,
            (*most, "bare", "bare2", "one_by_one"),
            {"continuous": 32, "one_by_one": 8},
        ),
        Workload(
            "alone",
            "one request alone",
            lambda repeat: source.conversations(ALONE_PROMPTS, repeat + 5),
            ALONE_PROMPTS,
            most,
            {"continuous": 1},
            together=False,
        ),
        Workload(
            "eight",
            f"{EIGHT_PROMPTS} prompts at once",
            lambda repeat: source.conversations(EIGHT_PROMPTS, repeat + 3),
            EIGHT_PROMPTS,
            (*most, "one_by_one"),
            {"one_by_one": 2},
        ),
        Workload(
            "long",
            f"{LONG_PROMPTS} prompts of {LONG_PROMPT_TOKENS:,} tokens",
            lambda repeat: source.long(LONG_PROMPTS, LONG_PROMPT_TOKENS, repeat),
            LONG_PROMPTS,
            (*most, "one_by_one"),
            {"continuous": 2, "one_by_one": 1},
            max_new_tokens=32,
        ),
        Workload(
            "distinct",
            f"{DISTINCT_PROMPTS} prompts, nothing shared",
            lambda repeat: source.distinct(DISTINCT_PROMPTS, repeat),
            DISTINCT_PROMPTS,
            (*most, "one_by_one"),
            {"continuous": 16, "one_by_one": 2},
        ),
    ]
