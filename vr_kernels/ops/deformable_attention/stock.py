"""Multi-scale deformable attention by ``grid_sample``, as transformers computes it without a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_attention(value: Sequence[Tensor], sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """The arguments and the result of ``reference.deformable_attention``."""
    dtype = torch.promote_types(value[0].dtype, torch.float32)
    batch, queries, heads, _, points = attention_weights.shape
    places = 2 * sampling_locations.to(dtype).transpose(1, 2) - 1  # (B, h, Q, L, P, 2)
    # grid_sample makes NaN of what is no number. From 2 on a place is outside of every level.
    places = places.where(places.abs() < 2, 2)
    samples = [
        F.grid_sample(
            level.to(dtype).permute(0, 3, 4, 1, 2).flatten(0, 1),  # (B*h, d, H, W)
            places[:, :, :, i].flatten(0, 1),  # (B*h, Q, P, 2)
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        for i, level in enumerate(value)
    ]  # L of (B*h, d, Q, P)
    weights = (
        attention_weights.to(dtype).transpose(1, 2).reshape(batch * heads, 1, queries, len(value) * points)
    )  # (B*h, 1, Q, L*P)
    out = (torch.cat(samples, -1) * weights).sum(-1)  # (B*h, d, Q)
    return out.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).to(value[0].dtype)  # type: ignore[no-any-return]
