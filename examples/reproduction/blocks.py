"""Other methods' blocks in the place of Vision Remember's, which read the same features at the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vr_kernels.models.llava_vr import LlavaVRConfig
from vr_kernels.nn import DeepStack, SpatialVisionAggregator, VisionRemember


def _deepstack(config: LlavaVRConfig, number: int) -> nn.Module:
    dims = [config.vision_config.hidden_size] * len(config.vr_levels)
    window = (config.vr_window[0], config.vr_window[1])
    return DeepStack(config.text_config.hidden_size, dims, window=window, level=number, zero_init=False)


def _sva(config: LlavaVRConfig, number: int) -> nn.Module:
    width = config.text_config.hidden_size
    dims = [config.vision_config.hidden_size] * len(config.vr_levels)
    window = (config.vr_window[0], config.vr_window[1])
    heads = config.text_config.num_attention_heads
    return SpatialVisionAggregator(width, dims, window=window, hidden_dim=width, num_heads=heads, zero_init=False)


# From a config and the number of a block, counted from 0.
BLOCKS: dict[str, Callable[[LlavaVRConfig, int], nn.Module]] = {"deepstack": _deepstack, "sva": _sva}


def replace_blocks(model: Any, blocks: str) -> None:
    """Puts a method's blocks where Vision Remember's stand; "vision_remember" leaves those."""
    if blocks == "vision_remember":
        return
    for number, layer in enumerate(model.config.vr_layers):
        model.model.language_model.layers[layer - 1].vision_remember = BLOCKS[blocks](model.config, number)


def replace_features(model: nn.Module, features: str) -> None:
    """Lets the blocks read what a control row says, in place of the encoder's features."""
    replacements: dict[str, Callable[[Tensor], Tensor]] = {"zeros": torch.zeros_like, "means": window_means}
    if features == "features":
        return
    replace = replacements[features]

    def hook(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_states, vision_map, levels, *others = arguments
        return hidden_states, vision_map, None if levels is None else tuple(replace(level) for level in levels), *others

    for block in model.modules():
        if isinstance(block, VisionRemember):
            block.register_forward_pre_hook(hook)


def window_means(level: Tensor) -> Tensor:
    """(tiles, 12, 12, D), each feature the mean of its window of 3x3: what the pooled token was made of."""
    pooled = F.avg_pool2d(level.movedim(-1, 1), 3)  # (tiles, D, 4, 4)
    return pooled.repeat_interleave(3, 2).repeat_interleave(3, 3).movedim(1, -1)
