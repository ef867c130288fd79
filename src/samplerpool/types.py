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
    """One block of a message.

    ``type``: ``text``, ``reasoning``, ``tool_call``, ``image_url``, ``video_url`` or ``audio_url``. ``value``: the
    text; of a ``tool_call`` JSON text with ``name`` and ``arguments``; of media where they are.
    """

    type: ContentType
    value: str


class Message(TypedDict):
    """One turn in the v1 form.

    ``role``: ``system``, ``user``, ``assistant`` or ``tool``. ``content``: its blocks in order. ``loss_weight``:
    how much the turn counts in training; 0 masks it. ``parse_error``: of a parsed answer, what in it could not be
    understood and was kept as text.
    """

    role: Role
    content: list[Content]
    loss_weight: NotRequired[float]
    parse_error: NotRequired[str]


class ToolCall(TypedDict):
    """A call of one function, as the model asked for it: its ``name``, and ``arguments`` by name."""

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


class PromptCount(NamedTuple):
    """What the preparation of a request tells, before anything is sampled.

    Args:
        prompt_tokens: of the rendered prompt.
        max_new_tokens: that the answer may have, defaults of the pool and the checkpoint filled in.
        limit: most tokens of prompt and answer together; the answer ends there.
        escaped: special tokens that users wrote, which are broken up: the token, and where it stood.
    """

    prompt_tokens: int
    max_new_tokens: int
    limit: int
    escaped: Sequence[tuple[str, str]] = ()

    @property
    def room(self) -> int:
        """Tokens that the answer can have at most."""
        return min(self.max_new_tokens, self.limit - self.prompt_tokens)


class RenderedPrompt(NamedTuple):
    """A prompt as the model reads it.

    Args:
        token_ids: all of its tokens.
        pieces: what each of them stands for, one text a token; all joined are the prompt's text, as a rule. The bytes
            of a token that is only part of a character are written as ``<0xE2>``.
    """

    token_ids: Sequence[int]
    pieces: Sequence[str]


class Generation(TypedDict):
    """How one row was answered. Depends on the inputs and the seed alone, never on the course of the run.

    ``logprobs`` is there where it was asked for: the fields of ``TokenLogprobs`` by name, one a token. ``parse_error``
    is there where part of the answer, a malformed tool call say, was kept as text.
    """

    index: int
    sample: NotRequired[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    seed: int | None
    error: str | None
    parse_error: NotRequired[str]
    logprobs: NotRequired[list[dict[str, Any]]]


class Sample(TypedDict, total=False):
    """A conversation, or a pair of them, with whatever other columns the row had.

    ``messages``: the conversation; or ``chosen_messages`` and ``rejected_messages``: the pair. ``tools``: JSON text
    of the tools on offer. ``extra_info``: passed on as it is. ``_dataset_name``: of the data set that it comes
    from. ``_sampling``: sampling parameters that a converter found for it alone. Answered ones also have
    ``generation``: how it was answered, and ``reference``: the assistant's turn that stood at the end.
    """

    messages: list[Message]
    chosen_messages: list[Message]
    rejected_messages: list[Message]
    tools: str
    extra_info: str
    _dataset_name: str
    _sampling: dict[str, Any]
    reference: Message
    generation: Generation


class ModelInput(TypedDict):
    """What a model is fed with: plain lists of equal length, one element a token.

    ``input_ids`` are the token ids; ``attention_mask`` is 1 everywhere. ``labels`` are the token ids to be learned
    and -100 elsewhere, not shifted; ``loss_weights`` say how much each counts, 0.0 elsewhere. ``position_ids``
    count from 1, in a preference pair for each answer anew; ``token_type_ids`` tell the chosen answer (1) from the
    rejected one (2). ``extra_info`` and ``_dataset_name`` are the sample's own.
    """

    input_ids: list[int]
    attention_mask: list[int]
    labels: list[int]
    loss_weights: list[float]
    position_ids: NotRequired[list[int]]
    token_type_ids: NotRequired[list[int]]
    extra_info: NotRequired[Any]
    _dataset_name: NotRequired[str]


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
