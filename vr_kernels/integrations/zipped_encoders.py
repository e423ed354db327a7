"""The methods by which LLaVA, LLaVA-NeXT and Video-LLaVA encode images, replaced by ones that hand on fewer tokens.

``apply_visionzip`` and ``apply_pruning(model, "vispruner")`` say which tokens, each by a ``Budget``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vr_kernels.compression import ZippedTokens, pack_anyres
from vr_kernels.integrations._holder import find_holder
from vr_kernels.integrations.visionzip_processors import check_processor, remove_token_counts, set_token_counts
from vr_kernels.nn import VisionRemember


class Budget(Protocol):
    """How many tokens an image becomes, and by what. ``name`` is where the encoder's outputs keep which they are."""

    @property
    def name(self) -> str: ...

    @property
    def dominant(self) -> int: ...

    @property
    def contextual(self) -> int: ...

    def zipper(self, tower: nn.Module, level: int) -> Callable[..., ZippedTokens]: ...


BUDGET = "_vr_kernels_budget"  # the attribute of a method that replaces the model's: its budget's name

# From the model, the budget and the call's arguments by name: the zipped images, and what the language model gets.
Encode = Callable[[Any, Budget, Mapping[str, Any]], tuple[ZippedTokens, Any]]


@dataclass(frozen=True)
class Family:
    """The towers of a type of model, and its methods that encode pixels."""

    towers: tuple[str, ...]
    encoders: dict[str, Encode]


def _llava(model: Any, budget: Budget, given: Mapping[str, Any]) -> tuple[ZippedTokens, list[Tensor]]:
    zipped = _zip(model, model.vision_tower, budget, given, given["pixel_values"])
    return zipped, list(model.multi_modal_projector(zipped.tokens))  # (K, D_t) an image


def _llava_next(model: Any, budget: Budget, given: Mapping[str, Any]) -> tuple[ZippedTokens, list[Tensor]]:
    from transformers.models.llava_next.modeling_llava_next import (
        get_anyres_image_grid_shape,
        image_size_to_num_patches,
    )

    pixels, sizes = given["pixel_values"], given["image_sizes"]
    pinpoints, vision = model.config.image_grid_pinpoints, model.config.vision_config
    counts = [image_size_to_num_patches(size, pinpoints, vision.image_size) for size in sizes]
    if pixels.dim() == 5:  # (images, most tiles, 3, H, W), padded
        pixels = torch.cat([tiles[:count] for tiles, count in zip(pixels, counts, strict=True)])
    zipped = _zip(model, model.vision_tower, budget, given, pixels)
    features = model.multi_modal_projector(zipped.tokens)  # (tiles of all images, K, D_t)
    side = vision.image_size // vision.patch_size
    packed = [
        pack_anyres(
            tokens,
            dominant,
            tiles=get_anyres_image_grid_shape(size, pinpoints, vision.image_size),
            grid=(side, side),
            contextual=budget.contextual,
            has_cls=budget.dominant > dominant.shape[1],
            newline=model.image_newline,
        )
        for tokens, dominant, size in zip(features.split(counts), zipped.dominant.split(counts), sizes, strict=True)
    ]
    return zipped, packed


def _video_llava_images(model: Any, budget: Budget, given: Mapping[str, Any]) -> tuple[ZippedTokens, Tensor]:
    pixels = given.get("pixel_values")
    pixels = given["pixel_values_images"] if pixels is None else pixels  # its name in transformers before 5.23
    zipped = _zip(model, model.image_tower, budget, given, pixels)
    return zipped, model.multi_modal_projector(zipped.tokens)  # (B, K, D_t)


def _video_llava_videos(model: Any, budget: Budget, given: Mapping[str, Any]) -> tuple[ZippedTokens, Tensor]:
    frames = given["pixel_values_videos"].flatten(0, 1)  # (videos * frames, 3, H, W)
    zipped = _zip(model, model.video_tower, budget, given, frames)
    return zipped, model.multi_modal_projector(zipped.tokens)


FAMILIES = {
    "llava": Family(("vision_tower",), {"get_image_features": _llava}),
    "llava_next": Family(("vision_tower",), {"get_image_features": _llava_next}),
    "video_llava": Family(
        ("image_tower", "video_tower"),
        {"get_image_features": _video_llava_images, "get_video_features": _video_llava_videos},
    ),
}


def check_encoders(operation: str, model: nn.Module, processor: Any, budget: Budget) -> Any:
    """The part of a model that ``replace_encoders`` changes; what cannot be changed is refused, and nothing was."""
    inner = find_model(operation, model)
    if any(isinstance(module, VisionRemember) for module in inner.modules()):
        raise ValueError(
            f"{operation}: the model has VisionRemember blocks, which must know what each token is made of; "
            "remove_vision_remember(model) first"
        )
    family = FAMILIES[inner.config.model_type]
    level = inner.config.vision_feature_layer
    if not isinstance(level, int):
        raise ValueError(
            f"{operation}: the model's vision_feature_layer is {level!r}; it must be one level, and not several"
        )
    for tower in family.towers:
        budget.zipper(getattr(inner, tower), level)  # refuses here what would be refused at the first image
    if processor is not None:
        check_processor(operation, inner.config.model_type, processor)
    return inner


def replace_encoders(operation: str, inner: Any, processor: Any, budget: Budget) -> None:
    """Let what ``check_encoders`` found see a budget's tokens, and its processor count them."""
    family = FAMILIES[inner.config.model_type]
    if processor is not None:
        set_token_counts(operation, inner.config.model_type, processor, budget.dominant + budget.contextual)
    for name, encode in family.encoders.items():
        setattr(inner, name, _encoder(inner, name, encode, budget))


def restore_encoders(operation: str, model: nn.Module, processor: Any, budget: str) -> None:
    """Undo ``replace_encoders`` of the budget of that name; what else stands in those places stays."""
    inner = find_model(operation, model)
    for name in FAMILIES[inner.config.model_type].encoders:
        method = vars(inner).get(name)
        if getattr(method, BUDGET, None) == budget:
            delattr(inner, name)
        elif method is not None:
            processor = None  # it counts another's tokens
    if processor is not None:
        remove_token_counts(operation, inner.config.model_type, processor)


def _zip(model: Any, tower: nn.Module, budget: Budget, given: Mapping[str, Any], pixels: Tensor) -> ZippedTokens:
    level = given.get("vision_feature_layer")
    level = model.config.vision_feature_layer if level is None else level
    return budget.zipper(tower, level)(pixels, **given.get("kwargs", {}))


def _encoder(inner: Any, name: str, encode: Encode, budget: Budget) -> MethodType:
    """A method with the signature of the one that it stands in for, by which generate() knows what to pass."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.utils.generic import can_return_tuple

    original = getattr(type(inner), name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    @can_return_tuple  # type: ignore[untyped-decorator]
    def encoder(self: Any, *args: Any, **kwargs: Any) -> Any:
        zipped, features = encode(self, budget, signature.bind(self, *args, **kwargs).arguments)
        outputs = BaseModelOutputWithPooling(last_hidden_state=zipped.tokens, pooler_output=features)
        setattr(outputs, budget.name, zipped)
        return outputs

    setattr(encoder, BUDGET, budget.name)
    return MethodType(encoder, inner)


def find_model(operation: str, model: nn.Module) -> Any:
    """The part of a model that holds towers, projector and language model, of a type that is known."""
    return find_holder(operation, model, "multi_modal_projector", FAMILIES)
