"""The definition of local cross-attention, in plain PyTorch. It does not use the absorption algebra that it tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vr_kernels.ops._windows import Windows, gather_windows
from vr_kernels.ops.local_attention.reference import masked_softmax
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
    """Each token attends to its own window of encoder features (Vision Remember v2, Eq. 2; saliency: v1, Eq. 3).

    query (*leading, E), features (*rows, D_l), weights (E, C) -> (*leading, E), attention weights (*leading, h, K).
    """
    q = query.reshape(windows.count, num_heads, query.shape[-1] // num_heads)  # (N, h, d)
    joined = joined_features(features, norm_weight, norm_bias, norm_eps, norm_groups)
    window, present = gather_windows(joined, windows, window_index)  # (N, K, C), (N, K)
    importance = window.new_ones(windows.count, windows.slots, 1)
    if saliency is not None:
        importance = gather_windows(saliency, windows, window_index)[0].unsqueeze(-1).to(window.dtype)  # (N, K, 1)

    key = F.linear(window, key_weight, _as(key_bias, window)).unflatten(-1, (num_heads, -1))  # (N, K, h, d)
    if saliency_on == "feature":
        value = F.linear(window * importance, value_weight, _as(value_bias, window))  # (N, K, E)
    else:
        value = F.linear(window, value_weight, _as(value_bias, window)) * importance
    value = value.unflatten(-1, (num_heads, -1))  # (N, K, h, d)

    scores = torch.einsum("nhd,nkhd->nhk", q, key)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if attention_bias is not None:
        scores = scores + attention_bias
    attention, _ = masked_softmax(scores, present[:, None, :])
    out = torch.einsum("nhk,nkhd->nhd", attention.to(value.dtype), value)
    return out.reshape(query.shape), attention.reshape(*windows.leading, num_heads, windows.slots)


def _as(bias: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(like.dtype)
