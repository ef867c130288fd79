"""What transformers answers about videos, with its own decoding by PyAV."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

from transformers.video_utils import load_video

from samplerpool.model.model_engine import ModelEngine
from samplerpool.types import Message
from tests.media_zoo import data_url

Content = tuple[str | bytes, ...]
"""A user's turn: texts and video files in their order."""


def message(*content: str | bytes, role: str = "user") -> Message:
    blocks: Any = [
        {"type": "text", "value": part}
        if isinstance(part, str)
        else {"type": "video_url", "value": data_url(part, "video/mp4")}
        for part in content
    ]
    return {"role": role, "content": blocks}  # type: ignore[typeddict-item]


def inputs(processor: Any, *content: str | bytes, **processor_options: Any) -> Any:
    """The inputs that the model's own processor makes of a user's turn."""
    reading = copy.copy(processor)
    reading.video_processor = copy.copy(processor.video_processor)
    reading.video_processor.fetch_videos = _fetch_videos
    with tempfile.TemporaryDirectory() as folder:
        blocks = []
        for number, part in enumerate(content):
            if isinstance(part, str):
                blocks.append({"type": "text", "text": part})
            else:
                path = f"{folder}/{number}"
                with open(path, "wb") as file:
                    file.write(part)
                blocks.append({"type": "video", "path": path})
        return reading.apply_chat_template(
            [{"role": "user", "content": blocks}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=processor_options,
        )


def answer(model: ModelEngine, *content: str | bytes, tokens: int, **processor_options: Any) -> list[int]:
    """The tokens of ``generate``, greedy."""
    given = inputs(model.processor, *content, **processor_options)
    made = model.model.generate(**given, max_new_tokens=tokens, do_sample=False, eos_token_id=-1)
    return made[0, given["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]


def _fetch_videos(videos: Any, sample_indices_fn: Any = None) -> Any:
    if isinstance(videos, list):
        return list(zip(*[_fetch_videos(video, sample_indices_fn) for video in videos], strict=True))
    return load_video(videos, backend="pyav", sample_indices_fn=sample_indices_fn)
