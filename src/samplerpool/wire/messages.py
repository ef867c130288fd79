"""What travels between client, worker and supervisor. Requests are imperative, replies are nouns or participles.

All are values, which nobody changes. Those of which there is one a row or token are not frozen all the same, because
that takes two to three times as long to make one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from samplerpool.types import Message as ChatMessage
from samplerpool.types import PromptCount, RenderedPrompt, TokenLogprobs

Purpose = Literal["answer", "count", "render"]
"""What a prompt is sent for: ``Generate``, ``Count`` or ``Render``."""


@dataclass(slots=True)
class ChatPrompt:
    """Messages in the v1 form, to be rendered by the worker.

    Args:
        tools: JSON text, or None.
        options: keyword arguments through to the chat template (``enable_thinking``, ...).
        prefill: how the answer begins. It becomes the prompt's end, and what is streamed goes on behind it.
    """

    messages: Sequence[ChatMessage]
    tools: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt that was rendered before: a continuation, or the caller's own token ids.

    Args:
        prompt_ids: as ``Accepted`` reported them.
        generated_ids: tokens received already; they are final and are not sent again.
        delivered_chars: how many characters of their text were delivered.
        media: the messages that it was rendered of, where they have images, videos or sounds.
        prefill: the text of the answer's beginning with which the prompt ends.
        goes_on: what comes is no turn of its own but goes on with the prompt's text, as with that of a ``TextPrompt``.
    """

    prompt_ids: Sequence[int]
    generated_ids: Sequence[int] = ()
    delivered_chars: int = 0
    media: ChatPrompt | None = None
    prefill: str = ""
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text for the model to go on with, as it stands: no template comes around it, and special tokens in it are such.

    Args:
        text: the worker puts in front of it what the model's tokenizer has there (a token for the beginning, mostly).
    """

    text: str


Prompt = ChatPrompt | TokenPrompt | TextPrompt


@dataclass(slots=True)
class Generate:
    """Answer a prompt. ``request_id`` is the client's own number, above 0, used once per connection.

    Args:
        incarnation: of the worker process that is meant.
        params: sampling parameters that the caller gave, by name.
        priority: 0 interactive, 1 batch.
        stream: send ``Accepted`` and ``Tokens`` as they come, or else ``Completed`` at the end alone.
        parse: send the answer's parsed message at the end.
        size_bytes: never sent: what it took on its way here.
    """

    request_id: int
    incarnation: str
    prompt: Prompt
    params: Mapping[str, Any]
    priority: int = 0
    stream: bool = True
    parse: bool = False
    size_bytes: int = field(default=0, compare=False)


@dataclass(slots=True)
class Count:
    """Prepare a prompt just as ``Generate`` would, with all of its checks, and say what that tells instead of answering
    it: ``Counted``, or ``Failed`` with the error that ``Generate`` would end with. Its turn is that of batch rows.

    Args:
        size_bytes: never sent: what it took on its way here.
    """

    request_id: int
    incarnation: str
    prompt: Prompt
    params: Mapping[str, Any]
    size_bytes: int = field(default=0, compare=False)


@dataclass(slots=True)
class Render:
    """Say which tokens a prompt is made of: ``Rendered``, or ``Failed`` where it cannot be rendered or has more of them
    than the worker holds. Of a continuation, those of the answer so far come last.

    Args:
        size_bytes: never sent: what it took on its way here.
    """

    request_id: int
    incarnation: str
    prompt: Prompt
    size_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Abort:
    """Stop a request. Idempotent; the request ends with ``Failed(Aborted)`` unless it has ended already."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Ask for a ``Pong``; renews the sender's lease."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask a worker, or a supervisor, for its ``Description``."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell a supervisor to drain for up to ``timeout_s`` seconds and end; answered by a ``Description``."""

    request_id: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Restart:
    """Tell a supervisor to replace workers by new processes, one after the other; answered by a ``Description``.

    Args:
        worker: its number, or None for all.
        timeout_s: how long each may take to finish what it runs.
    """

    request_id: int
    worker: int | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Scale:
    """Tell a supervisor to have so many workers; answered by a ``Description``.

    Args:
        timeout_s: how long those that go may take to finish what they run.
    """

    request_id: int
    workers: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class ListKeys:
    """Ask a supervisor whom it knows; answered by a ``Description`` with ``keys``."""

    request_id: int


@dataclass(frozen=True, slots=True)
class AddKey:
    """Tell a supervisor to let a client in; answered like ``ListKeys``.

    Args:
        name: to speak of it by.
        public_key: the client's, 40 characters of Z85.
    """

    request_id: int
    name: str
    public_key: str


@dataclass(frozen=True, slots=True)
class RevokeKey:
    """Tell a supervisor to let a client in no more, and to end what it runs; answered like ``ListKeys``."""

    request_id: int
    name: str


@dataclass(slots=True)
class Accepted:
    """The request is valid and queued; ``prompt_ids`` and ``seed`` are all it takes to produce it again.

    Args:
        reasoning_open: the answer begins inside its reasoning, which the prompt (or the prefill at its end) opened.
    """

    request_id: int
    prompt_ids: Sequence[int]
    seed: int
    reasoning_open: bool = False


@dataclass(slots=True)
class Tokens:
    """New tokens. ``index`` is the position of the first one among all generated; frames have no gaps.

    ``text`` is what they add: whole characters, never part of a stop string, so it may lag behind the tokens.
    ``logprobs`` is one entry a token, where the request asks for them.
    """

    request_id: int
    index: int
    token_ids: Sequence[int]
    text: str
    logprobs: Sequence[TokenLogprobs] | None = None


@dataclass(slots=True)
class Finished:
    """Terminal: the request ended well.

    Args:
        finish_reason: ``stop`` or ``length``.
        message: the parsed assistant turn, where ``parse`` asked for it.
    """

    request_id: int
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    message: ChatMessage | None = None


@dataclass(slots=True)
class Completed:
    """Terminal: a request that was not to be streamed ended well, and this is all that comes of it.

    Args:
        finish_reason: ``stop`` or ``length``.
        seed: as in ``Accepted``.
        text: the whole answer; of a continuation, what was not delivered before.
        message: the parsed assistant turn, where ``parse`` asked for it and it is more than one block of ``text``.
        logprobs: one entry a token, where the request asks for them; of a continuation, those of its own tokens.
    """

    request_id: int
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seed: int
    text: str
    message: ChatMessage | None = None
    logprobs: Sequence[TokenLogprobs] | None = None


@dataclass(slots=True)
class Counted:
    """Terminal: the end of a ``Count``."""

    request_id: int
    count: PromptCount


@dataclass(slots=True)
class Rendered:
    """Terminal: the end of a ``Render``."""

    request_id: int
    prompt: RenderedPrompt


@dataclass(frozen=True, slots=True)
class Failed:
    """Terminal: the request ended with an error (``SamplerPoolError.to_wire``). ``request_id`` 0: a frame that
    could not be attributed to a request."""

    request_id: int
    error: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to ``Ping``.

    Args:
        incarnation: of the answering process.
        steps: engine steps since its start, which moves while there is progress.
        live: the sender's requests that have not ended.
    """

    ping_id: int
    incarnation: str
    steps: int
    live: Sequence[int]


@dataclass(frozen=True, slots=True)
class Description:
    """Answer to ``Describe``: facts and figures by name."""

    request_id: int
    info: Mapping[str, Any]


Submission = Generate | Count | Render
"""What a worker keeps a place for until it has ended."""
Request = Submission | Abort | Ping | Describe | Stop | Restart | Scale | ListKeys | AddKey | RevokeKey
Reply = Accepted | Tokens | Finished | Completed | Counted | Rendered | Failed | Pong | Description
WireMessage = Request | Reply


@dataclass(frozen=True, slots=True)
class Malformed:
    """Never sent: what the codec makes of an entry that it cannot take.

    Args:
        request_id: the entry's, or 0 where none can be told.
    """

    request_id: int
    reason: str
