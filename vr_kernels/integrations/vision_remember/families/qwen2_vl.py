"""Qwen2-VL and Qwen3-VL: a token is merged from m x m patches, which lie side by side in the sequence.

Grids have any size. Images alone are served; videos are refused with all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.integrations.vision_remember.capture import Capture
from vr_kernels.integrations.vision_remember.families.family import Family, Layout


class Qwen2VL(Family):
    def blocks(self, inner: Any) -> nn.ModuleList:
        return inner.visual.blocks  # type: ignore[no-any-return]

    def parameters(self, inner: Any) -> Iterable[Tensor]:
        named = inner.visual.named_parameters()
        return (parameter for name, parameter in named if "merger" not in name.partition(".")[0])

    def width(self, inner: Any) -> int:
        return inner.visual.patch_embed.embed_dim  # type: ignore[no-any-return]

    def window(self, inner: Any) -> tuple[int, int]:
        side = inner.visual.spatial_merge_size
        return side, side

    def layouts(self, inner: Any, arguments: Mapping[str, Any], captured: Capture) -> list[Layout]:
        merge = inner.visual.spatial_merge_size
        grids = arguments["image_grid_thw"].tolist()
        rows = self.captured_rows(inner, arguments["image_grid_thw"])  # (patches of all images,)
        layouts, first = [], 0
        for (frames, height, width), own in zip(grids, rows.split([t * h * w for t, h, w in grids]), strict=True):
            groups = (own - first).view(-1, merge * merge)  # as the merger joins them
            layouts.append(
                Layout(groups.view(frames, height // merge, width // merge, -1), cells=torch.arange(len(groups)))
            )
            first += len(own)
        return layouts

    def captured_rows(self, inner: Any, grid_thw: Tensor) -> Tensor:
        """The row of the captured states that each patch, in the order of pixel_values, is in."""
        return torch.arange(int(grid_thw.prod(-1).sum()))
