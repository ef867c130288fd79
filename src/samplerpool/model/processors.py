"""Which of transformers' classes a checkpoint is loaded with: text alone, or images, videos and sounds as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from samplerpool.rendering.media import media_kinds


def load_processor(config: Any, path: str, progress: Callable[[str], None], **options: Any) -> Any:
    """The processor of a model that takes images, videos or sounds; of all others the tokenizer.

    Args:
        config: the model's.
        path: folder or hub id, which is loaded from with
        progress: gets a line where less is taken than the model could.
        **options: as ``from_pretrained`` has them.

    Raises:
        Exception: whatever transformers raises.
    """
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    if type(config) not in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return AutoTokenizer.from_pretrained(path, **options)
    processor_class = PROCESSOR_MAPPING.get(type(config), None)
    takes_videos = processor_class is not None and "video_processor" in processor_class.get_attributes()
    try:
        if takes_videos and not is_torchvision_available():
            progress(
                "warning: videos are not taken, because torchvision is not installed (take it from where torch came)"
            )
            return without_videos(processor_class).from_pretrained(path, **options)
        return AutoProcessor.from_pretrained(path, **options)
    except OSError:
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise
        progress("warning: only text is taken, because the checkpoint lacks files of its processor")
        return AutoTokenizer.from_pretrained(path, **options)


def model_class(processor: Any) -> Any:
    """The auto class to load the model with, beside this processor or tokenizer."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    return AutoModelForMultimodalLM if media_kinds(processor) else AutoModelForCausalLM


def without_videos(processor_class: Any) -> Any:
    """The same processor, which does not ask for its part for videos (that part needs torchvision, and images do not).

    transformers finds a processor's parts by this method, and each is used only if it is there.
    """

    class WithoutVideos(processor_class):  # type: ignore[misc]
        lacking_packages: ClassVar[Mapping[str, str]] = {"video": "torchvision"}  # read by rendering.media

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in processor_class.get_attributes() if name != "video_processor"]

    WithoutVideos.__name__ = processor_class.__name__
    return WithoutVideos
