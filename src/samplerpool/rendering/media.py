"""From the media in messages to a model's inputs: decoding bytes, and calling the model's processor.

Bytes come from anyone. So nothing but ``data:`` URLs is taken, never a path or an address, and the decoders are those
of common formats.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from samplerpool.errors import RenderError
from samplerpool.rendering.templates import one_line
from samplerpool.rendering.videos import Video, frame_options, reading_videos

IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "ICO", "PPM")
"""Pillow knows more, and among them some that start other programs (EPS)."""

MAX_KEPT_BYTES = 512 * 2**20
"""Inputs made of media that wait for the engine, of all requests together; beyond them, they are made a second time."""

_DATA_URL = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),")


@dataclass(frozen=True, slots=True)
class MediaBlock:
    """One image, video or sound.

    Args:
        kind: ``image``, ``video`` or ``audio``.
        place: where it stands, for errors.
        url: a ``data:`` URL.
    """

    kind: str
    place: str
    url: str


class Budget:
    """Bytes that are kept, of all inputs together."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._lock = threading.RLock()  # a finalizer may run in the middle of it

    def take(self, size: int) -> bool:
        with self._lock:
            if self._used + size > self._limit:
                return False
            self._used += size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size


BUDGET = Budget(MAX_KEPT_BYTES)


class MediaInputs:
    """What a model gets of a prompt's media beside its token ids: tensors by the names of its arguments.

    They are large, a hundred times the file, and many requests may wait. So they are kept only within a budget, and
    else made again when the model's turn comes.

    Args:
        make: makes them.
        made: what it made the first time.
    """

    def __init__(self, make: Callable[[], Mapping[str, Any]], made: Mapping[str, Any], budget: Budget = BUDGET) -> None:
        self._make = make
        self._kept: Mapping[str, Any] | None = None
        size = sum(value.nbytes for value in made.values() if hasattr(value, "nbytes"))
        if budget.take(size):
            self._kept = made
            weakref.finalize(self, budget.give_back, size)

    def tensors(self) -> Mapping[str, Any]:
        """The tensors, on the CPU."""
        return self._kept if self._kept is not None else self._make()


class MediaProcessor:
    """A model's processor, for whoever has a prompt's text and its media. Safe to use from several threads.

    Args:
        processor: of transformers, with a tokenizer and something for images, videos or sounds.

    Attributes:
        kinds: of media that it takes.
        lacking: packages without which it does not take what the model could, by the kind.
    """

    def __init__(self, processor: Any) -> None:
        self.kinds = media_kinds(processor)
        self.lacking: Mapping[str, str] = getattr(processor, "lacking_packages", {})
        self._processor = reading_videos(processor) if "video" in self.kinds else processor

    def placeholders(self) -> frozenset[str]:
        """All texts that mean something to the processor; nobody may write them."""
        names = [name for name in dir(type(self._processor)) + list(vars(self._processor)) if name.endswith("_token")]
        values = (getattr(self._processor, name, None) for name in names)
        return frozenset(value for value in values if isinstance(value, str) and len(value) > 1)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a prompt as the processor makes them: with the special tokens that the tokenizer adds, unless
        the text begins with one already."""
        tokenizer = self._processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=self._adds_special_tokens(text))["input_ids"]
        return ids

    def prompt(
        self, text: str, blocks: Sequence[MediaBlock], options: Mapping[str, Any] | None = None
    ) -> tuple[tuple[int, ...], MediaInputs]:
        """Token ids with a place for each part of the media, and the media as the model's inputs.

        Args:
            text: as the chat template made it.
            blocks: in the order of the messages.
            options: of the request; ``fps`` and ``num_frames`` say how much of a video is looked at.

        Raises:
            RenderError: media that cannot be decoded, or the text has more or fewer placeholders than there are media.
        """
        self._check_packages(blocks)
        self._check_placeholders(text, blocks)
        chosen = frame_options(options or {}) if any(block.kind == "video" for block in blocks) else {}
        made = self._made(text, blocks, chosen)
        ids = tuple(made.pop("input_ids")[0].tolist())
        return ids, MediaInputs(lambda: self._inputs(text, blocks, chosen), made)

    def _inputs(self, text: str, blocks: Sequence[MediaBlock], chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        made = self._made(text, blocks, chosen)
        del made["input_ids"]
        return made

    def _check_packages(self, blocks: Sequence[MediaBlock]) -> None:
        for block in blocks:
            if package := self.lacking.get(block.kind):
                raise RenderError(
                    f"The {block.kind} in {block.place} cannot be taken, because the worker lacks a package: install "
                    f"{package} there, from where its torch came, and start it again."
                )

    def _check_placeholders(self, text: str, blocks: Sequence[MediaBlock]) -> None:
        for kind in sorted(self.kinds):
            given = sum(block.kind == kind for block in blocks)
            token = getattr(self._processor, f"{kind}_token", None)
            found = given if token is None else text.count(token)
            if found != given:
                raise RenderError(
                    f"The chat template made {found} placeholders ({token}) for {given} {kind} blocks; it does not "
                    f"take {kind}s where they stand, or not at all."
                )

    def _made(self, text: str, blocks: Sequence[MediaBlock], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """All that the processor gives, but the attention mask, which is 1 everywhere."""
        images = [_image(block) for block in blocks if block.kind == "image"]
        videos = [Video(block.place, bytes_of(block)) for block in blocks if block.kind == "video"]
        options = dict(chosen)
        if sounds := [block for block in blocks if block.kind == "audio"]:
            rate = _audio_processor(self._processor).sampling_rate
            options |= {"audio": [_sound(block, rate) for block in sounds], "sampling_rate": rate}
        try:
            made = self._processor(
                text=[text],
                images=[images] if images else None,
                videos=[videos] if videos else None,
                add_special_tokens=self._adds_special_tokens(text),
                return_tensors="pt",
                **options,
            )
        except RenderError:
            raise
        except Exception as error:  # it is the checkpoint's, and looks at foreign data
            places = ", ".join(dict.fromkeys(block.place for block in blocks))
            raise RenderError(f"The model's processor refused the media in {places}: {one_line(error)}") from error
        return {name: value for name, value in made.items() if name != "attention_mask"}

    def _adds_special_tokens(self, text: str) -> bool:
        """As the processor's own ``apply_chat_template`` has it."""
        begin = self._processor.tokenizer.bos_token
        return begin is None or not text.startswith(begin)


def media_kinds(processor: Any) -> frozenset[str]:
    """The kinds of media that a processor takes; none of them for a tokenizer."""
    parts = {"image": "image_processor", "video": "video_processor"}
    kinds = {kind for kind, part in parts.items() if getattr(processor, part, None) is not None}
    return frozenset(kinds | ({"audio"} if _audio_processor(processor) is not None else set()))


def _audio_processor(processor: Any) -> Any:
    return getattr(processor, "feature_extractor", None) or getattr(processor, "audio_processor", None)


# ---- decoding -------------------------------------------------------------------------------------------------------


def bytes_of(block: MediaBlock) -> bytes:
    """The bytes in a block's ``data:`` URL.

    Raises:
        RenderError: it is none, or names another kind of media.
    """
    match = _DATA_URL.match(block.url)
    if match is None:
        raise RenderError(
            f"The {block.kind} in {block.place} is no data: URL, and a worker reads no files and fetches nothing: "
            f"{block.url[:60]!r}. The client must send the bytes."
        )
    media_type, data = match[1].lower(), block.url[match.end() :]
    main = media_type.partition("/")[0]
    if main in ("image", "video", "audio") and main != block.kind:
        raise RenderError(f"The {block.kind} in {block.place} is of type {media_type}; use a block of type {main}_url.")
    try:
        base64_written = ";base64" in match[2].lower()
        found = base64.b64decode(data, validate=True) if base64_written else unquote_to_bytes(data)
    except (binascii.Error, ValueError) as error:
        raise RenderError(f"The data: URL of the {block.kind} in {block.place} is not in base64: {error}.") from error
    if not found:
        raise RenderError(f"The {block.kind} in {block.place} has no bytes.")
    return found


def _image(block: MediaBlock) -> Any:
    """Upright and in RGB, as transformers' own loading gives it."""
    data = bytes_of(block)
    try:
        from PIL import Image
        from transformers.image_utils import load_image
    except ImportError as error:
        raise _missing(block, error) from error
    try:
        Image.init()
        image = Image.open(io.BytesIO(data), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN])
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
            raise ValueError(f"{image.width} x {image.height} pixels are more than {Image.MAX_IMAGE_PIXELS:,}")
        return load_image(image)
    except Exception as error:  # decoders raise nearly every class there is
        raise _undecodable(block, error) from error


def _sound(block: MediaBlock, sampling_rate: int) -> Any:
    """Float32, one channel."""
    data = bytes_of(block)
    from transformers.audio_utils import load_audio

    try:
        return load_audio("data:;base64," + base64.b64encode(data).decode("ascii"), sampling_rate=sampling_rate)
    except ImportError as error:
        raise _missing(block, error) from error
    except Exception as error:
        raise _undecodable(block, error) from error


def _missing(block: MediaBlock, error: ImportError) -> RenderError:
    return RenderError(
        f"The {block.kind} in {block.place} cannot be decoded, because the worker lacks a package: {one_line(error)} "
        "Install samplerpool[media] there."
    )


def _undecodable(block: MediaBlock, error: Exception) -> RenderError:
    what = one_line(error) if str(error) else type(error).__name__
    return RenderError(f"The {block.kind} in {block.place} cannot be decoded: {what}.")
