"""Prompts with videos, and all that is refused on the way. With processors, without an engine."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from samplerpool.config.arguments import ModelArguments
from samplerpool.errors import RenderError
from samplerpool.model.model_engine import ModelEngine
from samplerpool.rendering import videos
from samplerpool.rendering.renderer import Renderer
from samplerpool.rendering.videos import decoded
from samplerpool.types import Message
from tests.media_zoo import VIDEO, data_url, drawing, template
from tests.videos.reference import message
from tests.videos.zoo import checkpoint, film


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("videos") / "model", "qwen2_5_vl")


@pytest.fixture(scope="module")
def model(folder: Path) -> ModelEngine:
    return ModelEngine(ModelArguments(model_name_or_path=str(folder)))


@pytest.fixture(scope="module")
def renderer(model: ModelEngine) -> Renderer:
    return model.renderer


def video_message(url: str) -> Message:
    return {"role": "user", "content": [{"type": "video_url", "value": url}, {"type": "text", "value": "What?"}]}


def refused(renderer: Renderer, *messages: Message, **options: Any) -> str:
    with pytest.raises(RenderError) as caught:
        renderer.media_prompt(list(messages), None, options)
    assert len(caught.value.message) < 500
    return caught.value.message


# ---- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mov", "libx264"),
        ("webm", "libvpx-vp9"),
        ("matroska", "ffv1"),
        ("avi", "mpeg4"),
        ("mpegts", "mpeg4"),
    ],
)
def test_common_formats_are_decoded(container: str, codec: str) -> None:
    """Also those that do not say how many frames they have."""
    frames, metadata = decoded(film(1, 12, (48, 32), container, codec))
    assert frames.shape == (12, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert (metadata.total_num_frames, metadata.width, metadata.height) == (12, 48, 32)
    assert metadata.fps == 4.0
    assert metadata.duration == 3.0
    assert list(metadata.frames_indices) == list(range(12))
    assert np.abs(frames[3, 4, 40].astype(int) - (60, 60, 90)).max() < 30  # what was drawn there


def test_only_the_chosen_frames_are_kept_and_in_their_order() -> None:
    data = film(1, container="matroska", codec="ffv1")
    whole, _ = decoded(data)
    some, metadata = decoded(data, lambda metadata: [7, 2, 2])
    assert np.array_equal(some, whole[[7, 2, 2]])
    assert metadata.frames_indices == [7, 2, 2]


def test_a_video_that_ends_early_is_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    described = videos._described

    def too_many(data: bytes) -> Any:
        metadata = described(data)
        metadata.total_num_frames += 5
        return metadata

    monkeypatch.setattr(videos, "_described", too_many)
    frames, metadata = decoded(film(1, 12))
    assert len(frames) == metadata.total_num_frames == 12
    assert metadata.duration == 3.0


def test_lists_of_other_files_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would: the list names a video in the working directory of whoever decodes it."""
    (tmp_path / "secret.mp4").write_bytes(film())
    monkeypatch.chdir(tmp_path)
    for listing in (
        b"ffconcat version 1.0\nfile secret.mp4\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    ):
        with pytest.raises((av.FFmpegError, OSError)):
            decoded(listing)
    with av.open(str(_written(tmp_path / "list.ffconcat", b"ffconcat version 1.0\nfile secret.mp4\n"))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12  # so the list is a good one


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("/etc/hostname", "is no data: URL, and a worker reads no files"),
        ("data:video/mp4;base64,", "has no bytes"),
        (data_url(drawing()), "is of type image/png; use a block of type image_url"),
        (data_url(b"no video at all", "video/mp4"), "cannot be used: Invalid data found when processing input"),
        (data_url(film()[:400], "video/mp4"), "cannot be used: Invalid data found"),
        (data_url(film(container="avi")[:4000], "video/mp4"), "cannot be used: "),
        (data_url(drawing(), "application/octet-stream"), "cannot be used: Invalid"),
    ],
)
def test_bytes_are_trusted_with_nothing(renderer: Renderer, url: str, why: str) -> None:
    said = refused(renderer, video_message(url))
    assert why in said
    assert "message 1 (user)" in said


def test_a_sound_in_a_videos_clothes_has_no_pictures(renderer: Renderer) -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as file:
        track = file.add_stream("aac", rate=16_000)
        track.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        file.mux(track.encode(frame))
        file.mux(track.encode())
    said = refused(renderer, video_message(data_url(stream.getvalue(), "video/mp4")))
    assert "there are no pictures in it" in said


def test_more_frames_than_memory_allows_are_refused(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "MAX_FRAMES_BYTES", 6 * 48 * 32 * 3)
    said = refused(renderer, message("What is ", film()))
    assert "12 of 48 x 32 pixels take 55,296 bytes, and 27,648 are allowed" in said
    assert "template_options={'fps': 1}" in said
    assert renderer.media_prompt([message("What is ", film())], None, {"fps": 1})


def test_options_that_cannot_be_are_named(renderer: Renderer) -> None:
    turn = message(film(), "?")
    assert "fps or num_frames, not both" in refused(renderer, turn, fps=1, num_frames=4)
    assert "fps must be a number above 0, not -1" in refused(renderer, turn, fps=-1)
    assert "fps must be a number above 0, not 'many'" in refused(renderer, turn, fps="many")
    assert "num_frames must be a whole number above 0, not 2.5" in refused(renderer, turn, num_frames=2.5)
    assert "of its 12 frames none could be chosen" in refused(renderer, turn, num_frames=400)
    assert "of its 12 frames none" in refused(renderer, turn, num_frames=1)  # rounded to pairs
    assert renderer.media_prompt([turn], None, {"num_frames": None})


def test_a_template_must_have_a_place_for_each(model: ModelEngine) -> None:
    blind = Renderer(model.processor, custom_chat_template=template(image="", video=""))
    assert f"made 0 placeholders ({VIDEO}) for 2 video blocks" in refused(blind, message(film(), film(1)))
    double = Renderer(model.processor, custom_chat_template=template(image="", video=VIDEO * 2))
    assert f"made 2 placeholders ({VIDEO}) for 1 video blocks" in refused(double, message(film()))


def test_nobody_can_write_a_placeholder(renderer: Renderer) -> None:
    ids, _ = renderer.media_prompt([message("What is ", film(), "?")])
    more, _ = renderer.media_prompt([message(f"What is {VIDEO}", film(), "?")])
    assert renderer.processor.video_token_id in ids
    assert ids.count(renderer.processor.video_token_id) == more.count(renderer.processor.video_token_id)


def test_a_worker_without_pyav_says_so(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = message(film(), "?")
    monkeypatch.setitem(sys.modules, "av", None)
    said = refused(renderer, turn)
    assert "The video in message 1 (user) cannot be decoded, because the worker lacks a package" in said
    assert "Install samplerpool[media] there." in said
