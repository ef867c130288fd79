"""The paged engine with the real small model: the tokens of ``generate``, and the same tokens for the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.register_assert_rewrite("tests.engine_contract")

from samplerpool.config.arguments import EngineConfig, ModelArguments  # noqa: E402
from samplerpool.engine.base import Engine, EngineRequest  # noqa: E402
from samplerpool.engine.factory import build_engine  # noqa: E402
from samplerpool.errors import PromptTooLong  # noqa: E402
from samplerpool.model.model_engine import ModelEngine  # noqa: E402
from tests.engine_contract import answer_of, drive, params  # noqa: E402

QUESTIONS = (
    "What is 2+2?",
    "Name three colours.",
    "Why is the sky blue? Answer in one sentence, please, and keep it simple enough for a child.",
    "Write a haiku about the sea.",
)
NEW_TOKENS = 12
NEAR_TIE = 1e-3


@pytest.fixture(scope="module")
def model_engine() -> ModelEngine:
    return ModelEngine(ModelArguments())


@pytest.fixture
def engine(model_engine: ModelEngine) -> Iterator[Engine]:
    engine = build_engine(
        EngineConfig(engine="paged", max_batch=8, max_model_len=1024), model_engine.model, model_engine.renderer
    )
    yield engine
    engine.close()


def prompt_ids(model_engine: ModelEngine, question: str) -> tuple[int, ...]:
    message = {"role": "user", "content": [{"type": "text", "value": question}]}
    return model_engine.renderer.prompt_ids([message], None, {})


@torch.no_grad()
def assert_greedy(model_engine: ModelEngine, prompt: tuple[int, ...], tokens: list[int], expected: list[int]) -> None:
    """Equal, or different from where two logits are closer than rounding."""
    for i, (token, wanted) in enumerate(zip(tokens, expected, strict=False)):
        if token != wanted:
            logits = model_engine.model(torch.tensor([[*prompt, *tokens[:i]]])).logits[0, -1]
            assert abs(logits[token] - logits[wanted]) < NEAR_TIE, f"token {i}: {token} instead of {wanted}"
            return
    assert len(tokens) == len(expected)


def test_greedy_answers_are_those_of_generate(model_engine: ModelEngine, engine: Engine) -> None:
    assert engine.name == "paged"
    prompts = [prompt_ids(model_engine, question) for question in QUESTIONS]
    requests = [
        EngineRequest((0, i), prompt, params(max_new_tokens=NEW_TOKENS, ignore_eos=False))
        for i, prompt in enumerate(prompts)
    ]
    answers = drive(engine, requests)
    for i, prompt in enumerate(prompts):
        output = model_engine.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        assert_greedy(model_engine, prompt, answers[0, i].token_ids, output[0, len(prompt) :].tolist())


def test_an_answer_makes_sense_and_ends_by_itself(model_engine: ModelEngine, engine: Engine) -> None:
    answer = answer_of(engine, prompt_ids(model_engine, QUESTIONS[0]), max_new_tokens=60, ignore_eos=False)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] in model_engine.renderer.codec.eos_token_ids
    assert "4" in model_engine.renderer.codec.decode(answer.token_ids, skip_special_tokens=True)


def test_sampled_answers_are_the_same_alone_in_a_batch_and_continued(model_engine: ModelEngine, engine: Engine) -> None:
    requests = [
        EngineRequest(
            (0, i),
            prompt_ids(model_engine, question),
            params(max_new_tokens=NEW_TOKENS, temperature=0.8, top_p=0.95, seed=i),
        )
        for i, question in enumerate(QUESTIONS)
    ]
    together = drive(engine, requests)
    for request in requests[:2]:
        whole = together[request.request_id]
        assert drive(engine, [request])[request.request_id] == whole
        begun = EngineRequest((1, 0), request.prompt_ids, request.params, generated_ids=tuple(whole.token_ids[:6]))
        assert drive(engine, [begun])[1, 0].token_ids == whole.token_ids[6:]


def test_a_prompt_beyond_the_launch_limit_is_refused(model_engine: ModelEngine, engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match=r"1,024"):
        engine.check(EngineRequest((0, 0), prompt_ids(model_engine, "very " * 1200 + "long"), params()))
