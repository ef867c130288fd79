"""Models that take videos: the answers of transformers' own ``generate`` on its processor's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from samplerpool.config.arguments import EngineConfig, ModelArguments
from samplerpool.engine.base import Engine, EngineRequest
from samplerpool.engine.factory import build_engine
from samplerpool.model.model_engine import ModelEngine
from tests.engine_contract import drive, params
from tests.media_zoo import drawing
from tests.videos import reference
from tests.videos.zoo import FAMILIES, checkpoint, film

NEW_TOKENS = 16


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelEngine:
    folder = checkpoint(tmp_path_factory.mktemp("videos") / request.param, request.param)
    return ModelEngine(ModelArguments(model_name_or_path=str(folder)))


@pytest.fixture
def engine(loaded: ModelEngine) -> Iterator[Engine]:
    said: list[str] = []
    engine = build_engine(EngineConfig(max_batch=4), loaded.model, loaded.renderer, said.append)
    assert "takes image, video blocks" in "".join(said)
    yield engine
    engine.close()


def request(
    loaded: ModelEngine, number: int, *content: Any, generated: Sequence[int] = (), **options: Any
) -> EngineRequest:
    ids, media = loaded.renderer.media_prompt([reference.message(*content)], None, options)
    wanted = params(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    return EngineRequest((1, number), ids, wanted, 0, tuple(generated), media)


def test_answers_are_those_of_generate(loaded: ModelEngine, engine: Engine) -> None:
    conversations: list[reference.Content] = [
        ("What is ", film(0), "?"),
        (film(1), "and", film(2, size=(32, 48), rate=2), "differ in?"),
        ("What is ", film(3, frames=17), "?"),
    ]
    requests = [request(loaded, number, *content) for number, content in enumerate(conversations)]
    found = drive(engine, requests)
    answers = [reference.answer(loaded, *content, tokens=NEW_TOKENS) for content in conversations]
    for made, content, expected in zip(requests, conversations, answers, strict=True):
        assert list(made.prompt_ids) == reference.inputs(loaded.processor, *content)["input_ids"][0].tolist()
        assert found[made.request_id].token_ids == expected
    assert len({tuple(answer) for answer in answers}) == 3  # what is seen matters


def test_the_same_tokens_with_another_video_are_another_prompt(loaded: ModelEngine, engine: Engine) -> None:
    requests = [request(loaded, number, "What is ", film(number), "?") for number in range(3)]
    assert len({made.prompt_ids for made in requests}) == 1
    found = drive(engine, requests)
    answers = [found[made.request_id].token_ids for made in requests]
    expected = [reference.answer(loaded, "What is ", film(number), "?", tokens=NEW_TOKENS) for number in range(3)]
    assert answers == expected
    assert len({tuple(answer) for answer in answers}) == 3


@pytest.mark.parametrize("option", [{"fps": 2}, {"num_frames": 4}])
def test_the_request_says_how_many_frames_are_looked_at(
    loaded: ModelEngine, engine: Engine, option: dict[str, Any]
) -> None:
    """Of 16 frames in 2 seconds four."""
    content = ("What is ", film(1, frames=16, rate=8), "?")
    made = request(loaded, 1, *content, **option)
    whole = {"fps": None, "num_frames": None, **option}
    expected = reference.inputs(loaded.processor, *content, **whole)
    assert list(made.prompt_ids) == expected["input_ids"][0].tolist()
    assert made.media is not None
    pixels = made.media.tensors()["pixel_values_videos"]
    assert torch.equal(pixels, expected["pixel_values_videos"])
    few, many = (request(loaded, 1, *content, num_frames=number).media for number in (4, 8))
    assert few is not None
    assert many is not None
    assert many.tensors()["pixel_values_videos"].numel() == 2 * few.tensors()["pixel_values_videos"].numel()
    assert pixels.numel() == few.tensors()["pixel_values_videos"].numel()
    answer = reference.answer(loaded, *content, tokens=NEW_TOKENS, **whole)
    assert drive(engine, [made])[made.request_id].token_ids == answer


def test_a_continuation_goes_on_where_the_answer_stopped(loaded: ModelEngine, engine: Engine) -> None:
    content = ("What is ", film(2), "?")
    answer = reference.answer(loaded, *content, tokens=NEW_TOKENS)
    made = request(loaded, 1, *content, generated=answer[:6])
    assert drive(engine, [made])[made.request_id].token_ids == answer[6:]


def test_images_and_text_are_answered_between_them(loaded: ModelEngine, engine: Engine) -> None:
    from tests.media_zoo import data_url

    image: Any = {"type": "image_url", "value": data_url(drawing(1))}
    pictures: Any = {"role": "user", "content": [image, {"type": "text", "value": "?"}]}
    ids, media = loaded.renderer.media_prompt([pictures])
    wanted = params(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    alone = drive(engine, [EngineRequest((1, 1), ids, wanted, 0, (), media)])[(1, 1)].token_ids
    video = request(loaded, 2, "What is ", film(1), "?")
    found = drive(engine, [EngineRequest((1, 3), ids, wanted, 0, (), media), video])
    assert found[(1, 3)].token_ids == alone
    assert found[video.request_id].token_ids == reference.answer(loaded, "What is ", film(1), "?", tokens=NEW_TOKENS)


def test_the_processor_that_was_given_is_left_as_it_is(loaded: ModelEngine) -> None:
    assert "fetch_videos" not in vars(loaded.processor.video_processor)
