"""Tiny models in folders, as ``save_pretrained`` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from python_tests.models import _llava_vr


def save_llava_vr(folder: Path, **changes: Any) -> Path:
    return _save(folder, _llava_vr.model(**changes), _llava_vr.processor)


def save_llava_next(folder: Path) -> Path:
    """Stock, with the same tower, decoder and tokenizer."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    ours = _llava_vr.config("clip")
    config = LlavaNextConfig(
        vision_config=ours.vision_config,
        text_config=ours.text_config,
        image_grid_pinpoints=_llava_vr.PINPOINTS,
        image_token_id=_llava_vr.IMAGE,
    )
    side = _llava_vr.SIDE
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=_llava_vr.PINPOINTS,
        ),
        _llava_vr.tokenizer(),
        patch_size=_llava_vr.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model = _llava_vr.randomise(LlavaNextForConditionalGeneration(config))
    return _save(folder, model, lambda config: processor)


def _save(folder: Path, model: Any, processor: Any) -> Path:
    with torch.no_grad():
        model.lm_head.weight[:4] = 0  # of the special tokens: others are likelier
    model.save_pretrained(folder)
    processor(model.config).save_pretrained(folder)
    return folder
