"""What a request asks, in our own terms. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samplerpool.data.answers import row_seed
from samplerpool.data.media import KINDS
from samplerpool.data.messages import prefill_text, template_options_of, to_v1, tools_text
from samplerpool.errors import InvalidParameter, RenderError, SamplerPoolError
from samplerpool.gateway.fields import flag, given_fields, refuse, sampling_of, shown, with_defaults
from samplerpool.types import Message

_SOUNDS = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_WEB = re.compile(r"https?://", re.IGNORECASE)
MAX_INT32 = 2**31 - 1
"""More tokens than any model holds: an answer ends where the model's room does."""


@dataclass(frozen=True)
class Asked:
    """A request for one answer or several.

    Args:
        chat: a conversation is to be answered, or else texts to be gone on with.
        model: which model is named, if any.
        params: the sampling parameters of each answer, all answers of a prompt differing by their seed alone.
        messages, tools, template_options, prefill: the conversation, see ``AsyncSampler.generate``.
        prompts: the texts, or their token ids.
        echo: each answer begins with its prompt.
        stream, include_usage: how it is to come.
    """

    chat: bool
    model: str | None
    params: Sequence[Mapping[str, Any]]
    messages: Sequence[Message] = ()
    tools: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = ""
    prompts: Sequence[str | Sequence[int]] = ()
    echo: bool = False
    stream: bool = False
    include_usage: bool = False

    @property
    def answers(self) -> int:
        """How many are wanted in all; the first prompt's come first."""
        return len(self.params)

    @property
    def per_prompt(self) -> int:
        """Answers to each prompt."""
        return self.answers if self.chat else self.answers // len(self.prompts)

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return "logprobs" in self.params[0]


@dataclass(frozen=True)
class Rules:
    """What the gateway lets its clients do.

    Args:
        max_answers: most that one request may ask for.
        fetch_media: ``http(s):`` URLs of images, videos and sounds may be fetched.
        defaults: sampling parameters of requests that do not give them.
        pool_defaults: those that the pool was started with.
    """

    max_answers: int
    fetch_media: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    pool_defaults: Mapping[str, Any] = field(default_factory=dict)


def read_chat(body: Any, rules: Rules) -> Asked:
    """The request in the body of a ``POST /v1/chat/completions``.

    Raises:
        InvalidParameter, RenderError: a field is missing, wrong, unknown or cannot be honoured; ``data["param"]`` is
            its name.
    """
    given = given_fields(body, chat=True)
    if "messages" not in given:
        refuse("messages", "messages is missing: the conversation to answer.")
    if "template_options" in given and "chat_template_kwargs" in given:
        refuse("template_options", "template_options is another name of chat_template_kwargs; leave one out.")
    options = "template_options" if "template_options" in given else "chat_template_kwargs"
    params = with_defaults(sampling_of(given, chat=True), rules.defaults)
    if "max_new_tokens" not in params and "max_new_tokens" not in rules.pool_defaults:
        params["max_new_tokens"] = MAX_INT32  # as OpenAI's: an answer may be as long as there is room for
    count = _count(params, 1, rules)
    tools = None if given.get("tool_choice") == "none" else given.get("tools")
    return Asked(
        chat=True,
        model=_model(given),
        params=_of_each(params, 1, count),
        messages=_messages(given["messages"], rules),
        tools=_about("tools", lambda: tools_text(_tools(tools))),
        template_options=_about(options, lambda: template_options_of(given.get(options))),
        prefill=_about("prefill", lambda: prefill_text(given.get("prefill", ""))),
        stream=flag(given, "stream"),
        include_usage=_include_usage(given),
    )


def read_completion(body: Any, rules: Rules) -> Asked:
    """The request in the body of a ``POST /v1/completions``; raises as ``read_chat`` does."""
    given = given_fields(body, chat=False)
    prompts = _prompts(given.get("prompt"))
    params = with_defaults(sampling_of(given, chat=False), rules.defaults)
    count = _count(params, len(prompts), rules)
    echo = flag(given, "echo")
    if echo and "logprobs" in params:
        refuse("echo", "echo cannot be honoured with logprobs: those of the prompt's tokens are not known.")
    if echo and not all(isinstance(prompt, str) for prompt in prompts):
        refuse("echo", "echo can be honoured for prompts that are texts, not for token ids.")
    return Asked(
        chat=False,
        model=_model(given),
        params=_of_each(params, len(prompts), count),
        prompts=prompts,
        echo=echo,
        stream=flag(given, "stream"),
        include_usage=_include_usage(given),
    )


# ---- several answers ----------------------------------------------------------------------------------------------


def _count(params: Mapping[str, Any], prompts: int, rules: Rules) -> int:
    count: int = params.get("num_return_sequences", 1)
    if count * prompts > rules.max_answers:
        refuse(
            "n" if count > 1 else "prompt",
            f"{count * prompts} answers are asked for at once, and this server gives {rules.max_answers} at most.",
        )
    return count


def _of_each(params: Mapping[str, Any], prompts: int, count: int) -> list[dict[str, Any]]:
    """The parameters of each answer. The first has the seed that was given, and the others what follows from it, as in
    batches; they would be the same otherwise."""
    one = {name: value for name, value in params.items() if name != "num_return_sequences"}
    places = [(prompt, sample) for prompt in range(prompts) for sample in range(count)]
    if "seed" not in one:
        return [dict(one) for _ in places]
    seed = one["seed"]
    return [{**one, "seed": row_seed(seed, *place) if any(place) else seed} for place in places]


# ---- what is asked ------------------------------------------------------------------------------------------------


def _model(given: Mapping[str, Any]) -> str | None:
    model = given.get("model")
    if model is not None and (not isinstance(model, str) or not model):
        refuse("model", f"model must be the name of one, not {shown(model)}.")
    return model


def _include_usage(given: Mapping[str, Any]) -> bool:
    options = given.get("stream_options", {})
    if not isinstance(options, Mapping) or options.keys() - {"include_usage", "include_obfuscation"}:
        refuse("stream_options", f"stream_options can have include_usage alone, not {shown(options)}.")
    if options and not given.get("stream"):
        refuse("stream_options", "stream_options needs stream to be true.")
    if options.get("include_obfuscation"):
        refuse("stream_options", "include_obfuscation cannot be honoured; leave it out.")
    return flag(options, "include_usage")


def _prompts(prompt: Any) -> list[str | list[int]]:
    """A text, token ids, or a list of either."""
    several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)
    prompts = prompt if several else [prompt]
    for each in prompts:
        ids = isinstance(each, list) and bool(each) and all(type(token) is int and token >= 0 for token in each)
        if not isinstance(each, str) and not ids:
            refuse("prompt", f"prompt must be a text, a list of token ids, or a list of those, not {shown(prompt)}.")
    _about("prompt", lambda: [prefill_text(each) for each in prompts if isinstance(each, str)])
    return list(prompts)


def _tools(tools: Any) -> Any:
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        refuse("tools", f"tools must be a list of objects, not {shown(tools)}.")
    return tools


def _messages(messages: Any, rules: Rules) -> list[Message]:
    if not isinstance(messages, list):
        refuse("messages", f"messages must be a list, not {shown(messages)}.")
    read: list[Message] = _about("messages", lambda: to_v1([_with_sounds(*each) for each in enumerate(messages)]))
    for number, message in enumerate(read):
        for place, block in enumerate(message["content"]):
            if block["type"] in KINDS:
                _check_source(f"messages[{number}].content[{place}]", block["value"], rules)
    return read


def _with_sounds(number: int, message: Any) -> Any:
    """The message with sounds in our own form; with what we have no place for, it is refused."""
    if not isinstance(message, Mapping):
        return message
    for name in ("function_call", "audio"):
        if message.get(name) is not None:
            refuse("messages", f"messages[{number}]: {name} cannot be honoured.")
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(f"messages[{number}].content[{at}]", part) for at, part in enumerate(content)]}


def _part(where: str, part: Any) -> Any:
    if not isinstance(part, Mapping) or part.get("type") != "input_audio":
        return part
    sound = part.get("input_audio")
    data, form = (sound.get("data"), sound.get("format")) if isinstance(sound, Mapping) else (None, None)
    if not isinstance(data, str) or form not in list(_SOUNDS):
        refuse("messages", f"{where}: input_audio needs data, in base64, and format, {' or '.join(_SOUNDS)}.")
    return {"type": "audio_url", "audio_url": {"url": f"data:{_SOUNDS[form]};base64,{data}"}}


def _check_source(where: str, value: str, rules: Rules) -> None:
    """Clients must not make this process read files, whose path the samplers would take, nor fetch what it alone can
    reach."""
    if value.startswith("data:") or (rules.fetch_media and _WEB.match(value)):
        return
    if _WEB.match(value):
        why = "this server fetches nothing (samplerpool serve --fetch-media would let it)"
    else:
        why = "it reads no files for clients"
    raise RenderError(f"{where}: media must come as a data: URL, which holds the bytes; {why}.", param="messages")


def _about(param: str, read: Any) -> Any:
    """What ``read`` returns; its errors are said to be about a field."""
    try:
        return read()
    except (InvalidParameter, RenderError) as error:
        _with_param(error, param)
        raise


def _with_param(error: SamplerPoolError, param: str) -> None:
    error.data.setdefault("param", param)
