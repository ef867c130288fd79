"""Which chat template is used, and the one for models that bring none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samplerpool.errors import InvalidParameter

CHATML_MARKERS: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")

CHATML_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'You may call these functions:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\nFor each call, write a JSON object with name and arguments like this:\\n' }}
    {{- '<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first else '' }}
            {{- '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

BUILT_IN: dict[str, str] = {"chatml": CHATML_TEMPLATE}


def choose_template(processor: Any, tokenizer: Any, name: str | None, custom: str | None) -> str | dict[str, str]:
    """The template to use: the custom one, the named one, the processor's own, the tokenizer's, or ChatML.

    Returns:
        Jinja text, or several by name (``default``, ``tool_use``).

    Raises:
        InvalidParameter: no template of this name; a custom template that is neither Jinja text nor a readable file.
    """
    if custom is not None:
        return _custom_template(custom)
    if name is not None:
        return _built_in_template(name)
    for source in (processor, tokenizer):
        if own := getattr(source, "chat_template", None):
            return dict(own) if isinstance(own, dict) else str(own)
    return CHATML_TEMPLATE


def template_for(template: str | dict[str, str], *, tools: bool) -> str:
    """The one text to render with; among several, the one made for tools if there are any.

    Raises:
        InvalidParameter: several templates, and none of them is the default.
    """
    if isinstance(template, str):
        return template
    if tools and "tool_use" in template:
        return template["tool_use"]
    if "default" not in template:
        names = ", ".join(sorted(template))
        raise InvalidParameter(
            f"The model has several chat templates ({names}) and no default; give custom_chat_template."
        )
    return template["default"]


def _built_in_template(name: str) -> str:
    if name not in BUILT_IN:
        raise InvalidParameter(f"There is no template named {name!r}; known: {', '.join(sorted(BUILT_IN))}.")
    return BUILT_IN[name]


def _custom_template(custom: str) -> str:
    if "{%" in custom or "{{" in custom:
        return custom
    try:
        return Path(custom).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidParameter(
            f"custom_chat_template is neither Jinja text nor a file that can be read: {custom!r} ({reason})."
        ) from error
