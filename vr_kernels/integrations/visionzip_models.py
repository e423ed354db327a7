"""``apply_visionzip``: LLaVA, LLaVA-NeXT and Video-LLaVA of transformers with VisionZip's tokens in place of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from vr_kernels.integrations.pruning_rules import STATE
from vr_kernels.integrations.visionzip import VisionZip
from vr_kernels.integrations.zipped_encoders import check_encoders, find_model, replace_encoders, restore_encoders

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
    budget = VisionZipBudget(dominant, contextual, merge)
    inner = check_encoders("apply_visionzip", model, processor, budget)
    vispruner = vars(inner).pop(STATE, None)
    if vispruner is not None:  # whose place this takes: what removed it later would remove this
        vispruner.remove(None)
    replace_encoders("apply_visionzip", inner, processor, budget)
    return model


def remove_visionzip(model: M, processor: Any = None) -> M:
    """Undo ``apply_visionzip``, of the processor too if it is given; a model that it did not change stays as it is.

    >>> from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, CLIPVisionConfig
    >>> vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2)
    >>> text = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    >>> model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))
    >>> remove_visionzip(apply_visionzip(model)) is model
    True
    """
    restore_encoders("remove_visionzip", model, processor, VisionZipBudget.name)
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
    inner = find_model("train_projector_only", model)
    model.requires_grad_(False)
    return list(inner.multi_modal_projector.requires_grad_(True).parameters())


@dataclass(frozen=True)
class VisionZipBudget:
    """A ``Budget`` of kept and merged tokens; a CLS row is one of the kept."""

    dominant: int
    contextual: int
    merge: str
    name = "visionzip"

    def zipper(self, tower: nn.Module, level: int) -> VisionZip:
        return VisionZip(tower, self.dominant, self.contextual, level=level, merge=self.merge)
