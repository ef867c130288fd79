"""Tiny models of random weights that take videos, and videos that the tests draw and encode."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from transformers import (
    AutoConfig,
    LlavaNextImageProcessorPil,
    LlavaNextVideoProcessor,
    Qwen2VLImageProcessorPil,
)

from tests.media_zoo import IMAGE, VIDEO, qwen2_5_vl, saved, template

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_next_video")
SIZES: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
PIXELS = {"shortest_edge": 64, "longest_edge": 1024}
CHAT = template(image=f"<|vision_start|>{IMAGE}<|vision_end|>", video=f"<|vision_start|>{VIDEO}<|vision_end|>")


def checkpoint(folder: Path, family: str) -> Path:
    """Save a model of this family, with its processor."""
    make = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "llava_next_video": _llava_next_video}[family]
    return saved(folder, make)


def _qwen2_5_vl(tokenizer: Any, numbers: dict[str, int], text: dict[str, Any]) -> tuple[Any, Any]:
    """Looks at every frame unless it is told otherwise."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    _, config = qwen2_5_vl(tokenizer, numbers, text)
    videos = Qwen2VLVideoProcessor(**SIZES, size=PIXELS, cap_pixels_per_frame=False)
    images = Qwen2VLImageProcessorPil(**SIZES, size=PIXELS)
    return Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=CHAT), config


def _qwen3_vl(tokenizer: Any, numbers: dict[str, int], text: dict[str, Any]) -> tuple[Any, Any]:
    """Looks at two frames a second, and writes their times into the prompt."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    videos = Qwen3VLVideoProcessor(
        **SIZES, size={"shortest_edge": 64, "longest_edge": 2**16}, cap_pixels_per_frame=False
    )
    images = Qwen2VLImageProcessorPil(**SIZES, size=PIXELS)
    config = AutoConfig.for_model(
        "qwen3_vl",
        text_config={
            **text,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "out_hidden_size": 32,
        },
        image_token_id=numbers[IMAGE],
        video_token_id=numbers[VIDEO],
        vision_start_token_id=numbers["<|vision_start|>"],
        vision_end_token_id=numbers["<|vision_end|>"],
    )
    return Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT), config


def _llava_next_video(tokenizer: Any, numbers: dict[str, int], text: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import LlavaNextVideoVideoProcessor

    size = {"height": 32, "width": 32}
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(size={"shortest_edge": 32}, crop_size=size),
        LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=size, image_grid_pinpoints=[[32, 32]]),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(image="<image>", video="<video>"),
    )
    config = AutoConfig.for_model(
        "llava_next_video",
        text_config={**text, "model_type": "llama"},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": 16,
        },
        image_grid_pinpoints=[[32, 32]],
        image_token_index=numbers["<image>"],
        video_token_index=numbers["<video>"],
    )
    return processor, config


# ---- videos that the tests make -------------------------------------------------------------------------------------


def film(
    number: int = 0,
    frames: int = 12,
    size: tuple[int, int] = (48, 32),
    container: str = "mp4",
    codec: str = "mpeg4",
    rate: int = 4,
) -> bytes:
    """A video file in which a bar of colour moves, another one for each number.

    Args:
        size: width and height in pixels.
        container, codec: FFmpeg's names.
        rate: frames a second.
    """
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as file:
        video = file.add_stream(codec, rate=Fraction(rate))
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        for step in range(frames):
            picture = np.full((size[1], size[0], 3), (60 * number % 256, 20 * step % 256, 90), np.uint8)
            picture[:, (3 + number) * step % size[0] :][:, :8] = (250, 250 - 60 * number % 256, 10)
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(video.encode())
    return stream.getvalue()
