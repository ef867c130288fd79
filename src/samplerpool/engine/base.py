"""The one interface between an engine and everything above it. Free of torch.

An engine turns prompt token ids into generated token ids, many requests at a time. It is driven by one thread, which
alone calls its methods: ``add`` what has come, ``step``, hand on what ``step`` returned, ``abort`` what is no longer
wanted. Text (detokenizing, stop strings) is made above it, in ``engine/loop.py``, the same for all engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from samplerpool.config.sampling import BASE_ADAPTER, PARAMS, SamplingParams, unknown_name
from samplerpool.errors import PromptTooLong, RenderError, SamplerPoolError, UnsupportedParameter
from samplerpool.types import FinishReason, Message, TokenLogprobs

INTERACTIVE = 0
BATCH = 1

RequestId = tuple[int, int]
"""(client number, the client's own request number): unique in a worker."""


class Media(Protocol):
    """The images, videos and sounds of a prompt (see ``rendering.media``)."""

    def tensors(self) -> Mapping[str, Any]:
        """Tensors on the CPU, by the names of the model's arguments. May take a while."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as an engine takes it.

    Args:
        request_id: unique among the live requests.
        prompt_ids: token ids of the rendered prompt, at least one.
        params: resolved parameters (no gaps).
        priority: ``INTERACTIVE`` or ``BATCH``.
        generated_ids: tokens generated already (a continuation); they count towards ``max_new_tokens`` and the
            position of the noise, and are not returned again.
        media: what the placeholders among the prompt's tokens stand for.
    """

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = INTERACTIVE
    generated_ids: tuple[int, ...] = ()
    media: Media | None = None


@dataclass(slots=True)
class StepOutput:
    """What one step gave one request.

    Args:
        token_ids: new tokens, in order; may be empty. Ends with the end-of-sequence token where that ended it.
        finish_reason: set on the last output of a request, never followed by another.
        error: with ``finish_reason="error"``, why.
        logprobs: one a token, where the request asks for them.
    """

    request_id: RequestId
    token_ids: Sequence[int]
    finish_reason: FinishReason | None = None
    error: SamplerPoolError | None = None
    logprobs: Sequence[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot, cheap to take.

    Args:
        running, queued: requests that have, or wait for, a place in the batch.
        details: further figures of this engine (cache use, hits), by name.
    """

    running: int
    queued: int
    details: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """What every engine does; ``tests/engine_contract.py`` says the same in tests."""

    name: str
    max_model_len: int
    """Longest prompt plus completion, in tokens."""
    vocab_size: int
    """Token ids are below it."""
    max_batch: int
    """Most requests that it works on at a time."""
    supported: frozenset[str]
    """Names of the sampling parameters that it honours."""
    takes_media: bool
    """Whether prompts may have images, videos and sounds."""
    adapters: tuple[str, ...]
    """Names of the adapters that a request may ask for."""
    adapter: str
    """The one that answers requests that ask for none, or ``base``."""

    @property
    def steps(self) -> int:
        """What it has computed since the start, in forward passes or parts of them. Read from any thread.

        It moves whenever there is progress, also where a long prompt gives no token yet, and only then: a worker
        with work whose number stands still hangs.
        """

    def check(self, request: EngineRequest) -> None:
        """Refuse what can never be done. Called from another thread than ``step``; must not change state.

        Raises:
            PromptTooLong
            UnsupportedParameter: also for a token id that the model does not have.
        """

    def add(self, request: EngineRequest) -> None:
        """Take a checked request; it waits inside until there is room."""

    def step(self) -> list[StepOutput]:
        """Work until at least one request has gained a token, has ended, or a short time has passed.

        Called only while ``has_work()``. An exception means that the engine is broken: all its requests have failed.
        """

    def abort(self, request_id: RequestId) -> None:
        """Drop a request at once. Nothing more is returned for it. Unknown ids are ignored."""

    def has_work(self) -> bool:
        """Whether any request is running or queued."""

    def stats(self) -> EngineStats:
        """Called from any thread."""

    def close(self) -> None:
        """Free everything. Idempotent."""


class Codec(Protocol):
    """Token ids to text and back: what a tokenizer means to the loop above an engine."""

    eos_token_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that a model is to go on with, with what this tokenizer puts at the beginning."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of these tokens; incomplete UTF-8 at the end becomes U+FFFD."""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token stands for, special ones included; bytes that are part of a character as ``<0xE2>``."""


class PromptRenderer(Protocol):
    """Messages to token ids and text back to a message, as ``BaseSampler`` needs it (see ``rendering.Renderer``)."""

    @property
    def codec(self) -> Codec:
        """Decodes this model's tokens."""

    def prompt_ids(self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Token ids of the rendered prompt with the generation prompt at its end.

        Raises:
            RenderError
        """

    def escaped(
        self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any]
    ) -> list[tuple[str, str]]:
        """Special tokens that stand in texts of these messages, which are broken up: each with its place.

        Raises:
            RenderError
        """

    def prefill_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer's beginning as a user gives it, to stand at a prompt's end.

        Raises:
            RenderError
        """

    def reasoning_open(self, prompt_ids: Sequence[int], prefill: str) -> bool:
        """Whether what the model writes behind this prompt and this beginning of its answer begins inside reasoning."""

    @property
    def answer_tags(self) -> Mapping[str, Sequence[str]]:
        """By the kind of block (``think``, ``tool_call``), the tags around it that show in the text of answers."""

    @property
    def hidden_tags(self) -> Sequence[str]:
        """The kinds (``think``, ``tool_call``) that answers have without such tags."""

    @property
    def media_kinds(self) -> Set[str]:
        """The kinds of media that prompts may have: ``image``, ``video``, ``audio``."""

    def media_prompt(
        self, messages: Sequence[Message], tools: str | None, options: Mapping[str, Any], prefill: str
    ) -> tuple[tuple[int, ...], Media]:
        """As ``prompt_ids``, for messages with media; called only where ``media_kinds`` has some. The tokens of
        ``prefill`` stand at the end.

        Raises:
            RenderError
        """

    def parse_message(self, text: str, prompt_ids: Sequence[int]) -> Message:
        """The assistant's turn in the v1 form. Never loses text."""

    @property
    def needs_special_tokens(self) -> bool:
        """Whether ``parse_message`` should get the answer with its special tokens."""


def check_supported(engine: Engine, params: SamplingParams) -> None:
    """Refuse parameters that this engine does not honour, unless their value changes nothing, and unknown adapters.

    Raises:
        UnsupportedParameter: with the first such parameter.
    """
    for name, spec in PARAMS.items():
        value = getattr(params, name)
        if name in engine.supported or value in (None, spec.default):
            continue
        raise UnsupportedParameter(
            f"The {engine.name} engine cannot honour {name}={value!r}; leave it out or use another engine.",
            parameter=name,
            engine=engine.name,
        )
    check_adapter(engine, params.adapter)


def check_adapter(engine: Engine, name: str | None) -> None:
    """Refuse an adapter that the engine does not have.

    Raises:
        UnsupportedParameter: with the names of those that it has.
    """
    if name is None or name in (BASE_ADAPTER, *engine.adapters):
        return
    if engine.adapters:
        there_are = f"There are {', '.join(engine.adapters)}, and {BASE_ADAPTER} for the model without any."
        text = f"{unknown_name('adapter', name, [BASE_ADAPTER, *engine.adapters])} {there_are}"
    else:
        text = (
            f"There is no adapter {name!r}: the model was loaded without any that a request could choose. Leave "
            f"adapter out, or launch with --lora {name}=PATH."
        )
    raise UnsupportedParameter(text, parameter="adapter", engine=engine.name, adapters=list(engine.adapters))


def check_prompt(engine: Engine, request: EngineRequest) -> None:
    """Refuse a prompt that leaves no room for a single new token, is empty, or has token ids that do not exist.

    A request whose ``max_new_tokens`` does not fit as a whole is taken, and ends with ``length`` where the room ends.

    Raises:
        PromptTooLong: with ``prompt_tokens`` and ``limit``.
        RenderError: no tokens, an id that the model does not have, or media for an engine that takes none.
    """
    if request.media is not None and not engine.takes_media:
        raise RenderError(
            f"The {engine.name} engine takes text only; leave images, videos and sounds out, or launch with "
            "--engine auto, which picks one for them."
        )
    largest = max((*request.prompt_ids, *request.generated_ids), default=-1)
    if not request.prompt_ids or largest >= engine.vocab_size:
        what = f"token id {largest}, and the model has {engine.vocab_size:,}" if request.prompt_ids else "no tokens"
        raise RenderError(f"The prompt has {what}.")
    prompt_tokens = len(request.prompt_ids) + len(request.generated_ids)
    if prompt_tokens >= engine.max_model_len:
        raise PromptTooLong(
            f"The prompt has {prompt_tokens:,} tokens; the worker holds {engine.max_model_len:,} tokens of prompt and "
            "answer together. Shorten the prompt, or launch with a larger --max-model-len if the model allows it.",
            prompt_tokens=prompt_tokens,
            limit=engine.max_model_len,
        )
