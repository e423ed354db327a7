"""Trained models whose tokens are dropped while they are tested: what each method leaves of them, layer by layer."""

from __future__ import annotations

import math
from typing import Any

from examples.reproduction.rows import DEPTH, Pruning
from vr_kernels.integrations import apply_pruning, apply_visionzip


def prune(model: Any, pruning: Pruning) -> Any:
    """An uncompressed LLaVA-VR without blocks as transformers' LLaVA, which is the same function, and pruned."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = model.config
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config.vision_config,
            text_config=config.text_config,
            image_token_index=config.image_token_index,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )
    ).to(model.device)
    weights = model.state_dict()
    del weights["model.image_newline"]  # of AnyRes, which has none here
    llava.load_state_dict(weights)
    llava.generation_config = model.generation_config
    llava.eval()
    if pruning.method == "visionzip":
        return apply_visionzip(llava, **pruning.options)
    return apply_pruning(llava, pruning.method, **pruning.options)


def tokens_by_layer(image_tokens: int, pruning: Pruning | None) -> list[int]:
    """How many image tokens each layer of the decoder sees, of as many as the projector makes of a whole image."""
    if pruning is None:
        return [image_tokens] * DEPTH
    options = pruning.options
    if pruning.method in ("visionzip", "vispruner"):  # before the decoder
        kept = options["count"] if pruning.method == "vispruner" else options["dominant"] + options["contextual"]
        return [kept] * DEPTH
    layers = options.get("layers") or [options["layer"]]
    ratios = options.get("keep_ratios") or [options["keep_ratio"]]
    counts = []
    for number in range(DEPTH):
        left = [int(image_tokens * ratio) for layer, ratio in zip(layers, ratios, strict=True) if layer <= number]
        counts.append(min([image_tokens, *left]))
    return counts


def placeholder_grid(token_grid: tuple[int, int], pruning: Pruning | None) -> tuple[int, int]:
    """(rows, columns) whose product is how many placeholders an image has in the prompt."""
    whole = math.prod(token_grid)
    first = tokens_by_layer(whole, pruning)[0]
    return token_grid if first == whole else (1, first)
