"""The plugins ``qwen3`` and ``qwen3_nothink``: the prompts of Qwen3, and of its models that do not think.

As those models were trained: reasoning of turns before the last question is left out; without thinking the turn begins
with an empty ``<think>``. The models that do not think have no tag for reasoning. Where a conversation has some, it is
written between ``<thinking>`` and ``</thinking>``, which are plain text to them.
"""

from __future__ import annotations

from samplerpool.rendering.chatml import MARKERS
from samplerpool.rendering.parsing import AnswerTags
from samplerpool.rendering.plugins import RenderingPlugin

_SYSTEM = """\
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + (system + '\\n\\n' if system is not none else '') }}
    {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
    {{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, ' }}
    {{- '"arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif system is not none %}
    {{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' }}
{%- endif %}
"""

_LAST_QUESTION = """\
{%- set last = namespace(question=messages | length - 1) %}
{%- for message in messages %}
    {%- set is_answer_of_tool = message.content.startswith('<tool_response>')
        and message.content.endswith('</tool_response>') %}
    {%- if message.role == 'user' and not is_answer_of_tool %}
        {%- set last.question = loop.index0 %}
    {%- endif %}
{%- endfor %}
"""

_TURNS = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        REASONING
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first else '' }}
            {{- '<tool_call>\\n{"name": ' + (call.function.name | tojson) + ', "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' }}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' else '' }}
    {%- elif message.role == 'user' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    END_OF_PROMPT
{%- endif %}"""

_THINKING = """\
{%- if loop.index0 > last.question and (loop.last or message.reasoning_content) %}
            {{- '<think>\\n' + (message.reasoning_content or '').strip('\\n') + '\\n</think>\\n\\n' }}
            {{- message.content.lstrip('\\n') }}
        {%- else %}
            {{- message.content }}
        {%- endif %}"""

_NO_THINKING = """\
{%- if message.reasoning_content %}
            {{- '<thinking>\\n' + message.reasoning_content + '\\n</thinking>\\n\\n' }}
        {%- endif %}
        {{- message.content }}"""

_EMPTY_THINKING = """\
{%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}"""

QWEN3 = RenderingPlugin(
    chat_template=_SYSTEM
    + _LAST_QUESTION
    + _TURNS.replace("REASONING", _THINKING).replace("END_OF_PROMPT", _EMPTY_THINKING),
    markers=MARKERS,
    turn_end=MARKERS[1],
)

QWEN3_NOTHINK = RenderingPlugin(
    chat_template=_SYSTEM + _TURNS.replace("REASONING", _NO_THINKING).replace("END_OF_PROMPT", ""),
    tags=AnswerTags(think=("<thinking>", "</thinking>")),
    markers=MARKERS,
    turn_end=MARKERS[1],
    thinking=False,
)
