"""Requests that transformers makes possible and LLaVA-VR cannot serve rightly: one sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vr_kernels.integrations.vision_remember import refuse_guided_cache
from vr_kernels.models.llava_vr._transformers import is_part_of_a_prefill
from vr_kernels.models.llava_vr.configuration_llava_vr import LlavaVRConfig

# Arguments of LLaVA-NeXT's forward that are fields of the config, which alone decides here.
CONFIGURED = ("vision_feature_layer", "vision_feature_select_strategy")


def check_encoding(name: str, config: LlavaVRConfig, kwargs: Mapping[str, Any]) -> None:
    """Arguments of the encoding that LLaVA-NeXT takes."""
    if kwargs.get("interpolate_pos_encoding"):
        raise ValueError(
            f"{name}: interpolate_pos_encoding is set; tiles must have the encoder's own size "
            f"{config.vision_config.image_size}, for windows are counted in its grid"
        )
    for argument in CONFIGURED:
        value, configured = kwargs.get(argument), getattr(config, argument)
        if value is not None and value != configured:
            raise ValueError(
                f"{name}: {argument} is {value!r} and the config's {configured!r}; set it in the config, where the "
                "projector is built for it"
            )


def check_generation(name: str, images: Any, past_key_values: Any, *, is_first_iteration: bool | None) -> None:
    """A prefill in parts, and a cache whose images were guided by the text of another prompt."""
    if images is not None and is_part_of_a_prefill(is_first_iteration, past_key_values):
        raise ValueError(
            f"{name}: prefill_chunk_size is set, or the model is the assistant_model of another, and the prompt has "
            "images; leave that out, for image tokens read the whole prompt"
        )
    if is_first_iteration:
        refuse_guided_cache(name, past_key_values)
