"""What stands on a patched model: its choices, two hooks, and two methods in the place of the model's own.

All of it belongs to one object and looks up the rest when it runs, so that a copied or unpickled model is patched for
itself. No forward is written anew: the hooks change the arguments of the model's own.

What is relied on, held by transformers 5.20 to 5.23, of each model in ``FAMILIES``: it holds ``language_model`` with
``layers``; its ``get_image_features`` takes ``pixel_values`` and returns an output, its forward takes
``mm_encoder_outputs`` in the place of pixels and hands unknown keyword arguments on to every decoder layer; the model
around it does so too, in ``model``, and ``generate()`` encodes images before the first pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vr_kernels.integrations._decoder import named_arguments
from vr_kernels.integrations.vision_remember.context import NAME, prompt_of_labels
from vr_kernels.integrations.vision_remember.encoded import add_prompt, forget_guesses, note_prompt
from vr_kernels.integrations.vision_remember.families import FAMILIES, Family
from vr_kernels.integrations.vision_remember.prefill import image_slots, prefill_context, refuse_guided_cache
from vr_kernels.nn import VisionRememberConfig

PATCH = "_vision_remember"  # the attribute with the Patch


@dataclass(frozen=True)
class Patch:
    """The choices of ``apply_vision_remember``, none negative."""

    layers: tuple[int, ...]
    levels: tuple[int, ...]
    position: str
    neighborhood: tuple[int, int]
    config: VisionRememberConfig


def family_of(inner: Any) -> Family:
    return FAMILIES[inner.config.model_type]


def encode(inner: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's own ``get_image_features``, whose output then carries what the blocks read."""
    original = getattr(type(inner), GetImageFeatures.name).__get__(inner)
    patch: Patch = getattr(inner, PATCH)
    family = family_of(inner)
    captured = family.capture(inner, patch.levels, saliency=patch.config.saliency != "none")
    with captured:
        outputs = original(*args, **kwargs)
    if isinstance(outputs, tuple):  # return_dict=False: for other uses than this model's forward
        return outputs
    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
    return family.encoded_images(inner, arguments, captured, patch.neighborhood).attach(outputs)


class Method:
    """A method in the place of the model's own, with its signature, by which ``generate()`` knows what to pass."""

    name: ClassVar[str]

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def original(self) -> Any:
        return getattr(type(self.model), self.name).__get__(self.model)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)


class GetImageFeatures(Method):
    name = "get_image_features"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return encode(self.model, *args, **kwargs)


class PrepareInputsForGeneration(Method):
    name = "prepare_inputs_for_generation"

    def __call__(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("is_first_iteration"):
            refuse_guided_cache("vision_remember", kwargs.get("past_key_values"))
            note_prompt(
                kwargs.get("mm_encoder_outputs"),
                input_ids,
                kwargs.get("attention_mask"),
                kwargs.get("logits_to_keep", 1),
            )
        inputs = self.original(input_ids, *args, **kwargs)
        if _lacks_images(inputs, self.model.config.image_token_id) and not _is_read(kwargs):
            raise ValueError(
                "vision_remember: a pass over image tokens comes without their images; leave prefill_chunk_size out, "
                "for image tokens read the whole prompt, and do not make this model the assistant_model of another"
            )
        return add_prompt(inputs)


def _lacks_images(inputs: Mapping[str, Any], image_token_id: int) -> bool:
    """Whether a prefill was cut up: transformers then withholds the images, or parts of them follow later."""
    input_ids = inputs.get("input_ids")
    if input_ids is None or input_ids.shape[1] == 1:  # a step of decoding, which is not to wait for the device
        return False
    if inputs.get("pixel_values") is not None or (inputs.get("mm_encoder_outputs") or {}).get("image") is not None:
        return False
    return bool((input_ids == image_token_id).any())


def _is_read(kwargs: Mapping[str, Any]) -> bool:
    """Whether the cache holds the whole prompt that was noted: image tokens behind it are guesses."""
    prompt = ((kwargs.get("mm_encoder_outputs") or {}).get("image") or {}).get("prompt_mask")
    cache = kwargs.get("past_key_values")
    if prompt is None or cache is None:
        return False
    return int(cache.get_seq_length()) > int(prompt.any(0).nonzero().max())


def add_context(inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before the forward of the inner model: images in, and the blocks' context for its decoder layers."""
    patch: Patch = getattr(inner, PATCH)
    kwargs = named_arguments(inner, args, kwargs)
    prompt_mask = kwargs.pop("prompt_mask", None)
    pixels, given = kwargs.get("pixel_values"), kwargs.get("mm_encoder_outputs") or {}
    if kwargs.get("pixel_values_videos") is not None or given.get("video") is not None:
        raise ValueError(
            "vision_remember: the model gets a video; its blocks read images alone, remove_vision_remember(model) "
            "serves videos"
        )
    outputs = given.get("image")
    if pixels is not None and not given and len(pixels) > 0:
        taken = inspect.signature(type(inner).get_image_features).parameters
        outputs = encode(inner, **{name: kwargs[name] for name in taken if name in kwargs}, return_dict=True)
        kwargs["pixel_values"] = None
    touch_all = inner.training and torch.is_grad_enabled()
    if outputs is None and not touch_all:
        return (), kwargs
    embedding, inputs_embeds = inner.get_input_embeddings(), kwargs.get("inputs_embeds")
    context, plain = prefill_context(
        image_slots(embedding, inner.config.image_token_id, kwargs.get("input_ids"), inputs_embeds),
        outputs,
        patch.config,
        tiles_apart=family_of(inner).tiles_apart,
        dtype=embedding.weight.dtype if inputs_embeds is None else inputs_embeds.dtype,
        training=touch_all,
        prompt_mask=prompt_mask,
        **{name: kwargs.get(name) for name in ("attention_mask", "position_ids", "past_key_values", "cu_seq_lens_q")},
    )
    if plain is not None:
        kwargs["mm_encoder_outputs"] = given | {"image": plain}
    return (), kwargs | {NAME: context}


def mark_prompt(outer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before the forward of the model around it: the prompt ends at the first label, or guess."""
    kwargs = named_arguments(outer, args, kwargs)
    if kwargs.get("labels") is not None and kwargs.get("prompt_mask") is None:
        kwargs["prompt_mask"] = prompt_of_labels(kwargs["labels"], kwargs.get("attention_mask"))
    prompt_mask = forget_guesses(
        kwargs.get("mm_encoder_outputs"), kwargs.get("prompt_mask"), kwargs.get("logits_to_keep")
    )
    return (), kwargs if prompt_mask is None else kwargs | {"prompt_mask": prompt_mask}
