"""A tiny tokenizer made in memory, and short ways to write messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from samplerpool.types import Content, Message

START, END, PAD, CALL = "<|start|>", "<|end|>", "<pad>", "[CALL]"
SPECIALS = (START, END, PAD, CALL)
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}:{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}[CALL]{{ c.function | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if style %}{{ style }}{% endif %}"
    "{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)


def tiny_tokenizer(
    template: Any = TEMPLATE, *, normalized: bool = False, more_specials: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: one token a byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if normalized:
        backend.normalizer = normalizers.Replace("\u200b", "")
    specials = (*SPECIALS, *more_specials)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=normalized) for token in specials])
    backend.add_tokens([AddedToken("<think>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = template
    return tokenizer


def text(value: str, kind: str = "text") -> Content:
    return {"type": kind, "value": value}  # type: ignore[typeddict-item]


def user(*values: str) -> Message:
    return {"role": "user", "content": [text(value) for value in values]}


def assistant(*content: Content) -> Message:
    return {"role": "assistant", "content": list(content)}


def call(arguments: dict[str, Any], name: str = "f") -> Content:
    return text(json.dumps({"name": name, "arguments": arguments}), "tool_call")
