"""InternVL: tiles one by one, whose patches a pixel shuffle gathers into tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vr_kernels.integrations.vision_remember.capture import BlockCapture, Capture
from vr_kernels.integrations.vision_remember.families.family import Family, Layout


class InternVL(Family):
    tiles_apart = True

    def blocks(self, inner: Any) -> nn.ModuleList:
        return inner.vision_tower.encoder.layer  # type: ignore[no-any-return]

    def width(self, inner: Any) -> int:
        return inner.config.vision_config.hidden_size  # type: ignore[no-any-return]

    def window(self, inner: Any) -> tuple[int, int]:
        side = round(1 / inner.config.downsample_ratio)
        return side, side

    def capture(self, inner: Any, levels: Sequence[int], *, saliency: bool) -> Capture:
        return BlockCapture(self.blocks(inner), levels, first_row=1)

    def layouts(self, inner: Any, arguments: Mapping[str, Any], captured: Capture) -> list[Layout]:
        tiles, patches = captured.features[0].shape[:2]
        side = math.isqrt(patches)
        numbers = torch.arange(patches).view(1, side, side, 1)
        windows = inner.pixel_shuffle(numbers, scale_factor=inner.config.downsample_ratio)  # (1, n_h, n_w, K)
        cells = windows.shape[1] * windows.shape[2]
        return [Layout(windows, cells=torch.arange(cells))] * tiles
