"""Small projectors of every name, and features for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vr_kernels.compression import PROJECTORS, Projector, build_projector

HIDDEN = 12
NAMES = tuple(PROJECTORS)
SEVERAL = ("token_packer", "deformable", "stf")
WHOLE = ("concat", "pixel_shuffle", "stf")
OPTIONS: dict[str, dict[str, Any]] = {
    "perceiver": {"query_grid": (2, 3), "num_heads": 2},
    "token_packer": {"num_heads": 2},
    "deformable": {"num_heads": 2},
    "stf": {"tokens": 2},
}


def widths(name: str) -> tuple[int, ...]:
    return (6, 10, 8) if name in SEVERAL else (10,)


def projector(name: str, window: tuple[int, int] = (2, 2), **options: Any) -> Projector:
    given = OPTIONS.get(name, {}) | options
    return build_projector(name, feature_dims=widths(name), hidden_size=HIDDEN, window=window, **given)


def features(
    name: str, grid: tuple[int, int] = (4, 6), *, tiles: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Tensor]:
    """Hidden states without their CLS row: not contiguous."""
    generator = torch.Generator().manual_seed(seed)
    rows = 1 + grid[0] * grid[1]
    drawn = [torch.randn(tiles, rows, width, generator=generator).to(dtype) for width in widths(name)]
    return [states[:, 1:].unflatten(1, grid) for states in drawn]
