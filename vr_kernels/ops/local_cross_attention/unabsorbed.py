"""Keys and values projected once a feature row, then local attention: right where windows are small or overlap much."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from vr_kernels.ops._windows import Windows
from vr_kernels.ops.local_attention import local_attention
from vr_kernels.ops.local_cross_attention.features import joined_features


def local_cross_attention(
    query: Tensor,
    features: Sequence[Tensor],
    key_weight: Tensor,
    value_weight: Tensor,
    *,
    num_heads: int,
    windows: Windows,
    window_index: Tensor | None = None,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float = 1e-6,
    norm_groups: str = "all",
    attention_bias: Tensor | None = None,
    saliency: Tensor | None = None,
    saliency_on: str = "value",
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The reference's function. The projections are ``F.linear``, so whatever stands in for it is honoured."""
    joined = joined_features(features, norm_weight, norm_bias, norm_eps, norm_groups)  # (*rows, C)
    resampled = joined
    if saliency is not None and saliency_on == "feature":
        resampled = joined * saliency.unsqueeze(-1).to(joined.dtype)
        saliency = None
    key = F.linear(joined, key_weight)
    if key_bias is not None:  # it cancels in the softmax: only its gradient of exactly zero is kept
        key = key + 0 * key_bias.sum()
    value = F.linear(resampled, value_weight, None if value_bias is None else value_bias.to(joined.dtype))
    out, attention = local_attention(
        query.unflatten(-1, (num_heads, -1)),
        key.unflatten(-1, (num_heads, -1)),
        value.unflatten(-1, (num_heads, -1)),
        window_index=window_index,
        attention_bias=attention_bias,
        saliency=saliency,
        scale=scale,
        return_attention=True,
    )
    return out.flatten(-2), attention
