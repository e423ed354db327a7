"""How many placeholders the processors of transformers write into a prompt, when an image has few tokens.

Held by transformers 5.20 to 5.23:

    replace_image_token(image_inputs, image_idx)              the placeholders of one image, as text
    replace_video_token(video_inputs, video_idx)              of one video
    _get_num_multimodal_tokens(image_sizes)                   how many images of these sizes would have; for servers
    LlavaNextProcessor._get_number_of_features(h, w, H, W)    both of LLaVA-NeXT's use it, and take one off for the CLS
                                                              row where the strategy is "default"

They are replaced on the processor itself, by functions that hold nothing of it but what they need: a processor's
attributes are copied whenever it is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Counters = dict[str, Callable[..., Any]]


def set_token_counts(operation: str, model_type: str, processor: Any, count: int) -> None:
    """Let the processor write ``count`` placeholders an image, tile or frame."""
    counters = check_processor(operation, model_type, processor)(processor, count)
    for name, counter in counters.items():
        setattr(processor, name, counter)


def remove_token_counts(operation: str, model_type: str, processor: Any) -> None:
    for name in check_processor(operation, model_type, processor)(processor, 0):
        vars(processor).pop(name, None)


def _llava(processor: Any, count: int) -> Counters:
    from transformers.processing_utils import MultiModalData

    placeholders: str = processor.image_token * count

    def replace_image_token(image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        return placeholders

    def get_num_multimodal_tokens(image_sizes: Any = None, **kwargs: Any) -> Any:
        if image_sizes is None:
            return MultiModalData()
        return MultiModalData(num_image_tokens=[count] * len(image_sizes), num_image_patches=[1] * len(image_sizes))

    return {"replace_image_token": replace_image_token, "_get_num_multimodal_tokens": get_num_multimodal_tokens}


def _llava_next(processor: Any, count: int) -> Counters:
    from transformers.image_processing_utils import select_best_resolution

    image_processor = processor.image_processor
    taken_off = int(processor.vision_feature_select_strategy == "default")

    def get_number_of_features(original_height: int, original_width: int, height: int, width: int) -> int:
        best = select_best_resolution((original_height, original_width), image_processor.image_grid_pinpoints)
        tiles: int = 1 + (best[0] // height) * (best[1] // width)
        return tiles * count + taken_off

    return {"_get_number_of_features": get_number_of_features}


def _video_llava(processor: Any, count: int) -> Counters:
    image_placeholders: str = processor.image_token * count
    frame_placeholders: str = processor.video_token * count

    def replace_image_token(image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        return image_placeholders

    def replace_video_token(video_inputs: Any, video_idx: int, **kwargs: Any) -> str:
        return frame_placeholders * len(video_inputs["pixel_values_videos"][video_idx])

    return {"replace_image_token": replace_image_token, "replace_video_token": replace_video_token}


# By type of model: the processor's class, and what to replace.
PROCESSORS: dict[str, tuple[str, Callable[[Any, int], Counters]]] = {
    "llava": ("LlavaProcessor", _llava),
    "llava_next": ("LlavaNextProcessor", _llava_next),
    "video_llava": ("VideoLlavaProcessor", _video_llava),
}


def check_processor(operation: str, model_type: str, processor: Any) -> Callable[[Any, int], Counters]:
    """What replaces the functions of a processor of that type of model; another's is refused."""
    name, counters = PROCESSORS[model_type]
    if name not in [cls.__name__ for cls in type(processor).__mro__]:
        raise TypeError(
            f"{operation}: processor is a {type(processor).__name__}; a model of type {model_type!r} has a {name}"
        )
    return counters
