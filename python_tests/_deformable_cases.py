"""Calls of ``deformable_attention`` drawn from a seed, and what it computes: one sample after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from python_tests._cases import Call, randn


def deformable_call(
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    auxiliary: torch.dtype = torch.float32,
    batch: int = 2,
    queries: int = 5,
    heads: int = 3,
    width: int = 8,
    sizes: Sequence[tuple[int, int]] = ((4, 6), (3, 5)),
    points: int = 4,
    outside: float = 0.2,
    **options: Any,
) -> Call:
    """``auxiliary`` is the dtype of locations and weights; locations reach ``outside`` beyond every edge."""
    g = torch.Generator().manual_seed(seed)
    shape = (batch, queries, heads, len(sizes), points)
    call: Call = {
        "value": [randn(g, batch, *size, heads, width, dtype=dtype) for size in sizes],
        "sampling_locations": (torch.rand(*shape, 2, generator=g) * (1 + 2 * outside) - outside).to(auxiliary),
        "attention_weights": randn(g, *shape, dtype=auxiliary),
    }
    return call | options


def deformable_attention(value: Sequence[Tensor], sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """The operator with explicit loops; a corner outside its level is left out."""
    batch, queries, heads, levels, points = attention_weights.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total = value[0].new_zeros(value[0].shape[-1])
                for i in range(levels):
                    for p in range(points):
                        place = sampling_locations[b, q, h, i, p]
                        total = total + attention_weights[b, q, h, i, p] * sample(value[i][b, :, :, h], place)
                rows.append(total)
    return torch.stack(rows).view(batch, queries, heads, -1)


def sample(grid: Tensor, place: Tensor) -> Tensor:
    """(H, W, d) at (x, y): every feature weighs by how near it is, a triangle of two features' width."""
    height, width = grid.shape[:2]
    x, y = place[0] * width - 0.5, place[1] * height - 0.5
    left, top = math.floor(x.item()), math.floor(y.item())
    total = grid.new_zeros(grid.shape[-1])
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                share_y = 1 - (y - row) if row == top else 1 + (y - row)
                share_x = 1 - (x - column) if column == left else 1 + (x - column)
                total = total + share_y * share_x * grid[row, column]
    return total
