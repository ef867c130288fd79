"""The data forms that users meet: messages, samples, tool calls, model inputs. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, TypedDict, runtime_checkable

ContentType = Literal["text", "reasoning", "tool_call", "image_url", "video_url", "audio_url"]
Role = Literal["system", "user", "assistant", "tool"]

CONTENT_TYPES: tuple[str, ...] = ("text", "reasoning", "tool_call", "image_url", "video_url", "audio_url")
MEDIA_TYPES: tuple[str, ...] = ("image_url", "video_url", "audio_url")
ROLES: tuple[str, ...] = ("system", "user", "assistant", "tool")

FinishReason = Literal["stop", "length", "aborted", "error"]
"""Why a generation ended: ``stop`` (end-of-sequence token or stop string), ``length`` (token limit reached)."""


class Content(TypedDict):
    """One block of a message. ``tool_call`` values are JSON text with ``name`` and ``arguments``."""

    type: ContentType
    value: str


class Message(TypedDict):
    """One turn in the v1 form."""

    role: Role
    content: list[Content]
    loss_weight: NotRequired[float]


class ToolCall(TypedDict):
    """A call of one function, as the model asked for it."""

    name: str
    arguments: dict[str, Any]


class TokenLogprobs(NamedTuple):
    """Log-probabilities at one generated token, in the model's own distribution: natural logarithms of its softmax,
    before temperature, penalties and filters. At least -9999, which stands for minus infinity.

    Args:
        token_id, logprob: the token that was drawn.
        top: id and log-probability of the most probable tokens, as many as were asked for, falling.
    """

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]


class Generation(TypedDict):
    """How one row was answered. Depends on the inputs and the seed alone, never on the course of the run.

    ``logprobs`` is there where it was asked for: the fields of ``TokenLogprobs`` by name, one a token.
    """

    index: int
    sample: NotRequired[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int | None
    error: str | None
    logprobs: NotRequired[list[dict[str, Any]]]


class Sample(TypedDict, total=False):
    """A conversation, or a pair of them, with whatever other columns the row had."""

    messages: list[Message]
    chosen_messages: list[Message]
    rejected_messages: list[Message]
    tools: str
    extra_info: str
    _dataset_name: str
    reference: Message
    generation: Generation


class ModelInput(TypedDict):
    """What a model is fed with: lists of equal length, one element a token."""

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]
    loss_weights: list[float]
    position_ids: NotRequired[list[int]]
    token_type_ids: NotRequired[list[int]]


@runtime_checkable
class MapDataset(Protocol):
    """A torch map-style dataset, a list, or a ``datasets.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@runtime_checkable
class IterableDataset(Protocol):
    """A torch iterable dataset, or any iterable of samples."""

    def __iter__(self) -> Iterator[Any]: ...


Dataset = MapDataset | IterableDataset | Iterable[Any]
