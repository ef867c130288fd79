"""Whole files in both forms, token for token as the tokenizer's own ``apply_chat_template`` renders them."""

from __future__ import annotations

from pathlib import Path

import pytest

from samplerpool import Renderer
from samplerpool.rendering.plugins import rendering_plugin
from tests.rendered_files import Compared, compare
from tests.tiny_tokenizer import TEMPLATE, tiny_tokenizer

SAMPLES = Path(__file__).parents[1] / "samples"
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
TOOLS_FIRST = TOOLS + TEMPLATE.replace(TOOLS, "")
FILES = {"conversations.jsonl": (7, 7), "pairs.jsonl": (1, 2), "alpaca.json": (2, 2)}
"""Samples (one an answer to be learned), and conversations."""


@pytest.mark.parametrize("template", [None, "chatml", "qwen3", "qwen3_nothink"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_renders_as_the_library_renders_it(name: str, template: str | None) -> None:
    tokenizer = tiny_tokenizer(TOOLS_FIRST, more_specials=("<|im_start|>", "<|im_end|>"))
    text = rendering_plugin(template).chat_template if template else None
    done = compare(SAMPLES / name, Renderer(tokenizer, template=template), text)
    assert (done.samples, done.conversations) == FILES[name]
    assert done.tokens > 20 * done.conversations


def test_a_difference_would_be_noticed() -> None:
    other = rendering_plugin("chatml").chat_template
    with pytest.raises(AssertionError):
        compare(SAMPLES / "alpaca.json", Renderer(tiny_tokenizer()), other)
    assert Compared() == Compared(0, 0, 0)
