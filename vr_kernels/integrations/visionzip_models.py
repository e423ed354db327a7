"""``apply_visionzip``: LLaVA, LLaVA-NeXT and Video-LLaVA of transformers with VisionZip's tokens in place of all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vr_kernels.compression import ZippedTokens, pack_anyres
from vr_kernels.integrations._holder import find_holder
from vr_kernels.integrations.visionzip import VisionZip
from vr_kernels.integrations.visionzip_processors import remove_token_counts, set_token_counts
from vr_kernels.nn import VisionRemember

__all__ = ["apply_visionzip", "remove_visionzip", "train_projector_only"]

M = TypeVar("M", bound=nn.Module)


def apply_visionzip(
    model: M,
    processor: Any = None,
    *,
    dominant: int = 54,
    contextual: int = 10,
    merge: str = "sum",
) -> M:
    """Let a Hugging Face model see ``dominant + contextual`` tokens an image, tile or video frame (VisionZip).

    Works in place, on models of the types "llava", "llava_next" and "video_llava" around a CLIP or SigLIP tower, also
    inside a PEFT model. No parameter is added and no key of the state dict changes; ``generate()`` works as before. An
    AnyRes image of LLaVA-NeXT becomes its base tile's tokens, then the other tiles' dominants in raster order over the
    canvas, then their CLS rows, then their contextual tokens, without newlines. A CLS row goes to the language model
    with the dominants, whatever ``vision_feature_select_strategy`` says. Which patches were kept stands in
    ``get_image_features(...).visionzip``, a ``ZippedTokens`` of all tiles.

    To train for it, train the projector (``train_projector_only``) on a tenth of the tuning data: VisionZip, §2.4.

    Args:
        model: the model, or one that holds it. Applied again, the new budget replaces the old one.
        processor: its processor, whose placeholders must become as many as the tokens. None: the caller's own prompts
            hold ``dominant + contextual`` placeholders an image, tile or frame.
        dominant: how many tokens stay as they are, the CLS row included.
        contextual: how many the others are merged into.
        merge: "sum" as VisionZip's public code, "mean" as its paper.

    Returns:
        The model itself.

    Raises:
        ValueError: another type of model; a tower that is no CLIP or SigLIP; features of several levels; a budget
            that no image can meet. TypeError: another model's processor.

    >>> from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
    ...                           image_size=64, patch_size=8)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    ...                    vocab_size=99)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=98))
    >>> model = apply_visionzip(model, dominant=10, contextual=3)
    >>> import torch
    >>> prompt = torch.tensor([[5] + 13 * [98] + [7]])
    >>> model(input_ids=prompt, pixel_values=torch.randn(1, 3, 64, 64)).logits.shape
    torch.Size([1, 15, 99])
    """
    replace_encoders("apply_visionzip", model, processor, VisionZipBudget(dominant, contextual, merge))
    return model


def remove_visionzip(model: M, processor: Any = None) -> M:
    """Undo ``apply_visionzip``, of the processor too if it is given; a model that was never changed stays as it is.

    >>> from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, CLIPVisionConfig
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    >>> remove_visionzip(apply_visionzip(model)) is model
    True
    """
    restore_encoders("remove_visionzip", model, processor)
    return model


def train_projector_only(model: nn.Module) -> list[nn.Parameter]:
    """VisionZip's efficient tuning (§2.4): freeze all but the projector, whose parameters are returned.

    Raises:
        ValueError: another type of model than ``apply_visionzip`` knows.

    >>> from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, CLIPVisionConfig
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    >>> [tuple(parameter.shape) for parameter in train_projector_only(model)]
    [(32, 32), (32,), (32, 32), (32,)]
    """
    inner = _find("train_projector_only", model)
    model.requires_grad_(False)
    return list(inner.multi_modal_projector.requires_grad_(True).parameters())


class Budget(Protocol):
    """How many tokens an image becomes, and by what. ``name`` is where the encoder's outputs keep which they are."""

    @property
    def name(self) -> str: ...

    @property
    def dominant(self) -> int: ...

    @property
    def contextual(self) -> int: ...

    def zipper(self, tower: nn.Module, level: int) -> Callable[..., ZippedTokens]: ...


@dataclass(frozen=True)
class VisionZipBudget:
    dominant: int
    contextual: int
    merge: str
    name = "visionzip"

    def zipper(self, tower: nn.Module, level: int) -> VisionZip:
        return VisionZip(tower, self.dominant, self.contextual, level=level, merge=self.merge)


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


def replace_encoders(operation: str, model: nn.Module, processor: Any, budget: Budget) -> Any:
    """Let a model of a known type see a budget's tokens, and its processor count them; the part that was changed."""
    inner = _find(operation, model)
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
        set_token_counts(operation, inner.config.model_type, processor, budget.dominant + budget.contextual)
    for name, encode in family.encoders.items():
        setattr(inner, name, _encoder(inner, name, encode, budget))
    return inner


def restore_encoders(operation: str, model: nn.Module, processor: Any) -> None:
    """Undo ``replace_encoders``."""
    inner = _find(operation, model)
    for name in FAMILIES[inner.config.model_type].encoders:
        if name in vars(inner):
            delattr(inner, name)
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

    return MethodType(encoder, inner)


def _find(operation: str, model: nn.Module) -> Any:
    """The part of a model that holds towers, projector and language model, of a type that is known."""
    return find_holder(operation, model, "multi_modal_projector", FAMILIES)
