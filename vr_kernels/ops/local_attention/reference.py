"""The definition of local attention, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vr_kernels.ops._windows import Windows, gather_windows


def local_attention(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    windows: Windows,
    window_index: Tensor | None = None,
    attention_bias: Tensor | None = None,
    saliency: Tensor | None = None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each query attends to its own window: query (*leading, h, d), keys and values (*rows, h_kv, d) a level.

    Returns the output (*leading, h, d_v), the attention weights (*leading, h, K) and their log-sum-exp (*leading, h).
    """
    heads = query.shape[-2]
    q = query.reshape(windows.count, *query.shape[-2:])  # (N, h, d)
    key, present = gather_windows(torch.cat(list(keys), -1), windows, window_index)  # (N, K, h_kv, d), (N, K)
    value = gather_windows(torch.cat(list(values), -1), windows, window_index)[0] if values else key
    if saliency is not None:
        value = value * gather_windows(saliency, windows, window_index)[0][..., None, None].to(value.dtype)
    key = key.repeat_interleave(heads // key.shape[-2], -2)  # (N, K, h, d)
    value = value.repeat_interleave(heads // value.shape[-2], -2)  # (N, K, h, d_v)

    scores = torch.einsum("nhd,nkhd->nhk", q, key)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if attention_bias is not None:
        scores = scores + attention_bias
    attention, lse = masked_softmax(scores, present[:, None, :])
    out = torch.einsum("nhk,nkhd->nhd", attention.to(value.dtype), value)
    return (
        out.reshape(*windows.leading, heads, out.shape[-1]),
        attention.reshape(*windows.leading, heads, windows.slots),
        lse.reshape(*windows.leading, heads),
    )


def masked_softmax(scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the present slots and its log-sum-exp; a row with nothing left gives zeros and -inf, never NaN."""
    scores = scores.masked_fill(~present, -torch.inf)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    finite = scores.masked_fill(empty, 0.0)  # so that neither the softmax nor its gradient makes a NaN
    attention = finite.softmax(-1).masked_fill(empty, 0.0)
    lse = finite.logsumexp(-1).masked_fill(empty.squeeze(-1), -torch.inf)
    return attention, lse
