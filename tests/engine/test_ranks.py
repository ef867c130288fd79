"""A model whose layers are divided among two processes answers as it does in one. Rank 0 is this process."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from samplerpool.config.arguments import EngineConfig
from samplerpool.engine import ranks
from samplerpool.engine.base import Engine, EngineRequest
from samplerpool.engine.dense import DenseEngine
from samplerpool.engine.factory import build_engine
from samplerpool.engine.ranks import join
from samplerpool.engine.split import COMPARED
from samplerpool.model.model_engine import divided
from tests.engine_contract import EngineContract, answer_of, drive, params
from tests.model_zoo import ZOO, Reference, assert_same_answer, build, config_of, prompt_of, reference_greedy
from tests.near_ties import assert_same_tokens

RENDERER: Any = SimpleNamespace(codec=SimpleNamespace(eos_token_ids=frozenset({2})), media_kinds=frozenset())
LENGTHS = (3, 9, 17, 30)
NEW_TOKENS = 12
REFUSED = ("cohere",)
"""See ``test_split``."""
DIVIDED = [
    name
    for name, entry in ZOO.items()
    if entry.method == "packed" and config_of(name).base_model_tp_plan and name not in REFUSED
]


def whole(name: str, **changes: Any) -> Any:
    """A model of the zoo, with biases and norms that nobody could add twice, or leave out, unseen."""
    model = build(name, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


class Pair:
    """This process and another one: a ``Group``, which a model's engine is built with."""

    size = 2

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded = 0
        self._name, self._model = "", None
        self._channel, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.engine.rank_one", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "LOCAL_RANK": "1"},
            )
        self.told: list[str] = []

    def tell(self, order: str, *arguments: Any) -> None:
        self.told.append(order)
        self._channel.send_bytes(json.dumps((order, arguments)).encode())

    def fail(self, error: BaseException) -> NoReturn:
        raise error

    def load(self, name: str, **changes: Any) -> Any:
        """Rank 0's half of a model of the zoo, until another is loaded; the other process has the other one."""
        if self._name == name and not changes:
            return self._model
        self.unload()
        checkpoint, store = self._folder / str(self._loaded), self._folder / f"store-{self._loaded}"
        self._loaded += 1
        whole(name, **changes).save_pretrained(checkpoint)
        self._channel.send_bytes(json.dumps((str(checkpoint), str(store))).encode())
        join(0, 2, str(store), "cpu")
        self._name = name
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **divided(2)).eval()
        return self._model

    def unload(self) -> None:
        if self._name:
            self._name, self._model = "", None
            self.tell("end")
            torch.distributed.destroy_process_group()

    def close(self) -> int:
        self.unload()
        self._channel.close()
        return self.process.wait(30)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Not looked for here: what torch keeps of a mesh of processes holds its sockets until this one ends."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    transformers_logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        patch.setenv("LOCAL_RANK", "0")
        pair = Pair(tmp_path_factory.mktemp("zoo"))
        yield pair
    transformers_logging.enable_progress_bar()
    assert pair.close() == 0


class Watched(DenseEngine):
    """Keeps the logits that each request's tokens were taken from."""

    seen: dict[Any, list[Tensor]]

    def _sample(self, rows: list[Any], logits: Tensor) -> Any:
        for row, values in zip(rows, logits, strict=True):
            self.seen.setdefault(row.request.request_id, []).append(values.clone())
        return super()._sample(rows, logits)


@pytest.fixture
def divide(pair: Pair) -> Iterator[Callable[..., Watched]]:
    engines: list[Watched] = []

    def engine_for(name: str, changes: Any = NOTHING, **options: Any) -> Watched:
        config = EngineConfig(engine="dense", max_batch=8, options={"cache_gib": 0.05, **options})
        model = pair.load(name, **changes)
        engines.append(Watched(model, config, eos_token_ids=frozenset(), max_model_len=64, group=pair))
        engines[-1].seen = {}
        return engines[-1]

    yield engine_for
    for engine in engines:
        engine.close()


def greedy(engine: Watched, numbers: list[int]) -> dict[int, Reference]:
    requests = [
        EngineRequest((0, number), tuple(prompt_of(LENGTHS[number])), params(max_new_tokens=NEW_TOKENS))
        for number in numbers
    ]
    engine.seen.clear()
    answers = drive(engine, requests)
    return {n: Reference(answers[0, n].token_ids, torch.stack(engine.seen[0, n]).float()) for n in numbers}


NOTHING: Mapping[str, Any] = {}


@functools.cache
def alone(name: str) -> Any:
    return whole(name)


@functools.cache
def expected(name: str) -> list[Reference]:
    """What ``generate`` says in one process."""
    return [reference_greedy(alone(name), prompt_of(length), NEW_TOKENS) for length in LENGTHS]


def test_these_are_the_models_that_need_no_warning() -> None:
    assert {config_of(name).model_type for name in DIVIDED} == COMPARED


@pytest.mark.parametrize("name", DIVIDED)
def test_greedy_answers_of_batches_are_those_of_one_process(divide: Any, name: str) -> None:
    engine = divide(name, prefill_chunk=7, step_tokens=20)
    for number, answer in greedy(engine, [0, 1, 2, 3]).items():
        assert_same_answer(answer, expected(name)[number])
    for number, answer in greedy(engine, [3]).items():  # its prompt is still there
        assert_same_answer(answer, expected(name)[number])
    assert engine.stats().details["prefix_hits"] >= 1
    assert engine.stats().details["tensor_parallel"] == 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("gemma2", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"vocab_size": 203, "intermediate_size": 51}),
        ("phi3", {"intermediate_size": 50, "vocab_size": 203}),
        ("mixtral", {"num_local_experts": 3}),
    ],
)
def test_tied_and_biased_weights_and_those_of_odd_sizes(divide: Any, name: str, changes: dict[str, Any]) -> None:
    engine, model = divide(name, changes), whole(name, **changes)
    for number, answer in greedy(engine, [1, 3]).items():
        assert_same_answer(answer, reference_greedy(model, prompt_of(LENGTHS[number]), NEW_TOKENS))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "deepseek-v3", "mixtral"])
def test_each_rank_holds_its_share_of_weights_and_cache(pair: Pair, divide: Any, name: str) -> None:
    engine = divide(name)
    undivided = DenseEngine(
        whole(name),
        EngineConfig(engine="dense", max_batch=8, options={"cache_gib": 0.05, "packed_linears": False}),
        eos_token_ids=frozenset(),
        max_model_len=64,
    )
    local = sum(parameter.to_local().numel() for parameter in sharded(engine))
    assert local * 2 == sum(parameter.numel() for parameter in sharded(engine))
    if name != "deepseek-v3":  # which keeps latents, that all heads share
        assert [s.kv_heads * 2 for s in engine._arena.shapes] == [s.kv_heads for s in undivided._arena.shapes]
    undivided.close()


def sharded(engine: Any) -> list[Any]:
    return [parameter for parameter in engine._model.parameters() if hasattr(parameter, "to_local")]


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gpt-neox"])
def test_seeded_samples_are_those_of_one_process(divide: Any, name: str) -> None:
    engine = divide(name)
    requests = [
        EngineRequest((0, n), tuple(prompt_of(LENGTHS[n])), params(max_new_tokens=20, temperature=1.0, seed=n))
        for n in range(4)
    ]
    single = DenseEngine(
        whole(name), EngineConfig(options={"cache_gib": 0.05}), eos_token_ids=frozenset(), max_model_len=64
    )
    wanted = drive(single, requests)
    found = drive(engine, requests)
    single.close()
    for request in requests:

        def logits_after(generated: list[int], request: EngineRequest = request) -> Tensor:
            ids = torch.tensor([[*request.prompt_ids, *generated]])
            return alone(name)(input_ids=ids, use_cache=False).logits[0, -1]

        one, other = found[request.request_id].token_ids, wanted[request.request_id].token_ids
        assert_same_tokens(one, other, request, logits_after)
        assert len(set(one)) > 5


def test_an_abort_in_the_middle_and_a_continuation(divide: Any) -> None:
    engine = divide("llama")
    requests = [
        EngineRequest((0, n), tuple(prompt_of(LENGTHS[n])), params(max_new_tokens=NEW_TOKENS)) for n in range(3)
    ]
    answers = drive(engine, requests, until=lambda a: any(len(each.token_ids) > 3 for each in a.values()))
    engine.abort((0, 1))
    begun = answers.pop((0, 1)).token_ids
    drive(engine, (), answers)
    for number in (0, 2):
        assert answers[0, number].token_ids == expected("llama")[number].token_ids
    rest = answer_of(engine, tuple(prompt_of(LENGTHS[1])), begun, max_new_tokens=NEW_TOKENS)
    assert begun + rest.token_ids == expected("llama")[1].token_ids


def test_the_factory_probes_it_and_says_so(pair: Pair) -> None:
    config, model = EngineConfig(max_batch=4, max_model_len=64, options={"cache_gib": 0.05}), pair.load("qwen2")
    pair.told.clear()
    engine = build_engine(config, model, RENDERER, group=pair)
    assert pair.told[:3] == ["plain answers", "open", "run"]
    assert "divided among 2 processes" in engine.stats().details["picked"]
    assert answer_of(engine, tuple(prompt_of(9)), max_new_tokens=NEW_TOKENS).token_ids == expected("qwen2")[1].token_ids
    engine.close()
    assert pair.told[-1] == "close"


def test_an_exchange_with_a_rank_that_hangs_has_an_end(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.unload()
    monkeypatch.setattr(ranks, "EXCHANGE_TIMEOUT_S", 2.0)
    another = Pair(tmp_path)
    config = EngineConfig(engine="dense", options={"cache_gib": 0.05})
    engine = DenseEngine(another.load("llama"), config, eos_token_ids=frozenset(), max_model_len=64, group=another)
    another.process.send_signal(signal.SIGSTOP)
    with pytest.raises(RuntimeError, match=r"(?i)timed out|time ?out"):
        answer_of(engine, (5, 6, 7), max_new_tokens=2)
    another.process.kill()
    assert another.process.wait(30) == -signal.SIGKILL
    torch.distributed.destroy_process_group()


def test_a_follower_ends_with_rank_0_and_does_nothing_that_it_does_not_know() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send_bytes(b'["sing",[]]')
        with pytest.raises(ValueError, match="rank 0 says 'sing'"):
            ranks.follow(theirs, None, 2)
        ours.send_bytes(b'["close",[]]')  # nothing is open
        with pytest.raises(ValueError, match="rank 0 says 'close'"):
            ranks.follow(theirs, None, 2)
        ours.close()
        ranks.follow(theirs, None, 2)


class Broken:
    """A group that is told of a failure."""

    size = 2

    def __init__(self) -> None:
        self.told: list[str] = []
        self.error: BaseException | None = None

    def tell(self, order: str, *arguments: Any) -> None:
        self.told.append(order)

    def fail(self, error: BaseException) -> NoReturn:
        self.error = error
        raise SystemExit(1)


def test_a_pass_that_fails_on_rank_0_ends_the_group() -> None:
    def run(*_: Any) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    group, own = Broken(), SimpleNamespace(shapes=[], arena=None, compiled=False, run=run)
    passes = ranks.SharedPasses(lambda: own, group, EngineConfig(), 64)  # type: ignore[arg-type, return-value]
    with pytest.raises(SystemExit):
        passes.run([], [], [1], [0])
    assert group.told == ["open", "run"]
    assert isinstance(group.error, torch.OutOfMemoryError)


class TestDividedEngine(EngineContract):
    """All that an engine does, in two processes."""

    first_token_steps = 3

    @pytest.fixture(autouse=True)
    def _two(self, pair: Pair) -> None:
        self.pair = pair

    def build(self, *, max_batch: int = 4, max_model_len: int = 256) -> Engine:
        config = EngineConfig(engine="dense", max_batch=max_batch, options={"cache_gib": 0.05})
        eos = frozenset({expected("llama")[1].token_ids[4]})
        return DenseEngine(
            self.pair.load("llama"), config, eos_token_ids=eos, max_model_len=max_model_len, group=self.pair
        )

    def prompt(self, name: str, tokens: int) -> tuple[int, ...]:
        return tuple(prompt_of(tokens, number=sum(map(ord, name))))

    def ending_prompt(self) -> tuple[int, ...]:
        return tuple(prompt_of(LENGTHS[1]))
