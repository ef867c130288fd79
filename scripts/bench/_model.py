"""The model as all benchmarks need it: where it lies, its renderer, and what a token costs. Loads no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from _workloads import Conversation, Requests


@dataclass(frozen=True)
class Model:
    """A checkpoint folder and its tokenizer.

    Args:
        body, head: floating point operations per token in the layers, and in the output head.
    """

    folder: Path
    prompt_ids: Callable[[Conversation], list[int]]
    decode: Callable[[list[int]], str]
    count_tokens: Callable[[str], int]
    body: int
    head: int

    def requests(self, conversations: Sequence[Conversation], max_new_tokens: int, together: bool = True) -> Requests:
        """Conversations with their token ids."""
        return Requests(conversations, [self.prompt_ids(each) for each in conversations], max_new_tokens, together)

    def work(self, requests: Requests, tokens: int) -> int:
        """Operations that answers of so many tokens to these prompts need."""
        prompts = requests.prompts
        shared = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))))
        once = shared * (len(prompts) - 1)
        passed = sum(map(len, prompts)) - once + tokens - len(prompts)  # an answer's last token is not passed in again
        return passed * self.body + tokens * self.head


def load_model(name: str | None) -> Model:
    """The checkpoint's folder, made from a GGUF file if need be, and its tokenizer.

    Raises:
        SamplerPoolError: there is no such model.
        SystemExit: it is not a local one.
    """
    import torch
    from _gemm import flops_per_token, linear_shapes
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from samplerpool.model.gguf import converted_gguf
    from samplerpool.model.model_engine import eos_token_ids
    from samplerpool.model.source import resolve_source
    from samplerpool.rendering.renderer import Renderer

    source = resolve_source(name)
    if source.kind == "hub":
        raise SystemExit("The benchmark takes a directory or a .gguf file, so that all systems read the same one.")
    folder = Path(source.location)
    if source.kind == "gguf":
        folder = converted_gguf(folder, torch.float32, print)
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer, eos_token_ids=eos_token_ids(GenerationConfig.from_pretrained(folder), config))
    body, head = flops_per_token(linear_shapes(config))
    return Model(
        folder,
        lambda messages: list(renderer.prompt_ids(messages)),
        lambda token_ids: renderer.codec.decode(token_ids, skip_special_tokens=True),
        lambda text: len(tokenizer(text).input_ids),
        body,
        head,
    )
