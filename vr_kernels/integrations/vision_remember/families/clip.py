"""What the families around a CLIP or SigLIP tower share: a token is one patch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vr_kernels.integrations._vision_tower import VisionTower
from vr_kernels.integrations.encoder import capture_features
from vr_kernels.integrations.vision_remember.capture import Capture
from vr_kernels.integrations.vision_remember.families.family import Family, Layout


class ClipFamily(Family):
    def tower(self, inner: Any) -> VisionTower:
        return VisionTower("apply_vision_remember", inner.vision_tower)

    def blocks(self, inner: Any) -> nn.ModuleList:
        return self.tower(inner).blocks

    def width(self, inner: Any) -> int:
        return inner.config.vision_config.hidden_size  # type: ignore[no-any-return]

    def window(self, inner: Any) -> tuple[int, int]:
        return 1, 1

    def saliency(self, inner: Any) -> str | None:
        return "cls" if self.tower(inner).has_cls else "received"

    def capture(self, inner: Any, levels: Sequence[int], *, saliency: bool) -> Capture:
        """Features (tiles, H, W, D) a level."""
        return capture_features(inner.vision_tower, levels, saliency=self.saliency(inner) if saliency else None)

    def cells(self, inner: Any, tiles: int, grid: tuple[int, int], strategy: str | None) -> Tensor:
        """(tiles, N) float64 numbers of the patches that the projector gets, -1 at a CLS row that it gets as well."""
        strategy = inner.config.vision_feature_select_strategy if strategy is None else strategy
        numbers = torch.arange(tiles * grid[0] * grid[1], dtype=torch.float64).view(tiles, -1)
        if self.tower(inner).has_cls:
            numbers = torch.nn.functional.pad(numbers, (1, 0), value=-1)
            numbers = numbers[:, 1:] if strategy == "default" else numbers
        elif strategy == "default":
            raise ValueError(
                "vision_remember: vision_feature_select_strategy is 'default', which drops the first row, and this "
                "tower has no CLS row; it must be 'full'"
            )
        return numbers


def one_patch_a_cell(tiles: int, grid: tuple[int, int], cells: Tensor) -> Layout:
    windows = torch.arange(tiles * grid[0] * grid[1]).view(tiles, *grid, 1)
    return Layout(windows, cells)


def packed_cells(pack: Callable[[Tensor, Tensor], Tensor], numbers: Tensor) -> Tensor:
    """(slots,) int64: what the model's own packing makes of the patches' numbers (tiles, N), newlines -1.

    Beside each number goes its square: a mean of different numbers is no longer the root of the mean of their squares,
    so that a grid which was resized on the way shows itself.

    Args:
        pack: from (tiles, N, C) and a newline (C,) to (slots, C).

    Raises:
        ValueError: the grid was interpolated, so that its tokens stand for no whole patches.
    """
    packed = pack(torch.stack([numbers, numbers.square()], -1), torch.tensor([-1.0, 1.0], dtype=torch.float64))
    if not torch.equal(packed[:, 0].square(), packed[:, 1]):
        raise ValueError(
            "vision_remember: the model resizes this image's grid of features, whose tokens are then made of no whole "
            "patches; give an image with fewer tiles, or raise the limit of vision_aspect_ratio (anyres_max_...)"
        )
    return packed[:, 0].long()
