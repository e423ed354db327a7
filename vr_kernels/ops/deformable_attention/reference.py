"""The definition of multi-scale deformable attention, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def deformable_attention(value: Sequence[Tensor], sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Levels (B, H_l, W_l, h, d), locations (B, Q, h, L, P, 2), weights (B, Q, h, L, P) -> (B, Q, h, d)."""
    dtype = torch.promote_types(value[0].dtype, torch.float32)
    locations, weights = sampling_locations.to(dtype), attention_weights.to(dtype)
    out = weights.new_zeros(*weights.shape[:3], value[0].shape[-1])  # (B, Q, h, d)
    for i, level in enumerate(value):
        samples = bilinear(level.to(dtype), locations[:, :, :, i])  # (B, Q, h, P, d)
        out = out + (weights[:, :, :, i, :, None] * samples).sum(-2)
    return out.to(value[0].dtype)


def bilinear(level: Tensor, locations: Tensor) -> Tensor:
    """Each head's own channels of a level (B, H, W, h, d) at its places (B, Q, h, P, 2), zero outside.

    A level's edges, 0 and 1, stand half a feature outside its outermost features: ``align_corners=False``.
    """
    batch, height, width, heads, _ = level.shape
    x = locations[..., 0] * width - 0.5  # (B, Q, h, P)
    y = locations[..., 1] * height - 0.5
    left, top = x.detach().floor(), y.detach().floor()
    right, below = x - left, y - top  # of the sampling point, from its top left feature
    b = torch.arange(batch, device=level.device).view(-1, 1, 1, 1)
    h = torch.arange(heads, device=level.device).view(-1, 1)

    samples = level.new_zeros(*x.shape, level.shape[-1])
    if height * width == 0:
        return samples
    corners = (
        (left, top, (1 - right) * (1 - below)),
        (left + 1, top, right * (1 - below)),
        (left, top + 1, (1 - right) * below),
        (left + 1, top + 1, right * below),
    )
    for column, row, share in corners:
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        feature = level[b, row.where(inside, 0).long(), column.where(inside, 0).long(), h]  # (B, Q, h, P, d)
        samples = samples + share.where(inside, 0)[..., None] * feature.where(inside[..., None], 0)
    return samples
