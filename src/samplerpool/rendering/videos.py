"""Videos for a model's processor: decoded with PyAV, and only the frames that the processor wants.

transformers decodes with torchcodec, which needs FFmpeg's libraries on the machine; PyAV brings them. The processor
still chooses the frames and makes all of them its inputs; only where it would have read a file, this is asked. Bytes
come from anyone, and FFmpeg knows formats that are lists of other files and addresses, so formats are named here.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

from samplerpool.errors import RenderError

VIDEO_FORMATS = ("mov", "mp4", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf")
"""Names of FFmpeg's readers."""

MAX_FRAMES_BYTES = 2**30
"""Of one video's chosen frames, three bytes a pixel; 388 frames of 1280 x 720. Processors make more of them."""

FRAME_OPTIONS = ("fps", "num_frames")
"""The options of a request that are the processor's: how many frames a second are looked at, or how many in all."""

Sampling = Callable[..., Any]
"""Takes ``metadata`` (transformers' ``VideoMetadata``), gives the numbers of the frames."""


class Video(str):
    """What stands for a video's path: processors pass it on to where files are read, and there it has its bytes.

    Args:
        place: of its block, for errors.
        data: the file.
    """

    data: bytes

    def __new__(cls, place: str, data: bytes) -> Video:
        video = super().__new__(cls, place)
        video.data = data
        return video


class TooManyFrames(ValueError):
    """The chosen frames would take too much memory."""


def reading_videos(processor: Any) -> Any:
    """The same processor, which takes a ``Video`` for a path. The one given is left as it is."""
    part, made = copy.copy(processor.video_processor), copy.copy(processor)
    part.fetch_videos = fetch_videos
    made.video_processor = part
    return made


def fetch_videos(videos: Any, sample_indices_fn: Sampling | None = None) -> Any:
    """In place of a video processor's own method.

    Args:
        videos: a ``Video``, or a list of them, which may be nested.
        sample_indices_fn: chooses the frames; all of them if ``None``.

    Returns:
        Frames (uint8, [frames, height, width, 3], RGB) and ``VideoMetadata``; of a list, all frames and all metadata.

    Raises:
        RenderError: it cannot be decoded, or PyAV is missing. Names the block.
    """
    if not isinstance(videos, Video):
        return list(zip(*[fetch_videos(video, sample_indices_fn) for video in videos], strict=True))
    try:
        return decoded(videos.data, sample_indices_fn)
    except ImportError as error:
        raise RenderError(
            f"The video in {videos} cannot be decoded, because the worker lacks a package: {error}. Install "
            "samplerpool[media] there."
        ) from error
    except TooManyFrames as error:
        raise RenderError(f"The video in {videos} {error}") from error
    except Exception as error:  # decoders and samplers raise nearly every class there is
        what = getattr(error, "strerror", None) or " ".join(f"{error}".split())[:300] or type(error).__name__
        raise RenderError(f"The video in {videos} cannot be used: {what}.") from error


def frame_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The processor's share of a request's options, as keyword arguments of a processor.

    Raises:
        RenderError: a value that cannot be.
    """
    given = {name: options[name] for name in FRAME_OPTIONS if options.get(name) is not None}
    if len(given) > 1:
        raise RenderError("Give fps or num_frames, not both.")
    for name, value in given.items():
        kinds = int if name == "num_frames" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1_000_000:
            what = "a whole number" if name == "num_frames" else "a number"
            raise RenderError(f"{name} must be {what} above 0, not {value!r}.")
    # The other one is ruled out, because the checkpoint may say it, and processors refuse both.
    return {"do_sample_frames": True, **dict.fromkeys(FRAME_OPTIONS), **given} if given else {}


def decoded(data: bytes, sample: Sampling | None = None) -> tuple[Any, Any]:
    """See ``fetch_videos``.

    Raises:
        TooManyFrames, ImportError, Exception: whatever FFmpeg's wrapper and ``sample`` raise.
    """
    metadata = _described(data)
    if not metadata.total_num_frames:  # some formats do not say
        _set_total(metadata, _counted(data))
    frames = _chosen(data, metadata, sample)
    if frames is None:  # some say more than there are
        _set_total(metadata, _counted(data))
        frames = _chosen(data, metadata, sample)
    if frames is None:
        raise ValueError("the processor chose frames that are not there")
    return frames, metadata


def _opened(data: bytes) -> Any:
    import av

    return av.open(
        io.BytesIO(data), options={"format_whitelist": ",".join(VIDEO_FORMATS), "protocol_whitelist": "none"}
    )


def _described(data: bytes) -> Any:
    from transformers.video_utils import VideoMetadata

    with _opened(data) as container:
        if not container.streams.video:
            raise ValueError("there are no pictures in it")
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        metadata = VideoMetadata(
            total_num_frames=0,
            fps=float(rate) if rate else None,
            width=stream.width,
            height=stream.height,
            video_backend="pyav",
        )
        if stream.frames:
            _set_total(metadata, stream.frames)
        return metadata


def _set_total(metadata: Any, frames: int) -> None:
    if not frames:
        raise ValueError("there are no pictures in it")
    metadata.total_num_frames = frames
    metadata.duration = frames / metadata.fps if metadata.fps else 0.0


def _counted(data: bytes) -> int:
    with _opened(data) as container:
        return sum(1 for _ in container.decode(video=0))


def _chosen(data: bytes, metadata: Any, sample: Sampling | None) -> Any:
    """The frames, and their numbers written into the metadata; ``None`` if the video ends before the last of them."""
    import numpy as np
    from transformers.video_utils import default_sample_indices_fn

    try:
        indices = (sample or default_sample_indices_fn)(metadata=metadata)
    except Exception as error:
        raise ValueError(f"of its {metadata.total_num_frames} frames none could be chosen ({error})") from error
    numbers = [int(index) for index in indices]
    if not numbers:
        raise ValueError(f"of its {metadata.total_num_frames} frames none was chosen")
    size = len(numbers) * metadata.width * metadata.height * 3
    if size > MAX_FRAMES_BYTES:
        raise TooManyFrames(
            f"has too many frames to look at: {len(numbers):,} of {metadata.width} x {metadata.height} pixels take "
            f"{size:,} bytes, and {MAX_FRAMES_BYTES:,} are allowed. Let fewer be looked at, with "
            "template_options={'fps': 1} say, or make it shorter or smaller."
        )
    left, found = set(numbers), {}
    with _opened(data) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in left:
                if (frame.width, frame.height) != (metadata.width, metadata.height):
                    raise ValueError("the size of its pictures changes")
                left.remove(number)
                found[number] = frame.to_ndarray(format="rgb24")
            if not left:
                break
    if left:
        return None
    metadata.frames_indices = indices
    return np.stack([found[number] for number in numbers])
