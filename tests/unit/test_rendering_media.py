"""Prompts with images and sounds, and all that is refused on the way. With processors, without a model."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
import torch
from PIL import Image
from tokenizers.models import BPE
from transformers import CLIPImageProcessorPil, LlavaProcessor

from samplerpool.errors import RenderError
from samplerpool.rendering.media import IMAGE_FORMATS
from samplerpool.rendering.renderer import Renderer
from samplerpool.types import Message
from tests.media_zoo import EXTRA, data_url, drawing, png, qwen2_5_vl, template, tone
from tests.tiny_tokenizer import tiny_tokenizer

PLACES = 9
"""Tokens of one image."""


def processor(chat_template: str) -> Any:
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    tokenizer = tiny_tokenizer(more_specials=EXTRA)
    return LlavaProcessor(images, tokenizer, 8, "default", chat_template, num_additional_image_tokens=1)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(processor(template(image="<image>")))


def user(*content: str | tuple[str, str]) -> Message:
    blocks: Any = [{"type": "text", "value": part} if isinstance(part, str) else block(*part) for part in content]
    return {"role": "user", "content": blocks}


def block(kind: str, value: str) -> dict[str, str]:
    return {"type": f"{kind}_url", "value": value}


def image(number: int = 0) -> tuple[str, str]:
    return "image", data_url(drawing(number))


def refused(renderer: Renderer, *content: str | tuple[str, str]) -> str:
    with pytest.raises(RenderError) as caught:
        renderer.media_prompt([user(*content)])
    return caught.value.message


def test_media_stand_where_they_were_written(renderer: Renderer) -> None:
    messages = [user("a", "b", image(0), "c", image(1)), user("d")]
    ids, media = renderer.media_prompt(messages)
    place = renderer.processor.image_token_id
    text = renderer.codec.decode([i for i in ids if i != place], skip_special_tokens=False)
    assert text == "<|start|>user:abc<|end|><|start|>user:d<|end|><|start|>assistant:"
    begin = renderer.codec.encode("<|start|>user:ab")
    assert list(ids[: len(begin) + PLACES + 2]) == [*begin, *[place] * PLACES, *renderer.codec.encode("c"), place]
    pixels = media.tensors()["pixel_values"]
    expected = renderer.processor.image_processor(
        [Image.open(io.BytesIO(drawing(n))) for n in (0, 1)], return_tensors="pt"
    )
    assert torch.equal(pixels, expected["pixel_values"])


def test_photographs_are_turned_upright(renderer: Renderer) -> None:
    plain = Image.open(io.BytesIO(drawing(1)))
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned right
    plain.rotate(90, expand=True).save(stream, "PNG", exif=exif)
    _, turned = renderer.media_prompt([user(("image", data_url(stream.getvalue())))])
    _, upright = renderer.media_prompt([user(image(1))])
    assert torch.equal(turned.tensors()["pixel_values"], upright.tensors()["pixel_values"])


def test_nobody_can_write_a_placeholder(renderer: Renderer) -> None:
    ids, _ = renderer.media_prompt([user("<image> <|image_pad|>", image(), "<ima", "ge>")])
    assert ids.count(renderer.processor.image_token_id) == PLACES
    assert renderer.processor.image_token_id not in renderer.prompt_ids([user("<image>")])


def test_texts_around_an_image_cannot_join_to_a_placeholder() -> None:
    """A template that puts the images first, and the texts together."""
    images_first = (
        "{% for m in messages %}{% for p in m.content if p.type == 'image' %}<image>{% endfor %}"
        "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    renderer = Renderer(processor(images_first))
    ids, _ = renderer.media_prompt([user("one ", image(), "two")])
    assert ids[PLACES:] == tuple(renderer.codec.encode("one two"))
    assert "forms a special token" in refused(renderer, "<ima", image(), "ge>")


def test_an_answer_may_begin_as_its_user_wants_beside_an_image(renderer: Renderer) -> None:
    messages = [user("a", image())]
    ids, _ = renderer.media_prompt(messages)
    begun, _ = renderer.media_prompt(messages, prefill="Sure <image>")
    assert begun == ids + renderer.prefill_ids("Sure <image>")
    assert begun.count(renderer.processor.image_token_id) == PLACES


def test_a_beginning_that_would_join_with_the_template_is_refused_beside_an_image() -> None:
    joining = processor(template(image="<image>"))
    backend = joining.tokenizer.backend_tokenizer
    letters = backend.get_vocab(with_added_tokens=False)
    letters["::"] = letters.pop("\u00ff")
    backend.model = BPE(letters, [(":", ":")])
    renderer = Renderer(joining)
    assert renderer.media_prompt([user(image())], prefill="x:")
    with pytest.raises(RenderError, match="does not keep the beginning of the answer"):
        renderer.media_prompt([user(image())], prefill=":x")


def test_a_template_must_have_a_place_for_each(renderer: Renderer) -> None:
    blind = Renderer(processor(template(image="")))
    assert "made 0 placeholders (<image>) for 2 image blocks" in refused(blind, image(0), image(1))
    double = Renderer(processor(template(image="<image><image>")))
    assert "made 2 placeholders (<image>) for 1 image blocks" in refused(double, image())


def test_a_template_for_text_makes_a_model_for_text() -> None:
    renderer = Renderer(processor("{% for m in messages %}{{ m.content }}{% endfor %}"))
    assert renderer.media_kinds == frozenset()
    assert renderer.codec.decode(renderer.prompt_ids([user("hello")]), skip_special_tokens=False) == "hello"
    with pytest.raises(RenderError, match="takes text only"):
        renderer.prompt_ids([user(image())])


def test_a_text_model_refuses_them() -> None:
    renderer = Renderer(tiny_tokenizer())
    assert renderer.media_kinds == frozenset()
    for kind in ("image", "video", "audio"):
        with pytest.raises(
            RenderError, match=f"a block of type {kind}_url in message 1 .user., but this model takes text"
        ):
            renderer.prompt_ids([user("a", (kind, data_url(b"x")))])


def test_kinds_that_the_model_does_not_take_are_refused(renderer: Renderer) -> None:
    assert renderer.media_kinds == {"image"}
    assert "audio_url in message 1 (user), but this model takes text and image" in refused(
        renderer, ("audio", data_url(tone(), "audio/wav"))
    )


def test_images_alone_make_no_videos(renderer: Renderer) -> None:
    assert "video_url in message 1 (user), but this model takes text and image, nothing else" in refused(
        renderer, ("video", data_url(b"film", "video/mp4"))
    )


def test_a_worker_without_torchvision_says_so() -> None:
    """The model takes videos, and the processor was loaded without its part for them."""
    tokenizer = tiny_tokenizer(more_specials=EXTRA)
    numbers = {name: tokenizer.convert_tokens_to_ids(name) for name in EXTRA}
    renderer = Renderer(qwen2_5_vl(tokenizer, numbers, {"vocab_size": len(tokenizer)})[0])
    assert renderer.media_kinds == {"image"}
    message = refused(renderer, "What is ", ("video", data_url(b"film", "video/mp4")))
    assert "The video in message 1 (user) cannot be taken, because the worker lacks a package" in message
    assert "install torchvision there, from where its torch came" in message
    assert renderer.media_prompt([user(image())])


def test_token_ids_alone_have_no_place_for_them(renderer: Renderer) -> None:
    answer: Message = {"role": "assistant", "content": [{"type": "text", "value": "A cat."}]}
    for messages, generate in (([user(image())], True), ([user(image()), answer], False)):
        with pytest.raises(RenderError, match="Message 1 has media"):
            renderer.render_messages(messages, is_generate=generate)
    assert renderer.render_messages([user("Who?"), answer])["labels"][-1] != -100


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("/etc/hostname", "is no data: URL, and a worker reads no files"),
        ("file:///etc/hostname", "is no data: URL"),
        ("http://127.0.0.1:9/x.png", "is no data: URL, and a worker reads no files and fetches nothing"),
        ("data:image/png;base64,%%%", "not in base64"),
        ("data:image/png;base64,abc", "not in base64"),
        ("data:image/png;base64,", "has no bytes"),
        (data_url(tone(), "audio/wav"), "is of type audio/wav; use a block of type audio_url"),
        (data_url(b"no image at all"), "cannot be decoded: cannot identify image"),
        (data_url(drawing()[:-60]), "cannot be decoded"),
        (data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be decoded"),
    ],
)
def test_bytes_are_trusted_with_nothing(renderer: Renderer, value: str, why: str) -> None:
    message = refused(renderer, "What is ", ("image", value))
    assert why in message
    assert "message 1 (user)" in message
    assert len(message) < 400


def test_no_format_that_starts_other_programs_is_read() -> None:
    assert "EPS" not in IMAGE_FORMATS


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_too_many_pixels_is_not_decoded(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    large = png(Image.new("RGB", (40, 40)))
    assert "40 x 40 pixels are more than 1,000" in refused(renderer, ("image", data_url(large)))


def test_a_data_url_need_not_be_in_base64(renderer: Renderer) -> None:
    plain = f"data:image/png,{quote_from_bytes(drawing())}"
    _, media = renderer.media_prompt([user(("image", plain))])
    _, same = renderer.media_prompt([user(image())])
    assert torch.equal(media.tensors()["pixel_values"], same.tensors()["pixel_values"])
