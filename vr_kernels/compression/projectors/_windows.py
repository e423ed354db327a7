"""The features of each token's window: side by side, or their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops import window_index_from_grid


def window_rows(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(tiles, H, W, C) -> (tiles, n_h, n_w, s_h, s_w, C), a view; the grid divides H and W."""
    height, width = features.shape[1:3]
    windows: Tensor = features.unflatten(2, (grid[1], width // grid[1])).unflatten(1, (grid[0], height // grid[0]))
    return windows.transpose(2, 3)  # (tiles, n_h, s_h, n_w, s_w, C) before


def window_index(features: Tensor, grid: tuple[int, int], *, batch: int = 1) -> Tensor:
    """``window_index_from_grid`` of features (tiles, H, W, C), on their device.

    It is made on the CPU: making it reads a size back, which on a GPU would wait for all work before it.
    """
    height, width = features.shape[1:3]
    index = window_index_from_grid(height, width, *grid, batch=batch, device="cpu")
    return index.to(features.device, non_blocking=True)


def window_mean(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """(tiles, H, W, C) -> (tiles, n_h, n_w, C), as adaptive average pooling; summed in float32 at least.

    Not ``adaptive_avg_pool2d``: on a GPU its gradient adds in no fixed order.
    """
    height, width = features.shape[1:3]
    wide = torch.promote_types(features.dtype, torch.float32)
    if height % grid[0] == 0 and width % grid[1] == 0:
        whole: Tensor = window_rows(features, grid).mean((3, 4), dtype=wide)
        return whole.to(features.dtype)
    index = window_index(features, grid)  # (n, K)
    present = (index >= 0)[..., None]  # (n, K, 1)
    rows = features.flatten(1, 2)[:, index.clamp(min=0)]  # (tiles, n, K, C)
    mean: Tensor = rows.masked_fill(~present, 0).sum(2, dtype=wide) / present.sum(1)  # (tiles, n, C)
    return mean.to(features.dtype).view(len(features), *grid, features.shape[-1])
