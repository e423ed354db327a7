"""The definition of attention importance, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from vr_kernels.ops._sequences import sequence_of_tokens
from vr_kernels.ops.local_attention.reference import masked_softmax


def attention_importance(
    query_rows: Tensor,
    key: Tensor,
    *,
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    softmax: bool,
    scale: float,
) -> Tensor:
    """The weights of every given row and head: query_rows (B, R, h, d), key (B, N, h_kv, d) -> (B, h, R, N).

    Packed: query_rows (S, R, h, d), key (T, h_kv, d) -> (h, R, T).
    """
    if cu_seqlens is not None:  # every sequence's rows against all tokens, of which the mask leaves the sequence's own
        tokens = key.shape[0]
        sequence = torch.arange(query_rows.shape[0], device=key.device)
        present = sequence_of_tokens(cu_seqlens, tokens) == sequence[:, None]  # (S, T)
        key = key.expand(query_rows.shape[0], *key.shape)  # (S, T, h_kv, d)
    elif key_mask is not None:
        present = key_mask
        key = key.masked_fill(~key_mask[..., None, None], 0.0)  # a NaN in a masked key must not come in by a gradient
    else:
        present = torch.ones(key.shape[:2], dtype=torch.bool, device=key.device)
    present = present[:, None, None]  # (B, 1, 1, N)
    scores = row_scores(query_rows, key, scale)  # (B, h, R, N)
    weights = masked_softmax(scores, present)[0] if softmax else scores.masked_fill(~present, 0.0)
    return weights if cu_seqlens is None else weights.sum(0)  # a token has weight in one sequence alone


def row_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """query (..., R, h, d), key (..., N, h_kv, d) -> (..., h, R, N), float32 at least."""
    key = key.repeat_interleave(query.shape[-2] // key.shape[-2], -2)
    scores = torch.einsum("...rhd,...nhd->...hrn", query, key)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
