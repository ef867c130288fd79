"""Models that take images and sounds: the answers of transformers' own ``generate`` on its processor's inputs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.audio_utils import load_audio

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.engine.base import BATCH, Engine, EngineRequest
from samplerpool.engine.factory import build_engine
from samplerpool.errors import RenderError, StartFailed
from samplerpool.model.model_engine import ModelEngine
from samplerpool.rendering.media import Budget, MediaInputs
from samplerpool.types import Message
from tests.engine_contract import drive, params
from tests.media_zoo import FAMILIES, checkpoint, data_url, drawing, tone

NEW_TOKENS = 16


@dataclass
class Loaded:
    """A model, and the media that it is asked about."""

    family: str
    parts: ModelEngine

    @property
    def kind(self) -> str:
        return "audio" if self.family == "qwen2_audio" else "image"

    def medium(self, number: int) -> bytes:
        """Different ones of different sizes; sounds at a rate that must be changed, too."""
        if self.kind == "audio":
            return tone(220.0 * (number + 1), rate=(16_000, 8_000)[number % 2], seconds=0.3 + 0.1 * number)
        return drawing(number, size=(40 + 16 * number, 28 + 4 * number))

    def message(self, *content: str | bytes) -> list[Message]:
        media_type = "audio/wav" if self.kind == "audio" else "image/png"
        blocks: Any = [
            {"type": "text", "value": part}
            if isinstance(part, str)
            else {"type": f"{self.kind}_url", "value": data_url(part, media_type)}
            for part in content
        ]
        return [{"role": "user", "content": blocks}]

    def request(self, number: int, *content: str | bytes, generated: Sequence[int] = (), priority: int = 0) -> Any:
        ids, media = self.parts.renderer.media_prompt(self.message(*content))
        wanted = params(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
        return EngineRequest((1, number), ids, wanted, priority, tuple(generated), media)

    def expected(self, *content: str | bytes) -> tuple[list[int], list[int]]:
        """Prompt and answer by transformers alone."""
        blocks = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": self.kind, self.kind: self.opened(part)}
            for part in content
        ]
        inputs = self.parts.processor.apply_chat_template(
            [{"role": "user", "content": blocks}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        made = self.parts.model.generate(
            **inputs.to(self.parts.model.dtype), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1
        )
        begin = inputs["input_ids"].shape[1]
        return made[0, :begin].tolist(), made[0, begin:].tolist()

    def opened(self, data: bytes) -> Any:
        if self.kind == "image":
            return Image.open(io.BytesIO(data))
        return load_audio(data_url(data, "audio/wav"), sampling_rate=16_000)


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = checkpoint(tmp_path_factory.mktemp("media") / request.param, request.param)
    return Loaded(request.param, ModelEngine(ModelArguments(model_name_or_path=str(folder))))


@pytest.fixture
def engine(loaded: Loaded) -> Iterator[Engine]:
    said: list[str] = []
    engine = build_engine(EngineConfig(max_batch=4), loaded.parts.model, loaded.parts.renderer, said.append)
    assert engine.name == "sequential"
    assert f"takes {loaded.kind} blocks" in "".join(said)
    yield engine
    engine.close()


def test_rows_that_take_turns_are_answered_as_by_generate(loaded: Loaded, engine: Engine) -> None:
    conversations: list[tuple[str | bytes, ...]] = [
        ("What is ", loaded.medium(0), "?"),
        (loaded.medium(1), "and", loaded.medium(2), "differ in?"),
        ("What is ", loaded.medium(3), "?"),
    ]
    requests = [loaded.request(number, *content) for number, content in enumerate(conversations)]
    found = drive(engine, requests)
    answers = []
    for request, content in zip(requests, conversations, strict=True):
        prompt, answer = loaded.expected(*content)
        assert list(request.prompt_ids) == prompt
        assert found[request.request_id].token_ids == answer
        answers.append(answer)
    assert len({tuple(answer) for answer in answers}) == 3  # what is seen matters


def test_the_same_tokens_with_other_media_are_another_prompt(loaded: Loaded, engine: Engine) -> None:
    if loaded.kind == "image":
        media = [drawing(number, size=(40, 28)) for number in range(3)]
    else:
        media = [tone(frequency) for frequency in (220.0, 1_500.0, 3_000.0)]
    requests = [loaded.request(number, "What is ", medium, "?") for number, medium in enumerate(media)]
    assert len({request.prompt_ids for request in requests}) == 1
    together = drive(engine, requests)
    answers = [together[request.request_id].token_ids for request in requests]
    assert answers == [loaded.expected("What is ", medium, "?")[1] for medium in media]
    assert len({tuple(answer) for answer in answers}) == 3
    alone = drive(engine, [loaded.request(9, "What is ", media[1], "?")])  # and after the others, too
    assert next(iter(alone.values())).token_ids == answers[1]


def test_text_alone_is_answered_between_them(loaded: Loaded, engine: Engine) -> None:
    text = EngineRequest(
        (1, 7),
        loaded.parts.renderer.prompt_ids(loaded.message("Just text.")),
        params(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True),
    )
    found = drive(engine, [loaded.request(1, loaded.medium(1), "?"), text])
    prompt, answer = loaded.expected("Just text.")
    assert list(text.prompt_ids) == prompt
    assert found[text.request_id].token_ids == answer


def test_a_continuation_goes_on_where_the_answer_stopped(loaded: Loaded, engine: Engine) -> None:
    content = ("What is ", loaded.medium(2), "?")
    _, answer = loaded.expected(*content)
    request = loaded.request(1, *content, generated=answer[:6])
    assert drive(engine, [request])[request.request_id].token_ids == answer[6:]


def test_a_row_that_made_room_is_computed_once_more(loaded: Loaded, engine: Engine) -> None:
    rows = [loaded.request(number, loaded.medium(number), "?", priority=BATCH) for number in range(4)]
    for row in rows:
        engine.check(row)
        engine.add(row)
    tokens: dict[Any, list[int]] = {}

    def step() -> None:
        for output in engine.step():
            assert output.error is None
            tokens.setdefault(output.request_id, []).extend(output.token_ids)

    for _ in range(6):
        step()
    engine.add(loaded.request(9, "Now ", loaded.medium(1)))
    while engine.has_work():
        step()
    assert tokens[(1, 9)] == loaded.expected("Now ", loaded.medium(1))[1]
    for number in range(4):
        assert tokens[(1, number)] == loaded.expected(loaded.medium(number), "?")[1]


def test_inputs_beyond_the_budget_are_made_again(loaded: Loaded) -> None:
    first = {"pixels": torch.ones(4)}
    tight = Budget(20)
    kept = MediaInputs(lambda: {"pixels": torch.zeros(4)}, first, tight)
    again = MediaInputs(lambda: {"pixels": torch.zeros(4)}, first, tight)
    assert kept.tensors() is first
    assert again.tensors()["pixels"].sum() == 0
    del kept
    assert MediaInputs(dict, first, tight).tensors() is first  # the place of the one that is gone

    renderer, messages = loaded.parts.renderer, loaded.message(loaded.medium(0))
    _, media = renderer.media_prompt(messages)
    for name, value in media._make().items():
        assert torch.equal(value, media.tensors()[name])


def test_an_engine_for_text_refuses_media(loaded: Loaded) -> None:
    config = EngineConfig(engine="dense", options={"cache_gib": 0.02})
    if loaded.kind == "audio":  # it gives more logits than it is asked for
        with pytest.raises(StartFailed):
            build_engine(config, loaded.parts.model, loaded.parts.renderer)
        return
    engine = build_engine(config, loaded.parts.model, loaded.parts.renderer)
    try:
        with pytest.raises(RenderError, match=r"dense engine takes text only.*--engine auto"):
            engine.check(loaded.request(1, loaded.medium(0)))
    finally:
        engine.close()
