"""Tiny models of random weights that take images or sounds, with their processors, and what transformers says of them.

Everything is made here, from configurations: tokenizer, processor, weights.
"""

from __future__ import annotations

import base64
import io
import math
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    CLIPImageProcessorPil,
    LlavaProcessor,
    Qwen2AudioProcessor,
    Qwen2VLImageProcessorPil,
    WhisperFeatureExtractor,
)

from samplerpool.model.processors import without_videos
from tests.tiny_tokenizer import tiny_tokenizer

IMAGE, VIDEO, AUDIO = "<|image_pad|>", "<|video_pad|>", "<|AUDIO|>"
EXTRA = (
    "<|vision_start|>",
    "<|vision_end|>",
    IMAGE,
    VIDEO,
    "<|audio_bos|>",
    AUDIO,
    "<|audio_eos|>",
    "<image>",
    "<video>",
)
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}:{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}{{ place[part.type] }}{% endif %}"
    "{% endfor %}{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
FAMILIES = ("qwen2_5_vl", "llava", "qwen2_audio")


def template(**places: str) -> str:
    written = ", ".join(f"'{kind}': '{text}'" for kind, text in places.items())
    return f"{{% set place = {{{written}}} %}}" + TEMPLATE


def checkpoint(folder: Path, family: str) -> Path:
    """Save a model of this family, with its processor."""
    return saved(folder, {"qwen2_5_vl": qwen2_5_vl, "llava": _llava, "qwen2_audio": _qwen2_audio}[family])


def saved(folder: Path, make: Callable[[Any, dict[str, int], dict[str, Any]], tuple[Any, Any]]) -> Path:
    """Save the model of the configuration that ``make`` gives, with the processor.

    Args:
        make: of the tokenizer, the placeholders' token ids, and what the configuration of the text part has to say.
    """
    torch.manual_seed(7)
    tokenizer = tiny_tokenizer(more_specials=EXTRA)
    numbers = {name: tokenizer.convert_tokens_to_ids(name) for name in EXTRA}
    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    processor, config = make(tokenizer, numbers, text)
    model = AutoModelForMultimodalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # so that answers vary, and what is seen matters
            scale = 1.0 if "embed" in name else 1.5 / math.sqrt(parameter[0].numel())
            parameter.data.normal_(0, scale, generator=generator)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def qwen2_5_vl(tokenizer: Any, numbers: dict[str, int], text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLProcessor

    images = Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64, max_pixels=4096, merge_size=2, temporal_patch_size=2)
    chat = template(image=f"<|vision_start|>{IMAGE}<|vision_end|>", video=f"<|vision_start|>{VIDEO}<|vision_end|>")
    processor = without_videos(Qwen2_5_VLProcessor)(images, tokenizer, chat_template=chat)
    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 32,
        },
        image_token_id=numbers[IMAGE],
        video_token_id=numbers[VIDEO],
        vision_start_token_id=numbers["<|vision_start|>"],
        vision_end_token_id=numbers["<|vision_end|>"],
    )
    return processor, config


def _llava(tokenizer: Any, numbers: dict[str, int], text: dict[str, Any]) -> tuple[Any, Any]:
    size = {"height": 24, "width": 24}
    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=size)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(image="<image>"),
    )
    config = AutoConfig.for_model(
        "llava",
        text_config={**text, "model_type": "llama"},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 24,
            "patch_size": 8,
            "projection_dim": 16,
        },
        image_token_index=numbers["<image>"],
        image_seq_length=9,
    )
    return processor, config


def _qwen2_audio(tokenizer: Any, numbers: dict[str, int], text: dict[str, Any]) -> tuple[Any, Any]:
    sounds = WhisperFeatureExtractor(feature_size=8, chunk_length=1, sampling_rate=16_000)
    chat = template(audio=f"<|audio_bos|>{AUDIO}<|audio_eos|>")
    processor = Qwen2AudioProcessor(sounds, tokenizer, chat_template=chat)
    config = AutoConfig.for_model(
        "qwen2_audio",
        text_config={**text, "model_type": "qwen2"},
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 8,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "d_model": 16,
            "max_source_positions": 50,
        },
        audio_token_index=numbers[AUDIO],
    )
    return processor, config


# ---- media that the tests make --------------------------------------------------------------------------------------


def drawing(number: int = 0, size: tuple[int, int] = (40, 28)) -> bytes:
    """A PNG, another one for each number."""
    image = Image.new("RGB", size, (40 * number % 256, 90, 200 - 50 * number % 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((2 + 3 * number, 3, 20, 24), fill=(250, 30 * number % 256, 10))
    draw.line((0, 0, size[0], size[1] - number), fill=(0, 250, 0), width=2)
    return png(image)


def png(image: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def tone(frequency: float = 440.0, rate: int = 16_000, seconds: float = 0.4) -> bytes:
    """A WAV file."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        steps = range(int(rate * seconds))
        values = (int(20_000 * math.sin(2 * math.pi * frequency * step / rate)) for step in steps)
        file.writeframes(b"".join(value.to_bytes(2, "little", signed=True) for value in values))
    return stream.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
